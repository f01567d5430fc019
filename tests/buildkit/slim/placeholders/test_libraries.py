"""What stands in the place of what went: a module that only has names, a library that the loader refuses."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.binary.elf import EM_AARCH64, parse, read_dynamic_names, read_dynamic_tags
from buildkit.slim.placeholders.libraries import is_sign, library_sign
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import SlimOptions, slim_tree
from tests.support.elf import Library
from tests.support.installed import SITE, install, snapshot, untrue_rows

(CUDNN,) = choose_rules("cudnn-engines")
(SOLVER,) = choose_rules("dense-solver")
(MODELS,) = choose_rules("other-models")
(SCIENCE,) = choose_rules("scipy-sklearn")
DT_INIT = 12
ENGINES = "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9"
CHOICE = SlimOptions(rules=(CUDNN, MODELS), strips=True)
CLIP = b"from x import y\n\n__all__ = [\n    'CLIPModel',\n    \"CLIPTextModel\",\n]\n"


def plant(root: Path) -> Path:
    install(root, "cudnn", {ENGINES: Library().build(), "nvidia/cudnn/lib/libcudnn.so.9": Library().build()})
    install(
        root,
        "transformers",
        {
            "transformers/models/clip/__init__.py": b"",
            "transformers/models/clip/convert_clip.py": b"",
            "transformers/models/clip/image_processing_clip.py": b'__all__ = ["CLIPImageProcessor"]\n',
            "transformers/models/clip/configuration_clip.py": b'__all__ = ["CLIPConfig"]\n',
            "transformers/models/clip/modeling_clip.py": CLIP,
            "transformers/models/clip/__pycache__/configuration_clip.cpython-313.pyc": b"old",
            "transformers/models/bert/modeling_bert.py": b'__all__ = ["BertModel"]\n',
        },
    )
    return root


def opened(sign: Path, then: str = "") -> str:
    """What a program that opens a library writes to standard error."""
    program = f"import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); {then}"
    command = [sys.executable, "-c", program, str(sign)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_the_loader_says_which_rule_took_a_library(tmp_path: Path) -> None:
    sign = tmp_path / "libcusolver.so.12"
    sign.write_bytes(library_sign(Path(sys.executable).read_bytes(), sign.name, SOLVER))

    said = "OSError: libcusolver.so.12 is left out of this installation (slim rule dense-solver). Lost by that rule: "
    assert said + SOLVER.lost in opened(sign)
    assert read_dynamic_names(sign.read_bytes(), parse(sign.read_bytes())).soname == "libcusolver.so.12"


def test_a_library_says_itself_which_rule_took_it_where_the_loader_is_not_heard(tmp_path: Path) -> None:
    sign = tmp_path / "libcudnn_cnn.so.9"
    sign.write_bytes(library_sign(Path(sys.executable).read_bytes(), sign.name, CUDNN))

    first, *rest = opened(sign, "library.cudnnCreateConvolutionDescriptor").splitlines()

    assert first.startswith("libcudnn_cnn.so.9 is left out of this installation (slim rule cudnn-engines). Lost by ")
    assert first.endswith(f"{CUDNN.lost}.")
    assert "undefined symbol: cudnnCreateConvolutionDescriptor" in rest[-1]


def test_a_sign_is_for_the_machine_of_what_it_stands_for() -> None:
    arm = library_sign(Library(machine=EM_AARCH64).build(), "libx.so", CUDNN)

    parsed = parse(arm)
    assert parsed.machine == EM_AARCH64
    start = parsed.file_offset_of(read_dynamic_tags(arm, parsed)[DT_INIT])
    text = arm[start + 6 * 4 : arm.index(b"\n", start) + 1]
    assert text.startswith(b"libx.so is left out of this installation (slim rule cudnn-engines). Lost by that rule: ")
    # Arm Architecture Reference Manual: mov x8, 64; mov x0, 2; adr x1, . + 16; mov x2, LENGTH; svc 0; ret
    assert struct.unpack_from("<6I", arm, start) == (
        *(0xD2800808, 0xD2800040, 0x10000081, 0xD2800002 | len(text) << 5, 0xD4000001, 0xD65F03C0),
    )


def test_a_slim_puts_signs_up_and_says_so(tmp_path: Path) -> None:
    root = plant(tmp_path / "venv")
    before = snapshot(root)

    result = slim_tree(root, CHOICE, manifest_path=tmp_path / "slim.json")

    after = snapshot(root)
    clip = f"{SITE}/transformers/models/clip"
    signs = {change.path for change in result.alterations if change.steps == ("sign",)}
    assert signs == {f"{SITE}/{ENGINES}", f"{clip}/configuration_clip.py"}
    assert before.keys() - after.keys() == {
        f"{clip}/{name}"
        for name in (
            "convert_clip.py", "image_processing_clip.py", "modeling_clip.py",
            "__pycache__/configuration_clip.cpython-313.pyc",
        )
    }  # fmt: skip
    taken = {removal.rule: set(removal.removed) for removal in result.removals}
    assert taken["cudnn-engines"] == {f"{SITE}/{ENGINES}"}
    assert f"{clip}/configuration_clip.py" in taken["other-models"]
    assert untrue_rows(root) == []
    assert result.refusals == ()
    assert result.bytes_before == sum(map(len, before.values()))
    assert result.bytes_after == sum(map(len, after.values()))


def test_a_second_slim_leaves_the_signs_and_the_manifest(tmp_path: Path) -> None:
    root, manifest = plant(tmp_path / "venv"), tmp_path / "slim.json"
    slim_tree(root, CHOICE, manifest_path=manifest)
    once, said = snapshot(root), manifest.read_bytes()

    slim_tree(root, CHOICE, manifest_path=manifest)
    assert snapshot(root) == once
    assert manifest.read_bytes() == said

    slim_tree(root, dataclasses.replace(CHOICE, rules=()), manifest_path=manifest)  # one that names none of it
    assert snapshot(root) == once
    assert manifest.read_bytes() == said


def test_a_sign_over_what_an_earlier_slim_changed_is_recorded_with_its_rule(tmp_path: Path) -> None:
    """The service asks the manifest whether cuDNN's parts are gone."""
    root, manifest = tmp_path / "venv", tmp_path / "slim.json"
    install(root, "cudnn", {ENGINES: Library().build()})
    before = sum(map(len, snapshot(root).values()))
    first = slim_tree(root, SlimOptions(rules=(), strips=True), manifest_path=manifest)
    assert [change.steps for change in first.alterations] == [("record",), ("strip",)]

    whole = slim_tree(root, CHOICE, manifest_path=manifest)

    assert {removal.rule: set(removal.removed) for removal in whole.removals} == {CUDNN.name: {f"{SITE}/{ENGINES}"}}
    assert [change.steps for change in whole.alterations] == [("record",), ("sign",)]
    assert untrue_rows(root) == []
    assert whole.bytes_before <= before  # what the strip took is in no row any more


def test_what_is_installed_anew_is_taken_out_again(tmp_path: Path) -> None:
    root, manifest = plant(tmp_path / "venv"), tmp_path / "slim.json"
    first = slim_tree(root, CHOICE, manifest_path=manifest)
    plant(root)

    again = slim_tree(root, CHOICE, manifest_path=manifest)

    assert is_sign(root / SITE / ENGINES)
    assert again == first


def test_transformers_names_the_rule_of_a_model_that_is_gone(tmp_path: Path) -> None:
    package = Path(pytest.importorskip("transformers").__file__).parent
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (package, *package.parent.glob("transformers-*.dist-info")):
        shutil.copytree(folder, site / folder.name, ignore=ignored)
    slim_tree(site, SlimOptions(rules=(MODELS,), strips=False))
    assert "transformers/models/clip/configuration_clip.py" not in untrue_rows(tmp_path, site="site")
    program = """
import transformers
from transformers import BertModel
for ask in (getattr, hasattr):
    try:
        ask(transformers, "CLIPModel")
    except ModuleNotFoundError as error:
        print(error.__cause__ or error)
try:
    transformers.AutoConfig.for_model("clip")
except ModuleNotFoundError as error:
    print(error.__cause__ or error)
"""

    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    said = "transformers.models.clip is left out of this installation (slim rule other-models). Lost by that rule: "
    assert [line.startswith(said) for line in ended.stdout.splitlines()] == [True] * 3, ended.stdout


def plant_science(site: Path) -> Path:
    """SciPy and scikit-learn as folders of modules that are empty."""
    packages = (*SCIENCE.demanded, "scipy/signal", "sklearn/metrics/pairwise", "joblib")
    modules = dict.fromkeys((*(f"{package}/__init__.py" for package in packages), "threadpoolctl.py"), b"")
    modules["scipy/optimize.py"] = modules.pop("scipy/optimize/__init__.py")  # a module serves as well as a package
    install(site, "science", modules, site=".")
    return site


def answers(site: Path, *statements: str) -> list[str]:
    """What each statement prints or raises in a process that finds `site` first."""
    program = f"""
import warnings
warnings.simplefilter("ignore")
for statement in {statements!r}:
    try:
        exec(statement, {{}})
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(site)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_a_demanded_package_has_every_name_and_says_where_it_went_when_one_is_called(tmp_path: Path) -> None:
    site = plant_science(tmp_path)
    result = slim_tree(site, SlimOptions(rules=(SCIENCE,), strips=False))
    signs = {change.path for change in result.alterations if change.steps == ("sign",)}
    assert signs == {
        "scipy/optimize.py" if package == "scipy/optimize" else f"{package}/__init__.py" for package in SCIENCE.demanded
    }
    assert untrue_rows(site, site=".") == []
    assert not (site / "joblib/__init__.py").exists()

    said = answers(
        site,
        "from scipy.stats import pearsonr; print(isinstance(1, pearsonr), pearsonr.__name__)",
        "from scipy.stats import pearsonr; pearsonr([1], [2])",
        "from scipy import linalg; linalg.dft(8)",
        "from scipy.optimize import linear_sum_assignment; linear_sum_assignment(1)",
        "import scipy; scipy.sparse.coo_matrix.from_array",
        "from sklearn.base import clone",
        "from sklearn import base\nclass Mine(base.Estimator): pass",
        "import scipy; print(scipy.__version__)",
        "import scipy; scipy.__doc_of__",
    )

    went = f"is left out of this installation (slim rule scipy-sklearn). Lost by that rule: {SCIENCE.lost}."
    assert said == [
        "False pearsonr",
        f"ImportError scipy.stats.pearsonr {went}",
        f"ImportError scipy.linalg.dft {went}",
        f"ImportError scipy.optimize.linear_sum_assignment {went}",
        f"ImportError scipy.sparse.coo_matrix {went}",
        "ModuleNotFoundError No module named 'sklearn.base'",  # finder.py says the rule where the slim put it
        f"ImportError sklearn.base {went}",
        "0",
        "AttributeError module 'scipy' has no attribute '__doc_of__'",
    ]


def test_sentence_transformers_embeds_without_what_it_only_evaluates_with(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    site = plant_science(tmp_path)
    slim_tree(site, SlimOptions(rules=(SCIENCE,), strips=False))

    said = answers(
        site,
        """
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import BoW
model = SentenceTransformer(modules=[BoW(["a", "b"])], device="cpu")
print(model.encode(["a b", "b"]).tolist(), model.similarity([[1.0]], [[1.0]]).tolist())
""",
        """
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import BoW
model = SentenceTransformer(modules=[BoW(["a", "b"])], device="cpu")
EmbeddingSimilarityEvaluator(["a", "b"], ["b", "a"], [0.1, 0.2])(model)
""",
        "from transformers import FNetModel, FNetConfig; FNetModel(FNetConfig(num_hidden_layers=1))",
    )

    assert said[0] == "[[1.0, 1.0], [0.0, 1.0]] [[1.0]]"
    assert len(said) == 2
    assert "is left out of this installation (slim rule scipy-sklearn)" in said[1]
