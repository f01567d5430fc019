"""Checks the files of the image: owners, modes, bytecode, symbols, system packages and the lock."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

import pytest
from packaging.utils import canonicalize_name

from checks.results import fail_if, not_applicable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import testinfra

    from checks.expectations import Expectations
    from checks.facts import File, FileSystem
    from checks.layers import ImageLayers

INSTALLERS = {"pip", "uv", "setuptools", "wheel", "truthgraph"}  # not dependencies; another check finds uv
STICKY, WORLD_WRITABLE, GROUP_WRITABLE = 0o1000, 0o002, 0o020


def test_system_packages_are_installed(
    expectations: Expectations, file_system: FileSystem, host: testinfra.host.Host
) -> None:
    """The Debian packages that operators need are installed, and their commands run."""
    installed = file_system.packages
    commands = {"curl": "curl", "postgresql-client": "psql"}
    found = [f"{name} is not in the package database" for name in expectations.system_packages if name not in installed]
    for name in expectations.system_packages:
        if name in installed and name in commands:
            ended = host.run(f"{commands[name]} --version")
            if ended.rc:
                found.append(f"`{commands[name]} --version` failed, exit code {ended.rc}: {ended.stderr.strip()}")
    fail_if(found, fix="install them in the stage `base`")


def test_no_world_writable_file(file_system: FileSystem, layers: ImageLayers) -> None:
    """No file is world-writable, and no folder unless it has the sticky bit."""
    fail_if(
        (
            f"{file.path} has mode {file.mode:04o} ({layers.where(file.path)})"
            for file in file_system.files
            if file.kind in ("file", "folder")
            and file.mode & WORLD_WRITABLE
            and not (file.kind == "folder" and file.mode & STICKY)
        ),
        fix="set the mode in the stage that makes the file, before it is copied",
    )


def writable(files: Iterator[File], uid: int) -> Iterator[File]:
    """Yields the files that a process of user and group *uid* could change or make writable."""
    for file in files:
        if file.kind in ("file", "folder") and (file.uid == uid or (file.gid == uid and file.mode & GROUP_WRITABLE)):
            yield file


def test_code_is_read_only(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """The service's user can change neither the application, nor the Python environment, nor the model."""
    places = [expectations.application, expectations.model, *file_system.site_packages]
    if expectations.virtual_environment:
        places.append(expectations.virtual_environment)
    roots = (file_system.by_path[place] for place in places if place in file_system.by_path)
    candidates = {file.path: file for file in (*roots, *file_system.below(*places))}
    fail_if(
        (
            f"{file.path} belongs to {file.uid}:{file.gid} with mode {file.mode:04o} ({layers.where(file.path)})"
            for file in writable(iter(candidates.values()), int(expectations.user))
        ),
        fix="remove the chown: code belongs to root, with modes 0644 and 0755",
    )


@pytest.mark.needs("application")
def test_cache_is_writable(expectations: Expectations, file_system: FileSystem, host: testinfra.host.Host) -> None:
    """The cache folder belongs to the service's user and is writable."""
    folder = file_system.by_path.get(expectations.cache)
    if folder is None:
        fail_if([f"{expectations.cache} does not exist"], fix="make it in the stage `base`: install -d -o 1000 -g 1000")
        return
    ended = host.run(f"touch {expectations.cache}/checked && rm {expectations.cache}/checked")
    fail_if(
        [f"{folder.path} belongs to {folder.uid}:{folder.gid} with mode {folder.mode:04o}: {ended.stderr.strip()}"]
        if ended.rc
        else [],
        fix="give the folder to the service's user and declare it as a VOLUME",
    )


def test_sources_have_bytecode(file_system: FileSystem, layers: ImageLayers) -> None:
    """Each Python source of the environment and the application has bytecode that this Python can use."""
    fail_if(
        (f"{path}: {why} ({layers.where(path)})" for path, why in file_system.bytecode_problems.items()),
        fix="compile in the stage that installs, with the Python of the image, after the last change of the sources",
    )


def test_shared_objects_are_stripped(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """No shared object has symbols (.symtab) or debug information (.debug*), except those of repaired wheels."""

    def is_excepted(path: str) -> bool:
        folders = path.split("/")[:-1]
        return any(
            fnmatch.fnmatch(folder, pattern) for folder in folders for pattern in expectations.unstripped_folders
        )

    fail_if(
        (
            f"{item.path} has {', '.join(item.symbol_sections)}: {item.symbol_bytes} bytes ({layers.where(item.path)})"
            for item in file_system.objects
            if item.is_library and item.symbol_sections and not is_excepted(item.path)
        ),
        fix="run strip --strip-unneeded in the stage that installs, except on folders *.libs",
    )


def test_shared_objects_are_intact(file_system: FileSystem, layers: ImageLayers) -> None:
    """Each shared object can be parsed: none is truncated or damaged."""
    fail_if(
        (f"{item.path} ({layers.where(item.path)})" for item in file_system.objects if item.is_corrupt),
        fix="build again; if the finding remains, stripping or pruning damages the file",
    )


def test_needed_libraries_are_found(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """The loader finds each library that a shared object needs."""
    provided = set(expectations.provided_libraries)
    fail_if(
        (
            f"{item.path} needs {name} ({layers.where(item.path)})"
            for item in file_system.objects
            for name in item.unresolved
            if name not in provided and not item.is_unloadable_placeholder
        ),
        fix="install the package with the library, or remove the object if nothing loads it",
    )


def test_distributions_equal_the_lock(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """Each installed distribution is in the lock, with the same version."""
    if not expectations.locked:
        not_applicable("no lock was given")
    locked = expectations.locked
    found = [
        f"{item.name} is {item.version}, the lock says {locked.get(canonicalize_name(item.name), 'nothing')}"
        f" ({item.path}; {layers.where(item.path)})"
        for item in file_system.distributions
        if item.path.rpartition("/")[0] in file_system.site_packages
        and item.version != locked.get(canonicalize_name(item.name))
        and canonicalize_name(item.name) not in INSTALLERS
        and item.name not in expectations.development_only  # another check finds it
    ]
    fail_if(found, fix="install only from the lock, with --require-hashes")


def test_locked_distributions_are_installed(expectations: Expectations, file_system: FileSystem) -> None:
    """Each distribution of the lock is installed."""
    if not expectations.locked:
        not_applicable("no lock was given")
    installed = {canonicalize_name(item.name) for item in file_system.distributions}
    fail_if(
        (f"{name} {version}" for name, version in expectations.locked.items() if name not in installed),
        fix="install the lock of each layer, and keep the folders *.dist-info",
    )


def test_no_distribution_is_installed_twice(file_system: FileSystem) -> None:
    """No distribution is installed twice."""
    paths: dict[str, list[str]] = {}
    top = [item for item in file_system.distributions if item.path.rpartition("/")[0] in file_system.site_packages]
    for item in top:
        paths.setdefault(canonicalize_name(item.name), []).append(f"{item.path} ({item.version})")
    fail_if(
        (f"{name}: {', '.join(places)}" for name, places in paths.items() if len(places) > 1),
        fix="make the virtual environment without system packages, and install each distribution in one layer only",
    )
