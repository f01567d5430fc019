"""Tests the GPU checks in checks/test_models.py on invented results, without a GPU."""

from __future__ import annotations

import pytest

from checks import test_models
from checks.expectations import Expectations
from checks.golden import DEVICE_TOLERANCE, VECTORS
from checks.observations import DeviceRun
from checks.results import Findings

EXPECTED = Expectations(target="api", cuda_targets=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))


def ran(*, capability: str = "sm_90", shift: float = 0.0, is_product_equal: bool = True, error: str = "") -> DeviceRun:
    """Returns a run on a GPU, correct by default."""
    vectors = [[value + shift for value in vector] for vector in VECTORS]
    return DeviceRun(
        is_available=True,
        count=1,
        name="a GPU",
        capability=capability,
        is_product_equal=is_product_equal,
        vectors=vectors,
        error=error,
    )


@pytest.mark.parametrize(
    "capability", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"]
)
def test_gpu_that_runs_a_target_is_accepted(capability: str) -> None:
    test_models.test_gpu_is_a_target(ran(capability=capability), EXPECTED)


@pytest.mark.parametrize("capability", ["sm_61", "sm_70", "sm_72", "sm_110"])
def test_gpu_that_runs_no_target_is_found(capability: str) -> None:
    with pytest.raises(Findings, match=capability):
        test_models.test_gpu_is_a_target(ran(capability=capability), EXPECTED)


def test_kernel_with_a_wrong_result_is_found() -> None:
    test_models.test_gpu_kernel_runs(ran())
    with pytest.raises(Findings, match="a matrix product on a GPU differs"):
        test_models.test_gpu_kernel_runs(ran(is_product_equal=False))


def test_kernel_error_is_in_the_finding() -> None:
    with pytest.raises(Findings, match="no kernel image is available"):
        test_models.test_gpu_kernel_runs(ran(is_product_equal=False, error="CUDA error: no kernel image is available"))


def test_embedding_beyond_its_tolerance_is_found() -> None:
    test_models.test_gpu_embedding_is_correct(ran(shift=DEVICE_TOLERANCE / 2))
    with pytest.raises(Findings, match="from the CPU's vectors"):
        test_models.test_gpu_embedding_is_correct(ran(shift=DEVICE_TOLERANCE * 2))
