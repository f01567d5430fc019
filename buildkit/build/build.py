"""Builds one target with BuildKit and writes its build record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit import jsonfile
from buildkit.build.events import Events
from buildkit.build.labels import image_labels, project_version
from buildkit.build.locks import check_locks, locked
from buildkit.build.record import SCHEMA_VERSION, BuildRecord, load_record, record_path
from buildkit.build.secrets import BuildSecrets
from buildkit.engine.client import versions as engine_versions
from buildkit.errors import BuildFailed, CommandFailed, DiskTooFull
from buildkit.jsonfile import InvalidFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Literal

    from buildkit.build.base import BaseImage
    from buildkit.build.display import BuildDisplay
    from buildkit.build.events import Step
    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec, Target

__all__ = ["build", "build_arguments", "lock_digest", "previous_tag", "tag_of"]

_COMPRESSIONS: Final = {
    "uncompressed": ",compression=uncompressed",
    "gzip": ",compression=gzip",
    # Forced: otherwise layers that an earlier build stored in another compression would stay as they are. zstd has a
    # media type in OCI's image-spec only.
    "zstd": ",compression=zstd,compression-level=1,force-compression=true,oci-mediatypes=true",
}
"""Attributes of BuildKit's image exporter, by compression."""

_IMAGE_SECONDS: Final = 600.0
"""The longest time for naming or removing an image of gigabytes in a busy engine."""

_WARM_BYTES: Final = 1_000_000_000
"""Room for a build with a cached environment: the application, stored and unpacked (a generous guess)."""


def tag_of(spec: ImageSpec, target: Target) -> str:
    """Returns the name that points to the last build of *target*: `latest` for the default target `api`."""
    return f"{spec.name}:{'latest' if target.name == 'api' else target.name}"


def previous_tag(tag: str) -> str:
    """Returns the second name of the previous image while *tag* is built; it remains after a killed build."""
    return f"{tag}-before"


def build(
    spec: ImageSpec,
    target: Target,
    *,
    engine: Engine,
    base: BaseImage,
    environment: Mapping[str, str],
    folder: Path,
    show: Callable[[Events], BuildDisplay],
    use_cache: bool = True,
    check_disk: bool = True,
    network: Literal["", "host"] = "",
) -> BuildRecord:
    """Builds *target* and writes its record to *folder*; on success the engine drops the image of the previous build.

    Args:
        spec: the project's images.
        target: the image to build.
        engine: builds and stores the image.
        base: the Python base image.
        environment: the caller's; its build secrets and proxies reach RUN steps only.
        folder: the folder for the build record.
        show: makes the display of the build's progress.
        use_cache: False runs every step again.
        check_disk: True refuses to build if the disk seems too full.
        network: "host" gives RUN steps the machine's network, for an engine that has none.

    Raises:
        BuildFailed: a step failed.
        DiskTooFull: the build needs more room than there is.
        UsageError: a lock file is stale.
        CommandFailed: docker itself failed.
    """
    if target.layers:
        check_locks(spec)
    lock_sha256 = lock_digest(spec, target)
    if check_disk:
        _check_disk(engine, target, folder, lock_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    tag = tag_of(spec, target)
    labels = image_labels(spec, target, base, lock_sha256)
    arguments = build_arguments(spec, target, base)
    options = _image_options(spec, target, base, tag=tag, labels=labels)
    options += [*([f"--network={network}"] if network else []), *([] if use_cache else ["--no-cache"])]
    with _previous_image_named(engine, tag), ThreadPoolExecutor(max_workers=1) as pool:
        started, clock_seconds = datetime.now(tz=UTC), time.monotonic()
        versions = pool.submit(engine_versions, engine)
        digest, steps = _run_buildx(
            engine, spec.project, target, show, options, arguments=arguments, secrets=BuildSecrets.of(environment)
        )
        seconds = time.monotonic() - clock_seconds
    record = BuildRecord(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        digest=digest,
        tags=(tag,),
        arguments=arguments,
        base={"reference": base.reference, "digest": base.digest, "origin": base.origin},
        labels=labels,
        lock_sha256=lock_sha256,
        revision=labels["org.opencontainers.image.revision"],
        versions={**versions.result(), "toolkit": project_version(spec.project)},
        started=started.isoformat(timespec="milliseconds"),
        seconds=round(seconds, 3),
        steps=tuple(steps),
    )
    jsonfile.save(record, record_path(folder, target.name), indent=1)
    return record


def build_arguments(spec: ImageSpec, target: Target, base: BaseImage) -> dict[str, str]:
    """Returns the Dockerfile's arguments: the base image and the target's own, with `{site_packages}` filled in."""
    site_packages = base.site_packages(spec.python)
    own = {name: value.replace("{site_packages}", site_packages) for name, value in target.arguments.items()}
    return {"PYTHON_IMAGE": base.reference, **own}


def _image_options(
    spec: ImageSpec, target: Target, base: BaseImage, *, tag: str, labels: Mapping[str, str]
) -> list[str]:
    """Returns options of `docker buildx build`: Dockerfile, stage, base image, name and labels of the result."""
    return [
        f"--file={spec.project / target.dockerfile}",
        f"--target={target.stage}",
        f"--build-context={base.reference}={base.context}",
        f"--output=type=image,name={tag}{_COMPRESSIONS[target.compression]}",
        "--provenance=false",  # its times would give every build another digest
        *(f"--label={name}={value}" for name, value in labels.items()),
    ]


def _run_buildx(
    engine: Engine,
    project: Path,
    target: Target,
    show: Callable[[Events], BuildDisplay],
    options: Sequence[str],
    *,
    arguments: Mapping[str, str],
    secrets: BuildSecrets,
) -> tuple[str, list[Step]]:
    """Runs `docker buildx build`, shows its progress, and returns the image's digest and the steps.

    Raises:
        BuildFailed: a step failed.
        CommandFailed: docker failed before any step did.
    """
    events = Events()
    with tempfile.TemporaryDirectory() as scratch:
        metadata = Path(scratch) / "metadata.json"
        words = [
            *options,
            *(f"--build-arg={name}={value}" for name, value in {**arguments, **secrets.proxies}.items()),
            *(f"--secret={secret}" for secret in secrets.buildx_secrets(Path(scratch))),
            f"--metadata-file={metadata}",
            str(project),
        ]
        try:
            with show(events) as display:

                def feed(line: str) -> None:
                    for step in events.feed(line):
                        display.add(step)

                engine.stream("buildx", "build", "--progress=rawjson", *words, on_line=feed)
        except CommandFailed as error:
            raise _failure(error, events, target) from error
        return str(json.loads(metadata.read_text())["containerimage.digest"]), events.steps


def _failure(error: CommandFailed, events: Events, target: Target) -> BuildFailed | CommandFailed:
    """Returns the error to raise if `docker buildx build` failed: the failed step, or docker's own error."""
    failed = events.failure()
    if failed is None:
        tail = "\n".join(events.other_lines[-12:])
        return CommandFailed(["docker", "buildx", "build"], error.exit_code_of_command, tail)
    step, exit_code, log = failed
    return BuildFailed(target.name, step.stage, step.instruction, exit_code, log or step.error)


@contextlib.contextmanager
def _previous_image_named(engine: Engine, tag: str) -> Iterator[None]:
    """Gives the image that *tag* points to a second name inside the block.

    BuildKit moves the name to the new image before it unpacks that image. containerd then removes the unpacked layers
    of the old image, although layers of the new image are being unpacked on top of some of them
    (github.com/moby/buildkit/issues/6521).
    """
    exists = bool(engine.docker("image", "ls", "--quiet", tag, seconds=_IMAGE_SECONDS).strip())
    if exists:
        engine.docker("image", "tag", tag, previous_tag(tag), seconds=_IMAGE_SECONDS)
    try:
        yield
    finally:
        if exists:
            with contextlib.suppress(CommandFailed):  # the next build moves the name
                engine.docker("image", "rm", "--force", previous_tag(tag), seconds=_IMAGE_SECONDS)


def lock_digest(spec: ImageSpec, target: Target) -> str:
    """Returns the SHA-256 (hex) of the locked names and versions in the target's layers, or in all if it has none."""
    names = target.layers or [layer.name for layer in spec.layers]
    versions = locked(spec.lock_folder, names)
    return hashlib.sha256(json.dumps(sorted(versions.items())).encode()).hexdigest()


def _check_disk(engine: Engine, target: Target, folder: Path, lock_sha256: str) -> None:
    """Checks that the engine's disk has room for the build; skips an engine on another machine.

    Raises:
        DiskTooFull: it does not.
    """
    if engine.root is None:
        return
    needed_bytes = target.disk_bytes
    with contextlib.suppress(InvalidFile, CommandFailed):
        before = load_record(record_path(folder, target.name))
        if before.lock_sha256 == lock_sha256:
            engine.docker("image", "inspect", "--format", "{{.Id}}", before.digest)
            needed_bytes = _WARM_BYTES
    free_bytes = shutil.disk_usage(engine.root).free
    if free_bytes < needed_bytes:
        raise DiskTooFull(str(engine.root), target.name, needed_bytes, free_bytes)
