"""Steps that move images: check the verification record, tag, push; pull for a rollback."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from buildkit.errors import CommandFailed, RegistryFailed
from buildkit.staging.release.verified_image import load_verified_image, tag_of
from buildkit.staging.stack.push import push
from buildkit.staging.stack.sidecars import SIDECARS
from buildkit.text import format_bytes

if TYPE_CHECKING:
    from buildkit.staging.release.run import ReleaseRun

__all__ = ["pull_image", "push_images", "tag_image", "verify_record"]


def verify_record(run: ReleaseRun) -> str:
    """Loads the verified image and names the release after it."""
    context = run.context
    image = load_verified_image(context.build_path, context.verify_path, engine=context.engine)
    run.record = structs.replace(
        run.record,
        name=tag_of(image, run.history),
        digest=image.digest,
        version=image.version,
        revision=image.revision,
    )
    return f"{image.digest}, not verified: {', '.join(image.not_verified) or 'nothing'}"


def tag_image(run: ReleaseRun) -> str:
    """Tags the image with its name in the registry."""
    name = f"{run.context.repository}:{run.record.name}"
    run.context.engine.docker("image", "tag", run.record.digest, name)
    return name


def push_images(run: ReleaseRun) -> str:
    """Pushes the API's image, and those of the sidecars; layers that the registry has are not sent."""
    context = run.context
    sent = push(
        context.engine,
        digest=run.record.digest,
        repository=context.repository,
        tag=run.record.name,
        log=context.log,
    )
    sidecars: dict[str, str] = {}
    for service, target in SIDECARS.items():
        digest = context.sidecar(service)
        repository = f"{context.repository.removesuffix('-api')}-{target}"
        tag = digest.removeprefix("sha256:")[:12]
        context.engine.docker("image", "tag", digest, f"{repository}:{tag}")
        pushed = push(context.engine, digest=digest, repository=repository, tag=tag, log=context.log)
        sidecars[service] = pushed.reference
        sent = replace(
            sent,
            bytes_sent=sent.bytes_sent + pushed.bytes_sent,
            bytes_present=sent.bytes_present + pushed.bytes_present,
        )
    settings = {**context.stack.settings, "TRUTHGRAPH_RELEASE": run.record.name}
    run.new = context.stack.with_release({"api": sent.reference, **sidecars}, settings)
    run.record = structs.replace(
        run.record, image=sent.reference, sidecars=sidecars, settings=settings, bytes_sent=sent.bytes_sent
    )
    return f"{format_bytes(sent.bytes_sent)} sent, {format_bytes(sent.bytes_present)} already in the registry"


def pull_image(run: ReleaseRun) -> str:
    """Pulls the image that a rollback returns to, so that a missing one is found before anything changes."""
    context, image = run.context, run.record.image
    try:
        context.engine.docker("pull", "--quiet", image, seconds=context.spec.staging.update_seconds)
    except CommandFailed as error:
        raise RegistryFailed(image.partition("/")[0], error.log_tail or str(error)) from error
    return image
