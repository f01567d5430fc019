from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.errors import Busy, UsageError
from buildkit.staging.release import records
from buildkit.staging.release.records import Release, Releases, expendable

ROOT = Path(__file__).parents[4]


def release(name: str, outcome: records.SmokeTestReport = "replaced", digest: str = "") -> Release:
    digest = digest or f"sha256:{name}"
    return Release(
        name=name,
        image=f"registry.test/api@{digest}",
        digest=digest,
        version="0.1.0",
        revision="0" * 40,
        who="someone@machine",
        started="2026-01-01T00:00:00+00:00",
        outcome=outcome,
    )


def test_no_file_is_no_release(tmp_path: Path) -> None:
    assert records.load(tmp_path) == Releases()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    known = Releases(releases=(release("a"), release("b", "serving")))

    records.save(tmp_path, known)

    assert records.load(tmp_path) == known
    assert json.loads((tmp_path / "releases.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("content", "shown"),
    [("{", "not a record of releases"), ('{"schema_version": 2}', "reads 1"), ('{"releases": [1]}', "not a record")],
)
def test_another_file_is_refused_and_kept(tmp_path: Path, content: str, shown: str) -> None:
    path = tmp_path / "releases.json"
    path.write_text(content)

    with pytest.raises(UsageError, match=shown):
        records.load(tmp_path)

    assert path.read_text() == content


def test_a_release_that_serves_replaces_the_one_that_did() -> None:
    known = Releases().with_release(release("a", "serving")).with_release(release("b", "serving"))

    assert [(each.name, each.outcome) for each in known.releases] == [("a", "replaced"), ("b", "serving")]
    assert known.serving is not None
    assert known.serving.name == "b"


def test_a_failed_release_leaves_the_serving_one() -> None:
    known = Releases().with_release(release("a", "serving")).with_release(release("b", "failed"))

    assert known.serving is not None
    assert known.serving.name == "a"


def test_rollback_goes_to_the_newest_that_was_replaced() -> None:
    known = Releases(
        releases=(
            release("a"),
            release("b"),
            release("c", "failed"),
            release("d", "rolled back"),
            release("e", "serving"),
        )
    )
    found = known.before_serving()

    assert found is not None
    assert found.name == "b"


def test_a_failed_release_cannot_be_rolled_back_to() -> None:
    known = Releases(releases=(release("a"), release("bad", "failed"), release("b", "serving")))

    with pytest.raises(UsageError, match=r"expected one that served and is kept: a, b"):
        known.called("bad")


def test_retention_keeps_the_newest_the_serving_and_the_last_good_one() -> None:
    known = Releases(
        releases=(
            release("old"),
            release("good"),
            *(release(f"r{n}", "rolled back") for n in range(3)),
            release("now", "serving"),
        )
    )

    gone = {each.name for each in expendable(known, keep=2)}

    assert gone == {"old", "r0", "r1"}


def test_retention_never_lets_a_digest_go_that_serves_under_another_name() -> None:
    known = Releases(releases=(release("a", "failed", "sha256:same"), release("b", "serving", "sha256:same")))

    assert expendable(known, keep=1) == ()


def test_two_at_once_the_second_names_the_first(tmp_path: Path) -> None:
    with (
        records.locked(tmp_path, "stage first"),
        pytest.raises(Busy, match=f"process {os.getpid()} .stage first, by "),
        records.locked(tmp_path, "stage second"),
    ):
        pytest.fail("two held the lock")
    with records.locked(tmp_path, "third"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\nfrom buildkit.staging.release import records\n"
        "with records.locked(pathlib.Path(sys.argv[1]), 'stage'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {other.pid} "), records.locked(tmp_path, "mine"):
            pytest.fail("two held the lock")
        other.send_signal(signal.SIGKILL)
        other.wait()

    with records.locked(tmp_path, "mine"):
        pass
