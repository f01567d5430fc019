"""Adds options and fixtures to pytest, and writes the results: `python -m pytest checks --image DIGEST --expect FILE`.

`python -m buildkit verify` runs this: it writes the expectations, prints the table and sets the exit code.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import testinfra

from checks.engine import DockerClient, EngineFailed, ImageUnknown
from checks.expectations import BUILD_SECRETS_VARIABLE, Expectations, SecretFingerprint, UnknownExpectations
from checks.observations import Observations
from checks.results import CheckResult, Findings, NotApplicable, NotVerified, Outcome, Results

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from checks.facts import Configuration, FileSystem
    from checks.layers import ImageLayers

EXIT_USAGE, EXIT_UNABLE = 2, 3
PARTS: dict[str, Callable[[Expectations], bool]] = {
    "application": lambda expectations: expectations.has_application,
    "models": lambda expectations: expectations.has_models,
    "cuda": lambda expectations: expectations.has_models and expectations.is_cuda,
}
"""The parts of an image that a check can need, by the argument of the marker `needs`."""
RESULTS = pytest.StashKey[list[CheckResult]]()
OBSERVATIONS = pytest.StashKey[Observations]()
EXPECTATIONS = pytest.StashKey[Expectations]()
STARTED = pytest.StashKey[float]()
BUILD_SECRETS = pytest.StashKey[tuple[SecretFingerprint, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options for the image, the expectations and the results."""
    group = parser.getgroup("checks", "checks of an image")
    group.addoption("--image", help="digest or name of the image to check")
    group.addoption("--expect", type=Path, help="JSON file with the expectations, written by buildkit")
    group.addoption("--layer-cache", type=Path, help="folder that caches the contents of layers")
    group.addoption("--record", type=Path, help="JSON file for the results of running the image")
    group.addoption("--results", type=Path, help="JSON file for the results of the checks")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Reads the expectations and starts the observations; exits if the engine or the image is not usable."""
    config = session.config
    if config.option.collectonly:
        return
    image, file = config.getoption("--image"), config.getoption("--expect")
    if not image or not file:
        pytest.exit(
            "--image and --expect are missing: run `python -m buildkit verify`, which passes them",
            returncode=EXIT_USAGE,
        )
    try:
        expectations = Expectations.load(file)
        build_secrets = json.loads(os.environ.get(BUILD_SECRETS_VARIABLE, "{}"))
        config.stash[STARTED] = time.monotonic()
        config.stash[OBSERVATIONS] = Observations(
            DockerClient(),
            image,
            expectations,
            build_secrets=build_secrets,
            cache=config.getoption("--layer-cache"),
        )
    except (UnknownExpectations, ImageUnknown) as error:
        pytest.exit(str(error), returncode=EXIT_USAGE)
    except (EngineFailed, OSError) as error:
        pytest.exit(str(error), returncode=EXIT_UNABLE)
    config.stash[EXPECTATIONS] = expectations
    config.stash[RESULTS] = []
    config.stash[BUILD_SECRETS] = SecretFingerprint.of(build_secrets)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Removes the containers and writes the results."""
    observations = session.config.stash.get(OBSERVATIONS, None)
    if observations:
        observations.close()
        target, record = session.config.getoption("--results"), session.config.getoption("--record")
        if record:
            record.write_bytes(msgspec.json.encode(observations.record()))
        results = session.config.stash[RESULTS]
        if target:
            Results(
                image=observations.image,
                target=observations.expectations.target,
                seconds=round(time.monotonic() - session.config.stash[STARTED], 3),
                observation_seconds={name: round(seconds, 3) for name, seconds in observations.seconds.items()},
                checks=tuple(results),
            ).save(target)
    yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reports a check as not applicable if the image lacks a part that the check needs."""
    for mark in item.iter_markers("needs"):
        for part in mark.args:
            if not PARTS[part](item.config.stash[EXPECTATIONS]):
                raise NotApplicable(f"the target {item.config.stash[EXPECTATIONS].target} lacks this part: {part}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns the exception of a check into its outcome, and records each check's result once."""
    report = yield
    raised = call.excinfo.value if call.excinfo else None
    outcome: Outcome
    reason = ""
    if isinstance(raised, Findings):
        outcome, report.longrepr = "fail", str(raised)
    elif isinstance(raised, (NotApplicable, NotVerified)):
        outcome = "not applicable" if isinstance(raised, NotApplicable) else "not verified"
        path, line, _ = item.location
        reason = str(raised)
        report.outcome, report.longrepr = "skipped", (path, (line or 0) + 1, f"{outcome}: {reason}")
    elif report.passed:
        outcome = "pass"
    else:
        outcome, reason = "error", str(report.longrepr)
    if call.when == "call" or (call.when == "setup" and outcome != "pass"):
        item.config.stash[RESULTS].append(
            CheckResult(
                name=f"{group_of(item)}::{item.name.removeprefix('test_')}",
                title=title_of(item),
                group=group_of(item),
                tier="device" if item.get_closest_marker("device") else "static",
                outcome=outcome,
                seconds=round(call.duration, 3),
                reason=reason,
                found=tuple(raised.found) if isinstance(raised, Findings) else (),
                fix=raised.fix if isinstance(raised, Findings) else "",
            ),
        )
    return report


def group_of(item: pytest.Item) -> str:
    """Returns the group of a check: the name of its module."""
    return item.path.stem.removeprefix("test_").replace("_", " ")


def title_of(item: pytest.Item) -> str:
    """Returns the title of a check: the first line of its docstring, with the parameters filled in."""
    documentation = getattr(getattr(item, "function", None), "__doc__", None) or item.name
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return str(documentation).strip().splitlines()[0].format(**parameters)


@pytest.fixture(scope="session")
def observations(request: pytest.FixtureRequest) -> Observations:
    """All observations of the image, as futures."""
    return request.config.stash[OBSERVATIONS]


@pytest.fixture(scope="session")
def expectations(request: pytest.FixtureRequest) -> Expectations:
    """The expectations that the image must meet."""
    return request.config.stash[EXPECTATIONS]


@pytest.fixture(scope="session")
def build_secrets(request: pytest.FixtureRequest) -> tuple[SecretFingerprint, ...]:
    """The build secrets with values that this run knows."""
    return request.config.stash[BUILD_SECRETS]


@pytest.fixture(scope="session")
def file_system(observations: Observations) -> FileSystem:
    """Every file of the merged file system, with facts of shared objects, packages and distributions."""
    return observations.file_system.result()


@pytest.fixture(scope="session")
def layers(observations: Observations) -> ImageLayers:
    """Every layer with its entries."""
    return observations.layers.result()


@pytest.fixture(scope="session")
def configuration(observations: Observations) -> Configuration:
    """The image's configuration: command, user, environment, labels."""
    return observations.configuration


@pytest.fixture(scope="session")
def host(observations: Observations) -> testinfra.host.Host:
    """A running container of the image: read-only, no capabilities, no network, as the image's user."""
    return testinfra.get_host(f"docker://{observations.container.result()}")
