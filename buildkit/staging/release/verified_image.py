"""Finds the image that may be released: built, verified, and in the engine, by the same digest in all three places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit import jsonfile
from buildkit.build.record import load_record
from buildkit.errors import CommandFailed, ReleaseFailed
from buildkit.text import format_count
from checks.results import RESULTS_VERSION, Results

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.engine.client import Engine
    from buildkit.staging.release.records import Releases

__all__ = ["VerifiedImage", "load_verified_image", "tag_of"]

_MAX_NAMES = 5


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """An image that may be released.

    Attributes:
        digest: of its manifest, in the engine and in the records of build and verification.
        version: of the project when it was built.
        revision: the git commit, with `-dirty` if files differed from it.
        not_verified: names of checks that could not run on this machine.
    """

    digest: str
    version: str
    revision: str
    not_verified: tuple[str, ...]


def load_verified_image(build_path: Path, verify_path: Path, *, engine: Engine) -> VerifiedImage:
    """Returns the image that both records are about.

    Raises:
        InvalidFile: a record is missing or cannot be read.
        ReleaseFailed: another image was verified, a check failed, none passed, or the engine lacks the image.
    """
    record = load_record(build_path)
    results = jsonfile.load(
        verify_path,
        Results,
        version=RESULTS_VERSION,
        what="a verification record",
        fix="run `nox -s verify-image` first",
    )
    if results.image != record.digest:
        reason = f"{verify_path} is about {results.image}, but {record.digest} was built"
        raise ReleaseFailed(f"{reason}; run `nox -s verify-image`")
    for outcome, verb in (("fail", "failed"), ("error", "broke")):
        names = [check.name for check in results.checks if check.outcome == outcome]
        if names:
            more = f" and {len(names) - _MAX_NAMES} more" if names[_MAX_NAMES:] else ""
            shown = ", ".join(names[:_MAX_NAMES]) + more
            raise ReleaseFailed(f"{format_count(len(names), 'check')} of {record.digest} {verb}: {shown}")
    if not any(check.outcome == "pass" for check in results.checks):
        raise ReleaseFailed(f"{verify_path} has no check that passed; run `nox -s verify-image`")
    try:
        engine.docker("image", "inspect", "--format", "{{.Id}}", record.digest)
    except CommandFailed as error:
        raise ReleaseFailed(f"the engine has no image {record.digest}; run `nox -s build-image`") from error
    return VerifiedImage(
        digest=record.digest,
        version=record.labels.get("org.opencontainers.image.version", "0"),
        revision=record.revision,
        not_verified=tuple(check.name for check in results.checks if check.outcome == "not verified"),
    )


def tag_of(image: VerifiedImage, history: Releases) -> str:
    """Returns the name of the release: version and git revision, as `1.2.3-cccccccccccc`.

    The start of the digest is added if the commit does not identify the image: if files differed from it, if there was
    no checkout, or if another image of the same commit was released before.
    """
    revision = re.sub(r"[^A-Za-z0-9_.-]", "-", image.revision)
    commit, dirty, _ = revision.partition("-dirty")
    tag = f"{image.version}-{commit[:12]}"
    taken = any(each.name == tag and each.digest != image.digest for each in history.releases)
    if dirty or commit == "unknown" or taken:
        tag += f"-{image.digest.removeprefix('sha256:')[:8]}"
    return tag
