"""The real MiniLM against sentence-transformers, and a tiny seeded DeBERTa against transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from service.inference.models import ModelFolderError, add, check
from service.inference.types import TextTooLongError, TokenRow
from tests.service.conftest import EMBEDDING, ENTAILMENT

if TYPE_CHECKING:
    from pathlib import Path

    from service.inference.torch_models import TorchModel
    from service.inference.types import Scores, Vector
    from service.settings import Dtype

TEXTS = (
    "The sun rises in the east.",
    "x",
    "Glaciers have lost mass in every decade since 1970, as satellites and stakes on the ice both show.",
    "珠穆朗玛峰是世界最高峰。",
    "La tour Eiffel se trouve à Paris. " * 12,
)
PAIRS = (("A man sleeps.", "A man is awake."), ("It rains.", "Water falls from the sky, as it does every day here."))


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def embedder(models_directory: Path, dtype: Dtype = "float32") -> TorchModel[Vector]:
    from service.inference.torch_models import load_embedder, place

    return load_embedder(check(models_directory, EMBEDDING), place("cpu", dtype))


@pytest.fixture(scope="module")
def minilm(models_directory: Path) -> TorchModel[Vector]:
    return embedder(models_directory)


@pytest.fixture(scope="module")
def tiny(models_directory: Path) -> TorchModel[Scores]:
    from service.inference.torch_models import load_entailment, place

    return load_entailment(check(models_directory, ENTAILMENT), place("cpu", "float32"))


@pytest.fixture(scope="module")
def reference(models_directory: Path) -> list[list[float]]:
    """The vectors of sentence-transformers for the same model folder."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(models_directory / EMBEDDING), device="cpu")
    return [list(map(float, row)) for row in model.encode(list(TEXTS), normalize_embeddings=True)]


def embed(model: TorchModel[Vector], texts: tuple[str, ...]) -> list[list[float]]:
    return [vector.values() for vector in model.forward(model.prepare(texts, truncate=False))]


def test_float32_equals_sentence_transformers(minilm: TorchModel[Vector], reference: list[list[float]]) -> None:
    for ours, theirs in zip(embed(minilm, TEXTS), reference, strict=True):
        assert cosine(ours, theirs) >= 0.9999


def test_bfloat16_is_close_to_sentence_transformers(models_directory: Path, reference: list[list[float]]) -> None:
    model = embedder(models_directory, "bfloat16")
    assert str(model.dtype) == "torch.bfloat16"
    for ours, theirs in zip(embed(model, TEXTS), reference, strict=True):
        assert cosine(ours, theirs) >= 0.999


def test_a_precision_with_a_large_deviation_is_not_used(
    models_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from service.inference import torch_models

    monkeypatch.setitem(torch_models._PARITY_FRACTION, "embedding", 1e-9)
    assert str(embedder(models_directory, "bfloat16").dtype) == "torch.float32"
    assert "falls back to float32" in caplog.text


def test_vectors_have_unit_norm(minilm: TorchModel[Vector]) -> None:
    for vector in embed(minilm, TEXTS):
        assert cosine(vector, vector) == pytest.approx(1.0, abs=1e-5)


def test_a_row_in_a_batch_equals_the_text_alone(minilm: TorchModel[Vector]) -> None:
    """Padding must not change a result; float32 sums in another order differ by about 1e-7."""
    together = embed(minilm, TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert embed(minilm, (text,))[0] == pytest.approx(vector, abs=1e-5)


def test_a_long_text_is_refused_or_truncated(minilm: TorchModel[Vector]) -> None:
    with pytest.raises(TextTooLongError) as caught:
        minilm.prepare(["word " * 300], truncate=False)
    assert (caught.value.tokens, caught.value.limit_tokens) == (302, 256)
    [row] = minilm.prepare(["word " * 300], truncate=True)
    assert row.length_tokens == 256
    assert row.ids[-1] == minilm.prepare(["word"], truncate=False)[0].ids[-1]  # the final special token stays


def test_token_ids_are_checked_and_not_changed(minilm: TorchModel[Vector]) -> None:
    [row] = minilm.prepare(["hello world"], truncate=False)
    assert minilm.prepare([row.ids], truncate=False) == [row]
    with pytest.raises(ValueError, match="30521"):
        minilm.prepare([(101, 10**6, 102)], truncate=False)


def test_scores_follow_the_labels_of_the_model(tiny: TorchModel[Scores], models_directory: Path) -> None:
    """The tiny model's outputs are contradiction, entailment, neutral: another order than our fields."""
    import torch
    from transformers import DebertaV2ForSequenceClassification

    network = DebertaV2ForSequenceClassification.from_pretrained(models_directory / ENTAILMENT).eval()
    rows = tiny.prepare(PAIRS, truncate=False)
    for row, ours in zip(rows, tiny.forward(rows), strict=True):
        with torch.inference_mode():
            expected = network(torch.tensor([row.ids])).logits.softmax(-1)[0].tolist()
        assert [ours.contradiction, ours.entailment, ours.neutral] == pytest.approx(expected, abs=1e-5)


def test_the_order_within_a_pair_matters(tiny: TorchModel[Scores]) -> None:
    forward, backward = tiny.prepare([("a b", "c d"), ("c d", "a b")], truncate=False)
    assert forward.ids != backward.ids


@pytest.mark.parametrize(
    "labels", [{"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, {"0": "entailment", "1": "other"}]
)
def test_a_classifier_without_the_three_labels_is_refused(
    labels: dict[str, str], models_directory: Path, tmp_path: Path
) -> None:
    from service.inference.torch_models import load_entailment, place

    origin = tmp_path / "origin"
    origin.mkdir()
    for file in (models_directory / ENTAILMENT).iterdir():
        (origin / file.name).write_bytes(file.read_bytes())
    configuration = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    (origin / "config.json").write_text(json.dumps({**configuration, "id2label": labels}), encoding="utf-8")
    add(tmp_path, "odd", str(origin))
    with pytest.raises(ModelFolderError, match="id2label"):
        load_entailment(check(tmp_path, "odd"), place("cpu", "float32"))


def test_a_pooling_other_than_mean_is_refused(models_directory: Path, tmp_path: Path) -> None:
    from service.inference.torch_models import load_embedder, place

    folder = add(tmp_path, "cls", str(models_directory / EMBEDDING)).path
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    add(tmp_path / "again", "cls", str(folder))
    with pytest.raises(ModelFolderError, match="pooling_mode_cls_token"):
        load_embedder(check(tmp_path / "again", "cls"), place("cpu", "float32"))


def test_a_result_that_is_not_finite_is_an_error(minilm: TorchModel[Vector], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    weight = minilm._network.embeddings.LayerNorm.weight
    monkeypatch.setattr(minilm._network.embeddings.LayerNorm, "weight", torch.nn.Parameter(weight * float("nan")))
    with pytest.raises(ArithmeticError):
        minilm.forward([TokenRow((101, 102), (0, 0))])


def test_without_cudnn_engines_torch_does_not_use_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from service.inference import torch_models

    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    try:
        torch_models.place("cpu", "float32")
        assert torch.backends.cuda.cudnn_sdp_enabled()

        monkeypatch.setattr(torch_models, "applied_rules", lambda: frozenset({"cudnn-engines", "tests"}))
        torch_models.place("cpu", "float32")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cudnn.enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)
