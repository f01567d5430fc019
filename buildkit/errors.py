"""Everything that the harness raises on purpose.

    BuildkitError                 exit code
    ├── UsageError                2   an argument or a configuration value is wrong
    ├── EngineUnavailable         3   no container engine, and none could be started
    ├── EngineTooOld              3   an engine or builder below the least version
    ├── CommandFailed             3   a program that the harness needs failed
    ├── BaseUnavailable           3   no base image, from a registry or made here
    ├── DiskTooFull               3   less room than the build needs
    ├── RegistryFailed            3   a registry did not take or give what it was asked
    ├── Busy                      3   another process holds the lock that this one needs
    ├── BuildFailed               1   a stage of the Dockerfile failed
    ├── StackFailed               1   a service, a job or the canary did not get ready
    └── ReleaseFailed             1   a release stopped at one of its steps; the exit code is that of the cause

Exit codes: 0 fine, 1 findings (the image is at fault), 2 usage or configuration, 3 could not do it (the environment is
at fault). Only ``buildkit/__main__.py`` turns an error into an exit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BaseUnavailable",
    "BuildFailed",
    "BuildkitError",
    "Busy",
    "CommandFailed",
    "DiskTooFull",
    "EngineTooOld",
    "EngineUnavailable",
    "RegistryFailed",
    "ReleaseFailed",
    "StackFailed",
    "UsageError",
]


class BuildkitError(Exception):
    """A failure with a sentence for the user; `exit_code` is what a script sees."""

    exit_code: ClassVar[int] = 3


@dataclass
class UsageError(BuildkitError):
    """*value* is not acceptable for *field*; *fix* says what would be."""

    field: str
    value: object
    fix: str

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}: {self.fix}"


@dataclass
class EngineUnavailable(BuildkitError):
    """No engine answers at *address*; *commands* are what the user can run to have one."""

    address: str
    reason: str
    commands: Sequence[str] = ()

    def __str__(self) -> str:
        advice = "".join(f"\n    {command}" for command in self.commands)
        return f"no container engine answers at {self.address}: {self.reason}" + (
            f"\nTo have one, run:{advice}" if advice else ""
        )


@dataclass
class EngineTooOld(BuildkitError):
    """*program* is older than the least version that this harness works with."""

    program: str
    version: str
    least: str
    fix: str

    def __str__(self) -> str:
        return f"{self.program} {self.version} is too old: {self.least} or newer is needed. {self.fix}"


@dataclass
class CommandFailed(BuildkitError):
    """*command* ended with *exit_code_of_command*; *log_tail* holds its last lines."""

    command: Sequence[str]
    exit_code_of_command: int
    log_tail: str = ""

    def __str__(self) -> str:
        return f"`{' '.join(self.command)}` failed with exit code {self.exit_code_of_command}" + (
            f":\n{self.log_tail}" if self.log_tail else ""
        )


@dataclass
class BaseUnavailable(BuildkitError):
    """The base image *reference* can neither be pulled nor made here."""

    reference: str
    reason: str

    def __str__(self) -> str:
        return f"base image {self.reference}: {self.reason}"


@dataclass
class DiskTooFull(BuildkitError):
    """*folder* has *free_bytes*, a build of *target* needs *needed_bytes*."""

    folder: str
    target: str
    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return (
            f"building {self.target} needs {self.needed_bytes / 1e9:.1f} GB in {self.folder}, "
            f"{self.free_bytes / 1e9:.1f} GB are free. `docker buildx prune` and `docker image prune` make room, "
            "`--skip-disk-check` builds all the same."
        )


@dataclass
class BuildFailed(BuildkitError):
    """A build stopped in *stage* at *instruction*; the image of the build before is as it was."""

    target: str
    stage: str
    instruction: str
    exit_code_of_step: int | None
    log_tail: str

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        code = "" if self.exit_code_of_step is None else f" (exit code {self.exit_code_of_step})"
        return (
            f"{self.target} failed in stage {self.stage}{code} at\n    {self.instruction}\n"
            f"last lines of its log:\n{self.log_tail}"
        )


@dataclass
class RegistryFailed(BuildkitError):
    """*registry* did not do what was asked; what it has already is not sent again by the next try."""

    registry: str
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return f"registry {self.registry}: {self.reason}" + (f"\n{self.fix}" if self.fix else "")


@dataclass
class Busy(BuildkitError):
    """*holder* (process, user and command) does what must not be done twice at once."""

    what: str
    holder: str

    def __str__(self) -> str:
        return f"{self.what} is in use by {self.holder}; wait until it is done"


@dataclass
class StackFailed(BuildkitError):
    """A service, a job or the canary did not reach the state that was wanted."""

    reason: str

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return self.reason


@dataclass
class ReleaseFailed(BuildkitError):
    """A release stopped. A step gives the *reason* alone; the runner adds the rest.

    Attributes:
        reason: why the step stopped.
        step: the step's name.
        serving: what was undone, and which release serves now.
        exit_code: that of the error that stopped the step.
    """

    reason: str
    step: str = ""
    serving: str = ""
    exit_code: int = 1  # type: ignore[misc] # a class variable elsewhere; here it is the cause's

    def __str__(self) -> str:
        reason = f"stopped at {self.step}: {self.reason}" if self.step else self.reason
        return f"{reason}\n{self.serving}" if self.serving else reason
