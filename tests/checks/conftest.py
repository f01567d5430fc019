"""Builds and checks images: a small stand-in without faults, and copies of it with faults."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit import spec
from buildkit.build import base
from buildkit.check.verify import verify
from buildkit.engine import daemon
from buildkit.errors import BuildkitError
from checks.golden import VECTORS
from tests.checks.batches import Batch, group
from tests.checks.faults import (
    BUILD_SECRET,
    BUILD_SECRETS,
    CUDA,
    EXPECTED,
    FAULTS,
    INTACT,
    PLACEHOLDERS,
    SITE,
    Fault,
)
from tests.support.elf import make_elf
from tests.support.needs import skip_or_fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit.check.verify import VerifyResult

STANDIN = Path(__file__).parent / "standin"
REPOSITORY = f"truthgraph-checks-{os.getpid()}"  # two runs on one engine must not share images
WORKERS = 4  # a run waits for containers half of the time

DOCKERFILE = """
FROM {base}
USER 0
COPY standin/ /
RUN find / -xdev -perm /6000 -type f -exec chmod a-s {{}} + \\
 && printf '\\nPackage: %s\\nStatus: install ok installed\\n' curl postgresql-client >> /var/lib/dpkg/status \\
 && python3 -m compileall -q -x template.py --invalidation-mode unchecked-hash /opt/venv/lib /app \\
 && mkdir -m 750 /var/cache/truthgraph && chown 1000:1000 /var/cache/truthgraph
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10m CMD ["curl", "--fail", "http://127.0.0.1:8000/health"]
CMD ["python", "-m", "service", "serve"]
LABEL org.opencontainers.image.revision=0123abc org.opencontainers.image.created=today
"""


@dataclass(frozen=True, slots=True)
class Places:
    """The base image's Python: version, tag of its bytecode files, and path."""

    version: str
    tag: str
    executable: str

    def fill(self, text: str) -> str:
        """Replaces the placeholders @VERSION@ and @TAG@ in *text*."""
        return text.replace("@VERSION@", self.version).replace("@TAG@", self.tag)


def lay_out(root: Path, files: Mapping[str, str | bytes], places: Places) -> None:
    """Writes *files* below *root*; those in a folder `bin` are executable."""
    for name, content in files.items():
        path = root / places.fill(name).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o755 if "/bin/" in name else 0o644)


def standin_files(places: Places) -> dict[str, str | bytes]:
    """Returns the files of the stand-in; some only look like faults."""
    versions = EXPECTED.locked.items()
    home = Path(places.executable).parent
    return {
        "/opt/venv/pyvenv.cfg": f"home = {home}\ninclude-system-site-packages = false\n",
        "/app/service/__main__.py": (STANDIN / "service_main.py").read_text(),
        **{f"/app/service/{name}.json": '{"a": 1}' for name in ("chowned", "overwritten", "deleted")},
        f"{SITE}/torch.py": (STANDIN / "torch.py").read_text(),
        f"{SITE}/transformers.py": (STANDIN / "transformers.py").read_text(),
        f"{SITE}/sentence_transformers.py": (STANDIN / "sentence_transformers.py").read_text(),
        f"{SITE}/alembic/__main__.py": (STANDIN / "alembic_main.py").read_text(),
        **{f"{SITE}/{n.replace('-', '_')}-{v}.dist-info/METADATA": f"Name: {n}\nVersion: {v}\n" for n, v in versions},
        "/opt/models/all-MiniLM-L6-v2/vectors.json": json.dumps(VECTORS),
        "/usr/local/bin/curl": "#!/usr/bin/env python3\n" + (STANDIN / "curl.py").read_text(),
        "/opt/venv/bin/alembic": '#!/bin/sh\ncase ",$STANDIN_FAULTS," in *,script,*) exit 1;; esac\n',
        "/opt/venv/bin/uvicorn": "#!/bin/sh\n",
        "/usr/local/bin/psql": "#!/bin/sh\necho psql\n",
        f"{SITE}/numpy_x.libs/libopenblas.so": make_elf(soname="libopenblas.so", sections=[(".symtab", bytes(24))]),
        **PLACEHOLDERS,
        f"{SITE}/torch_x/testing/test_helpers.txt": "not a folder of tests",
        f"{SITE}/template.py": "class {{ name }}:\n",
        "/app/.env.example": "DATABASE_URL=\n",
        "/etc/example.conf": "address = postgresql://user:password@db/x\n",
    }


@dataclass(frozen=True, slots=True)
class Workshop:
    """Builds images of the stand-in, without network and compression, and removes them."""

    docker: Sequence[str]
    places: Places
    folder: Path
    without_fault: str

    def build(self, context: Path, dockerfile: str) -> str:
        """Builds *dockerfile* in the folder *context* and returns the image's name."""
        image = f"{REPOSITORY}:{context.name}"
        (context / "Dockerfile").write_text(dockerfile)
        command = [*self.docker, "buildx", "build", "--progress", "plain", "--network", "none", "--provenance=false"]
        command += ["--output", f"type=image,name={image},compression=uncompressed", str(context)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr[-4000:]
        return image

    def plant(self, name: str, batch: Batch) -> str:
        """Builds the image with the faults of *batch* and returns its name."""
        context = self.folder / name
        files: dict[str, str | bytes] = {CUDA: INTACT}
        for fault in batch.faults:
            files.update(fault.files)
        lay_out(context / "files", files, self.places)
        return self.build(context, f"FROM {REPOSITORY}:stand-in\n{self.places.fill(batch.dockerfile)}\n")

    def remove(self, *images: str) -> None:
        """Removes images."""
        subprocess.run([*self.docker, "image", "rm", "--force", *images], capture_output=True, check=False)


@pytest.fixture(scope="session")
def python_base(
    docker: Sequence[str],  # noqa: ARG001 - skips if no engine answers
    pytestconfig: pytest.Config,
) -> str:
    """The name of a Python base image, which is found or made as by `build`."""
    project = spec.load(pytestconfig.rootpath)
    try:
        found = base.ensure_base_image(
            daemon.find(os.environ, daemon.ManagedDaemon()),
            reference=project.base,
            python=project.python,
            origin="auto",
            cache=pytestconfig.rootpath / "build/cache",
            log=lambda _: None,
        )
    except BuildkitError as error:
        skip_or_fail(pytestconfig, "docker", f"no base image: {error}")
    return found.local


@pytest.fixture(scope="session")
def workshop(docker: Sequence[str], python_base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """The builder of images; the stand-in and the image without faults are built."""
    probe = "import sys; print(*sys.version_info[:2], sys.implementation.cache_tag[8:], sys.executable)"
    command = [*docker, "run", "--rm", "--network", "none", "--entrypoint", "python3", python_base, "-c", probe]
    major, minor, tag, executable = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    places = Places(f"{major}.{minor}", tag, executable)
    shop = Workshop(docker, places, tmp_path_factory.mktemp("workshop"), f"{REPOSITORY}:no-fault")
    context = shop.folder / "stand-in"
    lay_out(context / "standin", standin_files(places), places)
    for link in ("python", "python3"):
        (context / "standin/opt/venv/bin" / link).symlink_to(executable)
    try:
        shop.build(context, DOCKERFILE.format(base=python_base))
        shop.plant("no-fault", Batch())
        yield shop
    finally:
        shop.remove(shop.without_fault, f"{REPOSITORY}:stand-in")


@dataclass(frozen=True, slots=True)
class Verified:
    """The faults that share an image, and the results of its checks."""

    batch: Batch
    future: Future[VerifyResult]

    @property
    def result(self) -> VerifyResult:
        """The results; waits for them."""
        return self.future.result()


@pytest.fixture(scope="session")
def verified(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Verified]]:
    """The results of the image without faults (key "") and of the image with each fault (key: the fault's name).

    Only the faults of selected tests are planted, several in one image. Select a single test to see its fault alone.
    """
    host = workshop.docker[2] if len(workshop.docker) > 1 else None
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    faults = (call.params.get("fault") for call in parameters if call)
    selected = {fault.name for fault in faults if isinstance(fault, Fault)}
    cache = tmp_path_factory.mktemp("cache")

    def check(name: str, batch: Batch) -> VerifyResult:
        output = tmp_path_factory.mktemp("verified")
        image = workshop.plant(name, batch)
        # The image without faults is searched for build secrets too. For others this is too slow: no cache is used.
        needs_secrets = not batch.faults or any(BUILD_SECRET in fault.checks for fault in batch.faults)
        try:
            with (output / "progress.txt").open("w") as progress:
                return verify(
                    image,
                    batch.expected(EXPECTED),
                    output=output,
                    environment=os.environ,
                    engine_host=host,
                    build_secrets=BUILD_SECRETS if needs_secrets else {},
                    cache=cache,
                    progress=progress,
                )
        finally:
            if batch.faults:
                workshop.remove(image)

    batches = {"no-fault": Batch()}
    for number, batch in enumerate(group(fault for fault in FAULTS if fault.name in selected)):
        batches[f"batch-{number}"] = batch
    with ThreadPoolExecutor(WORKERS) as pool:
        started = [Verified(batch, pool.submit(check, name, batch)) for name, batch in batches.items()]
        yield {
            "": started[0],
            **{fault.name: verified for verified in started for fault in verified.batch.faults},
        }
