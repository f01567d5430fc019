"""Checks torch, transformers, sentence-transformers and the embedding model: builds, libraries and results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from checks.golden import DEVICE_TOLERANCE, TOLERANCE, VECTORS, distance
from checks.results import fail_if, not_applicable, not_verified

if TYPE_CHECKING:
    from checks.expectations import Expectations
    from checks.facts import FileSystem
    from checks.layers import ImageLayers
    from checks.observations import DeviceRun, ModelRun, Observations

pytestmark = pytest.mark.needs("models")
CUDA_LIBRARIES = (
    "libcudart", "libcublas", "libcublasLt", "libcudnn", "libcufft", "libcurand", "libcusolver", "libcusparse",
    "libcusparseLt", "libnccl", "libnvrtc", "libnvJitLink", "libnvshmem_host", "libcupti", "libcufile",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(observations: Observations) -> ModelRun:
    """Imports, versions and vectors, even if an import failed."""
    return observations.models.result()


@pytest.fixture
def models(run: ModelRun) -> ModelRun:
    """A run in which all modules could be imported."""
    broken = [module for module, outcome in run.imports.items() if outcome.error]
    if broken:
        not_verified(f"{' and '.join(broken)} cannot be imported")
    return run


@pytest.mark.parametrize("module", ["torch", "transformers", "sentence_transformers"])
def test_module_imports(module: str, run: ModelRun) -> None:
    """{module} can be imported."""
    outcome = run.imports.get(module)
    fail_if(
        [f"import {module} fails: {outcome.error.strip() if outcome else 'it was not tried'}"]
        if outcome is None or outcome.error
        else [],
        fix=(
            "examine the last change of the lock, of pruning and of stripping, in this order; if the error names a "
            "slim rule, add the module to buildkit/slim/rules/imported.txt"
        ),
    )


def test_imported_modules_have_bytecode(models: ModelRun) -> None:
    """Each module that the model libraries import has bytecode, so that no start compiles it."""
    fail_if(
        (f"{path} is imported and has no bytecode" for path in models.uncompiled),
        fix="add it to buildkit/slim/rules/imported.txt, or exclude its package from the rule",
    )


def test_torch_version_equals_the_lock(models: ModelRun, expectations: Expectations) -> None:
    """The imported torch has the version of the lock."""
    expected = expectations.locked.get("torch")
    if expected is None:
        not_applicable("no lock was given")
    version = models.imports["torch"].version.partition("+")[0]
    fail_if(
        [f"torch is {version or 'not importable'}, the lock says {expected}"] if version != expected else [],
        fix="install from the lock with --require-hashes, and nothing else",
    )


@pytest.mark.needs("cuda")
def test_torch_is_a_cuda_build(models: ModelRun) -> None:
    """The installed torch is a CUDA build."""
    fail_if(
        ["torch.version.cuda is None: this is the CPU build"] if not models.torch.cuda else [],
        fix="install torch from an index with the CUDA build for this platform",
    )


@pytest.mark.needs("cuda")
def test_torch_has_code_for_the_targets(models: ModelRun, expectations: Expectations) -> None:
    """The installed torch reports code for each GPU target."""
    fail_if(
        (
            f"{target} is missing from {list(models.torch.targets)}"
            for target in missing(expectations, models.torch.targets)
        ),
        fix="install a build of torch for these GPUs, or change cuda_targets in docker/images.toml",
    )


@pytest.mark.needs("cuda")
def test_libraries_hold_code_for_the_targets(
    expectations: Expectations, file_system: FileSystem, layers: ImageLayers
) -> None:
    """libtorch_cuda.so has code for each GPU target."""
    holders = [item for item in file_system.objects if item.path.endswith("/libtorch_cuda.so")]
    fail_if(
        [
            *(
                f"{item.path} has no code for {target}, only for {list(item.cubin_targets)} ({layers.where(item.path)})"
                for item in holders
                for target in missing(expectations, item.cubin_targets)
            ),
            *([] if holders else ["libtorch_cuda.so is missing"]),
        ],
        fix="keep the code for these targets when pruning: see SLIM_TARGETS in docker/images.toml",
    )


def missing(expectations: Expectations, present: tuple[str, ...]) -> list[str]:
    """Returns the expected targets that are not among *present*."""
    return [target for target in expectations.cuda_targets if target not in present]


@pytest.mark.needs("cuda")
def test_one_copy_of_cuda(file_system: FileSystem, layers: ImageLayers) -> None:
    """Each CUDA library is installed once, in one version."""
    copies: dict[str, list[str]] = {}
    for item in file_system.objects:
        name = (item.soname or item.path.rpartition("/")[2]).partition(".so")[0]
        if name in CUDA_LIBRARIES and item.is_library:
            copies.setdefault(name, []).append(f"{item.path} ({layers.where(item.path)})")
    fail_if(
        (
            f"{name} is installed {len(paths)} times: {', '.join(paths)}"
            for name, paths in sorted(copies.items())
            if len(paths) > 1
        ),
        fix="use one source of CUDA: the distributions that torch depends on, and no CUDA base image or second toolkit",
    )


def test_libraries_load(
    observations: Observations, expectations: Expectations, file_system: FileSystem, layers: ImageLayers
) -> None:
    """Each intact shared object loads in a new process, except those that need the host's driver."""
    # Another check finds missing libraries. A placeholder is found by the loader and then fails to load.
    elsewhere = {name for item in file_system.objects if not item.is_unloadable_placeholder for name in item.unresolved}
    missing_libraries = tuple(f"{name}:" for name in (*expectations.provided_libraries, *elsewhere))
    fail_if(
        (
            f"{path}: {message} ({layers.where(path)})"
            for path, message in observations.libraries.result().items()
            if not message.startswith(missing_libraries)
        ),
        fix="stop stripping or pruning this file, or install the library that it needs",
    )


def test_embedding_is_correct(models: ModelRun) -> None:
    """sentence-transformers returns the reference vectors."""
    fail_if(
        [models.error.strip()]
        if models.error
        else wrong(distance(VECTORS, models.vectors), TOLERANCE, "the reference vectors"),
        fix="compare the files of the model, and the versions of torch and transformers, with the lock",
    )


@pytest.mark.needs("application")
def test_embed_command_is_correct(observations: Observations) -> None:
    """`python -m service embed` returns the reference vectors of sentence-transformers."""
    ended = observations.command.result()
    if ended.exit_code:
        fail_if([f"exit code {ended.exit_code}: {ended.errors.strip()[-1000:]}"], fix="run the command in a container")
    fail_if(
        wrong(distance(VECTORS, json.loads(ended.output)), TOLERANCE, "the reference vectors"),
        fix="compare tokenizer limits, pooling and normalization with the model's modules.json",
    )


def wrong(found: float, tolerance: float, reference: str) -> list[str]:
    """Returns one finding if the difference *found* exceeds *tolerance*, else none."""
    return (
        [] if found <= tolerance else [f"a component differs by {found:.2g} from {reference}; {tolerance:g} is allowed"]
    )


@pytest.fixture(scope="module")
def device(observations: Observations) -> DeviceRun:
    """The run on a GPU; not verified if there is none."""
    run = observations.device.result()
    if run.unavailable or (not run.is_available and not run.error):
        not_verified(run.unavailable or "torch finds no GPU")
    return run


@pytest.mark.device
@pytest.mark.needs("cuda")
def test_gpu_kernel_runs(device: DeviceRun) -> None:
    """A kernel runs on the GPU and gives the same result as on the CPU."""
    fail_if(
        [device.error or f"a matrix product on {device.name} differs"] if not device.is_product_equal else [],
        fix="compare the driver's version with the one that this CUDA needs, and the GPU with cuda_targets",
    )


@pytest.mark.device
@pytest.mark.needs("cuda")
def test_gpu_is_a_target(device: DeviceRun, expectations: Expectations) -> None:
    """The image was built for this GPU."""
    major = device.capability[:-1]
    fail_if(
        [f"{device.name} is {device.capability}, the image is for {list(expectations.cuda_targets)}"]
        if not any(target[:-1] == major and target <= device.capability for target in expectations.cuda_targets)
        else [],
        fix="add the GPU to cuda_targets in docker/images.toml",
    )


@pytest.mark.device
@pytest.mark.needs("cuda")
def test_gpu_embedding_is_correct(device: DeviceRun) -> None:
    """An embedding on the GPU equals the CPU's within tolerance."""
    fail_if(
        [device.error]
        if device.error
        else wrong(distance(VECTORS, device.vectors), DEVICE_TOLERANCE, "the CPU's vectors"),
        fix="run `python -m service embed --device cuda` in a container and compare",
    )
