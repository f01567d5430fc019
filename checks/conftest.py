"""Options, fixtures and the record of results: `python -m pytest checks --image DIGEST --expect FILE`.

Usually run by `python -m buildkit verify`, which writes the expectations, prints the table and decides the exit code.
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
from checks.evidence import Observations, Recorded
from checks.expectations import HANDED_IN_VARIABLE, Expectations, SecretFingerprint, UnknownExpectations
from checks.verdicts import CheckResult, Findings, NotApplicable, NotVerified, Outcome, Results

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from checks.facts import Configuration, FileSystem
    from checks.layers import ImageLayers

EXIT_USAGE, EXIT_UNABLE = 2, 3
PARTS = {
    "application": lambda expectations: expectations.has_application,
    "models": lambda expectations: expectations.has_models,
    "cuda": lambda expectations: expectations.has_models and expectations.is_cuda,
}
RESULTS = pytest.StashKey[list[CheckResult]]()
EVIDENCE = pytest.StashKey[Observations]()
EXPECTATIONS = pytest.StashKey[Expectations]()
BEGAN = pytest.StashKey[float]()
HANDED_IN = pytest.StashKey[tuple[SecretFingerprint, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The image, what is expected of it, and where the results go."""
    group = parser.getgroup("checks", "the checked image")
    group.addoption("--image", help="digest or name of the image")
    group.addoption("--expect", type=Path, help="expectations, as buildkit writes them")
    group.addoption("--reuse", type=Path, help="take what running an image showed from this file")
    group.addoption("--layer-cache", type=Path, help="keep what was read of each layer in this folder")
    group.addoption("--record", type=Path, help="write what running the image showed to this file")
    group.addoption("--results", type=Path, help="write the results there as JSON")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Reads the expectations and starts gathering evidence; ends the run where either cannot be had."""
    config = session.config
    if config.option.collectonly:
        return
    image, file = config.getoption("--image"), config.getoption("--expect")
    if not image or not file:
        pytest.exit("--image and --expect are needed; `python -m buildkit verify` gives them", returncode=EXIT_USAGE)
    try:
        expectations = Expectations.load(file)
        handed_in = json.loads(os.environ.get(HANDED_IN_VARIABLE, "{}"))
        config.stash[BEGAN] = time.monotonic()
        file, cache = config.getoption("--reuse"), config.getoption("--layer-cache")
        recorded = msgspec.json.decode(file.read_bytes(), type=Recorded) if file else Recorded()
        config.stash[EVIDENCE] = Observations(
            DockerClient(),
            image,
            expectations,
            handed_in=handed_in,
            recorded=recorded,
            cache=cache,
        )
    except (UnknownExpectations, ImageUnknown) as error:
        pytest.exit(str(error), returncode=EXIT_USAGE)
    except (EngineFailed, OSError) as error:
        pytest.exit(str(error), returncode=EXIT_UNABLE)
    config.stash[EXPECTATIONS] = expectations
    config.stash[RESULTS] = []
    session.config.stash[HANDED_IN] = SecretFingerprint.of(handed_in)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Removes what was started and writes the results."""
    evidence = session.config.stash.get(EVIDENCE, None)
    if evidence:
        evidence.close()
        target, record = session.config.getoption("--results"), session.config.getoption("--record")
        if record:
            record.write_bytes(msgspec.json.encode(evidence.record()))
        results = session.config.stash[RESULTS]
        if target:
            Results(
                image=evidence.image,
                target=evidence.expectations.target,
                seconds=round(time.monotonic() - session.config.stash[BEGAN], 3),
                facts_seconds={name: round(seconds, 3) for name, seconds in evidence.seconds.items()},
                checks=tuple(results),
            ).save(target)
    yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A check of a part that the image does not have says so."""
    for mark in item.iter_markers("needs"):
        for part in mark.args:
            if not PARTS[part](item.config.stash[EXPECTATIONS]):
                raise NotApplicable(f"the target {item.config.stash[EXPECTATIONS].target} has no {part}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns verdicts into outcomes, and notes each check's result once."""
    report = yield
    verdict = call.excinfo.value if call.excinfo else None
    outcome: Outcome
    reason = ""
    if isinstance(verdict, Findings):
        outcome, report.longrepr = "fail", str(verdict)
    elif isinstance(verdict, (NotApplicable, NotVerified)):
        outcome = "not applicable" if isinstance(verdict, NotApplicable) else "not verified"
        path, line, _ = item.location
        reason = str(verdict)
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
                found=tuple(verdict.found) if isinstance(verdict, Findings) else (),
                fix=verdict.fix if isinstance(verdict, Findings) else "",
            ),
        )
    return report


def group_of(item: pytest.Item) -> str:
    """The heading that a check stands under: its module's name."""
    return item.path.stem.removeprefix("test_").replace("_", " ")


def title_of(item: pytest.Item) -> str:
    """The claim of a check: its first line of documentation, with its parameters."""
    documentation = getattr(getattr(item, "function", None), "__doc__", None) or item.name
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return str(documentation).strip().splitlines()[0].format(**parameters)


@pytest.fixture(scope="session")
def evidence(request: pytest.FixtureRequest) -> Observations:
    """All evidence on the image, as futures."""
    return request.config.stash[EVIDENCE]


@pytest.fixture(scope="session")
def expectations(request: pytest.FixtureRequest) -> Expectations:
    """What is expected of the image."""
    return request.config.stash[EXPECTATIONS]


@pytest.fixture(scope="session")
def handed_in(request: pytest.FixtureRequest) -> tuple[SecretFingerprint, ...]:
    """Which values handed to the build the checks were given to look for."""
    return request.config.stash[HANDED_IN]


@pytest.fixture(scope="session")
def file_system(evidence: Observations) -> FileSystem:
    """Every file of the merged file system, with facts of shared objects, packages and distributions."""
    return evidence.file_system.result()


@pytest.fixture(scope="session")
def layers(evidence: Observations) -> ImageLayers:
    """Every layer with its entries."""
    return evidence.layers.result()


@pytest.fixture(scope="session")
def configuration(evidence: Observations) -> Configuration:
    """How the image says it is to be run."""
    return evidence.configuration


@pytest.fixture(scope="session")
def host(evidence: Observations) -> testinfra.host.Host:
    """A container of the image: read-only, no capabilities, no network, as the image's user."""
    return testinfra.get_host(f"docker://{evidence.container.result()}")
