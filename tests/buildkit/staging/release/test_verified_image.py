"""What may be released: each way in which a record can be wrong has a message of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from buildkit.build.record import SCHEMA_VERSION
from buildkit.engine.client import Engine
from buildkit.errors import BuildkitError, ReleaseFailed
from buildkit.staging.release import verified_image
from buildkit.staging.release.records import Release, Releases

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = f"sha256:{'a' * 64}"
OTHER = f"sha256:{'b' * 64}"
ENGINE = Engine("", "26.1.5", None)


@pytest.fixture
def has_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has DIGEST and nothing else."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *{DIGEST}) echo {DIGEST};; *) exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def check(outcome: str, name: str = "one") -> dict[str, Any]:
    return {"name": name, "title": "T.", "group": "g", "tier": "static", "outcome": outcome, "seconds": 0.1}


def records(
    folder: Path, *, built: str = DIGEST, verified: str = DIGEST, checks: list[dict[str, Any]]
) -> tuple[Path, Path]:
    build = {
        "schema_version": SCHEMA_VERSION,
        "target": "api",
        "digest": built,
        "tags": [],
        "arguments": {},
        "base": {},
        "labels": {"org.opencontainers.image.version": "1.2.3"},
        "lock_sha256": "",
        "revision": "c" * 40,
        "versions": {},
        "started": "",
        "seconds": 1.0,
        "steps": [],
    }
    results = {"image": verified, "target": "api", "seconds": 1.0, "checks": checks, "schema_version": 1}
    (folder / "image.json").write_text(json.dumps(build))
    (folder / "verify.json").write_text(json.dumps(results))
    return folder / "image.json", folder / "verify.json"


@pytest.mark.usefixtures("has_image")
def test_a_verified_image_may_be_released(tmp_path: Path) -> None:
    paths = records(tmp_path, checks=[check("pass"), check("not verified", "gpu")])

    found = verified_image.load_verified_image(*paths, engine=ENGINE)

    assert (found.digest, found.version, found.not_verified) == (DIGEST, "1.2.3", ("gpu",))


@pytest.mark.usefixtures("has_image")
@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"verified": OTHER}, f"is about {OTHER}, but {DIGEST} was built"),
        ({"checks": [check("pass"), check("fail", "secrets::none")]}, "1 checks of .* failed: secrets::none"),
        ({"checks": [check("pass"), check("error", "engine")]}, "1 checks of .* broke: engine"),
        ({"checks": []}, "no check that passed"),
        ({"checks": [check("not verified")]}, "no check that passed"),
        ({"built": OTHER, "verified": OTHER}, f"the engine has no image {OTHER}"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, changes: dict[str, Any], shown: str) -> None:
    paths = records(tmp_path, **{"checks": [check("pass")], **changes})

    with pytest.raises(ReleaseFailed, match=shown):
        verified_image.load_verified_image(*paths, engine=ENGINE)


@pytest.mark.parametrize(
    ("which", "content", "shown"),
    [
        ("image.json", None, "nox -s build-image"),
        ("verify.json", None, "nox -s verify-image"),
        ("verify.json", "{", "not a verification record"),
        ("verify.json", "[]", "not a verification record"),
        ("verify.json", '{"schema_version": 9}', "this harness reads 1"),
        ("verify.json", '{"schema_version": 1}', "not a verification record"),
    ],
)
def test_a_missing_or_strange_record_says_what_to_run(
    tmp_path: Path, which: str, content: str | None, shown: str
) -> None:
    paths = records(tmp_path, checks=[check("pass")])
    if content is None:
        (tmp_path / which).unlink()
    else:
        (tmp_path / which).write_text(content)

    with pytest.raises(BuildkitError, match=shown):
        verified_image.load_verified_image(*paths, engine=ENGINE)


@pytest.mark.parametrize(
    ("revision", "taken", "tag"),
    [
        ("c" * 40, False, "1.2.3-cccccccccccc"),
        ("c" * 40 + "-dirty", False, "1.2.3-cccccccccccc-aaaaaaaa"),
        ("unknown", False, "1.2.3-unknown-aaaaaaaa"),
        ("c" * 40, True, "1.2.3-cccccccccccc-aaaaaaaa"),
    ],
)
def test_a_tag_is_version_and_commit_and_the_digest_where_these_do_not_tell(
    *,
    revision: str,
    taken: bool,
    tag: str,
) -> None:
    earlier = Release(
        name="1.2.3-cccccccccccc",
        image="",
        digest=OTHER,
        version="1.2.3",
        revision=revision,
        released_by="",
        started="",
        outcome="replaced",
    )
    known = Releases(releases=(earlier,) if taken else ())

    assert verified_image.tag_of(verified_image.VerifiedImage(DIGEST, "1.2.3", revision, ()), known) == tag
