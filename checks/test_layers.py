"""Checks the layers: no file is stored twice, and all sizes are within the budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.results import fail_if, not_applicable

if TYPE_CHECKING:
    from checks.expectations import Expectations
    from checks.facts import FileSystem
    from checks.layers import ImageLayers, WastedFile


LARGE_BYTES = 1_000_000  # smaller duplicates are licences, fixtures and tables that distributions share by chance


def wasted_by(cause: str, layers: ImageLayers, expectations: Expectations) -> list[WastedFile]:
    """Returns the files that a later layer wastes for *cause*, largest first, except those below `base_paths`."""
    prefixes = tuple(expectations.base_paths)
    files = [file for file in layers.wasted_files() if file.cause == cause and not file.path.startswith(prefixes)]
    return sorted(files, key=lambda file: -file.size_bytes)


def fail_if_wasted(cause: str, layers: ImageLayers, expectations: Expectations, *, fix: str) -> None:
    """Fails the check if the files wasted for *cause* exceed the budget."""
    files = wasted_by(cause, layers, expectations)
    if sum(file.size_bytes for file in files) > expectations.budgets.wasted_bytes:
        fail_if(
            (
                f"{file.path}: {file.size_bytes} bytes, {layers.name(file.first)}, {cause} in {layers.name(file.later)}"
                for file in files
            ),
            fix=fix,
        )


def test_no_metadata_only_copy(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer stores a file again only to change its owner, mode or time.

    Removing the setuid bit from files of the base image is allowed: there is no other way.
    """
    fix = "set owner and mode in the stage that makes the file, or by COPY --chown and --chmod, not by RUN chown"
    fail_if_wasted("stored again unchanged", layers, expectations, fix=fix)


def test_no_file_is_overwritten(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer overwrites a file of an earlier layer."""
    fail_if_wasted("overwritten", layers, expectations, fix="change the file in the stage that makes it")


def test_no_file_is_deleted(layers: ImageLayers, expectations: Expectations) -> None:
    """No layer deletes a file of an earlier layer."""
    fix = "delete the file in the instruction that makes it, or do not copy it"
    fail_if_wasted("deleted", layers, expectations, fix=fix)


def test_no_duplicate_files(file_system: FileSystem, layers: ImageLayers) -> None:
    """No large file is stored twice under two names."""
    fail_if(
        (
            f"{size_bytes} bytes at {', '.join(paths)} ({layers.where(paths[-1])})"
            for paths in file_system.duplicates
            if (size_bytes := file_system.by_path[paths[0]].size_bytes) >= LARGE_BYTES
        ),
        fix="keep one copy, and replace the others with links",
    )


def budget(expectations: Expectations, name: str) -> int:
    """Returns the budget *name*; the check is not applicable if there is none."""
    limit: int | None = getattr(expectations.budgets, name)
    if limit is None:
        not_applicable(f"docker/images.toml sets no budget `{name}` for the target {expectations.target}")
    return limit


def test_size_is_within_budget(layers: ImageLayers, expectations: Expectations) -> None:
    """The files of all layers are within the size budget."""
    limit = budget(expectations, "unpacked_bytes")
    fail_if(
        [f"{layers.unpacked_bytes} bytes, the budget is {limit}"] if layers.unpacked_bytes > limit else [],
        fix="find large files with `python -m buildkit measure`, or raise the budget in docker/images.toml",
    )


def test_each_layer_is_within_budget(layers: ImageLayers, expectations: Expectations) -> None:
    """The files of each layer are within the budget of one layer."""
    limit = budget(expectations, "largest_layer_bytes")
    fail_if(
        (
            f"{layers.name(layer.number)}: {layer.unpacked_bytes} bytes, the budget is {limit}"
            for layer in layers.layers
            if layer.unpacked_bytes > limit
        ),
        fix="split the layer in docker/images.toml",
    )


def test_layer_count_is_within_budget(layers: ImageLayers, expectations: Expectations) -> None:
    """The number of layers is within the budget."""
    limit = budget(expectations, "layers")
    fail_if(
        [f"{len(layers.layers)} layers, the budget is {limit}"] if len(layers.layers) > limit else [],
        fix="merge layers in docker/images.toml that change together",
    )
