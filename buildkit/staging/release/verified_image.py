"""What may be released: the image that was built, verified, and is in the engine, each by the same digest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from buildkit.build.record import load_record
from buildkit.errors import CommandFailed, ReleaseFailed, UsageError
from checks.verdicts import RESULTS_VERSION, Results

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.engine.client import Engine
    from buildkit.staging.release.records import Releases

__all__ = ["VerifiedImage", "load_verified_image", "tag_of"]

STEP = "verified"


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """An image that may be released.

    Attributes:
        digest: of its manifest, in the engine and in the records of its build and its checks.
        version: as pyproject.toml had it.
        revision: the git commit, `-dirty` appended where files differed from it.
        not_verified: checks that could not be made, by name.
    """

    digest: str
    version: str
    revision: str
    not_verified: tuple[str, ...]


def load_verified_image(build_path: Path, verify_path: Path, *, engine: Engine) -> VerifiedImage:
    """The image of the two records.

    Raises:
        UsageError, InvalidFile: a record is missing or cannot be read.
        ReleaseFailed: the image was not verified, was found at fault, or another one was verified.
    """
    record = load_record(build_path)
    results = _results(verify_path)
    if results.image != record.digest:
        reason = f"{verify_path} is about {results.image}, but {record.digest} was built"
        raise ReleaseFailed(STEP, f"{reason}; run `nox -s verify-image`")
    for outcome, word in (("fail", "failed"), ("error", "broke")):
        names = [check.name for check in results.checks if check.outcome == outcome]
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            raise ReleaseFailed(STEP, f"{len(names)} checks of {record.digest} {word}: {shown}")
    if not any(check.outcome == "pass" for check in results.checks):
        raise ReleaseFailed(STEP, f"{verify_path} holds no check that passed; run `nox -s verify-image`")
    try:
        engine.docker("image", "inspect", "--format", "{{.Id}}", record.digest)
    except CommandFailed as error:
        raise ReleaseFailed(STEP, f"the engine has no image {record.digest}; run `nox -s build-image`") from error
    return VerifiedImage(
        digest=record.digest,
        version=record.labels.get("org.opencontainers.image.version", "0"),
        revision=record.revision,
        not_verified=tuple(check.name for check in results.checks if check.outcome == "not verified"),
    )


def _results(path: Path) -> Results:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(str(path), "missing", "run `nox -s verify-image` first") from None
    try:
        version = json.loads(content).get("schema_version")
    except (ValueError, AttributeError) as error:
        raise UsageError(str(path), str(error), "not a verification record; run `nox -s verify-image` again") from error
    if version != RESULTS_VERSION:
        raise UsageError(f"{path}: schema_version", version, f"this harness reads {RESULTS_VERSION}")
    try:
        return msgspec.json.decode(content, type=Results)
    except msgspec.MsgspecError as error:
        raise UsageError(str(path), str(error), "not a verification record; run `nox -s verify-image` again") from error


def tag_of(verified_image: VerifiedImage, releases: Releases) -> str:
    """Version and git revision; the digest's beginning too where the commit does not say which image it is.

    That is so for a checkout with changes, for none, and where another image of the same commit was released before.
    """
    revision = re.sub(r"[^A-Za-z0-9_.-]", "-", verified_image.revision)
    commit, dirty, _ = revision.partition("-dirty")
    tag = f"{verified_image.version}-{commit[:12]}"
    taken = any(each.name == tag and each.digest != verified_image.digest for each in releases.releases)
    if dirty or commit == "unknown" or taken:
        tag += f"-{verified_image.digest.removeprefix('sha256:')[:8]}"
    return tag
