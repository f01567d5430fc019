"""Stands in for torch: version, build and device targets, with faults that STANDIN_FAULTS turns on."""

import os

FAULTS = os.environ.get("STANDIN_FAULTS", "").split(",")
if "import torch" in FAULTS:
    raise ImportError("libtorch_cpu.so: cannot open shared object file")
__version__ = "2.12.0+cu130" if "torch version" in FAULTS else "2.13.0+cu130"


class version:  # noqa: N801 - as torch calls it
    """The CUDA version."""

    cuda = None if "torch build" in FAULTS else "13.0"


class cuda:  # noqa: N801 - as torch calls it
    """Stands in for torch.cuda on a machine without a GPU."""

    @staticmethod
    def is_available() -> bool:
        """Reports no GPU."""
        return False

    @staticmethod
    def device_count() -> int:
        """Reports no GPU."""
        return 0


class _C:
    """The compiled module."""

    @staticmethod
    def _cuda_getArchFlags() -> str:  # noqa: N802 - as torch calls it
        return "sm_80" if "torch targets" in FAULTS else "sm_80 sm_90"
