"""Breaks a real stack under load, shows that nothing is lost, and writes a table: `pytest -m staging`.

Each fault happens under load that checks every response, stores claims and requests verifications. The table is
build/staging.md; docs/measured/staging.md is a copy of it. `ALLOWED` has the permitted share of retried requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit.engine import daemon
from buildkit.staging.release import records
from buildkit.staging.stack.stack import Stack
from tests.buildkit.staging.under_load import (
    ENVIRONMENT,
    NAME,
    ROOT,
    StagingUnderTest,
    release_name,
    tolerant_project,
    wait_for_responses,
    write_table,
)
from tests.buildkit.staging.variants import VARIANTS, build_variant
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.staging, pytest.mark.timeout(1800)]

VOLUME_BYTES = 400_000_000
PUSHED_BYTES = 20_000_000


@pytest.fixture(scope="module")
def volume(docker: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database volume with its own small file system, so that a test can fill it."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("a small file system needs root and losetup")
    image = tmp_path_factory.mktemp("volume") / "volume.ext4"
    with image.open("wb") as file:
        file.truncate(VOLUME_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", "root_owner=999:999", image], check=True)
    device = subprocess.check_output(["losetup", "--find", "--show", image], text=True).strip()
    name = f"{NAME}_database"
    options = ("--opt", "type=ext4", "--opt", f"device={device}")
    subprocess.run([*docker, "volume", "create", *options, name], check=True, capture_output=True)
    yield name
    subprocess.run([*docker, "volume", "rm", "--force", name], check=False, capture_output=True)
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(scope="module")
def staging(docker: Sequence[str], volume: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StagingUnderTest]:
    """The stack with a first release; at the end the table is written and the stack removed."""
    del volume
    record = ROOT / "build" / "image.json"
    if not record.exists():
        pytest.skip("no build/image.json: run nox -s build-image verify-image first")
    base = "staging-variant:base"
    subprocess.run([*docker, "tag", json.loads(record.read_text())["digest"], base], check=True)
    folder = tmp_path_factory.mktemp("variants")
    variants = {name: build_variant(docker, name, base=base, build_record=record, folder=folder) for name in VARIANTS}
    state = tmp_path_factory.mktemp("state")
    stack = Stack(
        engine=daemon.find(os.environ, daemon.ManagedDaemon()),
        name=NAME,
        file=ROOT / "docker" / "stack.yaml",
        settings=ENVIRONMENT,
        secrets=state / "secrets",
    )
    project = tolerant_project(tmp_path_factory.mktemp("project"))
    running = StagingUnderTest(docker, project, state, variants, stack)
    try:
        running.run("stage", variant="first")
        yield running
    finally:
        write_table(running, ROOT / "build" / "staging.md")
        running.run("stage-down", "--purge")
        names = [f"staging-variant:{name}" for name in (*VARIANTS, "base")]
        subprocess.run([*docker, "image", "rm", "--force", *names], check=False, capture_output=True)


def test_rolling_update_loses_nothing(staging: StagingUnderTest) -> None:
    staging.release("first")
    with staging.load("rolling update", "the new release serves"):
        staging.run("stage", variant="second")
    assert staging.serving() == release_name("second")


def test_rolling_update_with_a_migration_loses_nothing(staging: StagingUnderTest) -> None:
    staging.release("second")
    with staging.load("rolling update with a migration", "schema 0001 to 0002, the new release serves"):
        staging.run("stage", variant="migrating")
    found = records.load(staging.state).serving
    assert found is not None
    assert found.migrations == records.Migrations(before="0001", after="0002")


def test_rollback_that_would_lose_data_is_refused(staging: StagingUnderTest) -> None:
    """The newer release filled a column that the older schema lacks."""
    staging.release("migrating")
    staging.sql("INSERT INTO claims (tenant_id, text, note) VALUES ('noted', 'a claim with a note', 'kept')")

    output = staging.run("rollback", expect=1)

    assert "1 rows of claims hold data that only migration 0002 can store" in output
    assert staging.serving() == release_name("migrating")
    staging.sql("DELETE FROM claims WHERE tenant_id = 'noted'")


def test_rollback_restores_release_and_schema(staging: StagingUnderTest) -> None:
    staging.release("second", "migrating")
    with staging.load("rollback with its schema", "schema 0002 to 0001, the previous release serves"):
        staging.run("rollback")
    assert staging.serving() != release_name("migrating")
    assert staging.sql("SELECT version_num FROM alembic_version") == "0001"


def test_killed_replica_loses_nothing(staging: StagingUnderTest) -> None:
    with staging.load("kill -9 of a replica", "swarm starts another") as load:
        os.kill(staging.pid("api"), signal.SIGKILL)
        wait_for_responses(load, 100)
        staging.wait_until_running()


def test_killed_postgresql_loses_nothing(staging: StagingUnderTest) -> None:
    with staging.load("kill -9 of PostgreSQL", "swarm starts another on the volume, which recovers"):
        os.kill(staging.pid("database"), signal.SIGKILL)
        staging.wait_until_running("database")


def test_killed_proxy_loses_nothing(staging: StagingUnderTest) -> None:
    with staging.load("kill -9 of the proxy", "swarm starts another"):
        pid = staging.pid("proxy")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the proxy is dead")
        staging.wait_until_running("proxy")


def test_killed_engine_loses_nothing(staging: StagingUnderTest) -> None:
    """Every container ends with it; then the engine is started again."""
    managed = daemon.ManagedDaemon()
    if not managed.pid_file.exists():
        pytest.skip("the engine is not the private one, which a test may kill")
    with staging.load("kill -9 of the engine, started again", "swarm starts every service again"):
        os.kill(int(managed.pid_file.read_text()), signal.SIGKILL)
        daemon.start(managed, lambda _line: None)
        for service in ("database", "proxy", "api"):
            staging.wait_until_running(service)


def test_full_disk_refuses_writes_until_there_is_room(staging: StagingUnderTest, volume: str) -> None:
    mountpoint = Path(staging.stack.docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume).strip())
    filler = mountpoint / "filler"
    outcome = "writes are refused with 503 until there is room"
    with staging.load("disk full on the database's volume", outcome) as load:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 1_000_000)
        until(lambda: "No space left on device" in staging.stack.log_tail("database", lines=200), "a write fails")
        wait_for_responses(load, 1)
        filler.unlink()
        staging.wait_until_running("database")


@pytest.mark.parametrize(
    ("fault", "variant", "step", "reason"),
    [
        ("release that answers wrong", "wrong", "canary", "the embedding of"),
        ("release that crashes", "crashing", "migration plan", "the canary ended"),
        ("release that is never ready", "sick", "rollout", "swarm rolled the update back"),
        ("release whose migration fails", "unmigratable", "migrate", "migrate failed"),
        (
            "release whose migration breaks the code before",
            "breaking",
            "migration plan",
            "does not name 0001 in `compatible_with`",
        ),
    ],
)
def test_bad_release_is_stopped(staging: StagingUnderTest, fault: str, variant: str, step: str, reason: str) -> None:
    staging.release("second")
    with staging.load(fault, f"stopped at {step}, the previous release goes on serving"):
        output = staging.run("stage", variant=variant, expect=1)

    assert f"stopped at {step}: " in output
    assert reason in output
    assert_serving(staging, "second")
    assert staging.sql("SELECT version_num FROM alembic_version") == "0001"


def assert_serving(staging: StagingUnderTest, variant: str) -> None:
    """Asserts that the record says that the variant serves, and that the running replicas have its image."""
    assert staging.serving() == release_name(variant)
    assert staging.running_images() == {records.load(staging.state).find(release_name(variant)).image}


def test_registry_that_ends_during_a_push_stops_the_release(staging: StagingUnderTest) -> None:
    staging.release("second")
    registry = staging.state / "registry"
    before = (staging.state / "releases.json").read_bytes()
    with staging.load("registry gone in the middle of a push", "exit code 3; the next push sends what is missing"):
        running = staging.start("stage", variant="large")
        until(lambda: uploaded_bytes(registry) > PUSHED_BYTES, "the push has sent 20 MB")
        os.kill(int((registry / "registry.pid").read_text()), signal.SIGKILL)
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 3, output
        assert "the next push sends only what is missing" in output
        assert (staging.state / "releases.json").read_bytes() == before
        assert staging.serving() == release_name("second")
        staging.run("stage", variant="large")
    assert staging.serving() == release_name("large")


def uploaded_bytes(registry: Path) -> int:
    """Returns the bytes of the uploads in progress; 0 if one of them ends meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in registry.rglob("_uploads/*/data"))
    return 0


def test_ctrl_c_in_every_step_is_undone(staging: StagingUnderTest) -> None:
    """Exit code 130, the lock is free, the previous release serves, the canary is gone."""
    staging.release("second")
    for step in ("push", "migration plan", "canary", "rollout", "smoke test", "measure"):
        running = staging.start("stage", variant="first")
        output = ""
        for line in running.stdout or ():
            output += line
            if f"{step}: …" in line:
                running.send_signal(signal.SIGINT)
                break
        rest, _ = running.communicate(timeout=600)
        assert running.returncode == 130, output + rest
        assert_serving(staging, "second")
        assert not staging.stack.exists("canary")


def test_second_release_at_once_is_refused(staging: StagingUnderTest) -> None:
    """The second is refused and names the first, which completes."""
    staging.release("second")
    first = staging.start("stage", variant="first")
    until(lambda: bool((staging.state / "lock").read_text()), "the first has the lock")
    output = staging.run("stage", variant="second", expect=3)

    assert f"in use by process {first.pid} (stage {NAME}, by " in output
    rest, _ = first.communicate(timeout=600)
    assert first.returncode == 0, rest


def test_backup_restores_every_row(staging: StagingUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "database.dump"
    staging.release("second")
    staging.sql("INSERT INTO claims (tenant_id, text) SELECT 'kept', 'claim ' || n FROM generate_series(1, 500) AS n")
    before = staging.rows_hash()
    staging.run("backup", str(file))
    staging.sql("DELETE FROM claims WHERE tenant_id = 'kept'")
    assert staging.rows_hash() != before

    assert "has 10 tables" in staging.run("restore", str(file), expect=3)
    staging.run("restore", str(file), "--replace")

    assert staging.rows_hash() == before
    assert file.stat().st_mode & 0o077 == 0


def watch_until_a_replica_is_killed(staging: StagingUnderTest, history: Path, *options: str) -> str:
    """Starts `watch`, kills a replica after the first observation, and returns the output; the watch must fail."""
    interval = ("--hours", "0.2", "--interval", "2", "--minutes", "0")
    watching = staging.start("watch", *interval, "--history", str(history), *options)
    until(lambda: history.exists() and bool(history.read_text().splitlines()), "the first observation")
    os.kill(staging.pid("api"), signal.SIGKILL)
    output, _ = watching.communicate(timeout=600)
    assert watching.returncode == 1, output
    return output


def test_watch_of_a_healthy_stack_passes(staging: StagingUnderTest, tmp_path: Path) -> None:
    history = tmp_path / "watch.jsonl"

    output = staging.run("watch", "--hours", "0.003", "--interval", "2", "--history", str(history))

    assert " ok" in output
    assert len(history.read_text().splitlines()) >= 2


def test_watch_reports_a_lost_replica(staging: StagingUnderTest, tmp_path: Path) -> None:
    output = watch_until_a_replica_is_killed(staging, tmp_path / "watch.jsonl")

    assert "1 of 2 replicas of api run" in output or "failed within an hour" in output
    staging.wait_until_running()


def test_watch_with_rollback_returns_to_the_previous_release(staging: StagingUnderTest, tmp_path: Path) -> None:
    staging.release("first", "second")
    previous = records.load(staging.state).previous()
    assert previous is not None

    output = watch_until_a_replica_is_killed(staging, tmp_path / "watch.jsonl", "--rollback")

    assert "rolling back: " in output
    assert staging.serving() == previous.name, output
    staging.wait_until_running()


def test_secrets_are_in_no_inspect_log_record_or_command_line(staging: StagingUnderTest) -> None:
    password = (staging.state / "secrets" / "database-password").read_text().strip()
    stack, services = staging.stack, ("api", "database", "proxy")
    texts = [stack.docker("inspect", stack.container(service)) for service in services]
    texts += [json.dumps(stack.inspect(service)) for service in (*services, "migrate")]
    texts += [stack.log_tail(service, lines=10_000) for service in (*services, "migrate")]
    texts += [(staging.state / "releases.json").read_text()]
    texts += [command_line(entry) for entry in Path("/proc").glob("[0-9]*/cmdline")]
    assert len(password) > 20
    assert [number for number, text in enumerate(texts) if password in text] == []
    assert (staging.state / "secrets").stat().st_mode & 0o077 == 0


def command_line(entry: Path) -> str:
    """Returns the arguments of a process; "" if it has ended."""
    with contextlib.suppress(OSError):
        return entry.read_bytes().decode(errors="replace")
    return ""
