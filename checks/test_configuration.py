"""How the image says it is to be run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checks.verdicts import fail_if, not_applicable

if TYPE_CHECKING:
    from checks.evidence import Observations
    from checks.expectations import Expectations
    from checks.facts import Configuration, FileSystem

SHELLS = {"sh", "/bin/sh", "bash", "/bin/bash", "dash", "/bin/dash"}


def test_user_is_numeric_and_not_root(configuration: Configuration, expectations: Expectations) -> None:
    """The image runs as the expected numeric user, not as root."""
    user = configuration.user
    fail_if(
        [f"USER is {user!r}, expected {expectations.user!r}"] if user.partition(":")[0] != expectations.user else [],
        fix=f"USER {expectations.user}:{expectations.user} in the final stage: a name is no proof",
    )


@pytest.mark.needs("application")
def test_command_is_in_exec_form(configuration: Configuration) -> None:
    """The command is in exec form: the service itself receives the stop signal."""
    arguments = configuration.arguments
    fail_if(
        [f"the image starts {list(arguments)}"]
        if not arguments or (arguments[0] in SHELLS and "-c" in arguments[:3])
        else [],
        fix='CMD ["python", "-m", "service", "serve"]',
    )


@pytest.mark.needs("application")
def test_no_reload(configuration: Configuration) -> None:
    """The command does not watch its sources for changes (--reload)."""
    fail_if(
        [f"the image starts {list(configuration.arguments)}"]
        if any("--reload" in argument for argument in configuration.arguments)
        else [],
        fix="leave --reload to development: it adds a parent process that swallows signals",
    )


@pytest.mark.needs("application")
def test_stop_signal(configuration: Configuration, expectations: Expectations) -> None:
    """The stop signal is declared, and is the one that the service drains on."""
    fail_if(
        [f"STOPSIGNAL is {configuration.stop_signal!r}, expected {expectations.stop_signal!r}"]
        if configuration.stop_signal != expectations.stop_signal
        else [],
        fix=f"STOPSIGNAL {expectations.stop_signal}",
    )


@pytest.mark.needs("application")
def test_port_is_exposed(configuration: Configuration, expectations: Expectations) -> None:
    """The service's port is exposed, and no other."""
    expected = (f"{expectations.port}/tcp",)
    fail_if(
        [f"EXPOSE says {list(configuration.ports)}, expected {list(expected)}"]
        if configuration.ports != expected
        else [],
        fix=f"EXPOSE {expectations.port}",
    )


@pytest.mark.needs("application")
def test_working_folder(configuration: Configuration, expectations: Expectations, file_system: FileSystem) -> None:
    """The working folder is the application's, and exists."""
    folder = configuration.working_folder
    fail_if(
        [
            *(
                [f"WORKDIR is {folder!r}, expected {expectations.application!r}"]
                if folder != expectations.application
                else []
            ),
            *([f"{folder} does not exist"] if folder and folder not in file_system.by_path else []),
        ],
        fix=f"WORKDIR {expectations.application}",
    )


@pytest.mark.needs("application")
def test_healthcheck_asks_the_service(configuration: Configuration, expectations: Expectations) -> None:
    """The health check uses curl, fails on an error status, and asks for /health on the service's port."""
    words = " ".join(configuration.healthcheck)
    fails = any(flag in words for flag in ("--fail", "-f"))
    is_right = "curl" in words and "/health" in words and f":{expectations.port}/" in words and fails
    fail_if(
        [] if is_right else [f"HEALTHCHECK is {list(configuration.healthcheck)}"],
        fix=f'HEALTHCHECK CMD ["curl", "--fail", "--silent", "http://127.0.0.1:{expectations.port}/health"]',
    )


@pytest.mark.needs("application")
def test_cache_is_declared(configuration: Configuration, expectations: Expectations) -> None:
    """The writable cache folder is declared as a volume."""
    fail_if(
        [f"VOLUME says {list(configuration.volumes)}, expected {expectations.cache}"]
        if expectations.cache not in configuration.volumes
        else [],
        fix=f'VOLUME ["{expectations.cache}"]: the root file system is read-only',
    )


def test_labels_are_set(configuration: Configuration, expectations: Expectations) -> None:
    """The labels say which revision, version, licence and base this image is of."""
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
        fix="pass them as build arguments: `python -m buildkit build` does",
    )


def test_python_is_the_environments(evidence: Observations, expectations: Expectations) -> None:
    """PATH leads to the Python of the environment."""
    python = evidence.file_system.result().python
    place = expectations.virtual_environment
    if place is None:
        not_applicable("this target has no virtual environment")
    fail_if(
        [f"python3 is {python.executable}, its prefix is {python.prefix}"] if python.prefix != place else [],
        fix=f"ENV PATH={place}/bin:$PATH",
    )
