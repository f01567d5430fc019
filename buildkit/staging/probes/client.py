"""An HTTP client that counts what it had to send again. Standard library only: it also runs inside a container.

What may be sent again is everything: a request that was broken off may have been done, so whoever stores something
must be content with having it twice, or name it (Idempotency-Key).
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Answer", "Client", "RequestTimedOut"]

_PASSING = frozenset({429, 502, 503, 504})
"""Statuses that say "not now": the same request may succeed a moment later."""
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, after `resent` earlier attempts; `seconds` are of the last one alone."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    resent: int = 0

    def json(self) -> Any:  # noqa: ANN401 - JSON is anything
        """The body, read."""
        return json.loads(self.body)


class RequestTimedOut(Exception):
    """A request that had no usable answer within its time; `reason` is the last attempt's."""

    def __init__(self, what: str, reason: str, resent: int) -> None:
        super().__init__(f"{what}: {reason}")
        self.reason = reason
        self.resent = resent


@dataclass(slots=True)
class Client:
    """One connection to *base*, made again when it is lost. Not for two threads at once.

    Attributes:
        base: scheme, host and port.
        key: the API key, sent with every request that does not say otherwise.
        authority: a file of the only certificates to trust, for https.
        patience_seconds: how long one request is sent again before it counts as unanswered.
    """

    base: str
    key: str = field(default="", repr=False)
    authority: str | None = None
    timeout_seconds: float = 35.0
    patience_seconds: float = 60.0
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def once(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        anonymous: bool = False,
    ) -> Answer:
        """Sends one request once. *body*: bytes as they are, anything else as JSON.

        Raises:
            OSError, http.client.HTTPException: no answer.
        """
        sent = {"X-API-Key": self.key} if self.key and not anonymous else {}
        content: bytes | None = None
        if isinstance(body, bytes):
            content = body
        elif body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        if self._connection is None:
            self._connection = self._connect()
        began = time.monotonic()
        try:
            self._connection.request(method, path, content, sent)
            got = self._connection.getresponse()
            answer = Answer(
                got.status,
                {name.lower(): value for name, value in got.getheaders()},
                got.read(),
                time.monotonic() - began,
            )
        except BaseException:
            self.close()
            raise
        if got.will_close:
            self.close()
        return answer

    def send(self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None) -> Answer:
        """Sends a request until it is answered by something else than "not now".

        Raises:
            RequestTimedOut: it was not, within `patience_seconds`.
        """
        deadline = time.monotonic() + self.patience_seconds
        resent, pause = 0, _PAUSE_SECONDS
        while True:
            try:
                answer = self.once(method, path, body, headers=headers)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if answer.status not in _PASSING:
                    return Answer(answer.status, answer.headers, answer.body, answer.seconds, resent)
                reason = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
            if time.monotonic() + pause > deadline:
                raise RequestTimedOut(f"{method} {path}", reason, resent)
            time.sleep(pause)
            resent, pause = resent + 1, min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        """Hangs up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.base)
        if parts.hostname is None:
            raise ValueError(f"{self.base}: expected http://host:port")
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.authority)
            if self.authority is not None:
                # Whoever shows this very certificate is meant, whatever name is in it, and whether or not it is a root.
                context.check_hostname = False
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            return http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=self.timeout_seconds, context=context
            )
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout_seconds)
