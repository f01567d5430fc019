"""Images to check: a stand-in without fault, and one for each fault of `faults.py`, built in one go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit import base, engine, spec
from buildkit.errors import BuildkitError
from buildkit.verify import VerifyResult, verify
from checks.golden import VECTORS
from tests.checks.elf_maker import make_elf
from tests.checks.faults import CUDA, EXPECTED, FAULTS, HANDED_IN, INERT, PRUNED, SITE, WHOLE, Fault
from tests.conftest import absent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

STANDIN = Path(__file__).parent / "standin"
REPOSITORY = "truthgraph-checks"
BATCH = 20  # more exports at a time end in BuildKit's own deadlines (measured: 110)
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
        "/usr/local/bin/psql": "#!/bin/sh\necho psql\n",
        f"{SITE}/numpy_x.libs/libopenblas.so": make_elf(soname="libopenblas.so", sections=[(".symtab", bytes(24))]),
        f"{SITE}/torch_x/testing/test_helpers.txt": "not a folder of tests",
        f"{SITE}/template.py": "class {{ name }}:\n",
        "/app/.env.example": "DATABASE_URL=\n",
        "/etc/example.conf": "address = postgresql://user:password@db/x\n",
    }


def stages(fault: Fault, stage: str, places: Places) -> str:
    """The part of the Dockerfile that plants one fault."""
    lines = [f"FROM {fault.parent} AS {stage}", "USER 0"]
    lines += [f"COPY {stage}/ /"] if fault.files else []
    lines += [places.fill(fault.instructions)] if fault.instructions else []
    lines += [] if "USER" in fault.instructions else ["USER 1000:1000"]
    lines += [f'ENV STANDIN_FAULT="{fault.switch}"'] if fault.switch else []
    return "\n".join(lines) + "\n"


def batched(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """*names* in lists of at most *size*."""
    left = list(names)
    while left:
        yield left[:size]
        left = left[size:]


@pytest.fixture(scope="session")
def python_base(docker: Sequence[str], pytestconfig: pytest.Config) -> str:
    """The engine's own name of a Python base image, got as the harness gets it."""
    project = spec.load(pytestconfig.rootpath)
    assert docker, "the fixture skips where there is none"
    try:
        found = base.obtain(
            engine.find(os.environ, engine.Private()),
            reference=project.base,
            python=project.python,
            origin="auto",
            cache=pytestconfig.rootpath / "build/cache",
            say=lambda _: None,
        )
    except BuildkitError as error:
        absent(pytestconfig, "docker", f"no base image: {error}")
    return found.local


@pytest.fixture(scope="session")
def planted(request: pytest.FixtureRequest) -> list[Fault]:
    """The faults that the selected tests ask for."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    names = {call.params["fault"].name for call in calls if call and "fault" in call.params}
    return [fault for fault in FAULTS if fault.name in names]


@pytest.fixture(scope="session")
def images(
    docker: Sequence[str], python_base: str, planted: list[Fault], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, str]]:
    """The name of the image of each planted fault, and of the one without: "none"."""
    probe = "import sys; print(*sys.version_info[:2], sys.implementation.cache_tag[8:], sys.executable)"
    asked = [*docker, "run", "--rm", "--network", "none", "--entrypoint", "python3", python_base, "-c", probe]
    major, minor, tag, executable = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    places = Places(f"{major}.{minor}", tag, executable)
    context = tmp_path_factory.mktemp("context")
    lay_out(context / "standin", standin_files(places), places)
    for link in ("python", "python3"):
        (context / "standin/opt/venv/bin").mkdir(parents=True, exist_ok=True)
        (context / "standin/opt/venv/bin" / link).symlink_to(executable)
    lay_out(context / "whole", {CUDA: WHOLE}, places)
    lay_out(context / "pruned", {CUDA: PRUNED}, places)
    text = DOCKERFILE.format(base=python_base)
    named = {"none": "parent"}
    for number, fault in enumerate(fault for fault in planted if fault.is_planted):
        stage = f"fault{number}"
        lay_out(context / stage, fault.files, places)
        text += stages(fault, stage, places)
        named[fault.name] = stage
    (context / "Dockerfile").write_text(text)
    plan = {
        "target": {
            stage: {
                "context": str(context),
                "target": stage,
                "network": "none",
                "output": [f"type=image,name={REPOSITORY}:{stage},compression=uncompressed"],
                "attest": ["type=provenance,disabled=true"],
            }
            for stage in named.values()
        },
    }
    (context / "bake.json").write_text(json.dumps(plan))
    bake = [*docker, "buildx", "bake", "--progress", "plain", "--file", str(context / "bake.json")]
    try:
        for batch in batched(named.values(), BATCH):
            built = subprocess.run([*bake, *batch], capture_output=True, text=True, check=False)
            assert built.returncode == 0, built.stderr[-4000:]
        yield {name: f"{REPOSITORY}:{named.get(name, 'parent')}" for name in ("none", *(f.name for f in planted))}
    finally:
        tags = [f"{REPOSITORY}:{stage}" for stage in named.values()]
        subprocess.run([*docker, "image", "rm", "--force", *tags], capture_output=True, check=False)
        shutil.rmtree(context)


@pytest.fixture(scope="session")
def verified(
    docker: Sequence[str],
    planted: list[Fault],
    images: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[str, Future[VerifyResult]]]:
    """The results of the image of each fault that the selected tests ask for, some at a time."""
    host = docker[2] if len(docker) > 1 else None
    wanted = {"none": EXPECTED, **{fault.name: fault.expected(EXPECTED) for fault in planted}}

    cache = tmp_path_factory.mktemp("cache")
    inert = {fault.name for fault in INERT}

    def check(name: str, without_fault: VerifyResult | None) -> VerifyResult:
        expected = wanted[name]
        output = tmp_path_factory.mktemp("verified")
        recorded = without_fault.json_path.with_name("evidence.json") if without_fault and name in inert else None
        with (output / "progress.txt").open("w") as progress:
            return verify(
                images[name],
                expected,
                output=output,
                environment=os.environ,
                engine_host=host,
                handed_in=HANDED_IN if "handed in" in name or name == "none" else None,
                cache=cache,
                reuse=recorded,
                progress=progress,
            )

    with ThreadPoolExecutor(PROCESSES) as pool:
        first = pool.submit(check, "none", None)
        first.result()
        yield {"none": first, **{fault.name: pool.submit(check, fault.name, first.result()) for fault in planted}}
