"""Sends HTTP requests to the API, retries transient failures, and counts the retries.

Every request may be retried, even if the server already acted on it: writers must tolerate duplicates or send an
Idempotency-Key. Built on `http.client`: it reports each lost connection, and takes a tunnel into a container as its
connection.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from buildkit.errors import BuildkitError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Client", "RequestTimedOut", "Response"]

_TRANSIENT = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may succeed a moment later."""
_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Response:
    """The response to the last attempt of a request.

    Attributes:
        headers: by lower-case name.
        retries: attempts before the last one.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    retries: int = 0

    def json(self) -> Any:  # noqa: ANN401 - JSON is anything
        """Returns the decoded body."""
        return json.loads(self.body)


class RequestTimedOut(BuildkitError):
    """A request got no usable response within its time.

    Attributes:
        reason: the failure of the last attempt.
        retries: attempts after the first.
    """

    exit_code = 1

    def __init__(self, request: str, reason: str, retries: int) -> None:
        super().__init__(f"{request}: {reason}")
        self.reason = reason
        self.retries = retries


@dataclass(slots=True)
class Client:
    """One HTTP connection to the API, opened again after it was lost. Not safe for two threads at once.

    Attributes:
        base_url: scheme, host and port.
        api_key: sent with every request that is not anonymous.
        ca_file: PEM file with the only certificates to trust; None trusts the system's.
        timeout_seconds: of one attempt.
        retry_seconds: time after which a failed request is no longer retried.
        connect: opens the connection; None opens one to `base_url`.
    """

    base_url: str
    api_key: str = field(default="", repr=False)
    ca_file: str | None = None
    timeout_seconds: float = 35.0
    retry_seconds: float = 60.0
    connect: Callable[[], http.client.HTTPConnection] | None = None
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def send_once(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        is_anonymous: bool = False,
    ) -> Response:
        """Sends a request once and returns the response, even if its status is an error.

        Args:
            method: of the request.
            path: with its query.
            body: bytes are sent as they are, any other value as JSON.
            headers: in addition to the API key and the content type.
            is_anonymous: leaves the API key out.

        Raises:
            OSError, http.client.HTTPException: no response.
        """
        sent = {"X-API-Key": self.api_key} if self.api_key and not is_anonymous else {}
        content: bytes | None = None
        if isinstance(body, bytes):
            content = body
        elif body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        if self._connection is None:
            self._connection = self.connect() if self.connect else self._connect()
        try:
            self._connection.request(method, path, content, sent)
            received = self._connection.getresponse()
            response = Response(
                received.status,
                {name.lower(): value for name, value in received.getheaders()},
                received.read(),
            )
        except BaseException:
            self.close()
            raise
        if received.will_close:
            self.close()
        return response

    def send(self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None) -> Response:
        """Sends a request as `send_once` does, and retries it after a lost connection or a status 429, 502, 503 or 504.

        Raises:
            RequestTimedOut: it still fails after `retry_seconds`.
        """
        deadline = time.monotonic() + self.retry_seconds
        retries, pause = 0, _PAUSE_SECONDS
        while True:
            try:
                response = self.send_once(method, path, body, headers=headers)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.status not in _TRANSIENT:
                    return replace(response, retries=retries)
                reason = f"{response.status} {response.body[:200].decode(errors='replace')}"
            if time.monotonic() + pause > deadline:
                raise RequestTimedOut(f"{method} {path}", reason, retries)
            time.sleep(pause)
            retries, pause = retries + 1, min(2 * pause, _MAX_PAUSE_SECONDS)

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.base_url)
        if parts.hostname is None:
            raise ValueError(f"{self.base_url}: expected http://host:port")
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.ca_file is not None:
                # Staging is reached by an address of this machine, so the certificate's name cannot match. The file
                # may hold the server's own certificate instead of its root.
                context.check_hostname = False
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            return http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=self.timeout_seconds, context=context
            )
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout_seconds)
