from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import buildkit
from buildkit import errors
from buildkit.errors import BuildFailed, BuildkitError, CommandFailed, DiskTooFull, EngineUnavailable, ReleaseFailed

PROJECT = Path(__file__).resolve().parents[2]
TREE = re.compile(r"^[ │]*[├└]── (\w+) +(\d?)", re.MULTILINE)


def public_exceptions() -> dict[str, type[BaseException]]:
    """The exception classes without a leading underscore that modules of buildkit define, by name."""
    found: dict[str, type[BaseException]] = {}
    for module in pkgutil.walk_packages(buildkit.__path__, "buildkit."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            is_own = inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == module.name
            if is_own and not name.startswith("_"):
                found[name] = value
    return found


def test_every_public_exception_is_a_buildkit_error() -> None:
    strangers = {name: kind for name, kind in public_exceptions().items() if not issubclass(kind, BuildkitError)}

    assert strangers == {}


def test_docstring_draws_every_exception_with_its_exit_code() -> None:
    drawn = dict(TREE.findall(errors.__doc__ or ""))
    defined = public_exceptions()

    assert sorted(drawn) == sorted(defined.keys() - {"BuildkitError"})
    codes = {name: str(kind.exit_code) for name, kind in defined.items() if issubclass(kind, BuildkitError)}
    assert {name: code for name, code in drawn.items() if code and code != codes[name]} == {}


def test_errors_need_the_standard_library_only() -> None:
    names = "{name.partition('.')[0] for name in sys.modules}"
    program = f"import buildkit.errors, sys; print(*{names} - sys.stdlib_module_names)"
    words = [sys.executable, "-S", "-c", program]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True)

    assert set(done.stdout.split()) <= {"buildkit", "__main__"}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (CommandFailed(["docker", "info"], 3, "denied"), "`docker info` failed with exit code 3:\ndenied"),
        (
            EngineUnavailable("here", "no answer", ["nox -s engine"]),
            "no container engine answers at here: no answer\nTo start one, run:\n    nox -s engine",
        ),
        (
            BuildFailed("api", "torch", "RUN x", 2, "no room"),
            "api failed in stage torch (exit code 2) at\n    RUN x\nlast lines of its log:\nno room",
        ),
        (ReleaseFailed("too slow", "canary", "v1 serves"), "stopped at canary: too slow\nv1 serves"),
    ],
)
def test_message_says_what_failed_and_why(error: BuildkitError, shown: str) -> None:
    assert str(error) == shown


def test_full_disk_message_names_the_ways_out() -> None:
    assert "`--skip-disk-check`" in str(DiskTooFull("/var", "api", 2, 1))
