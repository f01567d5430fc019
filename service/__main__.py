"""The command line: serve, migrate, keys, scrape, forward, ingest, evaluate, models, embed, routes.

What a command needs is imported when it runs: `models` must do with the standard library, `routes` without torch.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from service.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from types import FrameType

    from service.database import Database

__all__ = ["main"]

_T = TypeVar("_T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. 2 is a usage or settings error."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = chosen.command
        return command(chosen)
    except SettingsError as error:
        parser.exit(2, f"{error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="TruthGraph, the fact-verification API.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer HTTP until told to stop")
    serve.add_argument("--host", help="address to listen on (TRUTHGRAPH_HOST, 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on, 0 for any (TRUTHGRAPH_PORT, 8000)")
    serve.add_argument(
        "--embedded",
        type=Path,
        metavar="FOLDER",
        help="run a PostgreSQL of our own on the data in FOLDER, and migrate it",
    )
    serve.set_defaults(command=_serve)

    migrate = commands.add_parser("migrate", help="bring the database to the schema that this code needs")
    migrate.add_argument("--to", default="head", metavar="REVISION", help="another revision; refused if it loses data")
    migrate.add_argument("--plan", action="store_true", help="only print the way there and what it would lose, as JSON")
    migrate.set_defaults(command=_migrate)

    _add_key_actions(commands.add_parser("keys", help="make, list, revoke and purge API keys"))

    scrape = commands.add_parser("scrape", help="print the metrics of every replica behind a host name, as JSON")
    scrape.add_argument("name", help="host name of the replicas: `api` in docker/stack.yaml")
    scrape.add_argument("--port", type=int, help="port of the replicas (TRUTHGRAPH_PORT, 8000)")
    scrape.set_defaults(command=_scrape)

    forward = commands.add_parser("forward", help="connect standard input and output to the server in this container")
    forward.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1)")
    forward.add_argument("--port", type=int, help="(TRUTHGRAPH_PORT, 8000)")
    forward.set_defaults(command=_forward)

    ingest = commands.add_parser("ingest", help="take evidence in from a file of JSON lines or CSV; resumable")
    ingest.add_argument("file", type=Path)
    ingest.add_argument("--tenant", default="default")
    ingest.add_argument("--truncate", action="store_true", help="keep content over the model's limit")
    ingest.set_defaults(command=_ingest)

    routes = commands.add_parser("routes", help="print the declared and the registered routes; 1 if they differ")
    routes.set_defaults(command=_routes)

    embed = commands.add_parser("embed", help="print the embeddings of texts as JSON")
    embed.add_argument("texts", nargs="+", metavar="TEXT")
    embed.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    embed.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32")
    embed.set_defaults(command=_embed)

    evaluate = commands.add_parser("evaluate", help="print how well retrieval finds what annotators marked")
    evaluate.add_argument("file", type=Path, help="claims with judged sentences, JSON lines as CLIMATE-FEVER's")
    evaluate.add_argument("--embedded", type=Path, metavar="FOLDER", help="run a PostgreSQL of our own on FOLDER")
    evaluate.set_defaults(command=_evaluate)

    models = commands.add_parser("models", help="prepare model folders").add_subparsers(required=True, metavar="ACTION")
    add = models.add_parser("add", help="copy a model into the models' directory, with the hashes of its files")
    add.add_argument("name", help="what settings and requests will call it")
    add.add_argument(
        "--from",
        dest="source",
        help="a folder, package:NAME (installed), or HUB-ID@REVISION; not needed for all-MiniLM-L6-v2, which a package "
        "carries, and nli-deberta-v3-base, which comes from the hub",
    )
    add.add_argument("--into", type=Path, help="the models' directory (TRUTHGRAPH_MODELS_DIR)")
    add.set_defaults(command=_models_add)
    return parser


def _add_key_actions(command: argparse.ArgumentParser) -> None:
    keys = command.add_subparsers(required=True, metavar="ACTION")
    make = keys.add_parser("add", help="make a key and print it, once")
    make.add_argument("name")
    make.add_argument(
        "--scope", choices=("read", "write", "admin"), default="write", help="includes the ones before it"
    )
    make.add_argument("--tenant", default="default", help="whose claims and evidence the key is for")
    make.add_argument("--tokens-per-minute", type=int, default=600_000)
    make.set_defaults(command=_keys_add)
    keys.add_parser("list", help="print what is known of each key").set_defaults(command=_keys_list)
    revoke = keys.add_parser("revoke", help="make a key useless, within ten seconds")
    revoke.add_argument("name")
    revoke.set_defaults(command=_keys_revoke)
    purge = keys.add_parser("purge", help="delete a temporary key with all claims and evidence of its tenant")
    purge.add_argument("name", help="refused if its tenant is `default` or has other keys")
    purge.set_defaults(command=_keys_purge)


def _serve(chosen: argparse.Namespace) -> int:
    with _database(chosen.embedded) as settings:
        code, is_busy = _serve_on(chosen, settings)
    if is_busy:  # torch in the middle of something may crash when the interpreter ends around it
        sys.stderr.flush()
        os._exit(code)
    return code


@contextlib.contextmanager
def _database(embedded: Path | None) -> Iterator[Settings]:
    """The settings; with `embedded`, those of a PostgreSQL of our own on that folder, which runs meanwhile."""
    settings = Settings.from_environment()
    if embedded is None:
        yield settings
        return
    from service.database import migrate  # noqa: PLC0415
    from service.embedded import embedded_postgres  # noqa: PLC0415

    with embedded_postgres(embedded.absolute()) as server:
        migrate(server.get_uri())
        yield replace(settings, database_url=server.get_uri())


def _serve_on(chosen: argparse.Namespace, settings: Settings) -> tuple[int, bool]:
    """Serve until told to stop: the exit code, and whether threads are still at work."""
    import uvicorn  # noqa: PLC0415

    from service.app import create_app  # noqa: PLC0415
    from service.telemetry import configure_logging  # noqa: PLC0415

    configure_logging(settings.log_level)
    if settings.unknown:
        logging.getLogger(__name__).warning("settings that mean nothing: %s", ", ".join(settings.unknown))
    application = create_app(settings)

    class Server(uvicorn.Server):
        """Tells readiness, and goes on listening for a while where it was told to, before it stops listening."""

        def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
            if settings.shutdown_delay_seconds and not application.health.is_draining:
                later = threading.Timer(settings.shutdown_delay_seconds, super().handle_exit, (sig, None))
                later.daemon = True
                later.start()
            else:
                super().handle_exit(sig, frame)
            application.health.is_draining = True

    configuration = uvicorn.Config(
        application.asgi,
        host=chosen.host or settings.host,
        port=settings.port if chosen.port is None else chosen.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )
    # uvicorn raises the signal again once it has drained; for us that is the end of a job done, not a kill.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    server = Server(configuration)
    server.run()
    return (0 if server.started else 1), application.engine.is_busy


def _migrate(chosen: argparse.Namespace) -> int:
    from service.database import migrate  # noqa: PLC0415
    from service.schema import SchemaError, plan  # noqa: PLC0415

    try:
        if chosen.plan:
            _print(asdict(plan(_database_url(), chosen.to)))
        else:
            migrate(_database_url(), chosen.to)
    except SchemaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _keys_add(chosen: argparse.Namespace) -> int:
    from service.access import ApiKeyRepository  # noqa: PLC0415

    key = _with_database(
        lambda database: ApiKeyRepository(database).add(
            chosen.name, [chosen.scope], chosen.tenant, chosen.tokens_per_minute
        )
    )
    sys.stdout.write(f"{key}\n")
    return 0


def _keys_list(_chosen: argparse.Namespace) -> int:
    from service.access import ApiKeyRepository  # noqa: PLC0415

    for record in _with_database(lambda database: ApiKeyRepository(database).all()):
        _print(asdict(record))
    return 0


def _keys_revoke(chosen: argparse.Namespace) -> int:
    from service.access import ApiKeyRepository  # noqa: PLC0415

    _with_database(lambda database: ApiKeyRepository(database).revoke(chosen.name))
    return 0


def _keys_purge(chosen: argparse.Namespace) -> int:
    from service.access import ApiKeyRepository  # noqa: PLC0415

    _with_database(lambda database: ApiKeyRepository(database).purge(chosen.name), timeout_seconds=60.0)
    return 0


def _scrape(chosen: argparse.Namespace) -> int:
    from service.replicas import scrape  # noqa: PLC0415

    try:
        pages = scrape(chosen.name, chosen.port or Settings.from_environment().port)
    except OSError as error:
        sys.stderr.write(f"{chosen.name} does not resolve: {error}\n")
        return 1
    _print(pages)
    return 0 if pages else 1


def _forward(chosen: argparse.Namespace) -> int:
    from service.replicas import forward  # noqa: PLC0415

    port = chosen.port or Settings.from_environment().port
    try:
        forward(chosen.host, port)
    except OSError as error:
        sys.stderr.write(f"{chosen.host}:{port}: {error}\n")
        return 1
    return 0


def _ingest(chosen: argparse.Namespace) -> int:
    from service.ingest import ingest  # noqa: PLC0415

    return ingest(Settings.from_environment(), chosen.file, tenant=chosen.tenant, truncate=chosen.truncate)


def _evaluate(chosen: argparse.Namespace) -> int:
    from service.evaluation import JudgementsError, evaluate  # noqa: PLC0415
    from service.inference.types import ModelUnavailableError  # noqa: PLC0415

    def tell(line: str) -> None:
        sys.stderr.write(f"\r{line}\033[K" if sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()

    try:
        with _database(chosen.embedded) as settings:
            qualities = evaluate(settings, chosen.file, tell)
    except (JudgementsError, ModelUnavailableError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, ModelUnavailableError) else 2
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    for quality in qualities:
        _print(asdict(quality))
    return 0


def _database_url() -> str:
    settings = Settings.from_environment()
    if settings.database_url is None:
        raise SettingsError(PREFIX + "DATABASE_URL", "", "set")
    return settings.database_url


def _with_database(work: Callable[["Database"], Awaitable[_T]], *, timeout_seconds: float = 10.0) -> _T:
    """Run `work` on the configured database; its errors are the command's."""
    from service.database import ConflictError, Database, DatabaseUnavailableError, NotFoundError  # noqa: PLC0415

    async def run() -> _T:
        database = Database(_database_url(), connections=1, timeout_seconds=timeout_seconds)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except (ConflictError, DatabaseUnavailableError, NotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


def _routes(_chosen: argparse.Namespace) -> int:
    from service.app import build  # noqa: PLC0415
    from service.routes.table import ROUTES, registered  # noqa: PLC0415

    declared = sorted([route.method, route.path] for route in ROUTES)
    found = sorted([method, path] for method, path in registered(build(Settings()).litestar))
    _print({"declared": declared, "registered": found})
    return 0 if declared == found else 1


def _embed(chosen: argparse.Namespace) -> int:
    from service.inference.engine import before_torch  # noqa: PLC0415
    from service.inference.models import check  # noqa: PLC0415

    before_torch()
    from service.inference.torch_models import load_embedder, place  # noqa: PLC0415

    settings = Settings.from_environment()
    placement = place(chosen.device, chosen.dtype, compute_threads=settings.compute_threads)
    name = settings.embedding_model
    model = load_embedder(check(settings.models_directory_of(name), name), placement)
    _print([vector.values() for vector in model.forward(model.prepare(chosen.texts, truncate=True))])
    return 0


def _models_add(chosen: argparse.Namespace) -> int:
    from service.inference.models import KNOWN, ModelFolderError, add  # noqa: PLC0415

    source = chosen.source or KNOWN.get(chosen.name)
    if source is None:
        sys.stderr.write(f"--from is needed for {chosen.name}; known without it: {', '.join(KNOWN)}\n")
        return 2

    try:
        settings = Settings.from_environment()
        folder = add(chosen.into or settings.models_directory, chosen.name, source, settings.cache_directory)
    except ModelFolderError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder.path} {folder.revision}\n")
    return 0


def _print(value: object) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
