"""torch, transformers, sentence-transformers and the embedding model: whole, of the right build, with right results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from checks.golden import DEVICE_TOLERANCE, TOLERANCE, VECTORS, distance
from checks.verdicts import fail_if, not_applicable, not_verified

if TYPE_CHECKING:
    from checks.evidence import DeviceRun, ModelRun, Observations
    from checks.expectations import Expectations
    from checks.facts import FileSystem
    from checks.layers import ImageLayers

pytestmark = pytest.mark.needs("models")
CUDA_LIBRARIES = (
    "libcudart", "libcublas", "libcublasLt", "libcudnn", "libcufft", "libcurand", "libcusolver", "libcusparse",
    "libcusparseLt", "libnccl", "libnvrtc", "libnvJitLink", "libnvshmem_host", "libcupti", "libcufile",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(evidence: Observations) -> ModelRun:
    """Imports, versions and vectors, however far it came."""
    return evidence.models.result()


@pytest.fixture
def models(run: ModelRun) -> ModelRun:
    """A run in which everything imports; what it would give otherwise cannot be told."""
    broken = [module for module, outcome in run.imports.items() if outcome.error]
    if broken:
        not_verified(f"{' and '.join(broken)} cannot be imported")
    return run


@pytest.mark.parametrize("module", ["torch", "transformers", "sentence_transformers"])
def test_module_imports(module: str, run: ModelRun) -> None:
    """{module} imports."""
    outcome = run.imports.get(module)
    fail_if(
        [f"importing {module} fails: {outcome.error.strip() if outcome else 'it was not tried'}"]
        if outcome is None or outcome.error
        else [],
        fix=(
            "look at the last change of the lock, of the pruning and of the stripping, in that order; where the error "
            "names a slim rule, add the module to buildkit/slim/rules/imported.txt"
        ),
    )


def test_imported_modules_have_bytecode(models: ModelRun) -> None:
    """Every installed module that the model libraries import has bytecode: no start compiles any."""
    fail_if(
        (f"{path} is imported and has no bytecode" for path in models.uncompiled),
        fix="add it to buildkit/slim/rules/imported.txt, or leave its package out of the rule",
    )


def test_torch_version_equals_the_lock(models: ModelRun, expectations: Expectations) -> None:
    """The version of torch that imports is the one in the lock."""
    expected = expectations.locked.get("torch")
    if expected is None:
        not_applicable("no lock was given")
    version = models.imports["torch"].version.partition("+")[0]
    fail_if(
        [f"torch is {version or 'not importable'}, the lock says {expected}"] if version != expected else [],
        fix="install from the lock with --require-hashes, and nothing after it",
    )


@pytest.mark.needs("cuda")
def test_torch_is_a_cuda_build(models: ModelRun) -> None:
    """Torch was compiled for CUDA."""
    fail_if(
        ["torch.version.cuda is None: this is the CPU build"] if not models.torch.cuda else [],
        fix="take torch from an index that has the CUDA build for this platform",
    )


@pytest.mark.needs("cuda")
def test_torch_has_code_for_the_targets(models: ModelRun, expectations: Expectations) -> None:
    """Torch says that it has code for each device that the image must run on."""
    fail_if(
        (
            f"{target} is missing from {list(models.torch.targets)}"
            for target in missing(expectations, models.torch.targets)
        ),
        fix="take a build of torch for these devices, or change cuda_targets in docker/images.toml",
    )


@pytest.mark.needs("cuda")
def test_libraries_hold_code_for_the_targets(
    expectations: Expectations, file_system: FileSystem, layers: ImageLayers
) -> None:
    """libtorch_cuda.so holds device code for each device that the image must run on."""
    holders = [item for item in file_system.objects if item.path.endswith("/libtorch_cuda.so")]
    fail_if(
        [
            *(
                f"{item.path} has no code for {target}, only for {list(item.cubin_targets)} ({layers.where(item.path)})"
                for item in holders
                for target in missing(expectations, item.cubin_targets)
            ),
            *([] if holders else ["there is no libtorch_cuda.so"]),
        ],
        fix="keep these devices when pruning fat binaries",
    )


def missing(expectations: Expectations, held: tuple[str, ...]) -> list[str]:
    """The targets that are not held."""
    return [target for target in expectations.cuda_targets if target not in held]


@pytest.mark.needs("cuda")
def test_one_copy_of_cuda(file_system: FileSystem, layers: ImageLayers) -> None:
    """Each CUDA library is there once, in one version."""
    copies: dict[str, list[str]] = {}
    for item in file_system.objects:
        name = (item.soname or item.path.rpartition("/")[2]).partition(".so")[0]
        if name in CUDA_LIBRARIES and item.is_library:
            copies.setdefault(name, []).append(f"{item.path} ({layers.where(item.path)})")
    fail_if(
        (
            f"{name} is there {len(paths)} times: {', '.join(paths)}"
            for name, paths in sorted(copies.items())
            if len(paths) > 1
        ),
        fix="use one CUDA base: the distributions that torch brings, and no CUDA base image or second toolkit",
    )


def test_libraries_load(
    evidence: Observations, expectations: Expectations, file_system: FileSystem, layers: ImageLayers
) -> None:
    """Each whole shared object loads, in a process of its own, those that need the driver's libraries apart."""
    # A finding of its own, but for what needs a library that is a sign: that one is there, and does not load.
    elsewhere = {name for item in file_system.objects if not item.is_refused_sign for name in item.unresolved}
    named = tuple(f"{name}:" for name in (*expectations.provided_libraries, *elsewhere))
    fail_if(
        (
            f"{path}: {message} ({layers.where(path)})"
            for path, message in evidence.libraries.result().items()
            if not message.startswith(named)
        ),
        fix="what strips or prunes has damaged it, or what it needs is missing",
    )


def test_embedding_is_right(models: ModelRun) -> None:
    """sentence-transformers gives the known vectors for known sentences."""
    fail_if(
        [models.error.strip()]
        if models.error
        else wrong(distance(VECTORS, models.vectors), TOLERANCE, "the known vectors"),
        fix="compare the model's files and the versions of torch and transformers with the lock",
    )


@pytest.mark.needs("application")
def test_embed_command_agrees(evidence: Observations) -> None:
    """`python -m service embed` gives the vectors that sentence-transformers gives."""
    ended = evidence.command.result()
    if ended.exit_code:
        fail_if([f"it ended with {ended.exit_code}: {ended.errors.strip()[-1000:]}"], fix="run it in the container")
    fail_if(
        wrong(distance(VECTORS, json.loads(ended.output)), TOLERANCE, "the known vectors"),
        fix="tokenizer limits, pooling or normalisation differ from the model's own modules.json",
    )


def wrong(found: float, tolerance: float, reference: str) -> list[str]:
    """A finding where *found* is beyond *tolerance*."""
    return (
        [] if found <= tolerance else [f"a component differs by {found:.2g} from {reference}, {tolerance:g} is allowed"]
    )


@pytest.fixture(scope="module")
def device(evidence: Observations) -> DeviceRun:
    """What ran on a GPU; not verified where there is none."""
    run = evidence.device.result()
    if run.unavailable or (not run.is_available and not run.error):
        not_verified(run.unavailable or "torch finds no GPU")
    return run


@pytest.mark.device
@pytest.mark.needs("cuda")
def test_a_kernel_runs(device: DeviceRun) -> None:
    """A kernel runs on the GPU and gives the CPU's result."""
    fail_if(
        [device.error or f"a matrix product on {device.name} differs"] if not device.is_product_equal else [],
        fix="compare the driver's version with what this CUDA needs, and the device with cuda_targets",
    )


@pytest.mark.device
@pytest.mark.needs("cuda")
def test_the_device_is_a_target(device: DeviceRun, expectations: Expectations) -> None:
    """The GPU is one that the image was built for."""
    major = device.capability[:-1]
    fail_if(
        [f"{device.name} is {device.capability}, the image is for {list(expectations.cuda_targets)}"]
        if not any(target[:-1] == major and target <= device.capability for target in expectations.cuda_targets)
        else [],
        fix="add the device to cuda_targets in docker/images.toml",
    )


@pytest.mark.device
@pytest.mark.needs("cuda")
def test_embedding_on_the_device_is_right(device: DeviceRun) -> None:
    """An embedding made on the GPU equals the CPU's within tolerance."""
    fail_if(
        [device.error]
        if device.error
        else wrong(distance(VECTORS, device.vectors), DEVICE_TOLERANCE, "the CPU's vectors"),
        fix="run python -m service embed --device cuda in the container and compare",
    )
