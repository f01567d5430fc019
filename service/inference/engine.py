"""Loads the two models in the background, embeds texts and classifies pairs, on the device that they share."""

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from service.current_request import note_stage
from service.inference.models import ModelFolder, ModelFolderError, check
from service.inference.scheduler import Scheduler
from service.inference.types import (
    DeviceUnavailableError,
    EmbeddingSpace,
    Input,
    Model,
    ModelSlot,
    Reply,
    Scores,
    SlotState,
    Vector,
)
from service.settings import Settings

__all__ = ["InferenceEngine", "before_torch"]

ResultT = TypeVar("ResultT")
_LOGGER = logging.getLogger(__name__)
_NO_TORCH: Final = "torch is not installed: pip install 'truthgraph[ml]', or run the image's target with models"
_NO_ENTAILMENT: Final = (
    "none is configured: `python -m service models add nli-deberta-v3-base` fetches one from the model hub, and "
    "`models add NAME --from FOLDER` takes any three-class classifier; then set TRUTHGRAPH_ENTAILMENT_MODEL to its name"
)


def before_torch() -> None:
    """Limits how long OpenMP's threads spin while they wait. Call it before torch is imported.

    Spinning threads take the processor from the thread that they wait for. Measured with MiniLM, one text on two cores:
    5 ms on an idle machine and 70 to 1,000 ms on a busy one without the limit, 5 ms and up to 70 ms with it, 8 ms and
    up to 30 ms with threads that never spin.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class InferenceEngine:
    """Runs both models for the rest of the service. Calls raise `ModelUnavailableError` until their model is loaded."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.embedding: ModelSlot[Vector] = ModelSlot("embedding", settings.embedding_model)
        self.entailment: ModelSlot[Scores] = ModelSlot("entailment", settings.entailment_model)
        self._settings = settings
        # A daemon thread: neither a slow disk nor a driver that hangs may keep the process from ending.
        self._loading = threading.Thread(target=self._load, name="load models", daemon=True)
        if importlib.util.find_spec("torch") is None:
            self.embedding.omit(_NO_TORCH)
            self.entailment.omit(_NO_TORCH)
        elif settings.entailment_model is None:
            self.entailment.omit(_NO_ENTAILMENT)

    def start(self) -> None:
        """Starts the worker threads and loads the models in the background. Call it on the event loop."""
        self.scheduler.start()
        self._loading.start()

    def wait_loaded(self, seconds: float) -> None:
        """Blocks until each model has loaded or failed, at most `seconds`."""
        self._loading.join(seconds)

    def stop(self, wait_seconds: float) -> None:
        """Ends the worker threads, see `Scheduler.stop`."""
        self.scheduler.stop(wait_seconds)

    @property
    def is_ready(self) -> bool:
        """Whether both models are loaded and the device works."""
        slots = (self.embedding.state, self.entailment.state)
        return slots == (SlotState.READY, SlotState.READY) and self.scheduler.state.is_alive

    def space(self) -> EmbeddingSpace | None:
        """Returns which model's vectors `embed` makes, None until it is loaded."""
        if self.embedding.state is not SlotState.READY:
            return None
        model = self.embedding.get()
        return EmbeddingSpace(model.name, model.revision, model.dimension)

    @property
    def is_busy(self) -> bool:
        """Whether one of its threads still runs; after `stop` that thread is stuck."""
        return self._loading.is_alive() or self.scheduler.is_running

    async def embed(self, texts: Sequence[Input], *, truncate: bool = False) -> Reply[Vector]:
        """Returns one vector of unit norm per text, in order. Raises what `Scheduler.infer` raises."""
        return await self._infer(self.embedding, texts, self._settings.request_seconds, truncate=truncate)

    async def classify(
        self, pairs: Sequence[tuple[str, str]], *, truncate: bool = False, spent_seconds: float = 0.0
    ) -> Reply[Scores]:
        """Returns the three probabilities per (premise, hypothesis), in order. Raises what `Scheduler.infer` raises.

        `spent_seconds` is what the request has used of its deadline before this call.
        """
        seconds = max(0.0, self._settings.request_seconds - spent_seconds)
        return await self._infer(self.entailment, pairs, seconds, truncate=truncate)

    async def _infer(
        self, slot: ModelSlot[ResultT], inputs: Sequence[Input], seconds: float, *, truncate: bool
    ) -> Reply[ResultT]:
        """Runs the model, and notes the time of each stage for the current request."""
        reply = await self.scheduler.infer(slot.get(), inputs, seconds=seconds, truncate=truncate)
        note_stage("prepare", reply.seconds.prepare)
        note_stage("queue", reply.seconds.queue)
        note_stage("forward", reply.seconds.forward)
        return reply

    def _load(self) -> None:
        """Loads both models; any failure becomes the reason of its slot."""
        if not (self.embedding.is_loading or self.entailment.is_loading):
            return
        settings = self._settings
        before_torch()
        try:
            # Imported here because it takes two seconds, and the `core` image has no torch.
            from service.inference import torch_models  # noqa: PLC0415 - see above

            placement = torch_models.place(
                settings.device,
                settings.dtype,
                batch_tokens=settings.batch_tokens,
                compute_threads=settings.compute_threads,
            )
            self.scheduler.set_workers(placement.workers)
        except Exception as error:  # noqa: BLE001 - the thread's edge
            self._failed(self.embedding, error)
            self._failed(self.entailment, error)
            return
        self._fill(self.embedding, lambda folder: torch_models.load_embedder(folder, placement))
        self._fill(self.entailment, lambda folder: torch_models.load_entailment(folder, placement))

    def _fill(self, slot: ModelSlot[ResultT], load: Callable[[ModelFolder], Model[ResultT]]) -> None:
        if not slot.is_loading or slot.name is None:
            return
        try:
            slot.fill(load(check(self._settings.models_directory_of(slot.name), slot.name)))
        except Exception as error:  # noqa: BLE001 - the thread's edge
            self._failed(slot, error)

    @staticmethod
    def _failed(slot: ModelSlot[ResultT], error: Exception) -> None:
        if not slot.is_loading:
            return
        if isinstance(error, ModelFolderError | DeviceUnavailableError):
            slot.fail(str(error))
        else:
            slot.fail(f"loading {slot.name} failed: {type(error).__name__}: {error}")
        _LOGGER.error("%s model: %s", slot.role, slot.reason)
