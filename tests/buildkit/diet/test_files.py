from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.diet.files import RULE_SETS, RULES, UnknownRule, choose_rules, match_files

if TYPE_CHECKING:
    from pathlib import Path


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
        "scipy/stats/tests/data/x.npy": "tests",
        "joblib/test/common.py": "tests",
        "sklearn/conftest.py": "tests",
        "pkg/scripts/make.py": "scripts",
        "torch/share/cmake/Torch/TorchConfig.cmake": "build-files",
        "torch/bin/protoc-3.13.0.0": "build-files",
        "numpy/f2py/x.f90": "fortran-sources",
        "transformers/models/bert/modular_bert.py": "model-sources",
        "share/man/man1/tool.1": "manuals",
        "pip/_vendor/distlib/t64.exe": "windows",
        "nvidia/cu13/lib/libnvrtc.alt.so.13": "nvrtc-alternate",
        "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0": "nvrtc-alternate",
    }
    left = (
        "torch/bin/torch_shm_manager",
        "torch/testing/__init__.py",
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
    }
    left = (
        "nvidia/cu13/lib/libcusolver.so.12",
        "nvidia/cu13/lib/libcufft.so.12",
        "nvidia/cu13/lib/libcublas.so.13",
        "nvidia/cu13/lib/libcupti.so.13",
        "tritonclient/__init__.py",
        "triton-3.7.1.dist-info/METADATA",
    )

    assert matched(tmp_path, dict.fromkeys((*taken, *left), ""), "serving") == taken


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
