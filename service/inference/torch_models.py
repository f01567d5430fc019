"""Loads and runs the models on torch. The only module that imports torch, transformers or tokenizers.

An embedding is the mean of the last hidden state over a text's tokens, computed and normalized in float32 for weights
of any precision. Tests compare it with sentence-transformers, which is not used here: its import takes nine seconds.
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

from service.inference.gpu_targets import applied_rules, kept_targets, refusal
from service.inference.models import ModelFolder, ModelFolderError
from service.inference.types import (
    DeviceLostError,
    DeviceMemoryError,
    DeviceUnavailableError,
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
"""Most padded tokens of one pass, and the fixed cost of a pass in tokens, both for one worker. The values for the CPU
are measured on MiniLM in bfloat16: n tokens take 5.3 + 0.13 n ms, and 512 cost as much per token as 2,048. Those for
the GPU are guesses."""
_WORKERS: Final = 8
"""Most workers on a CPU (a guess). With more cores than this several share a pass, so that batches still form."""
_PARITY_FRACTION: Final = {"embedding": 0.001, "entailment": 0.005}
"""Largest accepted deviation of bfloat16 from float32: 1 - the smallest cosine; the largest probability gap."""
_PROBE: Final[tuple[tuple[str, str], ...]] = (
    ("The sun rises in the east.", "The sun comes up in the east."),
    ("Glaciers have lost mass in every decade since 1970.", "Glaciers are growing."),
    ("La tour Eiffel se trouve à Paris.", "珠穆朗玛峰是世界最高峰。"),
    ("x", "A sentence about nothing in particular, only somewhat longer than the others. " * 3),
)
_POSITIONS_SAFE: Final = 10**6
"""Tokenizer settings use a huge number for "no limit": from here on a number is not a limit."""
_CUDNN_RULE: Final = "cudnn-engines"
"""The slim rule that removes cuDNN's compute engines."""
_LOGGER = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class _Output(Protocol):
    """The part of a network's output that is used here."""

    last_hidden_state: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how models run: `device` is "cpu" or "cuda", `dtype` is the precision to try first.

    `workers` is the number of concurrent forward passes. On a CPU each has its own core, because cores that share a
    pass wait for one another at every layer. Measured: two workers with one core each did 1.2 to 1.7 times the work of
    one worker with two cores; if another process used part of a core, the worker with two cores fell to a third of a
    worker with one.
    """

    device: str
    dtype: torch.dtype
    batch_tokens: int
    pass_tokens: int
    workers: int


def place(
    device: Device, dtype: Dtype, *, batch_tokens: int | None = None, compute_threads: int | None = None
) -> Placement:
    """Chooses where and how models run. Call it once: it sets torch's thread count and silences transformers.

    Device `auto` is the GPU if there is one; dtype `auto` is bfloat16 if the device computes in it natively. In an
    image without cuDNN's engines it disables cuDNN in torch, which has its own attention.

    Raises:
        DeviceUnavailableError: the device is missing, or this image has no code for it.
    """
    if _CUDNN_RULE in applied_rules():
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    chosen = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailableError(
            "the device is set to cuda and torch finds no GPU: set it to auto or cpu, or add a GPU"
        )
    workers = 1
    if chosen == "cpu":
        cores = compute_threads or _cores()
        workers = min(cores, _WORKERS)
        torch.set_num_threads(cores // workers)  # for threads that start later; existing ones keep theirs
        # The public torch.cpu.get_capabilities is not in every release we run on.
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    else:
        if reason := refusal(torch.cuda.get_device_capability(), kept_targets()):
            raise DeviceUnavailableError(reason)
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
    """Loads a text embedder with mean pooling and warms it up; raises `ModelFolderError` for any other kind."""
    pooling = _json(folder.path / "1_Pooling" / "config.json", default={"pooling_mode_mean_tokens": True})
    modes = [name for name, value in pooling.items() if name.startswith("pooling_mode") and value is True]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ModelFolderError(folder.name, f"its pooling is {modes}; only pooling_mode_mean_tokens is implemented")

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
    """Loads a three-class sequence classifier and warms it up. Its id2label says which output is which label."""
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
    """Writes tokenizer.json for a model that has only a SentencePiece model (spm.model). Needs sentencepiece.

    Raises `ValueError` if the conversion fails, or tokenizes the probe differently from SentencePiece itself:
    transformers silently makes a tokenizer without a vocabulary if it finds no file.
    """
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - only needed here, once for a model

    made: Tokenizer = AutoTokenizer.from_pretrained(folder, **_TRUSTED).backend_tokenizer
    original = SentencePieceProcessor(str(folder / "spm.model"))
    for text in (text for pair in _PROBE for text in pair):
        expected, found = original.encode(text), made.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise ValueError(f"{text!r} is tokenized as {found[:8]}, with SentencePiece {expected[:8]}")
    made.save(str(folder / "tokenizer.json"))


class TorchModel(Generic[ResultT]):
    """A tokenizer and a network on a device. Implements `service.inference.types.Model`."""

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
        # tokenizer.json may configure truncation, which would be silent, and padding to a fixed length.
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
        """Precision of the weights."""
        return self._network.dtype

    def convert(self, dtype: torch.dtype) -> None:
        """Converts the weights to `dtype`, in place."""
        self._network.to(dtype)

    def prepare(self, inputs: Sequence[Input], *, truncate: bool) -> list[TokenRow]:
        """Tokenizes; raises `TextTooLongError` for the first input over the limit unless `truncate`."""
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
        """Returns one result per row, in order. Pads rows to the longest. Thread-safe on a CPU."""
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
            raise ValueError(f"token ids must be from 0 to {self._vocabulary_tokens - 1}, at least one")
        return TokenRow(checked, (0,) * len(checked))

    def _truncated(self, given: Input, row: TokenRow) -> TokenRow:
        if _is_ids(given):
            return TokenRow(row.ids[: self.limit_tokens], row.type_ids[: self.limit_tokens])
        return _row(self._truncating.encode(*((given,) if isinstance(given, str) else given)))


_TRUSTED: Final = {"local_files_only": True, "trust_remote_code": False}
"""For every `from_pretrained`: no network, no code from the folder. `models.add` accepts safetensors only."""


def _vectors(output: _Output, mask: torch.Tensor) -> list[Vector]:
    weights = mask.unsqueeze(-1).float()
    _require_finite(output.last_hidden_state)
    mean = (output.last_hidden_state.float() * weights).sum(dim=1) / weights.sum(dim=1)
    data = torch.nn.functional.normalize(mean, dim=-1).cpu().contiguous().numpy().astype("<f4").tobytes()
    width_bytes = len(data) // mask.shape[0]
    return [Vector(data[start : start + width_bytes]) for start in range(0, len(data), width_bytes)]


def _require_finite(tensor: torch.Tensor) -> None:
    """Raises `ArithmeticError` for an infinity or a NaN, which would otherwise look like a result."""
    if not torch.isfinite(tensor).all():
        raise ArithmeticError("the network's output is not finite")


def _in_best_dtype(
    load: "Callable[[], TorchModel[ResultT]]",
    probe: Sequence[Input],
    gap_fraction: "Callable[[list[ResultT], list[ResultT]], float]",
    allowed_fraction: float,
) -> "TorchModel[ResultT]":
    """Loads in float32; converts to the placement's dtype and keeps that only if the probe's results stay close.

    The probe is also the warm-up: the first pass through a network costs several times a later one.
    """
    model = load()
    rows = model.prepare(probe, truncate=True)
    exact = model.forward(rows)
    if model.placement.dtype is torch.float32:
        return model
    model.convert(model.placement.dtype)
    gap = gap_fraction(exact, model.forward(rows))
    if gap <= allowed_fraction:
        _LOGGER.info("model %s runs in %s, deviation from float32 %.5f", model.name, model.dtype, gap)
        return model
    _LOGGER.warning("model %s falls back to float32: the deviation of %s is %.5f", model.name, model.dtype, gap)
    return load()


def _output_of(folder: ModelFolder, label: Label, labels: dict[int, str]) -> int:
    """Returns the index of the output for `label`; raises `ModelFolderError` unless the three labels have one each."""
    matches = [int(index) for index, name in labels.items() if name.lower().startswith(label.value[:6])]
    if len(matches) != 1 or len(labels) != len(Label):
        raise ModelFolderError(folder.name, f"its id2label must name {', '.join(Label)}; it is {labels}")
    return matches[0]


def _limit_tokens(folder: Path, network: PreTrainedModel) -> int:
    """Returns the smallest limit in the model's files, in tokens, special ones included."""
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
    """Returns how many cores this process may use: its affinity, limited by the container's quota (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = limit.read_text(encoding="ascii").partition(" ") if limit.is_file() else ("max", "", "")
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))
