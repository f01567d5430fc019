"""Which installed files an image does not need: a table of rules, each with its reason and what is lost by it.

A rule names files by their path inside site-packages (or, for what lies outside, inside the tree).
Folders that hold Python modules, such as `tests`, stay where anything outside them imports them: that is looked up
in the sources and entry points of the tree itself, not in a list kept by hand.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["RULES", "RULE_SETS", "Rule", "UnknownRule", "choose_rules", "match_files"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Files to take out, and what whoever takes them out gives up.

    Attributes:
        folders: names of folders, at any depth, whose files go.
        suffixes: ends of file names.
        names: whole file names.
        globs: shell patterns over the whole path, whose `*` crosses folders.
        spared_suffixes: ends of file names that stay although they lie in one of the folders.
        is_imported_kept: whether a matched folder or module that something outside it imports stays.
    """

    name: str
    reason: str
    lost: str
    folders: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    spared_suffixes: tuple[str, ...] = ()
    is_imported_kept: bool = False

    def claims(self, path: str) -> bool:
        """Whether the rule names this file, before anything is kept because it is imported."""
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
        folders=("tests", "test"),
        names=("conftest.py",),
        is_imported_kept=True,
        reason="the packages' own tests, with their data; none is imported by the package outside its tests",
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
        globs=("torch/bin/protoc*",),
        reason="descriptions for CMake, Meson, pkg-config and the protocol buffer compiler, and that compiler",
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
        name="cudnn-engines",
        globs=tuple(
            f"nvidia/cudnn/lib/libcudnn_{part}.so.*" for part in ("adv", "cnn", "engines_*", "heuristic", "ops")
        ),
        reason="loaded at the first convolution or recurrent layer, which text encoders do not have",
        lost="convolutions, recurrent layers and cuDNN attention on the GPU (turn that back-end off)",
    ),
    Rule(
        name="dense-solver",
        globs=("nvidia/*/libcusolver.so.*", "torch/lib/libtorch_cuda_linalg.so"),
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
_SERVING: Final = (*_RUNTIME, "triton", "blas-fftw-shims", "profilers", "device-bitcode", "cuda-bindings")
# `runtime` costs nothing that an image without compilers has; `serving` costs what its rules say, none of it used by
# inference with torch; `inference` leaves what text encoders need.
RULE_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "none": (),
    "runtime": _RUNTIME,
    "serving": _SERVING,
    "inference": (*_SERVING, "cudnn-engines", "dense-solver", "nvrtc-builtins"),
}

_GUARDED_FOLDERS: Final = frozenset(folder for rule in RULES if rule.is_imported_kept for folder in rule.folders)
# What says which distribution it was and under which licence; licences lie there under the names of source folders.
_METADATA: Final = ".dist-info/"
# Sources that load their stubs at run time (the lazy_loader package: `attach_stub` reads the .pyi beside the module).
_READS_ITS_STUB: Final = b"attach_stub"
# An import statement at any indentation, with what its parentheses hold: a cheap look before parsing.
_IMPORT: Final = re.compile(
    rb"^[ \t]*((?:from[ \t]+[.\w]+[ \t]+import|import)[ \t]+(?:\([^)]*\)|[^\n(]*))", re.MULTILINE
)
_WORD: Final = re.compile(rb"\w+")
# Up to this many, looking for each in every source is faster than finding its import statements (measured).
_FEW_WORDS: Final = 8
# Entry points that only a test suite loads: networkx drops its `nx_loopback` backend before it looks at the others
# (networkx 3.7, networkx/utils/backends.py, `_get_backends`).
_TEST_ENTRY_POINTS: Final = frozenset({"networkx.classes.tests.dispatch_interface"})
_ENTRY_POINT: Final = re.compile(r"^[^#=\n]+=\s*([\w.]+)", re.MULTILINE)


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


def match_files(root: Path, paths: Sequence[str], rules: Iterable[Rule]) -> dict[str, Rule]:
    """Which of the files below `root` fall under a rule: path to the first rule that names it.

    Args:
        root: a site-packages folder, or the tree for the files outside any.
        paths: every file below it, relative, with `/`.
        rules: the rules in the order in which they claim files.
    """
    rules = tuple(rules)
    matched: dict[str, Rule] = {}
    for path in paths:
        claiming = next((rule for rule in rules if rule.claims(path)), None)
        if claiming is not None and _METADATA not in path:
            matched[path] = claiming
    _keep_imported(root, paths, matched)
    _keep_stubs_read_at_run_time(root, matched)
    return matched


def _keep_imported(root: Path, paths: Sequence[str], matched: dict[str, Rule]) -> None:
    """Gives back the folders and modules that code outside of them imports, of rules that ask for it."""
    guarded: dict[str, list[str]] = {}
    for path, rule in matched.items():
        if rule.is_imported_kept:
            guarded.setdefault(_module_root(path), []).append(path)
    if not guarded:
        return
    words = {name.rsplit(".", 1)[-1].encode() for name in guarded}
    # What is given back imports in its turn, so this goes on until nothing is.
    importers = [path for path in paths if path not in matched]
    while importers and guarded:
        imported = set().union(*(_imported_by(root, path, words) for path in importers))
        reached = {
            ".".join(parts[:depth])
            for parts in (module.split(".") for module in imported)
            for depth in range(1, len(parts) + 1)
        }
        importers = [path for name in sorted(reached.intersection(guarded)) for path in guarded.pop(name)]
        for path in importers:
            del matched[path]


def _imported_by(root: Path, path: str, words: set[bytes]) -> set[str]:
    """The modules that a file makes importable or imports, if any of them may be called one of these words."""
    if path.endswith(".dist-info/entry_points.txt"):
        return set(_ENTRY_POINT.findall((root / path).read_text("utf-8", "replace"))) - _TEST_ENTRY_POINTS
    if not path.endswith(".py"):
        return set()
    source = (root / path).read_bytes()
    if len(words) <= _FEW_WORDS and not any(word in source for word in words):
        return set()
    if words.isdisjoint(_WORD.findall(b"\n".join(_IMPORT.findall(source)))):
        return set()
    return _imports(source, path)


def _module_root(path: str) -> str:
    """The dotted name of what stays or goes as a whole: the outermost folder that a rule names, or the module."""
    parts = path.removesuffix(".py").split("/")
    for depth, part in enumerate(parts[:-1], start=1):
        if part in _GUARDED_FOLDERS:
            return ".".join(parts[:depth])
    return ".".join(parts)


def _imports(source: bytes, path: str) -> set[str]:
    """Every dotted name that importing this module could import, relative ones resolved.

    Imports inside functions do not count: in packages' `test()` functions they are what the rule takes away. Nor do
    those for type checkers only.
    """
    package = path.split("/")[:-1]
    try:
        pending: list[ast.AST] = list(ast.parse(source).body)
    except (SyntaxError, ValueError):
        return set()  # nothing can import it either
    names: set[str] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return names


def _keep_stubs_read_at_run_time(root: Path, matched: dict[str, Rule]) -> None:
    for path in [path for path in matched if path.endswith(".pyi")]:
        module = root / path.removesuffix("i")
        if module.is_file() and _READS_ITS_STUB in module.read_bytes():
            del matched[path]
