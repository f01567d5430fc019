"""Lists the libraries that the loader needs at start and inference with transformers never calls.

Each may be replaced by a stub library: its functions return an error code.
"""

from __future__ import annotations

from typing import Final

from buildkit.errors import UsageError
from buildkit.slim.placeholders.stubs import StubRule

__all__ = ["STUB_RULES", "choose_stubs"]


# Error codes are from the headers of the CUDA 13.0 wheels of torch 2.13.0.
STUB_RULES: Final = (
    StubRule(
        name="stub-cufft",
        path="nvidia/*/libcufft.so.*",
        error_code=0x10,
        source="CUFFT_NOT_SUPPORTED, cufft.h",
        lost="torch.fft on the GPU",
    ),
    StubRule(
        name="stub-cusparse",
        path="nvidia/*/libcusparse.so.*",
        error_code=10,
        source="CUSPARSE_STATUS_NOT_SUPPORTED, cusparse.h",
        lost="sparse matrices on the GPU",
        texts=("cusparseGetErrorName", "cusparseGetErrorString"),
    ),
    StubRule(
        name="stub-cusparselt",
        path="nvidia/*/libcusparseLt.so.*",
        error_code=10,
        source="CUSPARSE_STATUS_NOT_SUPPORTED, cusparse.h",
        lost="2:4 structured sparsity",
        texts=("cusparseLtGetErrorName", "cusparseLtGetErrorString"),
    ),
    StubRule(
        name="stub-curand",
        path="nvidia/*/libcurand.so.*",
        error_code=999,
        source="CURAND_STATUS_INTERNAL_ERROR, curand.h",
        lost="programs that call cuRAND; torch has its own generators",
    ),
    StubRule(
        name="stub-nccl",
        path="nvidia/nccl/*/libnccl.so.*",
        error_code=5,
        source="ncclInvalidUsage, nccl.h",
        lost="torch.distributed over several GPUs",
        texts=("ncclGetErrorString", "ncclGetLastError", "pncclGetErrorString", "pncclGetLastError"),
    ),
    StubRule(
        name="stub-nvshmem",
        path="nvidia/nvshmem/*/libnvshmem_host.so.*",
        error_code=0,
        source="most functions return nothing or a pointer: none is given",
        lost="symmetric memory over NVSHMEM",
    ),
    StubRule(
        name="stub-cufile",
        path="nvidia/*/libcufile.so.*",
        error_code=5007,
        source="CU_FILE_PLATFORM_NOT_SUPPORTED, cufile.h",
        lost="GPUDirect Storage (torch.cuda.gds)",
        texts=("cufileop_status_error",),
    ),
    StubRule(
        name="stub-nvrtc",
        path="nvidia/*/libnvrtc.so.*",
        error_code=11,
        source="NVRTC_ERROR_INTERNAL_ERROR, nvrtc.h",
        lost="kernels that torch compiles at run time (jiterator: some special functions), fusers",
        texts=("nvrtcGetErrorString",),
    ),
    StubRule(
        name="stub-nvjitlink",
        path="nvidia/*/libnvJitLink.so.*",
        error_code=6,
        source="NVJITLINK_ERROR_INTERNAL, nvJitLink.h",
        lost="linking of device code at run time, which cuSPARSE and cuFFT callbacks use",
    ),
)


def choose_stubs(names: str) -> tuple[StubRule, ...]:
    """Returns the rules of a comma-separated list of names, or all for `all`, in the table's order.

    Raises:
        UsageError: there is no stub of that name.
    """
    chosen = {part.strip() for part in names.split(",") if part.strip()}
    unknown = chosen.difference(rule.name for rule in STUB_RULES) - {"all", "none"}
    if unknown:
        known = ", ".join(rule.name for rule in STUB_RULES)
        raise UsageError("stubs", min(unknown), f"no such stub; use all, none, {known}")
    return tuple(rule for rule in STUB_RULES if rule.name in chosen or "all" in chosen)
