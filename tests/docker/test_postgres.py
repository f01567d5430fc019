"""Tests the image of PostgreSQL: initialization, passwords, shutdown, backup and restore."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docker.conftest import FAST_HEALTH, temporary_objects
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.docker.conftest import Docker

PASSWORD = "a-Password.of_tests~1"  # noqa: S105
CONFINED = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--tmpfs=/run/postgresql:size=1m,mode=1777", "--tmpfs=/tmp:mode=1777"),
)


class Database:
    """A container of the image with its own volume."""

    def __init__(self, engine: Docker, image: str, secret: Path, name: str) -> None:
        self.engine, self.image, self.secret = engine, image, secret
        self.name = f"{engine.name}-{name}"

    def start(self) -> None:
        """Starts the server and waits until it accepts connections."""
        mounts = (
            f"--volume={self.name}:/var/lib/postgresql/data",
            f"--volume={self.secret}:/run/secrets/database-password:ro",
        )
        self.engine.run("run", "--detach", f"--name={self.name}", FAST_HEALTH, *CONFINED, *mounts, self.image)
        until(lambda: self.engine.is_healthy(self.name), "the database is healthy")

    def stop(self) -> None:
        """Stops the server as an orchestrator does, and removes the container."""
        self.engine.run("stop", "--time=60", self.name)
        assert self.engine.text("inspect", "--format", "{{.State.ExitCode}}", self.name) == "0"
        self.engine.run("rm", self.name)

    def sql(self, statement: str, role: str = "truthgraph") -> str:
        """Runs a statement as the database's owner, or as another role, and returns its output."""
        return self.engine.text(
            *("exec", self.name, "psql", "--username=postgres", "--no-align", "--tuples-only", "--quiet", "truthgraph"),
            *("--command", f"SET ROLE {role}; {statement}"),
        )

    def rows(self) -> str:
        """Returns the hash and the number of the rows of each table."""
        return self.engine.text("exec", self.name, "rows")

    def restore(self, backup: bytes, *options: str, code: int = 0) -> str:
        """Runs `restore` and returns its messages."""
        done = self.engine.run("exec", "--interactive", self.name, "restore", *options, stdin=backup, code=code)
        return done.stderr.decode()


def write_secret(folder: Path) -> Path:
    """Writes the password to a file in *folder* and returns its path."""
    file = folder / "database-password"
    file.write_text(PASSWORD)
    file.chmod(0o444)
    return file


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_secret(tmp_path)


@pytest.fixture(scope="module")
def prepared(docker: Sequence[str], images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The volume of a stopped database with 1,000 claims; tests copy it, because initializing one takes seconds."""
    with temporary_objects(docker) as engine:
        made = Database(engine, images["postgres"], write_secret(tmp_path_factory.mktemp("secret")), "prepared")
        made.start()
        made.sql(
            "CREATE TABLE claims (id int PRIMARY KEY, text text NOT NULL, vector vector(3)); "
            "INSERT INTO claims SELECT n, 'claim ' || n, ARRAY[n, 1, 2]::vector FROM generate_series(1, 1000) AS n"
        )
        made.stop()
        yield made.name


@pytest.fixture
def database(engine: Docker, images: dict[str, str], secret: Path, prepared: str) -> Database:
    made = Database(engine, images["postgres"], secret, "one")
    volumes = (f"--volume={prepared}:/prepared:ro", f"--volume={made.name}:/var/lib/postgresql/data")
    copy = "cp -a /prepared/. /var/lib/postgresql/data/"
    engine.run("run", "--rm", f"--name={made.name}-copy", *volumes, images["postgres"], "sh", "-c", copy)
    made.start()
    return made


def test_restored_backup_has_the_same_rows(database: Database) -> None:
    before = database.rows()
    assert re.fullmatch(r"[0-9a-f]{64} 1000 public\.claims", before)
    backup = database.engine.run("exec", database.name, "backup").stdout
    other = Database(database.engine, database.image, database.secret, "two")
    other.start()
    other.restore(backup)
    assert other.rows() == before
    other.sql("UPDATE claims SET text = 'another' WHERE id = 1")
    assert other.rows() != before, "a changed row changes the hash"

    message = other.restore(backup, code=2)
    assert "has 1 tables; to replace them, run restore --replace" in message
    changed = other.rows()
    assert changed != before
    assert other.restore(backup[: len(backup) // 2], "--replace", code=1)
    assert other.rows() == changed, "a broken backup changes nothing"
    assert other.sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'truthgraph\\_%'") == "0"
    other.restore(backup, "--replace")
    assert other.rows() == before


def test_restore_does_not_wait_for_open_connections(database: Database) -> None:
    backup = database.engine.run("exec", database.name, "backup").stdout
    database.engine.run(
        *("exec", "--detach", database.name, "psql", "--username=postgres", "truthgraph"),
        *("--command", "BEGIN; LOCK TABLE claims; SELECT pg_sleep(600)"),
    )
    locked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%'"
    until(lambda: database.sql(locked, "postgres") == "1", "a session holds the lock")
    database.restore(backup, "--replace")
    assert database.sql("SELECT count(*) FROM claims") == "1000"


def test_stop_is_clean_and_committed_rows_survive_a_kill(database: Database) -> None:
    before = database.rows()
    database.engine.run(
        *("exec", "--detach", database.name, "psql", "--username=postgres", "truthgraph"),
        *("--command", "SELECT pg_sleep(600)"),
    )
    database.stop()
    database.start()
    assert "not properly shut down" not in database.engine.logs(database.name)
    assert database.rows() == before
    database.engine.run("kill", "--signal=KILL", database.name)
    database.engine.run("rm", database.name)
    database.start()
    assert "not properly shut down" in database.engine.logs(database.name), "a kill is not a clean shutdown"
    assert database.rows() == before


def test_only_the_secret_password_logs_in_and_is_read_at_start(database: Database) -> None:
    def login(password: str, user: str = "truthgraph") -> bool:
        done = database.engine.run(
            *("exec", "--env", "PGPASSWORD", database.name, "psql", "--host=127.0.0.1", f"--username={user}"),
            *("--no-password", "--command=SELECT 1", "truthgraph"),
            environment={"PGPASSWORD": password},
            code=None,
        )
        return done.returncode == 0

    assert login(PASSWORD)
    assert not login("another")
    assert not login(PASSWORD, "postgres"), "the administrator connects through the socket only"
    database.stop()
    database.secret.chmod(0o644)
    database.secret.write_text("a-new-one")
    database.start()
    assert login("a-new-one")
    assert not login(PASSWORD)
    assert database.sql("SHOW fsync") == "on"
    for text in (database.engine.logs(database.name), database.engine.text("inspect", database.name)):
        assert "a-new-one" not in text


def test_second_server_on_the_volume_is_refused(database: Database) -> None:
    lock = ("flock", "--exclusive", "--nonblock", "/var/lib/postgresql/data/lock", "true")
    volume = f"--volume={database.name}:/var/lib/postgresql/data"
    database.engine.run("run", "--rm", f"--name={database.name}-b", volume, database.image, *lock, code=1)
    database.stop()
    database.engine.run("run", "--rm", f"--name={database.name}-b", volume, database.image, *lock)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "expected only letters, digits"), ("it's", "expected only letters, digits")],
    ids=["empty", "quote"],
)
def test_invalid_password_is_refused(
    engine: Docker, images: dict[str, str], secret: Path, content: str, message: str
) -> None:
    secret.chmod(0o644)
    secret.write_text(content)
    mount = f"--volume={secret}:/run/secrets/database-password:ro"
    done = engine.run("run", "--rm", f"--name={engine.name}-x", *CONFINED, mount, images["postgres"], code=2)
    assert message in done.stderr.decode()
    assert not content or content not in done.stderr.decode()


def test_volume_of_another_major_version_is_refused(engine: Docker, images: dict[str, str], secret: Path) -> None:
    volume = f"--volume={engine.name}-old:/var/lib/postgresql/data"
    mount = f"--volume={secret}:/run/secrets/database-password:ro"
    old = "mkdir /var/lib/postgresql/data/16 && echo 16 >/var/lib/postgresql/data/16/PG_VERSION"
    engine.run("run", "--rm", f"--name={engine.name}-x", volume, images["postgres"], "sh", "-c", old)
    done = engine.run("run", "--rm", f"--name={engine.name}-x", *CONFINED, volume, mount, images["postgres"], code=2)
    assert "the volume holds PostgreSQL 16" in done.stderr.decode()
