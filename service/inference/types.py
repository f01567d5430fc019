"""Defines inference without torch: inputs, results, the `Model` interface, model slots and errors."""

from array import array
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeAlias, TypeVar

__all__ = [
    "DeadlineExceededError",
    "DeviceLostError",
    "DeviceMemoryError",
    "DeviceUnavailableError",
    "EmbeddingSpace",
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
    """The relation of a premise to a hypothesis."""

    ENTAILMENT = "entailment"
    NEUTRAL = "neutral"
    CONTRADICTION = "contradiction"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One tokenized input. `type_ids` is 0 for the tokens of the first text and 1 for those of a pair's second."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]

    @property
    def length_tokens(self) -> int:
        """The number of tokens, special ones included."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Vector:
    """An embedding of unit norm: `data` is little-endian float32.

    Bytes are a quarter of the size of a list, and what base64 needs. Every conversion of a vector is a method here.
    """

    data: bytes

    @classmethod
    def of(cls, values: Sequence[float]) -> "Vector":
        """Converts from floats, rounding them to float32."""
        return cls(array("f", values).tobytes())

    @property
    def dimension(self) -> int:
        """The number of values."""
        return len(self.data) // 4

    def values(self) -> list[float]:
        """Converts to floats, as JSON has them."""
        return array("f", self.data).tolist()

    def base64(self) -> str:
        """Converts to base64 of the bytes, as OpenAI's API has it."""
        return b64encode(self.data).decode("ascii")

    def pgvector(self) -> str:
        """Converts to the text that pgvector reads from a bound parameter: `[0.1, 0.2]`."""
        return str(self.values())

    def shortened(self, dimension: int) -> "Vector":
        """Returns the first `dimension` values, scaled to unit norm."""
        values = self.values()[:dimension]
        norm = sum(value * value for value in values) ** 0.5 or 1.0
        return Vector.of([value / norm for value in values])


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """The model that made the vectors. Vectors of different models cannot be compared."""

    model_name: str
    model_revision: str
    dimension: int


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
        """Returns the three probabilities by label."""
        return {
            Label.ENTAILMENT: self.entailment,
            Label.NEUTRAL: self.neutral,
            Label.CONTRADICTION: self.contradiction,
        }


class Model(Protocol[ResultT]):
    """A model as the scheduler uses it. `prepare` may run on any thread, `forward` only on worker threads."""

    @property
    def name(self) -> str:
        """Name of the model folder."""

    @property
    def revision(self) -> str:
        """Hash of the model folder's files: equal revisions give comparable results."""

    @property
    def limit_tokens(self) -> int:
        """Most tokens of one input, special ones included."""

    @property
    def dimension(self) -> int:
        """Number of values of one result: of the vector, or of the classes."""

    @property
    def batch_tokens(self) -> int:
        """Most padded tokens of one forward pass."""

    @property
    def pass_tokens(self) -> int:
        """Fixed cost of a forward pass, as the number of tokens that could be computed in the same time."""

    def prepare(self, inputs: Sequence[Input], *, truncate: bool) -> list[TokenRow]:
        """Tokenizes; raises `TextTooLongError` for the first input over the limit unless `truncate`."""

    def forward(self, rows: Sequence[TokenRow]) -> Sequence[ResultT]:
        """Returns one result per row, in order. Raises `DeviceMemoryError` or `DeviceLostError` if the device fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds that each stage of a request took. `forward` is the time of all passes that contained its rows."""

    prepare: float = 0.0
    queue: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply(Generic[ResultT]):
    """One result per input, in order, with the number of tokens of all inputs and the time by stage."""

    results: Sequence[ResultT]
    tokens: int
    seconds: StageSeconds


class InferenceError(Exception):
    """A request without a result."""


class TextTooLongError(InferenceError):
    """Input number `index` has `tokens` tokens and the model's limit is `limit_tokens`."""

    def __init__(self, index: int, tokens: int, limit_tokens: int) -> None:
        super().__init__(f"input {index} has {tokens} tokens, more than the model's limit of {limit_tokens}")
        self.index = index
        self.tokens = tokens
        self.limit_tokens = limit_tokens


class ModelUnavailableError(InferenceError):
    """There is no usable model for `role`; `reason` says why and how to fix it."""

    def __init__(self, role: str, reason: str) -> None:
        super().__init__(f"the {role} model is not available: {reason}")
        self.role = role
        self.reason = reason


class OverloadedError(InferenceError):
    """The queue has no room; it should have some after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the queue is full; retry after {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(InferenceError):
    """There was no result within `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no result within {seconds:g} s")
        self.seconds = seconds


class InferenceFailedError(InferenceError):
    """The model failed on this request's input; the log has the cause."""


class DeviceMemoryError(InferenceError):
    """The batch does not fit into the device's memory; a smaller one may."""


class DeviceUnavailableError(Exception):
    """The configured device cannot be used; the message says why and how to fix it."""


class DeviceLostError(InferenceError):
    """The device failed for good; only a new process can use it again."""


class SlotState(StrEnum):
    """State of a model slot. OMITTED: not configured. FAILED: configured and not loaded."""

    LOADING = "loading"
    READY = "ready"
    OMITTED = "omitted"
    FAILED = "failed"


class ModelSlot(Generic[ResultT]):
    """Holds one model, or the reason why there is none. Written by the loading thread, read by all."""

    def __init__(self, role: str, name: str | None) -> None:
        self.role = role
        self.name = name
        self.state = SlotState.LOADING
        self.reason = "it is still loading"
        self._model: Model[ResultT] | None = None

    def fill(self, model: Model[ResultT]) -> None:
        """Makes `get` return `model`."""
        self._model, self.reason, self.state = model, "", SlotState.READY

    def fail(self, reason: str) -> None:
        """Records that loading failed: `get` raises with `reason`, and the service is not ready."""
        self.reason, self.state = reason, SlotState.FAILED

    def omit(self, reason: str) -> None:
        """Records that no model is configured: `get` raises with `reason`, and the service is ready without it."""
        self.reason, self.state = reason, SlotState.OMITTED

    @property
    def is_loading(self) -> bool:
        """Whether the model is still loading."""
        return self.state is SlotState.LOADING

    def get(self) -> Model[ResultT]:
        """Returns the model, or raises `ModelUnavailableError`."""
        if self._model is None:
            raise ModelUnavailableError(self.role, self.reason)
        return self._model
