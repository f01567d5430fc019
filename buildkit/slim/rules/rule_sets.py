"""The table of what an image does not need: each rule with its reason and with what is lost by it.

A rule names files by their path inside site-packages (or, for what lies outside, inside the tree).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal

from buildkit.slim.rules.import_list import imported_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENCODERS", "RULES", "RULE_SETS", "Rule", "UnknownRule", "choose_rules"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Files to take out, and what whoever takes them out gives up.

    Attributes:
        folders: names of folders, at any depth, whose files go.
        suffixes: ends of file names.
        names: whole file names.
        globs: shell patterns over the whole path, whose `*` crosses folders.
        spared_suffixes: ends of file names that stay although they lie in one of the folders.
        spared_globs: patterns over the whole path of what stays whatever else names it.
        is_traced: whether what a run of the service imports stays, by traced.py.
        is_imported_kept: whether a matched folder or module that something outside it imports stays.
        is_bytecode_only: whether the sources named stay, and only their bytecode goes or is never made.
        sign: what stays in the place of what went (signs.py): of each folder the `names` that its modules gave; of
            each library one that is `refused` by the loader with the rule's name, or one that says it when it is
            `loaded`, for programs that keep the loader's words to themselves; of each of the `demanded` packages one
            that gives any name and says it when the name is `called`; nothing where nobody looks.
        demanded: packages, as paths, from which what stays imports names when it loads, to call them seldom or never.
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
    is_traced: bool = False
    is_imported_kept: bool = False
    is_bytecode_only: bool = False
    sign: Literal["", "names", "refused", "loaded", "called"] = ""
    demanded: tuple[str, ...] = ()

    def claims(self, path: str) -> bool:
        """Whether the rule names this file, before anything is kept because it is imported."""
        if any(fnmatchcase(path, glob) for glob in self.spared_globs):
            return False
        if self.is_traced and path in imported_paths():
            return False
        *folders, name = path.split("/")
        if name.endswith(self.suffixes) or name in self.names or any(fnmatchcase(path, glob) for glob in self.globs):
            return True
        return not name.endswith(self.spared_suffixes or ("/",)) and not set(folders).isdisjoint(self.folders)


class UnknownRule(ValueError):
    """A rule or set of rules that the table does not hold.

    Attributes:
        value: the name given.
        allowed: the names that exist.
    """

    def __init__(self, value: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"no rule or set is called {value!r}; there are {', '.join(allowed)}")
        self.value = value
        self.allowed = allowed


# Parts of scikit-learn, SciPy and SymPy that loading and running sentence-transformers never imports.
_ESTIMATORS: Final = (
    *("_loss", "cluster", "compose", "covariance", "cross_decomposition", "datasets", "decomposition", "ensemble"),
    *("feature_extraction", "feature_selection", "gaussian_process", "impute", "inspection", "linear_model"),
    *("manifold", "mixture", "model_selection", "neighbors", "neural_network", "semi_supervised", "svm", "tree"),
)
_SCIENCES: Final = ("cluster", "fftpack", "io", "odr", "signal")
_ALGEBRAS: Final = ("categories", "crypto", "diffgeom", "holonomic", "liealgebras", "physics", "stats", "vector")
# The packages whose imports were traced, and those of the same stack that nothing imported.
_TRACED: Final = (
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
        is_imported_kept=True,
        reason="the packages' own tests and benchmarks, with data; none is imported by the package outside its tests",
        lost="running the packages' own test suites in the image",
    ),
    Rule(
        name="scripts",
        folders=("scripts", "_precompute"),
        is_imported_kept=True,
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
        is_imported_kept=True,
        reason="what transformers' own generator writes its modelling files from; nothing imports them",
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
        reason="manual pages; nothing in the image shows them",
        lost="manual pages of console scripts",
    ),
    Rule(
        name="windows",
        suffixes=(".exe", ".dll", ".lib"),
        reason="launchers and libraries for another operating system",
        lost="nothing on Linux",
    ),
    Rule(
        name="nvrtc-alternate",
        globs=("nvidia/*/libnvrtc.alt.so.*", "nvidia/*/libnvrtc-builtins.alt.so.*"),
        reason="a second build of NVRTC that a program must ask for by its own name; no file of the stack holds it",
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
            "brings: the loader refuses them, and nothing but those libraries' own start-up opens them"
        ),
        lost="NVSHMEM and cuFile between machines, where those libraries are installed beside",
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
        reason="LLVM bitcode to link into kernels of one's own with a compiler",
        lost="building device code against NVSHMEM in the image",
    ),
    Rule(
        name="cute-kernels",
        globs=("torch/_vendor/quack/*",),
        is_traced=True,
        reason="kernels that torch compiles with NVIDIA's CuTe where its compiler is installed, which no lock names",
        lost="those kernels, where nvidia-cutlass-dsl is installed beside",
    ),
    Rule(
        name="torch-tests",
        globs=("torch/testing/_internal/*",),
        is_traced=True,
        reason="what torch's own test suites are written with; five modules of it, which torch itself imports, stay",
        lost="torch.library.opcheck, gradcheck of operators by name; torch.testing itself stays",
    ),
    Rule(
        name="graph-algorithms",
        globs=("networkx/*",),
        reason="networkx; torch's compiler cuts graphs with it and nothing else imports it",
        lost="torch.compile's partitioner, programs that import networkx",
    ),
    Rule(
        name="database-tests",
        globs=("sqlalchemy/testing/*", "sqlalchemy/dialects/*/provision.py", "alembic/testing/*", "litestar/testing/*"),
        is_traced=True,
        reason="what SQLAlchemy's, Alembic's and Litestar's tests, and those of their users, are written with",
        lost="writing tests with these packages in the image",
    ),
    Rule(
        name="cold-bytecode",
        globs=tuple(f"{package}/*" for package in _TRACED),
        is_traced=True,
        is_bytecode_only=True,
        reason="bytecode of what neither the service nor a text encoder imports (traced); the sources stay",
        lost="time: the first import of such a module in a process compiles it, about 1 s for each MB of source",
    ),
    Rule(
        name="cudnn-engines",
        globs=tuple(
            f"nvidia/cudnn/lib/libcudnn_{part}.so.*" for part in ("adv", "cnn", "engines_*", "heuristic", "ops")
        ),
        sign="loaded",
        reason="loaded at the first convolution or recurrent layer, which text encoders do not have",
        lost="convolutions, recurrent layers and cuDNN attention on the GPU (the service turns that back-end off)",
    ),
    Rule(
        name="torch-compilers",
        globs=("torch/_inductor/*",),
        is_traced=True,
        reason=(
            "torch's generators of kernels write for triton or a C++ compiler, and a serving image has neither; of "
            "these modules, importing torch, transformers and its text encoders loads seventeen, which stay (traced)"
        ),
        lost="torch.compile, also as a decorator of what is never called, and torch.export",
    ),
    Rule(
        name="torch-parts",
        globs=tuple(f"torch/{part}/*" for part in ("ao", "distributed", "onnx")),
        is_traced=True,
        reason="training, quantizing and exporting; importing torch and the text encoders loads a part, which stays",
        lost="torch.onnx, torch.ao.quantization, and of torch.distributed what trains over several GPUs",
    ),
    Rule(
        name="package-builder",
        globs=("setuptools/*", "_distutils_hack/*", "pkg_resources/*", "distutils-precedence.pth"),
        reason="setuptools builds packages; torch asks for it to compile C++ extensions, and there is no compiler",
        lost="torch.utils.cpp_extension and torch.utils.benchmark, setuptools and distutils",
    ),
    Rule(
        name="other-models",
        globs=("transformers/models/*/*",),
        spared_globs=(
            *(f"transformers/models/{family}/*" for family in ("auto", *ENCODERS)),
            # Transformers looks for a tokenizer under the names of its kin, without end where none of them is there.
            "transformers/models/*/__init__.py",
            "transformers/models/*/tokenization_*.py",
        ),
        is_traced=True,  # sentence-transformers imports the settings of a few others by name
        sign="names",
        reason="networks that embed or classify no text: vision, sound, generation; each is loaded by its name only",
        lost="loading models of those families: of 480, 60 stay",
    ),
    Rule(
        name="scipy-sklearn",
        globs=(
            *("scipy/*", "scipy.libs/*", "sklearn/*", "scikit_learn.libs/*"),
            *("joblib/*", "narwhals/*", "threadpoolctl.py"),  # which only scikit-learn imports
        ),
        sign="called",
        demanded=(
            *("scipy", "scipy/linalg", "scipy/optimize", "scipy/sparse", "scipy/stats"),
            *("sklearn", "sklearn/metrics"),
        ),
        reason=(
            "sentence-transformers and transformers import ten of their names when they load, and call them to "
            "evaluate and train models, and for distances of sparse embeddings: not to encode on a GPU or CPU (traced)"
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
        is_traced=True,
        reason="scikit-learn's learners; sentence-transformers imports its metrics, which load none of them (traced)",
        lost="training and use of scikit-learn's models",
    ),
    Rule(
        name="sciences",
        globs=(*(f"scipy/{part}/*" for part in _SCIENCES), *(f"sympy/{part}/*" for part in _ALGEBRAS)),
        is_traced=True,
        reason="signals, files, clusters, physics: parts of SciPy and SymPy that nothing else of them loads (traced)",
        lost="those parts",
    ),
    Rule(
        name="highlighting",
        globs=("pygments/lexers/*",),
        spared_globs=("pygments/lexers/__init__.py", "pygments/lexers/_mapping.py", "pygments/lexers/special.py"),
        is_traced=True,  # a package's __getattr__ imports a few of them when it is looked through
        reason="grammars of 500 languages to colour source text with",
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
        is_traced=True,
        reason="command lines, pipelines and clients of remote models; serving calls the networks themselves",
        lost="transformers.pipeline, the commands hf and transformers, huggingface_hub.InferenceClient",
    ),
    Rule(
        name="example-makers",
        globs=("faker/*", "polyfactory/*", "bin/faker"),
        reason="Litestar asks for them to invent examples in its OpenAPI document; the service writes its own",
        lost="create_examples of Litestar's OpenAPI settings, programs that import faker or polyfactory",
    ),
    Rule(
        name="other-databases",
        globs=tuple(f"sqlalchemy/dialects/{database}/*" for database in ("mssql", "mysql", "oracle")),
        is_traced=True,
        reason="SQLAlchemy loads a dialect by the name in a database's address, and the service's is PostgreSQL",
        lost="connecting to MySQL, MariaDB, Oracle and SQL Server",
    ),
    Rule(
        name="hub-transfer",
        globs=("hf_xet/*",),
        reason="the second way to download from a model hub, which has HTTP too; the image is offline by default",
        lost="fast downloads by Xet; with huggingface_hub alone HF_HUB_DISABLE_XET=1 is needed",
    ),
    Rule(
        name="dense-solver",
        globs=("nvidia/*/libcusolver.so.*", "torch/lib/libtorch_cuda_linalg.so"),
        sign="refused",
        reason="loaded at the first call of torch.linalg on the GPU, which text encoders do not make",
        lost="torch.linalg on the GPU",
    ),
    Rule(
        name="nvrtc-builtins",
        globs=("nvidia/*/libnvrtc-builtins.so.*",),
        reason="loaded by NVRTC when it compiles; of use only where NVRTC itself is there",
        lost="kernels compiled at run time",
    ),
    Rule(
        name="cuda-bindings",
        globs=("cuda/bindings/*", "cuda/pathfinder/*", "cuda_bindings.pth"),
        reason="Python bindings of the CUDA driver; torch looks for them and does without",
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
# `runtime` costs nothing that an image without compilers has; `serving` costs what its rules say, none of it used by
# inference with torch; `inference` leaves what text encoders need.
RULE_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "none": (),
    "runtime": _RUNTIME,
    "serving": _SERVING,
    "inference": _INFERENCE,
}


def choose_rules(names: str) -> tuple[Rule, ...]:
    """The rules of a comma-separated list of sets and single rules, in the table's order.

    Raises:
        UnknownRule: a name is neither.
    """
    by_name = {rule.name: rule for rule in RULES}
    chosen: set[str] = set()
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name in RULE_SETS:
            chosen.update(RULE_SETS[name])
        elif name in by_name:
            chosen.add(name)
        else:
            raise UnknownRule(name, (*RULE_SETS, *by_name))
    return tuple(rule for rule in RULES if rule.name in chosen)
