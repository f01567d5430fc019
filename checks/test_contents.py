"""What the files of the image are like: owners and modes, bytecode, symbols, packages that must be there."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

import pytest

from checks.verdicts import fail_if, not_applicable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import testinfra

    from checks.expectations import Expectations
    from checks.facts import File, FileSystem
    from checks.layers import ImageLayers

STICKY, WORLD_WRITABLE, GROUP_WRITABLE, OWNER_WRITABLE = 0o1000, 0o002, 0o020, 0o200


def test_system_packages_are_installed(
    expectations: Expectations, file_system: FileSystem, host: testinfra.host.Host
) -> None:
    """The Debian packages that the service's operators count on are installed and work."""
    installed = {package.name for package in file_system.packages}
    commands = {"curl": "curl", "postgresql-client": "psql"}
    found = [f"{name} is not in the package database" for name in expectations.system_packages if name not in installed]
    for name in expectations.system_packages:
        if name in installed and name in commands:
            ended = host.run(f"{commands[name]} --version")
            if ended.rc:
                found.append(f"`{commands[name]} --version` ends with {ended.rc}: {ended.stderr.strip()}")
    fail_if(found, fix="install them in the base stage")


def test_no_world_writable_file(file_system: FileSystem, layers: ImageLayers) -> None:
    """No file is writable for everyone, and no folder without the sticky bit."""
    fail_if(
        (
            f"{file.path} has mode {file.mode:04o} ({layers.where(file.path)})"
            for file in file_system.files
            if file.kind in ("file", "folder")
            and file.mode & WORLD_WRITABLE
            and not (file.kind == "folder" and file.mode & STICKY)
        ),
        fix="set modes in the stage that makes the files, before they are copied",
    )


def writable(files: Iterator[File], uid: int) -> Iterator[File]:
    """Those that a process of user and group *uid* could change, or whose mode it could."""
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
        fix="leave code to root with modes 0644 and 0755; it needs no chown",
    )


@pytest.mark.needs("application")
def test_cache_is_writable(expectations: Expectations, file_system: FileSystem, host: testinfra.host.Host) -> None:
    """The one folder for caches belongs to the service's user and can be written to."""
    folder = file_system.by_path.get(expectations.cache)
    if folder is None:
        fail_if([f"{expectations.cache} does not exist"], fix="make it in the base stage: install -d -o 1000 -g 1000")
        return
    ended = host.run(f"touch {expectations.cache}/checked && rm {expectations.cache}/checked")
    fail_if(
        [f"{folder.path} belongs to {folder.uid}:{folder.gid} with mode {folder.mode:04o}: {ended.stderr.strip()}"]
        if ended.rc
        else [],
        fix="give the folder to the service's user and declare it as a VOLUME",
    )


def test_bytecode_is_there(file_system: FileSystem, layers: ImageLayers) -> None:
    """Each Python file of the environment and the application has bytecode that this Python will use."""
    fail_if(
        (f"{item.path}: {item.what} ({layers.where(item.path)})" for item in file_system.bytecode_problems),
        fix="compile in the stage that installs, with the runtime's Python, after the last change of the sources",
    )


def test_shared_objects_are_stripped(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """No shared object has symbols (.symtab) or debug information (.debug*), those of repaired wheels apart."""

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
        fix="strip --strip-unneeded in the stage that installs, which has binutils; leave *.libs folders alone",
    )


def test_shared_objects_are_whole(file_system: FileSystem, layers: ImageLayers) -> None:
    """Each shared object can be parsed: none is cut short or damaged."""
    fail_if(
        (f"{item.path} ({layers.where(item.path)})" for item in file_system.objects if item.is_corrupt),
        fix="build again; if it stays so, the tool that strips or prunes it is at fault",
    )


def test_needed_libraries_resolve(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """Each library that a shared object needs is found where the loader looks."""
    provided = set(expectations.provided_libraries)
    fail_if(
        (
            f"{item.path} needs {name} ({layers.where(item.path)})"
            for item in file_system.objects
            for name in item.unresolved
            if name not in provided and not item.is_refused_sign
        ),
        fix="install what brings the library, or prune the object if nothing loads it",
    )


def test_distributions_equal_the_lock(expectations: Expectations, file_system: FileSystem, layers: ImageLayers) -> None:
    """Each distribution of the environment is in the lock, with that version."""
    if not expectations.locked:
        not_applicable("no lock was given")
    found = [
        f"{item.name} is {item.version}, the lock says {expectations.locked.get(canonical(item.name), 'nothing')}"
        f" ({item.path}; {layers.where(item.path)})"
        for item in file_system.distributions
        if item.path.rpartition("/")[0] in file_system.site_packages
        and item.version != expectations.locked.get(canonical(item.name))
        and canonical(item.name) not in INSTALLERS
        and item.name not in expectations.development_only  # a finding of its own
    ]
    fail_if(found, fix="install with --require-hashes from the lock, and nothing else")


def test_the_lock_is_installed(expectations: Expectations, file_system: FileSystem) -> None:
    """Each distribution of the lock is installed."""
    if not expectations.locked:
        not_applicable("no lock was given")
    installed = {canonical(item.name) for item in file_system.distributions}
    fail_if(
        (f"{name} {version}" for name, version in expectations.locked.items() if name not in installed),
        fix="install every layer's lock, with its metadata: the environment must say what it holds",
    )


INSTALLERS = {"pip", "uv", "setuptools", "wheel", "truthgraph"}  # no dependencies, and in part findings elsewhere


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return name.replace("_", "-").replace(".", "-").lower()


def test_each_distribution_is_there_once(file_system: FileSystem) -> None:
    """No distribution is installed twice."""
    paths: dict[str, list[str]] = {}
    top = [item for item in file_system.distributions if item.path.rpartition("/")[0] in file_system.site_packages]
    for item in top:
        paths.setdefault(canonical(item.name), []).append(f"{item.path} ({item.version})")
    fail_if(
        (f"{name}: {', '.join(places)}" for name, places in paths.items() if len(places) > 1),
        fix="start the environment without the system's packages, and install each distribution in one layer",
    )
