from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.slim.rules.files import is_left_uncompiled, match_files
from buildkit.slim.rules.import_list import imported_paths
from buildkit.slim.rules.rule_sets import choose_rules

if TYPE_CHECKING:
    from pathlib import Path


def matched(root: Path, files: dict[str, str], rules: str = "runtime") -> dict[str, str]:
    """Writes files and returns the path of each removed one to the name of its rule."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return {path: rule.name for path, rule in match_files(root, sorted(files), choose_rules(rules)).items()}


def test_runtime_rules_remove_files_for_compilers_and_tests(tmp_path: Path) -> None:
    removed = {
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

    assert matched(tmp_path, dict.fromkeys((*removed, *left), "")) == removed


def test_serving_rules_remove_files_unused_by_inference(tmp_path: Path) -> None:
    removed = {
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

    assert matched(tmp_path, dict.fromkeys((*removed, *left), ""), "serving") == removed


def test_inference_rules_remove_files_unused_by_encoders(tmp_path: Path) -> None:
    removed = {
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

    assert matched(tmp_path, dict.fromkeys((*removed, *left), ""), "inference") == removed


def test_bytecode_is_removed_with_its_source(tmp_path: Path) -> None:
    files = dict.fromkeys(("pkg/tests/test_x.py", "pkg/tests/__pycache__/test_x.cpython-313.pyc"), "")
    kept = dict.fromkeys(("pkg/x.py", "pkg/__pycache__/x.cpython-313.pyc", "other/legacy.pyc"), "")

    assert matched(tmp_path / "one", files | kept) == dict.fromkeys(files, "tests")
    assert matched(tmp_path / "two", files | kept | {"pkg/__init__.py": "from pkg.tests import test_x"}) == {}


def test_cold_bytecode_is_removed_without_its_source(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("version", ["2.13.0", "2.11.0"])
def test_imports_of_other_versions_stay(tmp_path: Path, version: str) -> None:
    """For versions that were not recorded, the imports are read from the sources."""
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


def test_bytecode_of_other_versions_stays(tmp_path: Path) -> None:
    files = {
        "transformers/models/llava/modeling_llava.py": "",
        "transformers/models/llava/__pycache__/modeling_llava.cpython-313.pyc": "",
    }

    taken = matched(tmp_path / "a", files | {"transformers-5.23.0.dist-info/METADATA": ""}, "cold-bytecode")
    kept = matched(tmp_path / "b", files | {"transformers-5.24.0.dist-info/METADATA": ""}, "cold-bytecode")

    assert taken == {"transformers/models/llava/__pycache__/modeling_llava.cpython-313.pyc": "cold-bytecode"}
    assert kept == {}


def test_no_rule_removes_a_recorded_import(tmp_path: Path) -> None:
    listed = sorted(imported_paths())
    imported = [path for path in listed if not path.startswith(("setuptools/", "_distutils_hack/"))]

    rules = [rule for rule in choose_rules("inference") if not rule.keeps_imported and not rule.placeholder_packages]
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
def test_tests_imported_by_the_package_stay(tmp_path: Path, statement: str) -> None:
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
def test_tests_imported_in_a_function_are_removed(tmp_path: Path, statement: str) -> None:
    files = {"pkg/__init__.py": statement, "pkg/tests/__init__.py": "", "pkg/tests/helper.py": "answer = 1"}

    assert set(matched(tmp_path, files)) == {"pkg/tests/__init__.py", "pkg/tests/helper.py"}


def test_tests_imported_only_by_tests_are_removed(tmp_path: Path) -> None:
    files = {"pkg/tests/helper.py": "", "pkg/sub/tests/test_it.py": "from pkg.tests import helper"}

    assert set(matched(tmp_path, files)) == set(files)


def test_tests_imported_by_kept_tests_stay(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "from pkg.tests import helper",
        "pkg/tests/helper.py": "from other.tests import base",
        "other/tests/base.py": "",
        "third/tests/x.py": "",
    }

    assert set(matched(tmp_path, files)) == {"third/tests/x.py"}


def test_tests_imported_for_type_checkers_are_removed(tmp_path: Path) -> None:
    statement = "if typing.TYPE_CHECKING:\n    from pkg.tests import helper\nelse:\n    from pkg.scripts import tool\n"
    files = {"pkg/__init__.py": statement, "pkg/tests/helper.py": "", "pkg/scripts/tool.py": ""}

    assert set(matched(tmp_path, files)) == {"pkg/tests/helper.py"}


def test_scripts_of_entry_points_stay(tmp_path: Path) -> None:
    entry_points = "[console_scripts]\ntool = pkg.scripts.tool:main\n"
    files = {"pkg/scripts/tool.py": "", "pkg-1.dist-info/entry_points.txt": entry_points, "other/scripts/x.py": ""}

    assert matched(tmp_path, files) == {"other/scripts/x.py": "scripts"}


def test_type_stubs_read_at_run_time_stay(tmp_path: Path) -> None:
    lazy = "import lazy_loader\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"
    files = {"pkg/__init__.py": lazy, "pkg/__init__.pyi": "from .a import b", "pkg/a.pyi": "", "pkg/a.py": ""}

    assert matched(tmp_path, files) == {"pkg/a.pyi": "type-stubs"}
