from __future__ import annotations

import argparse

from buildkit.cli.command import Command, CommandHelpFormatter

COMMAND = Command("demo", "print the arguments", run="builtins:len", example="demo a")


def help_of(*arguments: tuple[str, dict[str, object]]) -> str:
    parser = argparse.ArgumentParser(prog="p", formatter_class=CommandHelpFormatter)
    for name, options in arguments:
        parser.add_argument(name, **options)  # type: ignore[arg-type] # the options of one argument
    return parser.format_help()


def test_help_shows_defaults() -> None:
    assert "number of runs (default: 3)" in help_of(("--runs", {"default": 3, "help": "number of runs"}))


def test_help_shows_no_default_of_flags_and_empty_values() -> None:
    shown = help_of(
        ("--flag", {"action": "store_true", "help": "a flag"}),
        ("--name", {"default": "", "help": "a name"}),
        ("--many", {"default": [], "help": "many"}),
        ("--none", {"help": "none"}),
    )

    assert "(default" not in shown


def test_help_does_not_repeat_a_default() -> None:
    assert help_of(("--runs", {"default": 3, "help": "runs (default: three)"})).count("default") == 1


def test_command_runs_its_function() -> None:
    assert COMMAND(["a", "b"]) == 2


def test_parser_of_another_command_has_the_summary_only() -> None:
    commands = argparse.ArgumentParser().add_subparsers()

    COMMAND.add_parser(commands, is_chosen=False)

    shown = commands.choices["demo"].format_help()
    assert "Print the arguments." in shown
    assert shown.rstrip().endswith("example:\n  python -m buildkit demo a")
    assert "--project" not in shown
