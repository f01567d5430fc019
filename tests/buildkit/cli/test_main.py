"""The command line: how a command is found, its help, and its exit codes."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import pytest

from buildkit.cli.main import COMMANDS, command_index, main, make_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit.cli.command import Command

PROJECT = Path(__file__).resolve().parents[3]
OPERANDS = {"compare": ["a", "b"], "backup": ["file"], "restore": ["file"]}
PARSED = [command for command in COMMANDS if command.add_arguments]


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Restores the handlers that `main` replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def arguments_of(command: Command) -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    resolve_name(command.add_arguments)(parser)
    return parser._actions


@pytest.mark.parametrize("command", PARSED, ids=lambda command: command.name)
def test_project_is_accepted_before_and_after_the_command(command: Command) -> None:
    words = [command.name, *OPERANDS.get(command.name, [])]
    parser = make_parser(command.name)

    assert parser.parse_args(words).project == Path.cwd()
    assert parser.parse_args(["--project", "/x", *words]).project == Path("/x")
    assert parser.parse_args([*words, "--project", "/x"]).project == Path("/x")
    assert callable(resolve_name(command.run))


@pytest.mark.parametrize("command", PARSED, ids=lambda command: command.name)
def test_command_help_describes_each_argument_and_ends_with_an_example(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([command.name, "--help"])
    lines = capsys.readouterr().out.rstrip().splitlines()

    assert ended.value.code == 0
    assert lines[-2:] == ["example:", f"  python -m buildkit {command.example}"]
    assert [action.dest for action in arguments_of(command) if not action.help] == []
    words = shlex.split(command.example)
    assert make_parser(command.name).parse_args(words).command == command.name


def test_help_of_the_program_lists_every_command_quickly() -> None:
    program = "import sys; from buildkit.cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert [command.name for command in COMMANDS if f"    {command.name} " not in shown.stdout] == []
    assert {"rich", "msgspec", "asyncio"}.isdisjoint(shown.stdout.split())


def test_slim_parses_its_own_words_and_refuses_a_project(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--project", "/x"], ["--project=/x"]):
        assert main([*option, "slim", "/y"]) == 2
        assert f"'{' '.join(option)}': leave it out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["slim", "--help"])
    assert "--profile" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["stag"], [], ["build", "--project"]])
def test_unknown_or_missing_words_exit_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("words", "index"), [([], 0), (["a"], 0), (["--project", "a", "b"], 2), (["--project=a", "b"], 1), (["-h", "b"], 1)]
)
def test_command_is_the_first_word_that_is_no_option(words: list[str], index: int) -> None:
    assert command_index(words) == index


def test_expected_failure_is_one_message_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--project", str(tmp_path), "lock", "--check"]) == 2
    assert capsys.readouterr().err.startswith("error: project = ")


def test_interrupt_exits_with_130_and_says_what_is_unchanged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("buildkit.cli.build.run_lock", interrupted)

    assert main(["lock"]) == 130
    assert capsys.readouterr().err == "interrupted; the lock files are unchanged\n"
