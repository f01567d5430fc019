"""Turns exceptions into HTTP responses: one table of status codes, and problem details (RFC 9457) as the body."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from msgspec import DecodeError, Struct, field
from msgspec import ValidationError as MsgspecValidationError

from service.access import ForbiddenError, RateLimitedError, UnauthorizedError
from service.current_request import request_id
from service.database import ConflictError, DatabaseUnavailableError, NotFoundError
from service.inference import types
from service.telemetry import SlowBodyError
from service.verification import InvalidTextError, RequestMismatchError

__all__ = ["PROBLEM_MEDIA_TYPE", "FieldProblem", "Problem", "documented", "on_error", "problem_of"]

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
_LOGGER = logging.getLogger(__name__)


class FieldProblem(Struct, frozen=True):
    """A field of the request that is invalid, and why."""

    field: str
    message: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request failed. `type` is the kind of problem for programs, `detail` explains this case to people."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    """The response to one kind of exception."""

    status: int
    kind: str
    title: str


_TABLE: Final[Mapping[type[Exception], _Row]] = {
    types.TextTooLongError: _Row(422, "text-too-long", "A text exceeds the model's token limit"),
    types.OverloadedError: _Row(429, "overloaded", "The queue is full"),
    types.InferenceFailedError: _Row(500, "inference-failed", "The model failed on this input"),
    types.ModelUnavailableError: _Row(503, "model-unavailable", "The model is not available"),
    types.DeviceLostError: _Row(503, "device-lost", "The device failed"),
    types.DeadlineExceededError: _Row(504, "deadline-exceeded", "The deadline passed"),
    SlowBodyError: _Row(408, "slow-body", "The body did not arrive in time"),
    InvalidTextError: _Row(400, "invalid-text", "The text cannot be a claim"),
    RequestMismatchError: _Row(400, "mismatch", "The request contradicts itself"),
    UnauthorizedError: _Row(401, "unauthorized", "An API key is required"),
    ForbiddenError: _Row(403, "forbidden", "The API key does not allow this"),
    RateLimitedError: _Row(429, "rate-limited", "The rate limit is reached"),
    DatabaseUnavailableError: _Row(503, "database-unavailable", "The database is not available"),
    NotFoundError: _Row(404, "not-found", "Not found"),
    ConflictError: _Row(409, "conflict", "The request conflicts with stored data"),
    ValidationException: _Row(422, "invalid", "A field is invalid"),
    RecursionError: _Row(400, "malformed", "The body is nested too deeply"),
    MsgspecValidationError: _Row(422, "invalid", "A field is invalid"),
    DecodeError: _Row(400, "malformed", "The body is not JSON"),
    UnicodeDecodeError: _Row(400, "malformed", "The body is not UTF-8"),
}
_BY_STATUS: Final = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "slow-body",
    409: "conflict",
    413: "too-large",
    415: "unsupported-media-type",
    422: "invalid",
    429: "overloaded",
}


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """Returns the problem and the headers to answer `error` with. An unknown error is a 500 and is logged."""
    row = next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), None)
    headers: dict[str, str] = {}
    errors: list[FieldProblem] = []
    if isinstance(error, HTTPException):
        status = row.status if row else error.status_code
        row = row or _Row(status, _BY_STATUS.get(status, "error"), error.detail or "Error")
        headers.update(error.headers or {})
        errors = _field_problems(error)
        detail = "; ".join(f"{each.field}: {each.message}" for each in errors) or error.detail
    elif row is None:
        row, detail = _Row(500, "internal", "Internal error"), "The service's log has the error under this request id."
        _LOGGER.error("unexpected error", exc_info=error)
    else:
        detail = str(error) or row.title
    if isinstance(error, types.OverloadedError | RateLimitedError):
        headers["Retry-After"] = f"{error.retry_after_seconds:.0f}"
    if isinstance(error, ConflictError) and error.location:
        headers["Location"] = error.location
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, InvalidTextError):
        errors = [FieldProblem("text", error.code)]
    if isinstance(error, types.TextTooLongError):
        errors = [FieldProblem(f"[{error.index}]", str(error))]
    problem = Problem(
        type=f"urn:truthgraph:problem:{row.kind}",
        title=row.title,
        status=row.status,
        detail=detail,
        request_id=request_id(),
        errors=errors,
    )
    return problem, headers


def on_error(request: Request[object, object, State], error: Exception) -> Response[Problem]:
    """Handles exceptions of all routes but the compatible ones, which have their own formats."""
    del request
    problem, headers = problem_of(error)
    return Response(problem, status_code=problem.status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """Returns the OpenAPI responses of a handler that can answer with these problems."""
    titles = {status: kind.replace("-", " ").capitalize() for status, kind in _BY_STATUS.items()}
    titles |= {500: "Internal error", 503: "Not available", 504: "Deadline exceeded"}
    return {
        status: ResponseSpec(
            Problem, generate_examples=False, description=titles[status], media_type=PROBLEM_MEDIA_TYPE
        )
        for status in sorted({*statuses, *({408} if 413 in statuses else ())})  # noqa: PLR2004 - a route that reads a body
    }


def _field_problems(error: HTTPException) -> list[FieldProblem]:
    """Reads the invalid fields from a validation error: Litestar lists them in `extra`."""
    if not isinstance(error, ValidationException) or not isinstance(error.extra, list):
        return []
    return [
        FieldProblem(str(entry.get("key", "body")), str(entry.get("message", "")))
        for entry in error.extra
        if isinstance(entry, dict)
    ]
