"""Lists the files that an image does not need: each rule with its reason and the features that are lost.

A rule names files by their path inside site-packages (for files outside, inside the tree).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import TYPE_CHECKING, Final

from buildkit.errors import UsageError
from buildkit.slim.placeholders.kinds import PlaceholderKind
from buildkit.slim.rules.import_list import imported_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENCODERS", "RULES", "RULE_SETS", "Rule", "choose_rules"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Files to remove, and the features that are lost with them.

    Attributes:
        reason: why an image does not need the files.
        lost: the features that no longer work.
        folders: names of folders, at any depth, whose files are removed.
        suffixes: ends of file names.
        names: complete file names.
        globs: shell patterns for the complete path, whose `*` crosses folders.
        spared_suffixes: ends of file names that stay although they lie in one of the folders.
        spared_globs: patterns for the complete path of files that always stay.
        keeps_recorded: whether the modules that a run of the service imports stay (import_list.py).
        keeps_imported: whether a folder or module stays if a module outside imports it.
        is_bytecode_only: whether the sources stay, and only their bytecode is removed or not made.
        placeholder: the kind of placeholder to leave: for each library, for each folder of modules, or for each of
            the `placeholder_packages`; None leaves none.
        placeholder_packages: paths of packages whose names other packages import when they load, but rarely call.
    """

    name: str
    reason: str
    lost: str
    folders: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    spared_suffixes: tuple[str, ...] = ()
    spared_globs: tuple[str, ...] = ()
    keeps_recorded: bool = False
    keeps_imported: bool = False
    is_bytecode_only: bool = False
    placeholder: PlaceholderKind | None = None
    placeholder_packages: tuple[str, ...] = ()

    def claims(self, path: str) -> bool:
        """Returns whether the rule names this file; `match_files` may still keep it, if another module imports it."""
        if _matches(self.spared_globs, path):
            return False
        if self.keeps_recorded and path in imported_paths():
            return False
        *folders, name = path.split("/")
        if name.endswith(self.suffixes) or name in self.names or _matches(self.globs, path):
            return True
        return not name.endswith(self.spared_suffixes or ("/",)) and not set(folders).isdisjoint(self.folders)


def _matches(globs: tuple[str, ...], path: str) -> bool:
    """Returns whether any of these shell patterns matches a path."""
    return bool(globs) and _pattern(globs).match(path) is not None


@cache
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Returns one pattern for all: for the 23,000 files of the inference image it saves 0.7 s of 9 s CPU time."""
    return re.compile("|".join(map(translate, globs)))


# Parts of scikit-learn, SciPy and SymPy that loading and running sentence-transformers never imports.
_ESTIMATORS: Final = (
    *("_loss", "cluster", "compose", "covariance", "cross_decomposition", "datasets", "decomposition", "ensemble"),
    *("feature_extraction", "feature_selection", "gaussian_process", "impute", "inspection", "linear_model"),
    *("manifold", "mixture", "model_selection", "neighbors", "neural_network", "semi_supervised", "svm", "tree"),
)
_SCIENCES: Final = ("cluster", "fftpack", "io", "odr", "signal")
_ALGEBRAS: Final = ("categories", "crypto", "diffgeom", "holonomic", "liealgebras", "physics", "stats", "vector")
# The packages whose imports were recorded, and those of the same stack that nothing imported.
_RECORDED: Final = (
    *("click", "faker", "fsspec", "huggingface_hub", "mako", "narwhals", "networkx", "pydantic", "pygments", "rich"),
    *("scipy", "setuptools", "sklearn", "sqlalchemy", "sympy", "torch", "torchgen", "transformers", "typer"),
)
# Families of transformers that embed or classify texts, those built on decoders included.
ENCODERS: Final = (
    *("albert", "bart", "barthez", "bert", "bert_generation", "bert_japanese", "bertweet", "big_bird", "camembert"),
    *("canine", "convbert", "deberta", "deberta_v2", "distilbert", "electra", "embedding_gemma2", "encoder_decoder"),
    *("ernie", "eurobert", "flaubert", "fnet", "funnel", "gemma", "gemma2", "gemma3", "herbert", "ibert"),
    *("jina_embeddings_v3", "llama", "longformer", "luke", "megatron_bert", "mistral", "mobilebert", "modernbert"),
    *("modernbert_decoder", "mpnet", "mra", "mt5", "nomic_bert", "nystromformer", "phobert", "qwen2", "qwen3"),
    *("rembert", "roberta", "roberta_prelayernorm", "roc_bert", "roformer", "splinter", "squeezebert", "t5", "umt5"),
    *("xlm", "xlm_roberta", "xlm_roberta_xl", "xlnet", "xmod", "yoso"),
)

RULES: Final = (
    Rule(
        name="headers",
        folders=("include",),
        suffixes=(".h", ".hpp", ".hh", ".hxx", ".cuh", ".inl", ".ipp"),
        spared_suffixes=(".py", ".so"),
        reason="C, C++ and CUDA headers serve compilers, and a runtime image has none",
        lost="building C++ or CUDA extensions in the image; compilers called at run time (torch.compile, cupy)",
    ),
    Rule(
        name="archives",
        suffixes=(".a", ".la", ".o"),
        reason="static libraries and object files serve linkers, and a runtime image has none",
        lost="linking against the packages' static libraries in the image",
    ),
    Rule(
        name="type-stubs",
        suffixes=(".pyi", ".pxd", ".pyx", ".pxi"),
        reason="type stubs and Cython sources serve type checkers and compilers; the interpreter reads neither",
        lost="type checking, editor completion and cimport against the image's packages",
    ),
    Rule(
        name="tests",
        folders=("tests", "test", "benchmarks"),
        names=("conftest.py",),
        globs=("numpy/_core/_simd.*.so", "numpy/_core/_*_tests.*.so"),
        keeps_imported=True,
        reason="the packages' own tests and benchmarks, with data; none is imported by the package outside its tests",
        lost="running the packages' own test suites in the image",
    ),
    Rule(
        name="scripts",
        folders=("scripts", "_precompute"),
        keeps_imported=True,
        reason="the packages' development scripts and generators of tables; none is imported or an entry point",
        lost="running them",
    ),
    Rule(
        name="build-files",
        suffixes=(".cmake", ".pc", ".proto"),
        names=("CMakeLists.txt", "meson.build"),
        globs=("torch/bin/protoc*", "torchgen/packaged/*"),
        reason=(
            "descriptions for CMake, Meson, pkg-config and the protocol buffer compiler, that compiler, and the "
            "templates from which torch's C++ is generated"
        ),
        lost="building against the packages in the image",
    ),
    Rule(
        name="model-sources",
        globs=("transformers/models/*/modular_*.py",),
        keeps_imported=True,
        reason="sources from which transformers generates its modelling files; nothing imports them",
        lost="running that generator",
    ),
    Rule(
        name="fortran-sources",
        suffixes=(".f", ".f90", ".pyf"),
        reason="Fortran sources and interface files serve f2py and compilers",
        lost="building Fortran extensions in the image",
    ),
    Rule(
        name="manuals",
        globs=("share/man/*", "share/doc/*"),
        reason="manual pages; the image has no program to read them with",
        lost="manual pages of console scripts",
    ),
    Rule(
        name="windows",
        suffixes=(".exe", ".dll", ".lib"),
        reason="launchers and libraries for Windows",
        lost="nothing on Linux",
    ),
    Rule(
        name="nvrtc-alternate",
        globs=("nvidia/*/libnvrtc.alt.so.*", "nvidia/*/libnvrtc-builtins.alt.so.*"),
        reason="a second build of NVRTC that a program must load by name; no file of the stack has that name",
        lost="programs linked with libnvrtc.alt",
    ),
    Rule(
        name="cluster-plugins",
        globs=(
            "nvidia/nvshmem/lib/nvshmem_transport_*.so*",
            "nvidia/nvshmem/lib/nvshmem_bootstrap_mpi.so*",
            "nvidia/nvshmem/lib/nvshmem_bootstrap_pmix.so*",
            "nvidia/nvshmem/lib/nvshmem_bootstrap_shmem.so*",
            "nvidia/*/libcufile_rdma.so*",
        ),
        reason=(
            "the plugins of NVSHMEM and cuFile for clusters need UCX, libfabric, libmlx5, MPI or PMIx, which no wheel "
            "has: the loader refuses them, and only those two libraries open them"
        ),
        lost="NVSHMEM and cuFile between machines, if those libraries are installed",
    ),
    Rule(
        name="triton",
        globs=("triton/*", "bin/proton", "bin/proton-viewer"),
        reason=(
            "triton compiles its launchers with a C compiler that a runtime image does not have, so torch's own triton "
            "kernels (torch/_native) would fail where, without the package, torch takes its CUDA kernels"
        ),
        lost="torch.compile and kernels written in triton",
    ),
    Rule(
        name="multi-gpu-solver",
        globs=("nvidia/*/libcusolverMg.so.*",),
        reason="cuSOLVER over several GPUs; no library or module of the stack names it, and it finds no cuBLAS",
        lost="programs that call cusolverMg",
    ),
    Rule(
        name="blas-fftw-shims",
        globs=("nvidia/*/libnvblas.so.*", "nvidia/*/libcufftw.so.*"),
        reason="drop-in replacements for CPU BLAS and FFTW that a program must be linked with or preload",
        lost="programs that preload NVBLAS or link cuFFTW",
    ),
    Rule(
        name="profilers",
        globs=(
            "nvidia/*/libnvperf_host.so*",
            "nvidia/*/libnvperf_target.so*",
            "nvidia/*/libpcsamplingutil.so*",
            "nvidia/*/libcheckpoint.so*",
        ),
        reason="hardware counters and program sampling for profilers; CUPTI itself, which torch needs, stays",
        lost="kernel metrics in profilers; torch.profiler's timelines stay",
    ),
    Rule(
        name="device-bitcode",
        globs=("nvidia/*.bc",),
        reason="LLVM bitcode that a compiler links into custom kernels",
        lost="building device code against NVSHMEM in the image",
    ),
    Rule(
        name="cute-kernels",
        globs=("torch/_vendor/quack/*",),
        keeps_recorded=True,
        reason="kernels that torch compiles with NVIDIA's CuTe compiler, which is in no lock file",
        lost="those kernels, if nvidia-cutlass-dsl is installed",
    ),
    Rule(
        name="torch-tests",
        globs=("torch/testing/_internal/*",),
        keeps_recorded=True,
        reason="tools of torch's own test suites; the five modules of them that torch imports stay",
        lost="torch.library.opcheck, gradcheck of operators by name; torch.testing itself stays",
    ),
    Rule(
        name="graph-algorithms",
        globs=("networkx/*",),
        reason="networkx; only torch's compiler imports it, to cut graphs",
        lost="torch.compile's partitioner, programs that import networkx",
    ),
    Rule(
        name="database-tests",
        globs=("sqlalchemy/testing/*", "sqlalchemy/dialects/*/provision.py", "alembic/testing/*", "litestar/testing/*"),
        keeps_recorded=True,
        reason="tools for tests of SQLAlchemy, Alembic and Litestar, and of programs that use them",
        lost="writing tests with these packages in the image",
    ),
    Rule(
        name="cold-bytecode",
        globs=tuple(f"{package}/*" for package in _RECORDED),
        keeps_recorded=True,
        is_bytecode_only=True,
        reason="bytecode of modules that neither the service nor a text encoder imports (recorded); the sources stay",
        lost="time: the first import of such a module in a process compiles it, about 1 s for each MB of source",
    ),
    Rule(
        name="cudnn-engines",
        globs=tuple(
            f"nvidia/cudnn/lib/libcudnn_{part}.so.*" for part in ("adv", "cnn", "engines_*", "heuristic", "ops")
        ),
        placeholder=PlaceholderKind.WARNING_LIBRARY,
        reason="loaded at the first convolution or recurrent layer, which text encoders do not have",
        lost="convolutions, recurrent layers and cuDNN attention on the GPU (the service turns that back-end off)",
    ),
    Rule(
        name="torch-compilers",
        globs=("torch/_inductor/*",),
        keeps_recorded=True,
        reason=(
            "torch generates kernels for triton or a C++ compiler, and a serving image has neither; the seventeen of "
            "these modules that importing torch, transformers and its text encoders loads stay (recorded)"
        ),
        lost="torch.compile, also as a decorator of functions that are never called, and torch.export",
    ),
    Rule(
        name="torch-parts",
        globs=tuple(f"torch/{part}/*" for part in ("ao", "distributed", "onnx")),
        keeps_recorded=True,
        reason="training, quantizing and exporting; the part that importing torch and the text encoders loads stays",
        lost="torch.onnx, torch.ao.quantization, and training over several GPUs with torch.distributed",
    ),
    Rule(
        name="package-builder",
        globs=("setuptools/*", "_distutils_hack/*", "pkg_resources/*", "distutils-precedence.pth"),
        reason="setuptools builds packages; torch requires it to compile C++ extensions, and there is no compiler",
        lost="torch.utils.cpp_extension and torch.utils.benchmark, setuptools and distutils",
    ),
    Rule(
        name="other-models",
        globs=("transformers/models/*/*",),
        spared_globs=(
            *(f"transformers/models/{family}/*" for family in ("auto", *ENCODERS)),
            # Transformers searches for a tokenizer under the names of related models, endlessly if none exists.
            "transformers/models/*/__init__.py",
            "transformers/models/*/tokenization_*.py",
        ),
        keeps_recorded=True,  # sentence-transformers imports the configurations of a few others by name
        placeholder=PlaceholderKind.MODULE,
        reason="networks that embed or classify no text: vision, sound, generation; each is loaded by its name only",
        lost="loading models of those families: 60 of 480 stay",
    ),
    Rule(
        name="scipy-sklearn",
        globs=(
            *("scipy/*", "scipy.libs/*", "sklearn/*", "scikit_learn.libs/*"),
            *("joblib/*", "narwhals/*", "threadpoolctl.py"),  # which only scikit-learn imports
        ),
        placeholder=PlaceholderKind.PACKAGE,
        placeholder_packages=(
            *("scipy", "scipy/linalg", "scipy/optimize", "scipy/sparse", "scipy/stats"),
            *("sklearn", "sklearn/metrics"),
        ),
        reason=(
            "sentence-transformers and transformers import ten of their names when they load, and call them to "
            "evaluate and train models, and for distances of sparse embeddings: not to encode on GPU or CPU (recorded)"
        ),
        lost=(
            "sentence-transformers' evaluators, its to_scipy_coo, Manhattan distance of sparse embeddings and pooling "
            "by clusters, assisted generation, FNet's settings for TPUs, and programs that import SciPy, "
            "scikit-learn, joblib or narwhals"
        ),
    ),
    Rule(
        name="estimators",
        globs=tuple(f"sklearn/{part}/*" for part in _ESTIMATORS),
        keeps_recorded=True,
        reason="scikit-learn's estimators; sentence-transformers imports its metrics, which load none (recorded)",
        lost="training and use of scikit-learn's models",
    ),
    Rule(
        name="sciences",
        globs=(*(f"scipy/{part}/*" for part in _SCIENCES), *(f"sympy/{part}/*" for part in _ALGEBRAS)),
        keeps_recorded=True,
        reason="signals, files, clusters, physics: parts of SciPy and SymPy that no other part loads (recorded)",
        lost="those parts",
    ),
    Rule(
        name="highlighting",
        globs=("pygments/lexers/*",),
        spared_globs=("pygments/lexers/__init__.py", "pygments/lexers/_mapping.py", "pygments/lexers/special.py"),
        keeps_recorded=True,  # listing the names of the package imports a few of them
        reason="grammars of 500 languages, for coloured source text",
        lost="coloured source in terminals",
    ),
    Rule(
        name="front-ends",
        globs=(
            *(f"transformers/{part}/*" for part in ("cli", "exporters", "pipelines")),
            "transformers/testing_utils.py",
            *(f"huggingface_hub/{part}/*" for part in ("cli", "inference")),
            *("bin/hf", "bin/tiny-agents", "bin/transformers"),
        ),
        keeps_recorded=True,
        reason="command lines, pipelines and clients of remote models; serving calls the networks themselves",
        lost="transformers.pipeline, the commands hf and transformers, huggingface_hub.InferenceClient",
    ),
    Rule(
        name="example-makers",
        globs=("faker/*", "polyfactory/*", "bin/faker"),
        reason="Litestar requires them to generate examples in its OpenAPI document; the service writes its own",
        lost="create_examples of Litestar's OpenAPI settings, programs that import faker or polyfactory",
    ),
    Rule(
        name="other-databases",
        globs=tuple(f"sqlalchemy/dialects/{database}/*" for database in ("mssql", "mysql", "oracle")),
        keeps_recorded=True,
        reason="SQLAlchemy loads the dialect that a database's address names, and the service uses PostgreSQL",
        lost="connecting to MySQL, MariaDB, Oracle and SQL Server",
    ),
    Rule(
        name="hub-transfer",
        globs=("hf_xet/*",),
        reason="a second protocol for downloads from a model hub, besides HTTP; the image is offline by default",
        lost="fast downloads by Xet; with huggingface_hub alone HF_HUB_DISABLE_XET=1 is needed",
    ),
    Rule(
        name="dense-solver",
        globs=("nvidia/*/libcusolver.so.*", "torch/lib/libtorch_cuda_linalg.so"),
        placeholder=PlaceholderKind.UNLOADABLE_LIBRARY,
        reason="loaded at the first call of torch.linalg on the GPU, which text encoders do not make",
        lost="torch.linalg on the GPU",
    ),
    Rule(
        name="nvrtc-builtins",
        globs=("nvidia/*/libnvrtc-builtins.so.*",),
        reason="loaded by NVRTC when it compiles, and NVRTC is replaced by a stub",
        lost="kernels compiled at run time",
    ),
    Rule(
        name="cuda-bindings",
        globs=("cuda/bindings/*", "cuda/pathfinder/*", "cuda_bindings.pth"),
        reason="Python bindings of the CUDA driver, which torch uses only if they are installed",
        lost="annotated CUDA graphs (torch.cuda.graphs kernel annotations), programs that import cuda.bindings",
    ),
)
_RUNTIME: Final = (
    "headers",
    "archives",
    "type-stubs",
    "tests",
    "scripts",
    "build-files",
    "model-sources",
    "fortran-sources",
    "manuals",
    "windows",
    "nvrtc-alternate",
    "cluster-plugins",
    "multi-gpu-solver",
)
_SERVING: Final = (
    *_RUNTIME,
    "triton",
    "blas-fftw-shims",
    "profilers",
    "device-bitcode",
    "cute-kernels",
    "torch-tests",
    "graph-algorithms",
    "database-tests",
    "cold-bytecode",
    "estimators",
    "sciences",
    "highlighting",
    "example-makers",
    "other-databases",
    "hub-transfer",
    "cuda-bindings",
)
_INFERENCE: Final = (
    *_SERVING,
    "cudnn-engines",
    "torch-compilers",
    "torch-parts",
    "package-builder",
    "other-models",
    "scipy-sklearn",
    "front-ends",
    "dense-solver",
    "nvrtc-builtins",
)
# `runtime` removes nothing that an image without compilers could use. `serving` also removes features that inference
# with torch does not use. `inference` keeps only the features that text encoders need.
RULE_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "none": (),
    "runtime": _RUNTIME,
    "serving": _SERVING,
    "inference": _INFERENCE,
}


def choose_rules(names: str) -> tuple[Rule, ...]:
    """Returns the rules of a comma-separated list of sets and single rules, in the table's order.

    Raises:
        UsageError: a name is neither.
    """
    by_name = {rule.name: rule for rule in RULES}
    chosen: set[str] = set()
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name in RULE_SETS:
            chosen.update(RULE_SETS[name])
        elif name in by_name:
            chosen.add(name)
        else:
            known = ", ".join((*RULE_SETS, *by_name))
            raise UsageError("rules", name, f"no such rule or set of rules; use {known}")
    return tuple(rule for rule in RULES if rule.name in chosen)
