"""Routes that other servers' clients can use: OpenAI, text-embeddings-inference (TEI), KServe v2.

They do the same as the routes under /api/v1. Each group has its own format of errors.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency as Given
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from service.access import Scope
from service.database import NotFoundError
from service.errors import problem_of
from service.health import Health
from service.inference.engine import InferenceEngine
from service.inference.types import Input, Scores, SlotState, Vector
from service.routes.system import service_version
from service.verification import RequestMismatchError

__all__ = ["HANDLERS"]

_OPENAI_INPUTS: Final = 2_048
"""OpenAI's limit."""
_CREATED_SECONDS: Final = 1_640_995_200
"""OpenAI's `created` of a model, which is unknown for ours: 2022-01-01, about when all-MiniLM-L6-v2 was published."""
Texts: TypeAlias = Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=_OPENAI_INPUTS)]


class OpenAiEmbeddingRequest(Struct, frozen=True):
    """Body of OpenAI's POST /v1/embeddings: `input` is a text, texts, token ids, or lists of token ids."""

    input: str | Texts
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class OpenAiEmbedding(Struct, frozen=True):
    """One vector; in base64 it is little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAiUsage(Struct, frozen=True):
    """Number of input tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAiEmbeddings(Struct, frozen=True):
    """One vector per input, in order."""

    object: Literal["list"]
    data: list[OpenAiEmbedding]
    model: str
    usage: OpenAiUsage


class OpenAiModel(Struct, frozen=True):
    """A loaded model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAiModels(Struct, frozen=True):
    """The loaded models."""

    object: Literal["list"]
    data: list[OpenAiModel]


class OpenAiError(Struct, frozen=True):
    """An error in OpenAI's format."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiErrorBody(Struct, frozen=True):
    """Body of an error in OpenAI's format."""

    error: OpenAiError


class TeiEmbedRequest(Struct, frozen=True):
    """Body of TEI's POST /embed. Vectors always have unit norm."""

    inputs: str | Annotated[list[str], Meta(min_length=1, max_length=_OPENAI_INPUTS)]
    truncate: bool = False
    normalize: Literal[True] = True


class TeiPredictRequest(Struct, frozen=True):
    """Body of TEI's POST /predict: one pair [premise, hypothesis], or a list of pairs."""

    inputs: Annotated[list[str | tuple[str, str]], Meta(min_length=1, max_length=_OPENAI_INPUTS)]
    truncate: bool = False
    raw_scores: Literal[False] = False


class TeiPrediction(Struct, frozen=True):
    """A label and its probability."""

    score: float
    label: str


class TeiInfo(Struct, frozen=True):
    """The embedding model and its limits."""

    model_id: str
    model_sha: str
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    version: str


class TeiErrorBody(Struct, frozen=True):
    """Body of an error in TEI's format."""

    error: str
    error_type: str


class KserveLive(Struct, frozen=True):
    """Liveness in the open inference protocol, version 2."""

    live: bool


class KserveReady(Struct, frozen=True):
    """Readiness in the open inference protocol, version 2."""

    ready: bool


class KserveModelReady(Struct, frozen=True):
    """Readiness of a model in the open inference protocol, version 2."""

    name: str
    ready: bool


def _openai_error(_request: Request[object, object, State], error: Exception) -> Response[OpenAiErrorBody]:
    problem, headers = problem_of(error)
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")  # noqa: PLR2004
    code = problem.type.rpartition(":")[2].replace("-", "_")
    field = problem.errors[0].field if problem.errors else None
    # OpenAI's clients expect 400 instead of 422.
    status = 400 if problem.status == 422 else problem.status  # noqa: PLR2004
    body = OpenAiErrorBody(OpenAiError(problem.detail, kind, field, code))
    return Response(body, status_code=status, headers=headers)


def _tei_error(_request: Request[object, object, State], error: Exception) -> Response[TeiErrorBody]:
    problem, headers = problem_of(error)
    kinds = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
    kind = kinds.get(problem.status, "Validation" if problem.status < 500 else "Backend")  # noqa: PLR2004
    status = 424 if problem.type.endswith(":inference-failed") else problem.status
    return Response(TeiErrorBody(problem.detail, kind), status_code=status, headers=headers)


def _specified(body: type[Struct], *statuses: int) -> dict[int, ResponseSpec]:
    return {status: ResponseSpec(body, generate_examples=False, description="Error") for status in statuses}


@post(
    "/v1/embeddings",
    scope=Scope.READ,
    status_code=200,
    tags=["compatible"],
    summary="OpenAI: embed texts",
    exception_handlers={Exception: _openai_error},
    responses=_specified(OpenAiErrorBody, 400, 401, 403, 404, 408, 413, 429, 500, 503, 504),
)
async def openai_embeddings(data: JSONBody[OpenAiEmbeddingRequest], engine: Given[InferenceEngine]) -> OpenAiEmbeddings:
    """Works with OpenAI's clients. `dimensions` shortens the vectors and scales them to unit norm again."""
    model = engine.embedding.get()
    if data.model != model.name:
        raise NotFoundError("model", data.model, f"the embedding model is {model.name}")
    if data.dimensions is not None and data.dimensions > model.dimension:
        raise RequestMismatchError(f"dimensions must be at most {model.dimension} for {model.name}")
    reply = await engine.embed(_openai_inputs(data.input))
    vectors = [each if data.dimensions is None else each.shortened(data.dimensions) for each in reply.results]
    encode = Vector.base64 if data.encoding_format == "base64" else Vector.values
    items = [OpenAiEmbedding("embedding", index, encode(vector)) for index, vector in enumerate(vectors)]
    return OpenAiEmbeddings("list", items, model.name, OpenAiUsage(reply.tokens, reply.tokens))


@get(
    "/v1/models",
    scope=Scope.READ,
    tags=["compatible"],
    summary="OpenAI: list models",
    exception_handlers={Exception: _openai_error},
    responses=_specified(OpenAiErrorBody, 401, 403, 429, 503),
)
async def openai_models(engine: Given[InferenceEngine]) -> OpenAiModels:
    """Lists the loaded models."""
    names = [slot.name for slot in (engine.embedding, engine.entailment) if slot.state is SlotState.READY]
    return OpenAiModels("list", [OpenAiModel(str(name), "model", _CREATED_SECONDS, "truthgraph") for name in names])


@post(
    "/embed",
    scope=Scope.READ,
    status_code=200,
    tags=["compatible"],
    summary="TEI: embed texts",
    exception_handlers={Exception: _tei_error},
    responses=_specified(TeiErrorBody, 400, 401, 403, 408, 413, 422, 424, 429, 500, 503, 504),
)
async def tei_embed(data: JSONBody[TeiEmbedRequest], engine: Given[InferenceEngine]) -> list[list[float]]:
    """Returns one vector per input, in order."""
    inputs = [data.inputs] if isinstance(data.inputs, str) else data.inputs
    if not all(inputs):
        raise RequestMismatchError("inputs must not be empty")
    reply = await engine.embed(inputs, truncate=data.truncate)
    return [vector.values() for vector in reply.results]


@post(
    "/predict",
    scope=Scope.READ,
    status_code=200,
    tags=["compatible"],
    summary="TEI: classify pairs",
    exception_handlers={Exception: _tei_error},
    responses=_specified(TeiErrorBody, 400, 401, 403, 408, 413, 422, 424, 429, 500, 503, 504),
)
async def tei_predict(
    data: JSONBody[TeiPredictRequest], engine: Given[InferenceEngine]
) -> list[TeiPrediction] | list[list[TeiPrediction]]:
    """Returns the three labels, most probable first; for a list of pairs, one such list per pair."""
    engine.entailment.get()
    pairs = [each for each in data.inputs if isinstance(each, tuple)]
    if not pairs and len(data.inputs) == 2:  # noqa: PLR2004 - one pair, not in a list
        premise, hypothesis = data.inputs
        reply = await engine.classify([(str(premise), str(hypothesis))], truncate=data.truncate)
        return _predictions(reply.results[0])
    if len(pairs) != len(data.inputs):
        raise RequestMismatchError("inputs must be a pair of texts or a list of pairs")
    reply = await engine.classify(pairs, truncate=data.truncate)
    return [_predictions(scores) for scores in reply.results]


@get(
    "/info",
    scope=Scope.READ,
    tags=["compatible"],
    summary="TEI: model information",
    exception_handlers={Exception: _tei_error},
    responses=_specified(TeiErrorBody, 401, 403, 429, 503),
)
async def tei_info(engine: Given[InferenceEngine]) -> TeiInfo:
    """Returns the embedding model and its limits."""
    model = engine.embedding.get()
    return TeiInfo(
        model_id=model.name,
        model_sha=model.revision,
        max_input_length=model.limit_tokens,
        max_batch_tokens=model.batch_tokens,
        max_client_batch_size=_OPENAI_INPUTS,
        version=service_version(),
    )


@get(
    "/v2/health/live",
    scope=Scope.PUBLIC,
    tags=["compatible"],
    summary="KServe: liveness",
    responses=_specified(KserveLive, 503),
)
async def kserve_live(health: Given[Health]) -> Response[KserveLive]:
    """Returns the same state as /livez."""
    return Response(KserveLive(health.is_alive), status_code=200 if health.is_alive else 503)


@get(
    "/v2/health/ready",
    scope=Scope.PUBLIC,
    tags=["compatible"],
    summary="KServe: readiness",
    responses=_specified(KserveReady, 503),
)
async def kserve_ready(health: Given[Health]) -> Response[KserveReady]:
    """Returns the same state as /readyz, without the reasons."""
    is_ready = all(each.is_ready for each in await health.conditions())
    return Response(KserveReady(is_ready), status_code=200 if is_ready else 503)


@get(
    "/v2/models/{model:str}/ready",
    scope=Scope.PUBLIC,
    tags=["compatible"],
    summary="KServe: readiness of a model",
    responses=_specified(KserveModelReady, 404, 503),
)
async def kserve_model_ready(model: FromPath[str], engine: Given[InferenceEngine]) -> Response[KserveModelReady]:
    """Returns 200 if the model is loaded, 503 if it is not, 404 if there is no model of that name."""
    slots = [slot for slot in (engine.embedding, engine.entailment) if slot.name == model]
    is_ready = any(slot.state is SlotState.READY for slot in slots)
    return Response(KserveModelReady(model, is_ready), status_code=200 if is_ready else 503 if slots else 404)


def _openai_inputs(given: str | list[str | int | list[int]]) -> Sequence[Input]:
    if isinstance(given, str):
        given = [given]
    if all(isinstance(each, int) for each in given):
        return [tuple(each for each in given if isinstance(each, int))]
    texts = [each for each in given if isinstance(each, str)]
    rows = [tuple(each) for each in given if isinstance(each, list)]
    if not all(given) or len(given) not in {len(texts), len(rows)}:
        raise RequestMismatchError("input must be a text, texts, token ids, or lists of token ids, none of them empty")
    return texts or rows


def _predictions(scores: Scores) -> list[TeiPrediction]:
    ranked = sorted(scores.by_label().items(), key=lambda item: item[1], reverse=True)
    return [TeiPrediction(probability, label.value) for label, probability in ranked]


HANDLERS = [
    openai_embeddings,
    openai_models,
    tei_embed,
    tei_predict,
    tei_info,
    kserve_live,
    kserve_ready,
    kserve_model_ready,
]
