"""Stands in for torch: version, build and device targets, each of which STANDIN_FAULTS can make wrong."""

import os

FAULTS = os.environ.get("STANDIN_FAULTS", "").split(",")
if "import torch" in FAULTS:
    raise ImportError("libtorch_cpu.so: cannot open shared object file")
__version__ = "2.12.0+cu130" if "torch version" in FAULTS else "2.13.0+cu130"


class version:  # noqa: N801 - as torch calls it
    """The build."""

    cuda = None if "torch build" in FAULTS else "13.0"


class cuda:  # noqa: N801 - as torch calls it
    """No GPU, wherever this runs."""

    @staticmethod
    def is_available() -> bool:
        """There is none."""
        return False

    @staticmethod
    def device_count() -> int:
        """There is none."""
        return 0


class _C:
    """The compiled half."""

    @staticmethod
    def _cuda_getArchFlags() -> str:  # noqa: N802 - as torch calls it
        return "sm_80" if "torch targets" in FAULTS else "sm_80 sm_90"
