"""Imports Python placeholders, in transformers and sentence-transformers too if they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.slim.placeholders.kinds import parse_message, removal_message
from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import slim_tree
from tests.support.installed import install, untrue_rows

(MODELS,) = choose_rules("other-models")
(SCIENCE,) = choose_rules("scipy-sklearn")


def test_transformers_removed_model_names_the_rule(tmp_path: Path) -> None:
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
    message = removal_message("transformers.models.clip", "other-models", MODELS.lost)
    assert ended.stdout.splitlines() == [message] * 3


def plant_science(site: Path) -> Path:
    """Installs SciPy and scikit-learn as folders of empty modules."""
    packages = (*SCIENCE.placeholder_packages, "scipy/signal", "sklearn/metrics/pairwise", "joblib")
    modules = dict.fromkeys((*(f"{package}/__init__.py" for package in packages), "threadpoolctl.py"), b"")
    modules["scipy/optimize.py"] = modules.pop("scipy/optimize/__init__.py")  # a module instead of a package
    install(site, "science", modules, site=".")
    return site


def run_statements(site: Path, *statements: str) -> list[str]:
    """Returns the output or the error of each statement, in a process that finds `site` first."""
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


def test_package_placeholder_raises_when_a_name_is_used(tmp_path: Path) -> None:
    site = plant_science(tmp_path)
    result = slim_tree(site, SlimOptions(rules=(SCIENCE,), strips=False))
    placeholders = {change.path for change in result.changes if change.is_placeholder}
    assert placeholders == {
        "scipy/optimize.py" if package == "scipy/optimize" else f"{package}/__init__.py"
        for package in SCIENCE.placeholder_packages
    }
    assert untrue_rows(site, site=".") == []
    assert not (site / "joblib/__init__.py").exists()

    output = run_statements(
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

    removed = removal_message("", SCIENCE.name, SCIENCE.lost)
    assert output == [
        "False pearsonr",
        f"ImportError scipy.stats.pearsonr{removed}",
        f"ImportError scipy.linalg.dft{removed}",
        f"ImportError scipy.optimize.linear_sum_assignment{removed}",
        f"ImportError scipy.sparse.coo_matrix{removed}",
        "ModuleNotFoundError No module named 'sklearn.base'",  # the import hook is not installed here
        f"ImportError sklearn.base{removed}",
        "0",
        "AttributeError module 'scipy' has no attribute '__doc_of__'",
    ]


def test_sentence_transformers_encodes_with_placeholders(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    site = plant_science(tmp_path)
    slim_tree(site, SlimOptions(rules=(SCIENCE,), strips=False))

    output = run_statements(
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

    assert output[0] == "[[1.0, 1.0], [0.0, 1.0]] [[1.0]]"
    assert len(output) == 2
    message = parse_message(output[1])
    assert message is not None
    assert message.rule == "scipy-sklearn"
