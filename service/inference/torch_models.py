"""The models themselves, on torch: the only module that imports torch, transformers or tokenizers.

An embedding is the mean over a text's tokens of the last hidden state, taken and normalised in float32 whatever the
weights' precision. The tests hold it to sentence-transformers, which takes nine seconds to import and is not used.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import torch
from tokenizers import Encoding, Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from service.inference.gpu_targets import kept_targets, left_out, refusal
from service.inference.models import ModelFolder, ModelFolderError
from service.inference.types import (
    DeviceLostError,
    DeviceMemoryError,
    Input,
    Label,
    Scores,
    TextTooLongError,
    TokenRow,
    Vector,
)
from service.settings import Device, Dtype

__all__ = ["Placement", "TorchModel", "convert_tokenizer", "load_embedder", "load_entailment", "place"]

_BATCH_TOKENS: Final = {"cpu": 1_024, "cuda": 32_768}
_PASS_TOKENS: Final = {"cpu": 40, "cuda": 2_048}
"""Of one worker: what a pass should not exceed, and what it costs when it is empty. The processor's are measured on
MiniLM in bfloat16, where n tokens take 5.3 + 0.13 n ms and 512 are as cheap as 2,048; the GPU's are guesses."""
_WORKERS: Final = 8
"""Most passes at a time on a processor (a guess: beyond it cores share a pass, so that batches still form)."""
_PARITY_FRACTION: Final = {"embedding": 0.001, "entailment": 0.005}
"""How far bfloat16 may be from float32 before it is not used: 1 - the smallest cosine; the largest probability gap."""
_PROBE: Final[tuple[tuple[str, str], ...]] = (
    ("The sun rises in the east.", "The sun comes up in the east."),
    ("Glaciers have lost mass in every decade since 1970.", "Glaciers are growing."),
    ("La tour Eiffel se trouve à Paris.", "珠穆朗玛峰是世界最高峰。"),
    ("x", "A sentence about nothing in particular, only somewhat longer than the others. " * 3),
)
_POSITIONS_SAFE: Final = 10**6
"""Tokenizer settings use a huge number for "no limit"; above this it is not a length."""
_CUDNN_RULE: Final = "cudnn-engines"
"""The rule of the image's slim that takes out what cuDNN computes with."""
_LOGGER = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class _Output(Protocol):
    """What a network returns, as far as it is read here."""

    last_hidden_state: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True, slots=True)
class Placement:
    """Where models run: `device` is "cpu" or "cuda", `dtype` is what the weights are tried in first.

    `workers` is the number of forward passes that run at a time. On a processor each has a core to itself: cores that
    share a pass wait for one another at every layer. Two workers of a core each did 1.2 to 1.7 times what one worker of
    two did, and where another process took part of a core, one worker of two fell to a third of one worker of one
    (measured).
    """

    device: str
    dtype: torch.dtype
    batch_tokens: int
    pass_tokens: int
    workers: int


def place(
    device: Device, dtype: Dtype, *, batch_tokens: int | None = None, compute_threads: int | None = None
) -> Placement:
    """Decide once per process where and how models run; sets torch's thread count and quiets transformers.

    `auto` is the GPU if there is one, and bfloat16 where the device computes in it natively. In an image without
    cuDNN's engines, torch is told to choose cuDNN for nothing: it has attention of its own.
    """
    if _CUDNN_RULE in left_out():
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    chosen = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ModelFolderError("any", "the device cuda is asked for, and torch sees none")
    workers = 1
    if chosen == "cpu":
        cores = compute_threads or _cores()
        workers = min(cores, _WORKERS)
        torch.set_num_threads(cores // workers)  # of each thread that computes; one that exists already keeps its own
        # The public torch.cpu.get_capabilities is not in every release we run on.
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    else:
        if reason := refusal(torch.cuda.get_device_capability(), kept_targets()):
            raise ModelFolderError("any", reason)
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    by_name = {
        "auto": torch.bfloat16 if is_native else torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    return Placement(
        device=chosen,
        dtype=by_name[dtype],
        batch_tokens=batch_tokens or _BATCH_TOKENS[chosen],
        pass_tokens=_PASS_TOKENS[chosen],
        workers=workers,
    )


def load_embedder(folder: ModelFolder, placement: Placement) -> "TorchModel[Vector]":
    """Load a text embedder that pools by mean, warmed; raise `ModelFolderError` for any other kind."""
    pooling = _json(folder.path / "1_Pooling" / "config.json", default={"pooling_mode_mean_tokens": True})
    modes = [name for name, value in pooling.items() if name.startswith("pooling_mode") and value is True]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ModelFolderError(folder.name, f"pools by {modes}; only the mean over tokens is implemented")

    def load() -> TorchModel[Vector]:
        network = AutoModel.from_pretrained(folder.path, **_TRUSTED, dtype=torch.float32)
        return TorchModel(folder, placement, network, _vectors, dimension=network.config.hidden_size)

    def gap_fraction(exact: list[Vector], rounded: list[Vector]) -> float:
        cosines = (
            sum(a * b for a, b in zip(left.values(), right.values(), strict=True))
            for left, right in zip(exact, rounded, strict=True)
        )
        return 1.0 - min(cosines)

    return _in_best_dtype(load, [text for pair in _PROBE for text in pair], gap_fraction, _PARITY_FRACTION["embedding"])


def load_entailment(folder: ModelFolder, placement: Placement) -> "TorchModel[Scores]":
    """Load a three-class sequence classifier, warmed. Which output is which comes from the model's own id2label."""
    labels: dict[int, str] = AutoConfig.from_pretrained(folder.path, **_TRUSTED).id2label
    order = [_output_of(folder, label, labels) for label in (Label.ENTAILMENT, Label.NEUTRAL, Label.CONTRADICTION)]

    def scores(output: _Output, mask: torch.Tensor) -> list[Scores]:
        del mask  # classifiers pool by themselves
        _require_finite(output.logits)
        probabilities = output.logits.float().softmax(dim=-1)[:, order]
        return [Scores(*row) for row in probabilities.tolist()]

    def load() -> TorchModel[Scores]:
        network = AutoModelForSequenceClassification.from_pretrained(folder.path, **_TRUSTED, dtype=torch.float32)
        return TorchModel(folder, placement, network, scores, dimension=len(Label))

    def gap_fraction(exact: list[Scores], rounded: list[Scores]) -> float:
        return max(
            abs(left.by_label()[label] - right.by_label()[label])
            for left, right in zip(exact, rounded, strict=True)
            for label in Label
        )

    return _in_best_dtype(load, list(_PROBE), gap_fraction, _PARITY_FRACTION["entailment"])


def convert_tokenizer(folder: Path) -> None:
    """Write the tokenizer.json of a model that comes with a SentencePiece model only (spm.model, needs sentencepiece).

    Raises `ValueError` if it could not be made, or does not cut the probe as SentencePiece itself does: transformers
    makes a tokenizer without a vocabulary, and says nothing, where it finds no file.
    """
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - only needed here, once for a model

    made: Tokenizer = AutoTokenizer.from_pretrained(folder, **_TRUSTED).backend_tokenizer
    original = SentencePieceProcessor(str(folder / "spm.model"))
    for text in (text for pair in _PROBE for text in pair):
        expected, found = original.encode(text), made.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise ValueError(f"{text!r} becomes {found[:8]}, with SentencePiece {expected[:8]}")
    made.save(str(folder / "tokenizer.json"))


class TorchModel(Generic[ResultT]):
    """A tokenizer and a network on a device; what `scheduler` knows as a `Model`."""

    def __init__(
        self,
        folder: ModelFolder,
        placement: Placement,
        network: PreTrainedModel,
        read_out: "Callable[[_Output, torch.Tensor], list[ResultT]]",
        *,
        dimension: int,
    ) -> None:
        self.name = folder.name
        self.revision = folder.revision
        self.placement = placement
        self.batch_tokens = placement.batch_tokens
        self.pass_tokens = placement.pass_tokens
        self.dimension = dimension
        self.limit_tokens = _limit_tokens(folder.path, network)
        self._network = network.to(placement.device).eval()
        self._read_out = read_out
        # The file's own truncation would cut silently, and its padding is to a fixed length.
        self._tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._truncating = Tokenizer.from_str(self._tokenizer.to_str())
        self._truncating.enable_truncation(self.limit_tokens)
        self._padding_id = network.config.pad_token_id or 0
        self._takes_types = bool(getattr(network.config, "type_vocab_size", 0))
        self._vocabulary_tokens = int(network.config.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self._network.dtype

    def convert(self, dtype: torch.dtype) -> None:
        """Turn the weights into `dtype`, in place."""
        self._network.to(dtype)

    def prepare(self, inputs: Sequence[Input], *, truncate: bool) -> list[TokenRow]:
        """Tokenise; raise `TextTooLongError` for the first input over the limit unless `truncate`."""
        texts = [each for each in inputs if not _is_ids(each)]
        encodings = iter(self._tokenizer.encode_batch(texts))
        rows = [self._row_of_ids(each) if _is_ids(each) else _row(next(encodings)) for each in inputs]
        for index, row in enumerate(rows):
            if row.length_tokens > self.limit_tokens:
                if not truncate:
                    raise TextTooLongError(index, row.length_tokens, self.limit_tokens)
                rows[index] = self._truncated(inputs[index], row)
        return rows

    def forward(self, rows: Sequence[TokenRow]) -> list[ResultT]:
        """One result per row, in order; rows are padded to the longest. On a processor several threads may be in it."""
        longest = max(row.length_tokens for row in rows)
        gaps = [longest - row.length_tokens for row in rows]
        padded = list(zip(rows, gaps, strict=True))
        columns = {
            "input_ids": [(*row.ids, *(self._padding_id,) * gap) for row, gap in padded],
            "attention_mask": [(1,) * row.length_tokens + (0,) * gap for row, gap in padded],
        }
        if self._takes_types:
            columns["token_type_ids"] = [(*row.type_ids, *(0,) * gap) for row, gap in padded]
        try:
            with torch.inference_mode():
                tensors = {name: torch.tensor(column).to(self.placement.device) for name, column in columns.items()}
                return self._read_out(self._network(**tensors), tensors["attention_mask"])
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceMemoryError(f"{len(rows)} rows of {longest} tokens") from error
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error

    def _row_of_ids(self, ids: Input) -> TokenRow:
        checked = tuple(token for token in ids if isinstance(token, int) and 0 <= token < self._vocabulary_tokens)
        if len(checked) != len(ids) or not checked:
            raise ValueError(f"token identifiers are from 0 to {self._vocabulary_tokens - 1}, at least one")
        return TokenRow(checked, (0,) * len(checked))

    def _truncated(self, given: Input, row: TokenRow) -> TokenRow:
        if _is_ids(given):
            return TokenRow(row.ids[: self.limit_tokens], row.type_ids[: self.limit_tokens])
        return _row(self._truncating.encode(*((given,) if isinstance(given, str) else given)))


_TRUSTED: Final = {"local_files_only": True, "trust_remote_code": False}
"""For every `from_pretrained`: no network, no code from the folder. Weights are safetensors, `models.add` saw to it."""


def _vectors(output: _Output, mask: torch.Tensor) -> list[Vector]:
    weights = mask.unsqueeze(-1).float()
    _require_finite(output.last_hidden_state)
    mean = (output.last_hidden_state.float() * weights).sum(dim=1) / weights.sum(dim=1)
    data = torch.nn.functional.normalize(mean, dim=-1).cpu().contiguous().numpy().astype("<f4").tobytes()
    width_bytes = len(data) // mask.shape[0]
    return [Vector(data[start : start + width_bytes]) for start in range(0, len(data), width_bytes)]


def _require_finite(tensor: torch.Tensor) -> None:
    """An infinity or a NaN must become an error, not a number that looks like an answer."""
    if not torch.isfinite(tensor).all():
        raise ArithmeticError("the network's output is not finite")


def _in_best_dtype(
    load: "Callable[[], TorchModel[ResultT]]",
    probe: Sequence[Input],
    gap_fraction: "Callable[[list[ResultT], list[ResultT]], float]",
    allowed_fraction: float,
) -> "TorchModel[ResultT]":
    """Load in float32 and, where the placement asks for less, keep that only if the probe's results stay close.

    The probe is the warm-up too: the first pass through a network costs several times the later ones.
    """
    model = load()
    rows = model.prepare(probe, truncate=True)
    exact = model.forward(rows)
    if model.placement.dtype is torch.float32:
        return model
    model.convert(model.placement.dtype)
    gap = gap_fraction(exact, model.forward(rows))
    if gap <= allowed_fraction:
        _LOGGER.info("model %s runs in %s, %.5f from float32", model.name, model.dtype, gap)
        return model
    _LOGGER.warning("model %s falls back to float32: %s is %.5f away", model.name, model.dtype, gap)
    return load()


def _output_of(folder: ModelFolder, label: Label, labels: dict[int, str]) -> int:
    """Which output is `label`; raise `ModelFolderError` unless exactly one of exactly three is."""
    matches = [int(index) for index, name in labels.items() if name.lower().startswith(label.value[:6])]
    if len(matches) != 1 or len(labels) != len(Label):
        raise ModelFolderError(folder.name, f"its id2label must name {', '.join(Label)}; it is {labels}")
    return matches[0]


def _limit_tokens(folder: Path, network: PreTrainedModel) -> int:
    """The shortest of the limits that the model's files state, special tokens included."""
    stated = (
        _json(folder / "sentence_bert_config.json", default={}).get("max_seq_length"),
        _json(folder / "tokenizer_config.json", default={}).get("model_max_length"),
        getattr(network.config, "max_position_embeddings", None),
    )
    return min(int(limit) for limit in stated if isinstance(limit, int | float) and 0 < limit < _POSITIONS_SAFE)


def _json(file: Path, *, default: dict[str, object]) -> dict[str, object]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default


def _is_ids(given: Input) -> bool:
    return not isinstance(given, str) and (not given or isinstance(given[0], int))


def _row(encoding: Encoding) -> TokenRow:
    return TokenRow(tuple(encoding.ids), tuple(encoding.type_ids))


def _cores() -> int:
    """Cores that this process may really use: its affinity, cut by the container's quota (cgroup v2, cpu.max)."""
    allowed = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = limit.read_text(encoding="ascii").partition(" ") if limit.is_file() else ("max", "", "")
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))
