"""Images to check: a stand-in without fault, and one for each fault of `faults.py`."""

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
from tests.checks.faults import CUDA, EXPECTED, FAULTS, HANDED_IN, INERT, PRUNED, SIGNS, SITE, WHOLE, Fault
from tests.support.elf_facts import make_elf
from tests.support.needs import skip_or_fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit.check.verify import VerifyResult
    from checks.expectations import Expectations

STANDIN = Path(__file__).parent / "standin"
REPOSITORY = f"truthgraph-checks-{os.getpid()}"  # two runs on one engine do not meet
PARENTS = ("parent", "undeclared", "pruned")
PROCESSES = 4  # half of each run is waiting for containers

DOCKERFILE = """
FROM {base} AS bare
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
HEALTHCHECK CMD ["curl", "--fail", "http://127.0.0.1:8000/health"]
CMD ["python", "-m", "service", "serve"]
LABEL org.opencontainers.image.revision=0123abc org.opencontainers.image.created=today

FROM bare AS undeclared
COPY whole/ /
USER 1000:1000
FROM undeclared AS parent
VOLUME ["/var/cache/truthgraph"]
FROM bare AS pruned
COPY pruned/ /
VOLUME ["/var/cache/truthgraph"]
USER 1000:1000
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the base image's Python keeps things; its marks in paths are replaced by these."""

    version: str
    tag: str
    executable: str

    def fill(self, text: str) -> str:
        """*text* with the marks replaced."""
        return text.replace("@VERSION@", self.version).replace("@TAG@", self.tag)


def lay_out(root: Path, files: Mapping[str, str | bytes], places: Places) -> None:
    """Writes *files* below *root*, programs with their mode."""
    for name, content in files.items():
        path = root / places.fill(name).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o755 if "/bin/" in name else 0o644)


def standin_files(places: Places) -> dict[str, str | bytes]:
    """The stand-in, and beside it what looks like a fault and is none."""
    versions = EXPECTED.locked.items()
    home = Path(places.executable).parent
    return {
        "/opt/venv/pyvenv.cfg": f"home = {home}\ninclude-system-site-packages = false\n",
        "/app/service/__main__.py": (STANDIN / "service_main.py").read_text(),
        "/app/service/data.json": '{"a": 1}',
        f"{SITE}/torch.py": (STANDIN / "torch.py").read_text(),
        f"{SITE}/transformers.py": (STANDIN / "transformers.py").read_text(),
        f"{SITE}/sentence_transformers.py": (STANDIN / "sentence_transformers.py").read_text(),
        f"{SITE}/alembic/__main__.py": (STANDIN / "alembic_main.py").read_text(),
        **{f"{SITE}/{n.replace('-', '_')}-{v}.dist-info/METADATA": f"Name: {n}\nVersion: {v}\n" for n, v in versions},
        "/opt/models/all-MiniLM-L6-v2/vectors.json": json.dumps(VECTORS),
        "/usr/local/bin/curl": "#!/usr/bin/env python3\n" + (STANDIN / "curl.py").read_text(),
        "/opt/venv/bin/alembic": '#!/bin/sh\n[ "$STANDIN_FAULT" != "console script" ]\n',
        "/opt/venv/bin/uvicorn": "#!/bin/sh\n",
        "/usr/local/bin/psql": "#!/bin/sh\necho psql\n",
        f"{SITE}/numpy_x.libs/libopenblas.so": make_elf(soname="libopenblas.so", sections=[(".symtab", bytes(24))]),
        **SIGNS,
        f"{SITE}/torch_x/testing/test_helpers.txt": "not a folder of tests",
        f"{SITE}/template.py": "class {{ name }}:\n",
        "/app/.env.example": "DATABASE_URL=\n",
        "/etc/example.conf": "address = postgresql://user:password@db/x\n",
    }


def dockerfile(fault: Fault, places: Places) -> str:
    """The Dockerfile that plants one fault."""
    lines = [f"FROM {REPOSITORY}:{fault.parent}", "USER 0"]
    lines += ["COPY files/ /"] if fault.files else []
    lines += [places.fill(fault.instructions)] if fault.instructions else []
    lines += [] if "USER" in fault.instructions else ["USER 1000:1000"]
    lines += [f'ENV STANDIN_FAULT="{fault.switch}"'] if fault.switch else []
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Workshop:
    """Builds images of the stand-in, without a network and without compression, and takes them away again."""

    docker: Sequence[str]
    places: Places
    folder: Path

    @property
    def without_fault(self) -> str:
        """The image that nothing is wrong with."""
        return f"{REPOSITORY}:parent"

    def build(self, context: Path, name: str, *options: str) -> str:
        """Builds the Dockerfile in *context*; the image's name."""
        image = f"{REPOSITORY}:{name}"
        command = [*self.docker, "buildx", "build", "--progress", "plain", "--network", "none", "--provenance=false"]
        command += ["--output", f"type=image,name={image},compression=uncompressed", *options, str(context)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr[-4000:]
        return image

    def plant(self, fault: Fault) -> str:
        """Builds the image with one fault."""
        if not fault.is_planted:
            return self.without_fault
        context = self.folder / f"fault{FAULTS.index(fault)}"
        lay_out(context / "files", fault.files, self.places)
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile(fault, self.places))
        return self.build(context, context.name)

    def remove(self, *images: str) -> None:
        """Takes images away."""
        subprocess.run([*self.docker, "image", "rm", "--force", *images], capture_output=True, check=False)


@pytest.fixture(scope="session")
def python_base(docker: Sequence[str], pytestconfig: pytest.Config) -> str:
    """The engine's own name of a Python base image, got as the harness gets it."""
    project = spec.load(pytestconfig.rootpath)
    assert docker, "the fixture skips where there is none"
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
    """Where faults are planted; the stand-in without fault, and what else faults start from, are built."""
    probe = "import sys; print(*sys.version_info[:2], sys.implementation.cache_tag[8:], sys.executable)"
    asked = [*docker, "run", "--rm", "--network", "none", "--entrypoint", "python3", python_base, "-c", probe]
    major, minor, tag, executable = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    places = Places(f"{major}.{minor}", tag, executable)
    shop = Workshop(docker, places, tmp_path_factory.mktemp("workshop"))
    context = shop.folder / "standin"
    lay_out(context / "standin", standin_files(places), places)
    for link in ("python", "python3"):
        (context / "standin/opt/venv/bin" / link).symlink_to(executable)
    lay_out(context / "whole", {CUDA: WHOLE}, places)
    lay_out(context / "pruned", {CUDA: PRUNED}, places)
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=python_base))
    try:
        for parent in PARENTS:
            shop.build(context, parent, "--target", parent)
        yield shop
    finally:
        shop.remove(*(f"{REPOSITORY}:{parent}" for parent in PARENTS))


@pytest.fixture(scope="session")
def verified(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[VerifyResult]]]:
    """The results of the image without fault ("none") and of that of each fault that a selected test asks for.

    They are made some at a time. An image that runs like the one without fault is not run again.
    """
    host = workshop.docker[2] if len(workshop.docker) > 1 else None
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    faults = (call.params.get("fault") for call in parameters if call)
    wanted = {fault.name for fault in faults if isinstance(fault, Fault)}
    cache = tmp_path_factory.mktemp("cache")

    def check(image: str, expected: Expectations, *, reuse: Path | None, handed_in: Mapping[str, str]) -> VerifyResult:
        output = tmp_path_factory.mktemp("verified")
        with (output / "progress.txt").open("w") as progress:
            return verify(
                image,
                expected,
                output=output,
                environment=os.environ,
                engine_host=host,
                secrets=handed_in,
                cache=cache,
                reuse=reuse,
                progress=progress,
            )

    def check_fault(fault: Fault) -> VerifyResult:
        image = workshop.plant(fault)
        try:
            return check(
                image,
                fault.expected(EXPECTED),
                reuse=first.json_path.with_name("evidence.json") if fault in INERT else None,
                handed_in=HANDED_IN if "handed in" in fault.name else {},
            )
        finally:
            if fault.is_planted:
                workshop.remove(image)

    with ThreadPoolExecutor(PROCESSES) as pool:
        without = pool.submit(check, workshop.without_fault, EXPECTED, reuse=None, handed_in=HANDED_IN)
        first = without.result()
        yield {
            "none": without,
            **{fault.name: pool.submit(check_fault, fault) for fault in FAULTS if fault.name in wanted},
        }
