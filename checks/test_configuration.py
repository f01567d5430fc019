"""Checks the image's configuration: user, command, signals, port, health check, volume and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checks.results import fail_if, not_applicable

if TYPE_CHECKING:
    from checks.expectations import Expectations
    from checks.facts import Configuration, FileSystem
    from checks.observations import Observations

SHELLS = {"sh", "/bin/sh", "bash", "/bin/bash", "dash", "/bin/dash"}


def test_user_is_numeric_and_not_root(configuration: Configuration, expectations: Expectations) -> None:
    """The image runs as the expected numeric user, not as root."""
    user = configuration.user
    fail_if(
        [f"USER is {user!r}, expected {expectations.user!r}"] if user.partition(":")[0] != expectations.user else [],
        fix=f"set USER {expectations.user}:{expectations.user} in the final stage: a name may belong to root",
    )


@pytest.mark.needs("application")
def test_command_is_in_exec_form(configuration: Configuration) -> None:
    """The command is in exec form, so that the service receives the stop signal."""
    arguments = configuration.arguments
    fail_if(
        [f"the command is {list(arguments)}"]
        if not arguments or (arguments[0] in SHELLS and "-c" in arguments[:3])
        else [],
        fix='write CMD ["python", "-m", "service", "serve"]',
    )


@pytest.mark.needs("application")
def test_no_reload(configuration: Configuration) -> None:
    """The command does not reload changed sources (--reload)."""
    fail_if(
        [f"the command is {list(configuration.arguments)}"]
        if any("--reload" in argument for argument in configuration.arguments)
        else [],
        fix="remove --reload: it adds a parent process that does not pass signals on",
    )


@pytest.mark.needs("application")
def test_stop_signal_is_set(configuration: Configuration, expectations: Expectations) -> None:
    """The image declares the stop signal that the service handles."""
    fail_if(
        [f"STOPSIGNAL is {configuration.stop_signal!r}, expected {expectations.stop_signal!r}"]
        if configuration.stop_signal != expectations.stop_signal
        else [],
        fix=f"set STOPSIGNAL {expectations.stop_signal}",
    )


@pytest.mark.needs("application")
def test_port_is_exposed(configuration: Configuration, expectations: Expectations) -> None:
    """The image exposes the service's port and no other."""
    expected = (f"{expectations.port}/tcp",)
    fail_if(
        [f"EXPOSE is {list(configuration.ports)}, expected {list(expected)}"]
        if configuration.ports != expected
        else [],
        fix=f"set EXPOSE {expectations.port}",
    )


@pytest.mark.needs("application")
def test_working_directory_is_set(
    configuration: Configuration, expectations: Expectations, file_system: FileSystem
) -> None:
    """The working directory is the application's, and exists."""
    folder = configuration.working_directory
    fail_if(
        [
            *(
                [f"WORKDIR is {folder!r}, expected {expectations.application!r}"]
                if folder != expectations.application
                else []
            ),
            *([f"{folder} does not exist"] if folder and folder not in file_system.by_path else []),
        ],
        fix=f"set WORKDIR {expectations.application}",
    )


@pytest.mark.needs("application")
def test_healthcheck_requests_the_service(configuration: Configuration, expectations: Expectations) -> None:
    """The health check requests /health on the service's port with curl, and fails on an error status."""
    words = " ".join(configuration.healthcheck)
    fails = any(flag in words for flag in ("--fail", "-f"))
    is_right = "curl" in words and "/health" in words and f":{expectations.port}/" in words and fails
    fail_if(
        [] if is_right else [f"HEALTHCHECK is {list(configuration.healthcheck)}"],
        fix=f'write HEALTHCHECK CMD ["curl", "--fail", "--silent", "http://127.0.0.1:{expectations.port}/health"]',
    )


@pytest.mark.needs("application")
def test_cache_is_a_volume(configuration: Configuration, expectations: Expectations) -> None:
    """The writable cache folder is a volume."""
    fail_if(
        [f"VOLUME is {list(configuration.volumes)}, expected {expectations.cache}"]
        if expectations.cache not in configuration.volumes
        else [],
        fix=f'add VOLUME ["{expectations.cache}"]: the root file system is read-only',
    )


def test_labels_are_set(configuration: Configuration, expectations: Expectations) -> None:
    """The labels give revision, version, licence and base image."""
    if not expectations.labels:
        not_applicable("no labels are expected of this target")
    fail_if(
        (
            f"{name} is {configuration.labels.get(name, '')!r}, expected {value!r}"
            if value is not None
            else f"{name} is missing or empty"
            for name, value in expectations.labels.items()
            if (configuration.labels.get(name) != value if value is not None else not configuration.labels.get(name))
        ),
        fix="build with `python -m buildkit build`, which passes the labels as build arguments",
    )


def test_python_is_of_the_virtual_environment(observations: Observations, expectations: Expectations) -> None:
    """PATH finds the Python of the virtual environment."""
    python = observations.file_system.result().python
    environment = expectations.virtual_environment
    if environment is None:
        not_applicable("this target has no virtual environment")
    fail_if(
        [f"python3 is {python.executable}, its prefix is {python.prefix}"] if python.prefix != environment else [],
        fix=f"set ENV PATH={environment}/bin:$PATH",
    )
