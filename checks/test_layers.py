"""How the image is put together: no byte stored twice, and within its budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.verdicts import fail_if, not_applicable

if TYPE_CHECKING:
    from checks.expectations import Expectations
    from checks.facts import FileSystem
    from checks.layers import ImageLayers, Repeat


def repeated(layers: ImageLayers, expectations: Expectations, cause: str) -> list[Repeat]:
    """The files stored in vain for *cause*, those apart that each installation of system packages must change."""
    prefixes = tuple(expectations.base_paths)
    repeats = [item for item in layers.repeats() if item.cause == cause and not item.path.startswith(prefixes)]
    return sorted(repeats, key=lambda item: -item.size_bytes)


def refuse_repeats(layers: ImageLayers, expectations: Expectations, cause: str, fix: str) -> None:
    """Fails where files stored in vain for *cause* take more than the budget."""
    repeats = repeated(layers, expectations, cause)
    if sum(item.size_bytes for item in repeats) > expectations.budgets.wasted_bytes:
        fail_if(
            (
                f"{item.path}: {item.size_bytes} bytes, {layers.name(item.first)}, {cause} in {layers.name(item.again)}"
                for item in repeats
            ),
            fix=fix,
        )


def test_no_file_is_stored_again(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer stores a file again only to change its owner, mode or time.

    Taking the setuid bit from a base image's files is the exception: there is no other way.
    """
    fix = "set owner and mode where the file is made, or by COPY --chown and --chmod; never by RUN chown"
    refuse_repeats(layers, expectations, "stored again unchanged", fix)


def test_no_file_is_overwritten(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer overwrites a file of an earlier layer."""
    refuse_repeats(layers, expectations, "overwritten", "finish the file (strip, prune, edit) before it is copied")


def test_no_file_is_deleted(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer deletes a file that an earlier layer stores."""
    refuse_repeats(layers, expectations, "deleted", "delete in the instruction that makes the file, or do not copy it")


def test_no_copies(file_system: FileSystem, layers: ImageLayers) -> None:
    """No large file is there twice under two names."""
    fail_if(
        (
            f"{copies.size_bytes} bytes at {', '.join(copies.paths)} ({layers.where(copies.paths[-1])})"
            for copies in file_system.copies
            if copies.size_bytes >= LARGE_BYTES
        ),
        fix="keep one and link the others to it",
    )


LARGE_BYTES = 1_000_000  # below it are licences, fixtures and tables that distributions share by accident


def test_size_is_within_budget(layers: ImageLayers, expectations: Expectations) -> None:
    """The layers' files together are within the budget."""
    limit = expectations.budgets.unpacked_bytes
    if limit is None:
        not_applicable("docker/images.toml sets no budget for the size of this target")
    fail_if(
        [f"{layers.unpacked_bytes} bytes, the budget is {limit}"] if layers.unpacked_bytes > limit else [],
        fix="`python -m buildkit measure` shows what is large; raise the budget only with a reason",
    )


def test_each_layer_is_within_budget(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer's files are more than the budget of one layer."""
    limit = expectations.budgets.largest_layer_bytes
    if limit is None:
        not_applicable("docker/images.toml sets no budget for the layers of this target")
    fail_if(
        (
            f"{layers.name(layer.number)}: {layer.unpacked_bytes} bytes, the budget is {limit}"
            for layer in layers.layers
            if layer.unpacked_bytes > limit
        ),
        fix="split the group in docker/images.toml",
    )


def test_number_of_layers_is_within_budget(layers: ImageLayers, expectations: Expectations) -> None:
    """The image has no more layers than the budget."""
    limit = expectations.budgets.layers
    if limit is None:
        not_applicable("docker/images.toml sets no budget for the number of layers of this target")
    fail_if(
        [f"{len(layers.layers)} layers, the budget is {limit}"] if len(layers.layers) > limit else [],
        fix="join groups in docker/images.toml that change together",
    )
