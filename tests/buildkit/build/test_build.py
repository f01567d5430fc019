"""Builds of a small project with the real BuildKit: the build record, failures, build secrets, interrupts."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from buildkit import spec as specs
from buildkit.build import base as bases
from buildkit.build import build as builds
from buildkit.build.display import BuildDisplay
from buildkit.build.record import load_record, record_path
from buildkit.engine import client
from buildkit.errors import BuildFailed, DiskTooFull
from tests.support.polling import until
from tests.support.projects import PROJECT, images_toml, make_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit.build.events import Events
    from buildkit.build.record import BuildRecord
    from buildkit.engine.client import Engine

SECRET = "pa55-word-for-the-mirror"  # noqa: S105 - planted in the environment, searched in the image
NAME = "truthgraph-test-build"
HUGE = images_toml(NAME, "small", disk_bytes=900_000_000_000_000)
DOCKERFILE = """
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE} AS python
FROM python AS maker
RUN --mount=type=secret,id=ca --mount=type=secret,id=index \\
    find /run -size +0 && echo "proxy ${https_proxy:-none}" && echo made >/made
FROM scratch AS runtime
COPY --from=maker /made /made
CMD ["/made"]
"""


@pytest.fixture(scope="session")
def engine(docker: Sequence[str]) -> Engine:
    return client.connect(docker[-1] if docker[1:] else "")


@pytest.fixture(scope="session")
def base(engine: Engine) -> bases.BaseImage:
    return bases.ensure_base_image(
        engine,
        reference="python:3.13-slim-trixie",
        python="3.13",
        origin="auto",
        cache=PROJECT / "build" / "cache",
        log=print,
    )


@pytest.fixture
def project(tmp_path: Path, docker: Sequence[str]) -> Iterator[Path]:
    """A project of one small target; its image is removed afterwards."""
    yield make_project(tmp_path, images_toml(NAME, "small"), DOCKERFILE)
    subprocess.run([*docker, "image", "rm", "--force", f"{NAME}:small"], capture_output=True, check=False)


@pytest.fixture
def run(project: Path, engine: Engine, base: bases.BaseImage) -> Callable[..., BuildRecord]:
    """Builds the small target; `run.shown` holds the display's output."""
    shown = io.StringIO()

    def call(
        environment: dict[str, str] | None = None,
        *,
        use_cache: bool = True,
        check_disk: bool = True,
        on_this_machine: bool = True,
        seen: Callable[[], object] = lambda: None,
    ) -> BuildRecord:
        spec = specs.load(project)

        def show(events: Events) -> BuildDisplay:
            seen()
            return BuildDisplay(Console(file=shown, width=100), events, title="small")

        return builds.build(
            spec,
            spec.target("small"),
            engine=engine if on_this_machine else replace(engine, root=None),
            base=base,
            environment=environment or {},
            folder=project / "build",
            show=show,
            use_cache=use_cache,
            check_disk=check_disk,
        )

    call.shown = shown  # type: ignore[attr-defined] # a test may read it
    return call


def test_build_records_digest_base_versions_and_steps(
    run: Callable[..., BuildRecord], project: Path, docker: Sequence[str], base: bases.BaseImage
) -> None:
    record = run()

    assert re.fullmatch(r"sha256:[0-9a-f]{64}", record.digest)
    inspected = subprocess.run(
        [*docker, "image", "inspect", record.digest], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(inspected)[0]["Config"]["Labels"]["io.truthgraph.base.origin"] == base.origin
    assert record.base["digest"] == base.digest
    assert {"engine", "client", "buildx", "buildkit", "toolkit"} == set(record.versions)
    assert {"maker", "runtime", "export"} <= {step.stage for step in record.steps}
    assert load_record(record_path(project / "build", "small")) == record


def test_second_build_is_cached_and_has_the_same_digest(run: Callable[..., BuildRecord]) -> None:
    first, second = run(), run()

    assert first.digest == second.digest
    assert all(step.cached for step in second.steps if step.stage in {"maker", "runtime"})


def test_previous_image_has_a_name_during_the_build(
    run: Callable[..., BuildRecord], project: Path, docker: Sequence[str]
) -> None:
    """Without a name the engine collects layers that the new image is being built on (moby/buildkit#6521)."""
    before = run()
    dockerfile = project / "docker" / "Dockerfile"
    dockerfile.write_text(DOCKERFILE.replace("echo made", "echo made again"))
    during: list[str] = []

    after = run(seen=lambda: during.append(digest_of(docker, builds.previous_tag(before.tags[0]))))

    assert during == [before.digest]
    assert after.digest != before.digest
    assert digest_of(docker, after.tags[0]) == after.digest
    assert digest_of(docker, builds.previous_tag(before.tags[0])) == ""


def digest_of(docker: Sequence[str], name: str) -> str:
    """The digest of the image with that name; "" if there is none."""
    command = [*docker, "image", "inspect", "--format", "{{.Id}}", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_failed_step_is_named_and_the_previous_image_remains(
    run: Callable[..., BuildRecord], project: Path, docker: Sequence[str]
) -> None:
    before = run()
    dockerfile = project / "docker" / "Dockerfile"
    dockerfile.write_text(DOCKERFILE.replace("echo made >/made", "echo about to fail >&2; exit 42"))

    with pytest.raises(BuildFailed) as caught:
        run()

    failure = caught.value
    assert (failure.stage, failure.exit_code_of_step) == ("maker", 42)
    assert "about to fail" in failure.log_tail
    assert "exit 42" in failure.instruction
    assert failure.exit_code == 1
    assert load_record(record_path(project / "build", "small")) == before
    subprocess.run([*docker, "image", "inspect", before.tags[0]], capture_output=True, check=True)


def test_build_secrets_are_not_in_the_image(
    run: Callable[..., BuildRecord], tmp_path: Path, docker: Sequence[str]
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nplanted\n-----END CERTIFICATE-----\n")
    environment = {
        "SSL_CERT_FILE": str(bundle),
        "UV_DEFAULT_INDEX": f"https://anna:{SECRET}@mirror.test/simple",
        "https_proxy": f"http://anna:{SECRET}@proxy.test:3128",
    }

    record = run(environment, use_cache=False)

    log = run.shown.getvalue()  # type: ignore[attr-defined]
    saved = subprocess.run([*docker, "image", "save", record.digest], capture_output=True, check=True).stdout
    inspected = subprocess.run([*docker, "image", "inspect", record.digest], capture_output=True, check=True).stdout
    history = subprocess.run(
        [*docker, "image", "history", "--no-trunc", record.digest], capture_output=True, check=True
    ).stdout
    record_file = record_path(tmp_path / "build", "small").read_bytes()
    for place in (saved, inspected, history, record_file, log.encode()):
        assert SECRET.encode() not in place
        assert b"planted" not in place


def test_full_disk_is_refused_with_needed_and_free_bytes(run: Callable[..., BuildRecord], project: Path) -> None:
    (project / "docker" / "images.toml").write_text(HUGE)

    with pytest.raises(DiskTooFull, match=r"needs 900000\.0 GB in .*, \d+\.\d GB are free"):
        run()

    assert run(check_disk=False).digest


def test_disk_of_another_machine_is_not_checked(run: Callable[..., BuildRecord], project: Path) -> None:
    (project / "docker" / "images.toml").write_text(HUGE)

    assert run(on_this_machine=False).digest


@pytest.mark.usefixtures("base")
def test_interrupted_build_leaves_no_process(project: Path) -> None:
    """The signal goes to the toolkit only, as from a CI runner; docker and the build step must end too."""
    seconds = f"3{os.getpid()}"  # a number to find the step's process by
    dockerfile = project / "docker" / "Dockerfile"
    dockerfile.write_text(DOCKERFILE.replace("echo made >/made", f"sleep {seconds} # && echo made >/made"))

    def sleeping() -> bool:
        return subprocess.run(["pgrep", "-xf", f"sleep {seconds}"], capture_output=True, check=False).returncode == 0

    with subprocess.Popen(
        [sys.executable, "-m", "buildkit", "--project", str(project), "build", "small"],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(sleeping, "the build step runs")
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()

    assert process.returncode == 130
    assert "interrupted" in errors
    until(lambda: not sleeping(), "the build step ended")
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
