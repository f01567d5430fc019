from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.slim.rules import rule_sets as rules_module
from buildkit.slim.rules.files import is_left_uncompiled, match_files
from buildkit.slim.rules.import_list import imported_paths, is_as_traced
from buildkit.slim.rules.rule_sets import RULE_SETS, RULES, UnknownRule, choose_rules


def matched(root: Path, files: dict[str, str], rules: str = "runtime") -> dict[str, str]:
    """Path to the name of the rule that takes it."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return {path: rule.name for path, rule in match_files(root, sorted(files), choose_rules(rules)).items()}


def test_every_rule_says_why_and_what_is_lost_and_is_in_a_set() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason and rule.lost for rule in RULES)
    assert {name for names in RULE_SETS.values() for name in names} == {rule.name for rule in RULES}
    assert set(RULE_SETS["runtime"]) < set(RULE_SETS["serving"])


def test_the_runtime_set_takes_what_serves_compilers_and_developers_only(tmp_path: Path) -> None:
    taken = {
        "torch/include/ATen/ATen.h": "headers",
        "nvidia/cu13/include/cuda/std/array": "headers",
        "torch/csrc/x.cuh": "headers",
        "numpy/lib/libnpymath.a": "archives",
        "torch/_C/__init__.pyi": "type-stubs",
        "scipy/special/cython_special.pxd": "type-stubs",
        "scipy/stats/tests/test_stats.py": "tests",
        "sympy/polys/benchmarks/bench_solvers.py": "tests",
        "numpy/_core/_simd.cpython-313-x86_64-linux-gnu.so": "tests",
        "numpy/_core/_umath_tests.cpython-313-x86_64-linux-gnu.so": "tests",
        "scipy/stats/tests/data/x.npy": "tests",
        "joblib/test/common.py": "tests",
        "sklearn/conftest.py": "tests",
        "pkg/scripts/make.py": "scripts",
        "torch/share/cmake/Torch/TorchConfig.cmake": "build-files",
        "torch/bin/protoc-3.13.0.0": "build-files",
        "numpy/f2py/x.f90": "fortran-sources",
        "torchgen/packaged/ATen/native/native_functions.yaml": "build-files",
        "transformers/models/bert/modular_bert.py": "model-sources",
        "share/man/man1/tool.1": "manuals",
        "pip/_vendor/distlib/t64.exe": "windows",
        "nvidia/cu13/lib/libnvrtc.alt.so.13": "nvrtc-alternate",
        "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0": "nvrtc-alternate",
    }
    left = (
        "torch/bin/torch_shm_manager",
        "torch/testing/__init__.py",
        "numpy/f2py/__init__.py",  # `from numpy import *` imports it
        "numpy/testing/__init__.py",
        "jinja2/tests.py",
        "pkg/testsuite.py",
        "pkg/py.typed",
        "pkg/include/__init__.py",
        "pkg/LICENSE",
        "transformers/models/bert/modeling_bert.py",
        "torch-2.dist-info/METADATA",
        "numpy-2.dist-info/licenses/numpy/_core/include/numpy/LICENSE.txt",
        "torch-2.dist-info/licenses/third_party/tests/scripts/LICENSE",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "triton/_C/libtriton.so",
    )

    assert matched(tmp_path, dict.fromkeys((*taken, *left), "")) == taken


def test_the_serving_set_takes_the_rest_that_inference_never_loads(tmp_path: Path) -> None:
    taken = {
        "triton/_C/libtriton.so": "triton",
        "triton/__init__.py": "triton",
        "nvidia/cu13/lib/libnvblas.so.13": "blas-fftw-shims",
        "nvidia/cu13/lib/libcufftw.so.12": "blas-fftw-shims",
        "nvidia/cu13/lib/libnvperf_host.so": "profilers",
        "nvidia/nvshmem/lib/libnvshmem_device.bc": "device-bitcode",
        "cuda/bindings/driver.so": "cuda-bindings",
        "torch/_vendor/quack/gemm_sm90.py": "cute-kernels",
        "torch/testing/_internal/common_utils.py": "torch-tests",
        "networkx/algorithms/flow.py": "graph-algorithms",
        "faker/providers/person/de_DE/__init__.py": "example-makers",
        "polyfactory/factories/base.py": "example-makers",
        "sqlalchemy/testing/suite/test_types.py": "database-tests",
        "sklearn/ensemble/_forest.py": "estimators",
        "scipy/signal/_x.cpython-313-x86_64-linux-gnu.so": "sciences",
        "sympy/physics/units/systems/si.py": "sciences",
        "pygments/lexers/rust.py": "highlighting",
        "hf_xet/hf_xet.abi3.so": "hub-transfer",
        "sqlalchemy/dialects/mysql/base.py": "other-databases",
    }
    left = (
        "nvidia/cu13/lib/libcusolver.so.12",
        "nvidia/cu13/lib/libcufft.so.12",
        "nvidia/cu13/lib/libcublas.so.13",
        "nvidia/cu13/lib/libcupti.so.13",
        "tritonclient/__init__.py",
        "torch/_inductor/lowering.py",
        "sklearn/metrics/_ranking.py",
        "scipy/sparse/_csr.py",
        "setuptools/build_meta.py",
        "torch/testing/_comparison.py",
        "torch/testing/_internal/distributed/fake_pg.py",
        "transformers/models/llava/modeling_llava.py",
        "triton-3.7.1.dist-info/METADATA",
    )

    assert matched(tmp_path, dict.fromkeys((*taken, *left), ""), "serving") == taken


def test_the_inference_set_takes_what_text_encoders_never_load(tmp_path: Path) -> None:
    taken = {
        "transformers/models/llava/modeling_llava.py": "other-models",
        "torch/_inductor/lowering.py": "torch-compilers",
        "torch/_inductor/codegen/triton.py": "torch-compilers",
        "setuptools/build_meta.py": "package-builder",
        "setuptools/_vendor/wheel-1.dist-info/METADATA": "package-builder",
        "distutils-precedence.pth": "package-builder",
        "transformers/pipelines/__init__.py": "front-ends",
        "huggingface_hub/cli/hf.py": "front-ends",
        "torch/onnx/_internal/exporter/_core.py": "torch-parts",
        "sklearn/metrics/_ranking.py": "scipy-sklearn",
        "sklearn/ensemble/_forest.py": "scipy-sklearn",
        "scipy/sparse/__init__.py": "scipy-sklearn",
        "scipy.libs/libscipy_openblas-5f890258.so": "scipy-sklearn",
        "joblib/parallel.py": "scipy-sklearn",
        "torch/distributed/pipelining/schedules.py": "torch-parts",
        "nvidia/cu13/lib/libcusolver.so.12": "dense-solver",
        "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9": "cudnn-engines",
    }
    left = (
        "torch/_inductor/config.py",
        "torch/distributed/__init__.py",
        "torch/_inductor/runtime/hints.py",
        "setuptools-84.dist-info/METADATA",
        "transformers/models/__init__.py",
        "transformers/models/auto/modeling_auto.py",
        "sqlalchemy/dialects/postgresql/asyncpg.py",
        "transformers/models/gpt2/__init__.py",
        "transformers/models/gpt2/tokenization_gpt2.py",
        "transformers/models/bert/modeling_bert.py",
        "transformers/models/deberta_v2/modeling_deberta_v2.py",
        "transformers/modeling_utils.py",
        "scipy-1.18.1.dist-info/METADATA",
        "numpy.libs/libscipy_openblas64_-4b78795a.so",
        "sympy/core/expr.py",
        "pygments/lexers/__init__.py",
        "huggingface_hub/hf_api.py",
        "nvidia/cudnn/lib/libcudnn_graph.so.9",
        "nvidia/cudnn/lib/libcudnn.so.9",
    )

    assert matched(tmp_path, dict.fromkeys((*taken, *left), ""), "inference") == taken


def test_bytecode_goes_and_stays_with_its_source(tmp_path: Path) -> None:
    files = dict.fromkeys(("pkg/tests/test_x.py", "pkg/tests/__pycache__/test_x.cpython-313.pyc"), "")
    kept = dict.fromkeys(("pkg/x.py", "pkg/__pycache__/x.cpython-313.pyc", "other/legacy.pyc"), "")

    assert matched(tmp_path / "one", files | kept) == dict.fromkeys(files, "tests")
    assert matched(tmp_path / "two", files | kept | {"pkg/__init__.py": "from pkg.tests import test_x"}) == {}


def test_bytecode_that_no_run_reads_goes_without_its_source(tmp_path: Path) -> None:
    cold = "transformers/models/llava/__pycache__/modeling_llava.cpython-313.pyc"
    files = (
        cold,
        "transformers/models/llava/modeling_llava.py",
        "transformers/models/bert/__pycache__/modeling_bert.cpython-313.pyc",
        "transformers/models/bert/modeling_bert.py",
        "mine/__pycache__/own.cpython-313.pyc",
        "mine/own.py",
    )

    assert matched(tmp_path, dict.fromkeys(files, ""), "serving") == {cold: "cold-bytecode"}
    rules = choose_rules("serving")
    assert is_left_uncompiled("transformers/models/llava/modeling_llava.py", rules)
    assert not is_left_uncompiled("transformers/models/bert/modeling_bert.py", rules)
    assert not is_left_uncompiled("mine/own.py", rules)
    assert not is_left_uncompiled("transformers/models/llava/modeling_llava.py", choose_rules("runtime"))


def split_list() -> tuple[list[str], list[str]]:
    """The comments and the paths of the list of what is imported."""
    lines = Path(rules_module.__file__).with_name("imported.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("#")], [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("version", ["2.13.0", "2.11.0"])
def test_what_another_version_imports_when_it_loads_stays(tmp_path: Path, version: str) -> None:
    """The list is exact for the versions that were traced; others are read."""
    listed = "torch/distributed/tensor/_ops/__init__.py"
    assert listed in imported_paths()
    files = {
        f"torch-{version}.dist-info/METADATA": "",
        listed: "from ._math import multiply\nif True:\n    from torch.distributed import (\n        _new,\n    )\n",
        "torch/distributed/tensor/_ops/_math.py": "def f():\n    import torch.distributed._late\n",
        "torch/distributed/_new.py": "if TYPE_CHECKING:\n    import torch.onnx._typed\nimport torch.other",
        "torch/other.py": 'r"""\nimport of things\n"""\nfrom torch.onnx \\\n    import _deep',
        "torch/onnx/_deep.py": "try: import torch.ao.new.mod\nexcept ImportError: pass\nimport triton, networkx",
        "torch/ao/new/__init__.py": "from . import _fast\nif not TYPE_CHECKING:\n    import torch.ao._late",
        "torch/ao/new/mod.py": "",
        "torch/ao/new/_fast.cpython-313-x86_64-linux-gnu.so": "",
        "torch/ao/_late.py": "",
        "torch/onnx/_typed.py": "",
        "torch/distributed/_late.py": "",
        "torch/unused.py": "import torch.onnx._unused",
        "torch/onnx/_unused.py": "",
        "networkx/__init__.py": "",
    }
    needed = {
        "torch/distributed/tensor/_ops/_math.py": "torch-parts",
        "torch/distributed/_new.py": "torch-parts",
        "torch/onnx/_deep.py": "torch-parts",
        "torch/ao/new/__init__.py": "torch-parts",
        "torch/ao/new/mod.py": "torch-parts",
        "torch/ao/new/_fast.cpython-313-x86_64-linux-gnu.so": "torch-parts",
        "torch/ao/_late.py": "torch-parts",
    }

    taken = matched(tmp_path, files, "inference")

    assert taken == ({} if version == "2.11.0" else needed) | {
        "torch/onnx/_typed.py": "torch-parts",
        "torch/distributed/_late.py": "torch-parts",
        "torch/onnx/_unused.py": "torch-parts",
        "networkx/__init__.py": "graph-algorithms",
    }


def test_bytecode_is_not_left_out_by_the_list_of_other_versions(tmp_path: Path) -> None:
    files = {
        "transformers/models/llava/modeling_llava.py": "",
        "transformers/models/llava/__pycache__/modeling_llava.cpython-313.pyc": "",
    }

    taken = matched(tmp_path / "a", files | {"transformers-5.23.0.dist-info/METADATA": ""}, "cold-bytecode")
    kept = matched(tmp_path / "b", files | {"transformers-5.24.0.dist-info/METADATA": ""}, "cold-bytecode")

    assert taken == {"transformers/models/llava/__pycache__/modeling_llava.cpython-313.pyc": "cold-bytecode"}
    assert kept == {}


@pytest.mark.parametrize(
    ("path", "is_traced"),
    [
        ("torch-2.13.0.dist-info/METADATA", True),
        ("torch-2.13.1.dist-info/METADATA", False),
        ("Huggingface.Hub-1.0.dist-info/METADATA", False),
        ("mine-7.dist-info/METADATA", True),
        ("torch/vendored-1.dist-info/METADATA", True),
    ],
)
def test_versions_are_compared_with_those_of_the_list(path: str, is_traced: bool) -> None:  # noqa: FBT001
    assert is_as_traced([path, "torch/__init__.py"]) == is_traced


def test_the_list_of_imported_modules_holds_what_every_start_reads() -> None:
    comments, listed = split_list()

    assert listed == sorted(listed)
    assert [comment.split(":")[0] for comment in comments] == ["# Made by trace.py", "# Traced with"]
    assert {"torch/__init__.py", "transformers/__init__.py", "sentence_transformers/__init__.py"} < set(listed)
    assert not any(line.startswith(("networkx/", "service/")) for line in listed)


def test_no_rule_takes_what_a_run_imports(tmp_path: Path) -> None:
    _, listed = split_list()
    imported = [path for path in listed if not path.startswith(("setuptools/", "_distutils_hack/"))]

    rules = [rule for rule in choose_rules("inference") if not rule.is_imported_kept and not rule.demanded]
    taken = match_files(tmp_path, imported, rules)

    assert {path: rule.name for path, rule in taken.items()} == {}


@pytest.mark.parametrize(
    "statement",
    [
        "from pkg.tests import helper",
        "from .tests import helper",
        "from . import (\n    other,\n    tests,\n)",
        "import pkg.tests.helper as helper",
        "try:\n    from .tests.helper import answer\nexcept ImportError:\n    answer = None",
        "class Holder:\n    from pkg.tests.helper import answer",
    ],
)
def test_tests_that_the_package_imports_stay(tmp_path: Path, statement: str) -> None:
    files = {"pkg/__init__.py": statement, "pkg/tests/__init__.py": "", "pkg/tests/helper.py": "answer = 1"}

    assert matched(tmp_path, files) == {}


@pytest.mark.parametrize(
    "statement",
    [
        "def test():\n    from .tests import run\n    run()",
        "# from .tests import helper",
        "from .testsuite import helper",
        "from other.tests import helper",
        "def broken(:\n from .tests import helper",
    ],
)
def test_tests_that_only_a_function_or_nothing_imports_go(tmp_path: Path, statement: str) -> None:
    files = {"pkg/__init__.py": statement, "pkg/tests/__init__.py": "", "pkg/tests/helper.py": "answer = 1"}

    assert set(matched(tmp_path, files)) == {"pkg/tests/__init__.py", "pkg/tests/helper.py"}


def test_tests_that_only_other_tests_import_go(tmp_path: Path) -> None:
    files = {"pkg/tests/helper.py": "", "pkg/sub/tests/test_it.py": "from pkg.tests import helper"}

    assert set(matched(tmp_path, files)) == set(files)


def test_tests_that_kept_tests_import_stay_too(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "from pkg.tests import helper",
        "pkg/tests/helper.py": "from other.tests import base",
        "other/tests/base.py": "",
        "third/tests/x.py": "",
    }

    assert set(matched(tmp_path, files)) == {"third/tests/x.py"}


def test_imports_for_type_checkers_keep_nothing(tmp_path: Path) -> None:
    statement = "if typing.TYPE_CHECKING:\n    from pkg.tests import helper\nelse:\n    from pkg.scripts import tool\n"
    files = {"pkg/__init__.py": statement, "pkg/tests/helper.py": "", "pkg/scripts/tool.py": ""}

    assert set(matched(tmp_path, files)) == {"pkg/tests/helper.py"}


def test_scripts_behind_an_entry_point_stay(tmp_path: Path) -> None:
    entry_points = "[console_scripts]\ntool = pkg.scripts.tool:main\n"
    files = {"pkg/scripts/tool.py": "", "pkg-1.dist-info/entry_points.txt": entry_points, "other/scripts/x.py": ""}

    assert matched(tmp_path, files) == {"other/scripts/x.py": "scripts"}


def test_stubs_that_their_module_reads_at_run_time_stay(tmp_path: Path) -> None:
    lazy = "import lazy_loader\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"
    files = {"pkg/__init__.py": lazy, "pkg/__init__.pyi": "from .a import b", "pkg/a.pyi": "", "pkg/a.py": ""}

    assert matched(tmp_path, files) == {"pkg/a.pyi": "type-stubs"}


def test_rules_are_chosen_by_set_and_by_name() -> None:
    assert [rule.name for rule in choose_rules("tests,headers")] == ["headers", "tests"]
    assert choose_rules("none") == ()
    assert len(choose_rules("runtime,triton")) == len(RULE_SETS["runtime"]) + 1
    with pytest.raises(UnknownRule) as error:
        choose_rules("runtime,header")
    assert error.value.value == "header"
    assert "headers" in error.value.allowed


def test_a_trace_adds_what_a_program_imports_and_says_the_versions(tmp_path: Path) -> None:
    listing = tmp_path / "imported.txt"
    listing.write_text("# old\nzzz/__init__.py\n")
    program = Path(rules_module.__file__).with_name("record_imports.py")

    subprocess.run([sys.executable, program, listing, "pytest", "--version"], check=True, capture_output=True)

    comments = [line for line in listing.read_text().splitlines() if line.startswith("#")]
    paths = [line for line in listing.read_text().splitlines() if not line.startswith("#")]
    assert paths == sorted(paths)
    assert {"_pytest/main.py", "zzz/__init__.py"} < set(paths)
    assert len(comments) == 2
    assert f"pytest {pytest.__version__}" in comments[1].removeprefix("# Traced with: ").split(", ")

    listing.write_text(listing.read_text().replace(f"pytest {pytest.__version__}", "pytest 1.0, gone 2.0"))
    before = listing.read_text()
    refused = subprocess.run(
        [sys.executable, program, listing, "pytest", "--version"], check=False, capture_output=True, text=True
    )
    assert f"was traced with pytest 1.0, not {pytest.__version__}" in refused.stderr
    assert listing.read_text() == before
