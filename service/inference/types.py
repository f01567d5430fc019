"""What inference is made of, without torch: inputs and results, the seam that models fill, and the ways it fails."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeAlias, TypeVar

__all__ = [
    "DeadlineExceededError",
    "DeviceLostError",
    "DeviceMemoryError",
    "InferenceError",
    "InferenceFailedError",
    "Input",
    "Label",
    "Model",
    "ModelSlot",
    "ModelUnavailableError",
    "OverloadedError",
    "Reply",
    "Scores",
    "SlotState",
    "StageSeconds",
    "TextTooLongError",
    "TokenRow",
    "Vector",
]

ResultT = TypeVar("ResultT", covariant=True)  # noqa: PLC0105 - the short name reads better in signatures
Input: TypeAlias = str | tuple[str, str] | tuple[int, ...]
"""A text, a (premise, hypothesis) pair, or token identifiers."""


class Label(StrEnum):
    """What a premise says about a hypothesis."""

    ENTAILMENT = "entailment"
    NEUTRAL = "neutral"
    CONTRADICTION = "contradiction"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One input, tokenised. `type_ids` tells the two texts of a pair apart."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]

    @property
    def length_tokens(self) -> int:
        """Tokens, special ones included."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Vector:
    """An embedding: little-endian float32 of unit norm, kept as bytes because that is how all readers send it on."""

    data: bytes

    @classmethod
    def of(cls, values: Sequence[float]) -> "Vector":
        """Round `values` to float32."""
        return cls(array("f", values).tobytes())

    @property
    def dimension(self) -> int:
        """How many values."""
        return len(self.data) // 4

    def values(self) -> list[float]:
        """The values as Python floats."""
        return array("f", self.data).tolist()

    def shortened(self, dimension: int) -> "Vector":
        """The first `dimension` values, scaled to unit norm again."""
        values = self.values()[:dimension]
        norm = sum(value * value for value in values) ** 0.5 or 1.0
        return Vector.of([value / norm for value in values])


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities of the three labels; they sum to 1."""

    entailment: float
    neutral: float
    contradiction: float

    @property
    def label(self) -> Label:
        """The most probable label."""
        by_label = self.by_label()
        return max(by_label, key=by_label.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of `label`."""
        return max(self.entailment, self.neutral, self.contradiction)

    def by_label(self) -> Mapping[Label, float]:
        """The three probabilities under their labels."""
        return {
            Label.ENTAILMENT: self.entailment,
            Label.NEUTRAL: self.neutral,
            Label.CONTRADICTION: self.contradiction,
        }


class Model(Protocol[ResultT]):
    """A model as the scheduler sees it. `prepare` may run on any thread, `forward` only on the device's workers."""

    @property
    def name(self) -> str:
        """The model folder's name."""

    @property
    def revision(self) -> str:
        """What identifies the weights: the hash of the folder's manifest."""

    @property
    def limit_tokens(self) -> int:
        """Tokens that one input may have, special ones included."""

    @property
    def dimension(self) -> int:
        """Values of one result: of the vector, or one per class."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that one forward pass should not exceed."""

    @property
    def pass_tokens(self) -> int:
        """What a forward pass costs however few its rows, in the tokens that could be done in that time."""

    def prepare(self, inputs: Sequence[Input], *, truncate: bool) -> list[TokenRow]:
        """Tokenise; raise `TextTooLongError` for the first input over the limit unless `truncate`."""

    def forward(self, rows: Sequence[TokenRow]) -> Sequence[ResultT]:
        """One result per row, in order. Raises `DeviceMemoryError` or `DeviceLostError` for the device's troubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Where a request's time went. `forward` is the time of the passes that its rows were in."""

    prepare: float = 0.0
    queue: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply(Generic[ResultT]):
    """One result per input, in order, with the tokens they took and the time."""

    results: Sequence[ResultT]
    tokens: int
    seconds: StageSeconds


class InferenceError(Exception):
    """Why no result came."""


class TextTooLongError(InferenceError):
    """Input number `index` has `tokens` tokens where the model takes `limit_tokens`."""

    def __init__(self, index: int, tokens: int, limit_tokens: int) -> None:
        super().__init__(f"input {index} has {tokens} tokens, the model takes {limit_tokens}")
        self.index = index
        self.tokens = tokens
        self.limit_tokens = limit_tokens


class ModelUnavailableError(InferenceError):
    """No usable model for `role`: `reason` says why and what to do."""

    def __init__(self, role: str, reason: str) -> None:
        super().__init__(f"{role} model unavailable: {reason}")
        self.role = role
        self.reason = reason


class OverloadedError(InferenceError):
    """The queue has no room; it will have some in about `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the queue is full, retry after {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(InferenceError):
    """The result was not there after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no result within {seconds:g} s")
        self.seconds = seconds


class InferenceFailedError(InferenceError):
    """The model raised on this very request's input; the log has the cause."""


class DeviceMemoryError(InferenceError):
    """The batch did not fit into the device's memory; a smaller one may."""


class DeviceLostError(InferenceError):
    """The device answers no more; only a new process can."""


class SlotState(StrEnum):
    """What became of a model."""

    LOADING = "loading"
    READY = "ready"
    OMITTED = "omitted"
    FAILED = "failed"


class ModelSlot(Generic[ResultT]):
    """The place of one model: empty with a reason until the model is there. Written by one thread, read by all."""

    def __init__(self, role: str, name: str | None) -> None:
        self.role = role
        self.name = name
        self.state = SlotState.LOADING
        self.reason = "it is still being loaded"
        self._model: Model[ResultT] | None = None

    def fill(self, model: Model[ResultT]) -> None:
        """From now on `get` answers."""
        self._model, self.reason, self.state = model, "", SlotState.READY

    def fail(self, reason: str) -> None:
        """The model was wanted and could not be had: `get` raises with `reason`, and readiness is false."""
        self.reason, self.state = reason, SlotState.FAILED

    def omit(self, reason: str) -> None:
        """The model was never asked for: `get` raises with `reason`, and the rest of the service is ready."""
        self.reason, self.state = reason, SlotState.OMITTED

    @property
    def is_loading(self) -> bool:
        """Whether the outcome is still open."""
        return self.state is SlotState.LOADING

    def get(self) -> Model[ResultT]:
        """The model, or `ModelUnavailableError`."""
        if self._model is None:
            raise ModelUnavailableError(self.role, self.reason)
        return self._model
