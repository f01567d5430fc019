from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.errors import Busy, UsageError
from buildkit.jsonfile import InvalidFile
from buildkit.staging.release import records
from buildkit.staging.release.records import Release, Releases, removable

ROOT = Path(__file__).parents[4]


def release(name: str, outcome: records.ReleaseOutcome = "replaced", digest: str = "") -> Release:
    digest = digest or f"sha256:{name}"
    return Release(
        name=name,
        image=f"registry.test/api@{digest}",
        digest=digest,
        version="0.1.0",
        revision="0" * 40,
        released_by="someone@machine",
        started="2026-01-01T00:00:00+00:00",
        outcome=outcome,
    )


def test_missing_file_is_an_empty_history(tmp_path: Path) -> None:
    assert records.load(tmp_path) == Releases()


def test_saved_history_loads_again(tmp_path: Path) -> None:
    known = Releases(releases=(release("a"), release("b", "serving")))

    records.save(tmp_path, known)

    assert records.load(tmp_path) == known
    assert json.loads((tmp_path / "releases.json").read_text())["schema_version"] == 2


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("{", "not a history of releases"),
        ('{"schema_version": 1}', "schema version 1, but this program reads version 2"),
        ('{"schema_version": 2, "releases": [1]}', "not a history of releases"),
    ],
)
def test_other_file_is_refused_and_stays(tmp_path: Path, content: str, shown: str) -> None:
    path = tmp_path / "releases.json"
    path.write_text(content)

    with pytest.raises(InvalidFile, match=shown):
        records.load(tmp_path)

    assert path.read_text() == content


def test_new_serving_release_replaces_the_old_one() -> None:
    known = Releases().with_release(release("a", "serving")).with_release(release("b", "serving"))

    assert [(each.name, each.outcome) for each in known.releases] == [("a", "replaced"), ("b", "serving")]
    assert known.serving is not None
    assert known.serving.name == "b"


def test_failed_release_leaves_the_serving_one() -> None:
    known = Releases().with_release(release("a", "serving")).with_release(release("b", "failed"))

    assert known.serving is not None
    assert known.serving.name == "a"


def test_previous_is_the_newest_replaced_release() -> None:
    known = Releases(
        releases=(
            release("a"),
            release("b"),
            release("c", "failed"),
            release("d", "rolled back"),
            release("e", "serving"),
        )
    )
    found = known.previous()

    assert found is not None
    assert found.name == "b"


def test_failed_release_is_not_found() -> None:
    known = Releases(releases=(release("a"), release("bad", "failed"), release("b", "serving")))

    with pytest.raises(UsageError, match="expected a release that has served: a, b"):
        known.find("bad")


def test_removable_spares_newest_serving_and_previous() -> None:
    known = Releases(
        releases=(
            release("old"),
            release("good"),
            *(release(f"r{n}", "rolled back") for n in range(3)),
            release("now", "serving"),
        )
    )

    gone = {each.name for each in removable(known, keep=2)}

    assert gone == {"old", "r0", "r1"}


def test_removable_spares_a_digest_that_serves_by_another_name() -> None:
    known = Releases(releases=(release("a", "failed", "sha256:same"), release("b", "serving", "sha256:same")))

    assert removable(known, keep=1) == ()


def test_second_holder_of_the_lock_is_refused_with_the_first(tmp_path: Path) -> None:
    with (
        records.locked(tmp_path, "stage first"),
        pytest.raises(Busy, match=f"process {os.getpid()} .stage first, by "),
        records.locked(tmp_path, "stage second"),
    ):
        pytest.fail("two processes hold the lock")
    with records.locked(tmp_path, "third"):
        pass


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
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
            pytest.fail("two processes hold the lock")
        other.send_signal(signal.SIGKILL)
        other.wait()

    with records.locked(tmp_path, "mine"):
        pass


def test_state_folder_is_the_given_one_or_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert records.state_folder(tmp_path, tmp_path) == tmp_path
    assert records.state_folder(None, tmp_path) == Path("/var/lib/truthgraph-staging")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert records.state_folder(None, tmp_path) == tmp_path / ".local/state/truthgraph-staging"


def test_delete_state_removes_the_folder(tmp_path: Path) -> None:
    records.save(tmp_path / "state", Releases())

    records.delete_state(tmp_path / "state")

    assert not (tmp_path / "state").exists()
