"""Stands in for torch: version, build and device targets, each of which STANDIN_FAULT can make wrong."""

import os

FAULT = os.environ.get("STANDIN_FAULT", "")
if FAULT == "torch import":
    raise ImportError("libtorch_cpu.so: cannot open shared object file")
__version__ = "2.12.0+cu130" if FAULT == "torch version" else "2.13.0+cu130"


class version:  # noqa: N801 - as torch calls it
    """The build."""

    cuda = None if FAULT == "torch build" else "13.0"


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
        return "sm_80" if FAULT == "torch targets" else "sm_80 sm_90"
