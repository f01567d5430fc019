from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from buildkit.errors import CommandFailed, ReleaseFailed
from buildkit.jsonfile import InvalidFile
from buildkit.staging.release.records import Releases, new_release
from buildkit.staging.release.verified_image import VerifiedImage, load_verified_image, tag_of
from tests.support.fake_engine import FakeEngine
from tests.support.release_records import check_result, write_records

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = f"sha256:{'a' * 64}"
OTHER = f"sha256:{'b' * 64}"


@pytest.fixture
def engine() -> FakeEngine:
    """An engine that has DIGEST and no other image."""
    missing = CommandFailed(["docker", "image", "inspect"], 1, "no such image")
    command = "image inspect --format {{.Id}}"
    return FakeEngine(answers={command: missing, f"{command} {DIGEST}": DIGEST})


def test_verified_image_may_be_released(engine: FakeEngine, tmp_path: Path) -> None:
    paths = write_records(tmp_path, built=DIGEST, checks=[check_result("pass"), check_result("not verified", "gpu")])

    found = load_verified_image(*paths, engine=engine)

    assert (found.digest, found.version, found.not_verified) == (DIGEST, "1.2.3", ("gpu",))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"verified": OTHER}, f"is about {OTHER}, but {DIGEST} was built"),
        (
            {"checks": [check_result("pass"), check_result("fail", "secrets::none")]},
            "1 check of .* failed: secrets::none",
        ),
        ({"checks": [check_result("fail", f"c{n}") for n in range(7)]}, "7 checks .* failed: c0, .*, c4 and 2 more"),
        ({"checks": [check_result("pass"), check_result("error", "engine")]}, "1 check of .* broke: engine"),
        ({"checks": []}, "no check that passed"),
        ({"checks": [check_result("not verified")]}, "no check that passed"),
        ({"built": OTHER}, f"the engine has no image {OTHER}"),
    ],
)
def test_other_image_is_refused(engine: FakeEngine, tmp_path: Path, changes: dict[str, Any], shown: str) -> None:
    paths = write_records(tmp_path, **{"built": DIGEST, **changes})

    with pytest.raises(ReleaseFailed, match=shown):
        load_verified_image(*paths, engine=engine)


@pytest.mark.parametrize(
    ("which", "content", "shown"),
    [
        ("image.json", None, "nox -s build-image"),
        ("verify.json", None, "nox -s verify-image"),
        ("verify.json", "{", "not a verification record"),
        ("verify.json", "[]", "not a verification record"),
        ("verify.json", '{"schema_version": 9}', "reads version 2"),
        ("verify.json", '{"schema_version": 2}', "not a verification record"),
    ],
)
def test_unreadable_record_says_what_to_run(
    engine: FakeEngine, tmp_path: Path, which: str, content: str | None, shown: str
) -> None:
    paths = write_records(tmp_path, built=DIGEST)
    if content is None:
        (tmp_path / which).unlink()
    else:
        (tmp_path / which).write_text(content)

    with pytest.raises(InvalidFile, match=shown):
        load_verified_image(*paths, engine=engine)


@pytest.mark.parametrize(
    ("revision", "is_taken", "tag"),
    [
        ("c" * 40, False, "1.2.3-cccccccccccc"),
        ("c" * 40 + "-dirty", False, "1.2.3-cccccccccccc-aaaaaaaa"),
        ("unknown", False, "1.2.3-unknown-aaaaaaaa"),
        ("c" * 40, True, "1.2.3-cccccccccccc-aaaaaaaa"),
    ],
)
def test_tag_has_the_digest_if_the_commit_is_ambiguous(*, revision: str, is_taken: bool, tag: str) -> None:
    earlier = structs.replace(new_release(), name="1.2.3-cccccccccccc", digest=OTHER, outcome="replaced")
    history = Releases(releases=(earlier,) if is_taken else ())

    assert tag_of(VerifiedImage(DIGEST, "1.2.3", revision, ()), history) == tag
