"""Defines the errors that the toolkit raises on purpose, and their exit codes.

The first group is defined here. Each of the others is defined in the module in brackets, which raises it.

    BuildkitError                   exit code
    ├── UsageError                  2   an argument or a configuration value is invalid
    ├── EngineUnavailable           3   no container engine answers, and none could be started
    ├── EngineTooOld                3   the engine or the builder is older than the minimum version
    ├── CommandFailed               3   a program failed
    ├── BaseUnavailable             3   the base image can be neither pulled nor made
    ├── DiskTooFull                 3   the build needs more room than there is
    ├── RegistryFailed              3   a registry refused or broke off a request
    ├── Busy                        3   another process holds the lock
    ├── BuildFailed                 1   a stage of the Dockerfile failed
    ├── StackFailed                 1   a service, a job or the canary did not start
    ├── ReleaseFailed               1   a release stopped at a step; the exit code is that of the cause
    │
    ├── InvalidFile                 2   a saved file is missing, malformed or of another version (jsonfile)
    ├── PlotlyMissing               3   plotly, which the HTML page needs, is not installed (report.html)
    ├── RequestTimedOut             1   a service did not answer in time (staging.probes.client)
    ├── ImageError                  3   an image cannot be read (image.errors)
    │   ├── ImageNotFound               no file, image, tag or platform of this name
    │   ├── AmbiguousImage              several images match
    │   ├── UnsupportedImage            no container image, or one that uses an unknown feature
    │   ├── DigestMismatch              content does not have its digest
    │   └── CorruptImage                metadata or archive is truncated or malformed
    │       └── MissingBlob             a blob is not in this store
    ├── LayerError                  3   a layer cannot be read (image.errors)
    │   ├── CorruptLayer                no complete tar archive in a known compression
    │   ├── UnsafePath                  an entry or a link points out of the image
    │   ├── UnsupportedEntry            an entry of a type that no engine unpacks
    │   └── LayerTooLarge               more bytes or entries than the limits allow
    ├── UnsupportedBinary           3   a library or GPU code uses an unknown feature (binary.elf)
    ├── CompilerMissing             3   no C compiler for placeholders of libraries (slim.placeholders.compiler)
    ├── NotInstalledTree            2   a folder is not an installed environment (slim.tree)
    ├── InvalidManifest             2   a slim manifest is of another version or malformed (slim.manifest)
    ├── TargetsAlreadyRemoved       2   an earlier run removed GPU code that this run must keep (slim.manifest)
    └── WorkloadFailed              3   the workload of a proof failed (slim.proof.run_workload)

Exit codes: 0 success, 1 the image or release is at fault, 2 wrong usage or configuration, 3 the environment is at
fault, 130 interrupted. Only `buildkit.cli.main` turns an error into an exit. This module needs the standard library
only, because `buildkit.slim` runs in a build stage.
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
    """A failure with a message for the user; `exit_code` is the exit code of the program."""

    exit_code: ClassVar[int] = 3


@dataclass
class UsageError(BuildkitError):
    """*value* is invalid for *field*; *fix* says what is valid."""

    field: str
    value: object
    fix: str

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}: {self.fix}"


@dataclass
class EngineUnavailable(BuildkitError):
    """No engine answers at *address*; the user can run *commands* to start one."""

    address: str
    reason: str
    commands: Sequence[str] = ()

    def __str__(self) -> str:
        advice = "".join(f"\n    {command}" for command in self.commands)
        return f"no container engine answers at {self.address}: {self.reason}" + (
            f"\nTo start one, run:{advice}" if advice else ""
        )


@dataclass
class EngineTooOld(BuildkitError):
    """*version* of *program* is older than *minimum*, the oldest supported version."""

    program: str
    version: str
    minimum: str
    fix: str

    def __str__(self) -> str:
        return f"{self.program} {self.version} is too old: {self.minimum} or newer is needed. {self.fix}"


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
    """The base image *reference* can be neither pulled nor made here."""

    reference: str
    reason: str

    def __str__(self) -> str:
        return f"base image {self.reference}: {self.reason}"


@dataclass
class DiskTooFull(BuildkitError):
    """*folder* has *free_bytes* of free space, but a build of *target* needs *needed_bytes*."""

    folder: str
    target: str
    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return (
            f"building {self.target} needs {self.needed_bytes / 1e9:.1f} GB in {self.folder}, "
            f"{self.free_bytes / 1e9:.1f} GB are free. Make room with `docker buildx prune` and `docker image prune`, "
            "or build with `--skip-disk-check`."
        )


@dataclass
class BuildFailed(BuildkitError):
    """A build stopped in *stage* at *instruction*; the image of the previous build is unchanged."""

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
    """*registry* refused or broke off a request; a retry does not send the data again that it already stores."""

    registry: str
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return f"registry {self.registry}: {self.reason}" + (f"\n{self.fix}" if self.fix else "")


@dataclass
class Busy(BuildkitError):
    """*what* is locked by *holder* (process, user and command)."""

    what: str
    holder: str

    def __str__(self) -> str:
        return f"{self.what} is in use by {self.holder}; wait until it has finished"


@dataclass
class StackFailed(BuildkitError):
    """A service, a job or the canary did not start, or did not end as it should."""

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
    exit_code: int = 1  # type: ignore[misc] # a class variable in the other errors, that of the cause here

    def __str__(self) -> str:
        reason = f"stopped at {self.step}: {self.reason}" if self.step else self.reason
        return f"{reason}\n{self.serving}" if self.serving else reason
