from __future__ import annotations

import tomllib

import msgspec
import pytest

from buildkit import spec
from buildkit.check.expectations import expectations_of
from buildkit.errors import UsageError
from checks.expectations import SizeLimits
from tests.checks.faults import PEM


@pytest.fixture
def project(pytestconfig: pytest.Config) -> spec.ImageSpec:
    return spec.load(pytestconfig.rootpath)


def test_api_expects_the_locked_versions_and_no_development_tools(project: spec.ImageSpec) -> None:
    expected = expectations_of(project, "api", certificates=PEM.encode())

    pins = tomllib.loads((project.project / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ml"]
    assert f"torch=={expected.locked['torch']}" in pins
    assert expected.has_models
    assert expected.has_application
    assert {"pytest", "hypothesis", "ruff", "mypy"} <= expected.development_only.keys()
    assert not expected.development_only.keys() & expected.locked.keys()
    assert expected.cuda_targets == project.cuda_targets
    assert len(expected.certificates_sha256) == 1


def test_core_expects_no_models(project: spec.ImageSpec) -> None:
    expected = expectations_of(project, "core")

    assert not expected.has_models
    assert "torch" not in expected.locked
    assert "litestar" in expected.locked


def test_dev_may_have_development_tools(project: spec.ImageSpec) -> None:
    expected = expectations_of(project, "dev")

    assert expected.development_only == {}
    assert "pytest" in expected.locked


def test_phase1_has_no_virtual_environment(project: spec.ImageSpec) -> None:
    expected = expectations_of(project, "phase1")

    assert expected.virtual_environment is None
    assert expected.has_models


def test_labels_of_the_build_have_their_exact_values(project: spec.ImageSpec) -> None:
    name = "org.opencontainers.image.revision"

    assert expectations_of(project, "core").labels[name] is None
    assert expectations_of(project, "core", labels={name: "0123abc"}).labels[name] == "0123abc"


def test_budgets_are_those_of_the_target(project: spec.ImageSpec) -> None:
    given = msgspec.structs.replace(
        project, budgets={"core": {"unpacked_bytes": "0.5 GB", "layers": 9, "efficiency_fraction": 0.9}}
    )

    assert expectations_of(given, "core").budgets == SizeLimits(unpacked_bytes=500_000_000, layers=9)
    assert expectations_of(given, "api").budgets == SizeLimits()


def test_unknown_target_is_refused(project: spec.ImageSpec) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        expectations_of(project, "nowhere")
