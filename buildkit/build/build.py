"""Builds one target with BuildKit and records how: what went in, what came out, and how long each step took.

The record holds the image's digest. It, never a tag, goes from a build to its checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from buildkit import jsonfile
from buildkit.build.events import Events, Step
from buildkit.build.locks import check_locks, locked
from buildkit.build.secrets import BuildSecrets
from buildkit.diff.diff import BASE_LAYERS_LABEL
from buildkit.engine.client import versions as engine_versions
from buildkit.engine.processes import end_children
from buildkit.errors import BuildFailed, CommandFailed, DiskTooFull, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Literal

    from buildkit.build.base import Base
    from buildkit.build.display import BuildDisplay
    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec, Target

__all__ = ["BuildRecord", "build", "kept_name", "load_record", "record_path", "tag_of"]

SCHEMA_VERSION = 1
_COMPRESSIONS = {
    "uncompressed": {"compression": "uncompressed"},
    "gzip": {"compression": "gzip"},
    # Forced: layers that an earlier build left in another compression would be kept as they are. zstd has a media type
    # in OCI's image-spec only.
    "zstd": {
        "compression": "zstd",
        "compression-level": "1",
        "force-compression": "true",
        "oci-mediatypes": "true",
    },
}
"""Attributes of BuildKit's image exporter."""

_IMAGE_SECONDS = 600.0
"""How long the engine may take to name an image or to remove one: it may be busy, and an image has gigabytes."""

_WARM_BYTES = 1_000_000_000
"""Room for a build that finds the environment in the cache: the application, stored and unpacked (a generous guess)."""


class BuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a build was and what it made; saved as JSON.

    Attributes:
        digest: of the image in the engine, `sha256:…`.
        tags: names that pointed to it when it was built.
        arguments: build arguments, proxies left out (they may hold credentials).
        base: reference, digest and origin ("registry" or "debian") of the base image.
        lock_sha256: over the lock files of the target's layers.
        revision: the git commit, `-dirty` appended where files differ from it; "unknown" outside a checkout.
        versions: of engine, client, buildx, BuildKit and this harness.
        started: RFC 3339, UTC.
        seconds: wall time of the build.
    """

    schema_version: int
    target: str
    digest: str
    tags: tuple[str, ...]
    arguments: dict[str, str]
    base: dict[str, str]
    labels: dict[str, str]
    lock_sha256: str
    revision: str
    versions: dict[str, str]
    started: str
    seconds: float
    steps: tuple[Step, ...]


def record_path(folder: Path, target: str) -> Path:
    """Where the record of the last build of *target* lies: `image.json` for the default target `api`."""
    return folder / ("image.json" if target == "api" else f"image-{target}.json")


def tag_of(spec: ImageSpec, target: Target) -> str:
    """The name that points to the last build of *target*: `latest` for the default target `api`."""
    return f"{spec.name}:{'latest' if target.name == 'api' else target.name}"


def load_record(path: Path) -> BuildRecord:
    """Reads a record that a build wrote.

    Raises:
        UsageError: there is none, or it is of another schema version.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=BuildRecord)
    except FileNotFoundError:
        raise UsageError(str(path), "missing", "run `nox -s build-image` first") from None
    except msgspec.MsgspecError as error:
        raise UsageError(str(path), str(error), "not a build record; run `nox -s build-image` again") from error
    if record.schema_version != SCHEMA_VERSION:
        raise UsageError(f"{path}: schema_version", record.schema_version, f"this harness reads {SCHEMA_VERSION}")
    return record


def build(
    spec: ImageSpec,
    target: Target,
    *,
    engine: Engine,
    base: Base,
    environment: Mapping[str, str],
    folder: Path,
    show: Callable[[Events], BuildDisplay],
    use_cache: bool = True,
    check_disk: bool = True,
    network: Literal["", "host"] = "",
) -> BuildRecord:
    """Builds *target* and writes its record below *folder*; the image of the build before goes when this one is done.

    Secrets (certificates, package index, credentials) and proxies are taken from *environment*, the caller's own, and
    reach RUN steps only. *network* "host" gives RUN steps the machine's network, for an engine that has none.

    Raises:
        BuildFailed: a step failed.
        DiskTooFull: there is less room than the build needs.
        UsageError: a lock file is stale.
        CommandFailed: docker itself failed.
    """
    if target.layers:
        check_locks(spec)
    lock_sha256 = lock_digest(spec, target)
    if check_disk:
        _check_disk(engine, target, folder, lock_sha256)
    handed_in = BuildSecrets.of(environment)
    revision, created = _revision(spec.project)
    tag = tag_of(spec, target)
    labels = _labels(spec, base, revision=revision, created=created, lock_sha256=lock_sha256) | _slim_labels(target)
    events = Events()
    folder.mkdir(parents=True, exist_ok=True)
    site_packages = base.site_packages(spec.python)
    build_arguments = {"PYTHON_IMAGE": base.reference}
    for name, value in target.arguments.items():
        build_arguments[name] = value.replace("{site_packages}", site_packages)
    with _still_named(engine, tag), tempfile.TemporaryDirectory() as scratch:
        began, started = time.monotonic(), datetime.now(tz=UTC)
        metadata = Path(scratch) / "metadata.json"
        client = DockerClient(host=engine.host or None)
        lines = cast(
            "Iterator[str]",
            client.buildx.build(
                spec.project,
                file=spec.project / target.dockerfile,
                target=target.stage,
                build_args={**build_arguments, **handed_in.proxies},
                build_contexts={base.reference: base.context},
                labels=labels,
                secrets=handed_in.as_secrets(Path(scratch)),
                output={"type": "image", "name": tag, **_COMPRESSIONS[target.compression]},
                provenance=False,  # its time stamps would give every build another digest
                metadata_file=metadata,
                cache=use_cache,
                network=network or None,
                # Any other word than the typed ones is passed on to buildx as it is.
                progress=cast("Literal['plain']", "rawjson"),
                stream_logs=True,
            ),
        )
        with ThreadPoolExecutor(max_workers=1) as pool, show(events) as display:
            versions = pool.submit(engine_versions, engine)
            _follow(lines, events, display, target)
        digest = str(json.loads(metadata.read_text())["containerimage.digest"])
        seconds = time.monotonic() - began
    record = BuildRecord(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        digest=digest,
        tags=(tag,),
        arguments=build_arguments,
        base={"reference": base.reference, "digest": base.digest, "origin": base.origin},
        labels=labels,
        lock_sha256=lock_sha256,
        revision=revision,
        versions={**versions.result(), "harness": _version(spec.project)},
        started=started.isoformat(timespec="milliseconds"),
        seconds=round(seconds, 3),
        steps=tuple(events.steps),
    )
    jsonfile.save(record, record_path(folder, target.name), indent=1)
    return record


def kept_name(tag: str) -> str:
    """The second name that the image called *tag* has while another one is built, and after a build that was killed."""
    return f"{tag}-before"


@contextlib.contextmanager
def _still_named(engine: Engine, tag: str) -> Iterator[None]:
    """Gives the image that *tag* points to a second name for the length of the block, and removes it after that.

    BuildKit moves the name to the new image before it unpacks that one, and containerd then collects the unpacked
    layers of the old one, on some of which the new ones are just being put (github.com/moby/buildkit/issues/6521).
    """
    is_there = bool(engine.docker("image", "ls", "--quiet", tag, seconds=_IMAGE_SECONDS).strip())
    if is_there:
        engine.docker("image", "tag", tag, kept_name(tag), seconds=_IMAGE_SECONDS)
    try:
        yield
    finally:
        if is_there:
            with contextlib.suppress(CommandFailed):  # the next build takes the name anew
                engine.docker("image", "rm", "--force", kept_name(tag), seconds=_IMAGE_SECONDS)


def _follow(lines: Iterator[str], events: Events, display: BuildDisplay, target: Target) -> None:
    """Feeds *lines* to *events* until the build ended; when it is interrupted, ends `docker` too before going on."""
    try:
        for line in lines:
            for step in events.feed(line):
                display.ended(step)
    except DockerException as error:
        failed = events.failure()
        if failed is None:
            tail = "\n".join(events.other_lines[-12:])
            raise CommandFailed(["docker", "buildx", "build"], error.return_code, tail) from error
        step, exit_code, log = failed
        raise BuildFailed(target.name, step.stage, step.instruction, exit_code, log or step.error) from error
    except BaseException:
        end_children()
        raise


def lock_digest(spec: ImageSpec, target: Target) -> str:
    """SHA-256 (hex) over names and versions that the target's layers lock; of every layer where it has none."""
    names = target.layers or [layer.name for layer in spec.layers]
    versions = locked(spec.lock_folder, names)
    return hashlib.sha256(json.dumps(sorted(versions.items())).encode()).hexdigest()


def _check_disk(engine: Engine, target: Target, folder: Path, lock_sha256: str) -> None:
    if engine.root is None:
        return  # another machine's disk
    needed_bytes = target.disk_bytes
    with contextlib.suppress(UsageError, CommandFailed):
        before = load_record(record_path(folder, target.name))
        if before.lock_sha256 == lock_sha256:
            engine.docker("image", "inspect", "--format", "{{.Id}}", before.digest)
            needed_bytes = _WARM_BYTES
    free_bytes = shutil.disk_usage(engine.root).free
    if free_bytes < needed_bytes:
        raise DiskTooFull(str(engine.root), target.name, needed_bytes, free_bytes)


def _labels(spec: ImageSpec, base: Base, *, revision: str, created: str, lock_sha256: str) -> dict[str, str]:
    """OCI's pre-defined annotations (image-spec annotations.md) and our own, which say what the image was made from."""
    return {
        "org.opencontainers.image.title": spec.title,
        "org.opencontainers.image.description": spec.description,
        "org.opencontainers.image.licenses": spec.licenses,
        "org.opencontainers.image.version": _version(spec.project),
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.source": _source(spec.project),
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.base.name": base.reference,
        "org.opencontainers.image.base.digest": base.digest,
        "io.truthgraph.base.origin": base.origin,
        BASE_LAYERS_LABEL: str(base.layers),
        "io.truthgraph.lock.sha256": lock_sha256,
    }


def _slim_labels(target: Target) -> dict[str, str]:
    """What was taken out of the CUDA libraries, and that no GPU has run the result yet (docs/measured)."""
    profile = target.arguments.get("SLIM_PROFILE")
    if profile is None:
        return {}
    return {
        "io.truthgraph.slim.profile": profile,
        "io.truthgraph.slim.targets": target.arguments.get("SLIM_TARGETS", ""),
        "io.truthgraph.slim.verified": "not on a device",
    }


def _version(project: Path) -> str:
    return str(tomllib.loads((project / "pyproject.toml").read_text())["project"]["version"])


def _git(project: Path, *arguments: str) -> str:
    command = ["git", "-C", str(project), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _revision(project: Path) -> tuple[str, str]:
    """The commit (`-dirty` where tracked files differ) and its time; outside a checkout "unknown" and the epoch.

    The time is the commit's, not the clock's, so that building twice gives the same image.
    """
    commit, _, created = _git(project, "log", "-1", "--format=%H %cI").partition(" ")
    if not commit:
        return "unknown", "1970-01-01T00:00:00Z"
    dirty = _git(project, "status", "--porcelain", "--untracked-files=no")
    return (f"{commit}-dirty" if dirty else commit), created


def _source(project: Path) -> str:
    """The address of the git remote without credentials; "local" where there is none."""
    remote = _git(project, "config", "--get", "remote.origin.url")
    if not re.match(r"(https?|ssh)://|git@", remote):
        return "local"
    return re.sub(r"(?<=://)[^/@]*@", "", remote)
