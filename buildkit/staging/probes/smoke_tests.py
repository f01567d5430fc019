"""Smoke-tests a release: sends requests to every route in its OpenAPI document and checks the responses.

The tests run in this process and take any `Client`: one of the proxy, or one that reaches the canary through a tunnel
into its container (`container_exec.canary_client`). So one suite serves both, and the image contains none of it.

Without an entailment model the routes that need one must refuse with that reason.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import struct
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit.staging.probes.client import Client, RequestTimedOut, Response
from buildkit.staging.probes.fixtures import CLAIMS, LONG_TEXT, SAME_COSINE, SENTENCES, SOURCE, cosine, store_sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SmokeTestReport", "run"]

_NORM_TOLERANCE = 1e-4
_TASK_SECONDS = 90.0
_LARGE_BODY_BYTES = 2_500_000
"""Above the service's limit of 2,000,000, see `TRUTHGRAPH_BODY_BYTES`."""
_PATH_PARAMETER = re.compile(r"\{[^}]+\}")
_UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class SmokeTestReport:
    """The results of the smoke tests.

    Attributes:
        checks: name of each check -> why it failed, "" if it passed.
        seconds: name of each check -> its duration.
        requests: number of requests sent.
        vectors: text -> embedding, as the baseline of the next release.
    """

    checks: dict[str, str]
    seconds: dict[str, float]
    requests: int
    vectors: dict[str, list[float]] = field(default_factory=dict, repr=False)

    @property
    def failures(self) -> tuple[str, ...]:
        """The failed checks with their reasons."""
        return tuple(f"{name}: {reason}" for name, reason in self.checks.items() if reason)


class _CheckFailed(Exception):
    """A response differs from the API's documentation."""


def run(client: Client, *, baseline: Mapping[str, list[float]] | None = None) -> SmokeTestReport:
    """Runs every check, even after a failure, and returns the results.

    Args:
        client: of the release to test, with a key that may write.
        baseline: text -> embedding by the previous release; the release must give the same ones.
    """
    suite = _Suite(client, baseline or {})
    checks: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name, check in suite.checks().items():
        began = time.monotonic()
        try:
            check()
            checks[name] = ""
        except _CheckFailed as error:
            checks[name] = str(error)
        except (RequestTimedOut, OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            checks[name] = f"{type(error).__name__}: {error}"
        seconds[name] = round(time.monotonic() - began, 3)
    return SmokeTestReport(checks, seconds, suite.requests, suite.vectors)


class _Suite:
    """The checks of one run, with their shared state: the client, stored items, and the routes requested so far."""

    def __init__(self, client: Client, baseline: Mapping[str, list[float]]) -> None:
        self._client = client
        self._baseline = baseline
        self._requested: set[tuple[str, str]] = set()
        self._has_entailment = False
        self._run_id = uuid.uuid4().hex
        self.requests = 0
        self.vectors: dict[str, list[float]] = {}

    def checks(self) -> dict[str, Callable[[], None]]:
        """Returns the checks by name, in order: later ones use what earlier ones stored."""
        return {
            "the service is alive, ready and healthy": self._check_health,
            "the index and the documentation are served": self._check_documentation,
            "metrics are served": self._check_metrics,
            "evidence is stored once, read and deleted": self._check_evidence,
            "a stream of evidence reports its bad line and stores the others": self._check_evidence_lines,
            "a claim is stored, read and listed": self._check_claims,
            "embeddings have unit norm, keep their order and agree in three protocols": self._check_embeddings,
            "embeddings equal those of the baseline": self._check_baseline,
            "each search mode finds a claim's own sentences first": self._check_search,
            "pairs are scored, or refused without an entailment model": self._check_pairs,
            "claims are verified, or refused without an entailment model": self._check_verification,
            "models and rate limits are reported": self._check_information,
            "invalid requests are refused with a reason": self._check_refusals,
            "every documented route was requested": self._check_completeness,
        }

    def _send(
        self, method: str, path: str, body: object = None, *, expect: int | tuple[int, ...] = 200, route: str = ""
    ) -> Response:
        """Sends a request that must get a status of *expect*; *route* is its documented path if *path* has values."""
        self.requests += 1
        self._requested.add((method, _PATH_PARAMETER.sub("{}", route or path.partition("?")[0])))
        expected = (expect,) if isinstance(expect, int) else expect
        # A 503 is retried unless it is the expected response.
        send = self._client.send_once if _UNAVAILABLE in expected else self._client.send
        response = send(method, path, body)
        if response.status not in expected:
            raise _CheckFailed(f"{method} {path} returned {response.status}, not {expect}: {response.body[:200]!r}")
        return response

    def _json(self, method: str, path: str, body: object = None, *, expect: int = 200, route: str = "") -> Any:  # noqa: ANN401
        return self._send(method, path, body, expect=expect, route=route).json()

    def _entailment_json(self, method: str, path: str, body: object, *, expect: int = 200, route: str = "") -> Any:  # noqa: ANN401
        """Sends a request that needs an entailment model; returns None if it was refused for lack of one."""
        if self._has_entailment:
            return self._json(method, path, body, expect=expect, route=route)
        response = self._send(method, path, body, expect=_UNAVAILABLE, route=route)
        _check(
            b"none is configured" in response.body, f"{path} was refused for another reason: {response.body[:200]!r}"
        )
        return None

    def _check_health(self) -> None:
        _check(self._json("GET", "/livez")["is_alive"] is True, "not alive")
        ready = self._json("GET", "/readyz")
        _check(ready["is_ready"] is True, f"not ready: {ready['reasons']}")
        self._has_entailment = "entailment" not in ready["notes"]
        health = self._json("GET", "/health")
        missing = {"process", "device", "database", "embedding", "entailment"} - health["services"].keys()
        _check(not missing, f"the health report lacks {missing}")
        _check(health["status"] == ("healthy" if self._has_entailment else "degraded"), f"health is {health['status']}")
        _check(self._json("GET", "/health/detailed")["version"] == health["version"], "two versions are reported")
        _check(self._json("GET", "/v2/health/live")["live"] is True, "KServe: not alive")
        _check(self._json("GET", "/v2/health/ready")["ready"] is True, "KServe: not ready")

    def _check_documentation(self) -> None:
        index = self._json("GET", "/")
        _check(index["openapi"] == "/openapi.json", f"the index is {index}")
        self._json("GET", "/openapi.json")
        for path, route in (("/docs", ""), ("/docs/openapi.json", ""), ("/docs/x", "/docs/{path}")):
            # A page below /docs need not exist, but the service itself must respond, not the proxy.
            response = self._send("GET", path, expect=(200, 404) if route else 200, route=route)
            _check(response.headers.get("x-request-id", "") != "", f"the response to {path} has no request id")

    def _check_metrics(self) -> None:
        response = self._send("GET", "/metrics")
        _check(b"truthgraph_requests_total{" in response.body, "the metrics do not count requests")

    def _check_evidence(self) -> None:
        evidence = {"content": f"A sentence of the smoke tests, {self._run_id}.", "source_url": f"{SOURCE}smoke-test"}
        stored = self._json("POST", "/api/v1/evidence", evidence, expect=201)
        again = self._json("POST", "/api/v1/evidence", evidence)
        _check((again["id"], again["is_new"]) == (stored["id"], False), "the same content was stored twice")
        path, route = f"/api/v1/evidence/{stored['id']}", "/api/v1/evidence/{evidence_id}"
        content = self._json("GET", path, route=route)["content"]
        _check(content == evidence["content"], f"the content is {content!r}")
        self._send("DELETE", path, expect=204, route=route)
        self._send("GET", path, expect=404, route=route)

    def _check_evidence_lines(self) -> None:
        good = json.dumps({"content": f"A line of the smoke tests, {self._run_id}."})
        body = f'{good}\n{{"content": ""}}\n{good}\n'.encode()
        headers = {"Content-Type": "application/x-ndjson"}
        self.requests += 1
        result = self._client.send("POST", "/api/v1/evidence", body, headers=headers).json()
        bad_lines = [problem["line"] for problem in result["problems"]]
        counts = (result["added"], result["duplicates"], result["failed"], bad_lines)
        _check(counts == (1, 1, 1, [2]), f"added, duplicates, failed, bad lines are {counts}")

    def _check_claims(self) -> None:
        text = f"A claim of the smoke tests has the mark {self._run_id}."
        stored = self._json("POST", "/api/v1/claims", {"text": text, "source_url": f"{SOURCE}claim"}, expect=201)
        path, route = f"/api/v1/claims/{stored['id']}", "/api/v1/claims/{claim_id}"
        read = self._json("GET", path, route=route)["text"]
        _check(read == text, f"the text is {read!r}")
        page = self._json("GET", "/api/v1/claims?limit=5")
        _check(stored["id"] in [item["id"] for item in page["items"]], "the newest claim is not listed")
        _check(page["total"] >= len(page["items"]), f"{page['total']} claims in total, {len(page['items'])} on a page")

    def _check_embeddings(self) -> None:
        texts = [*CLAIMS, LONG_TEXT]
        result = self._json("POST", "/api/v1/embed", {"texts": texts})
        vectors: list[list[float]] = result["embeddings"]
        _check(len(vectors) == len(texts) == result["count"], f"{len(vectors)} embeddings for {len(texts)} texts")
        for text, vector in zip(texts, vectors, strict=True):
            norm = math.sqrt(math.fsum(value * value for value in vector))
            _check(abs(norm - 1) < _NORM_TOLERANCE, f"the norm of an embedding is {norm}")
            alone = self._json("POST", "/api/v1/embed", {"texts": [text]})["embeddings"][0]
            reason = f"embedding changes with batch composition: {text[:40]!r}"
            _check(cosine(vector, alone) > SAME_COSINE, reason)
        self.vectors = dict(zip(texts, vectors, strict=True))
        model = self._json("GET", "/v1/models")["data"][0]["id"]
        openai = self._json("POST", "/v1/embeddings", {"input": texts[:2], "model": model})["data"]
        _check([item["index"] for item in openai] == [0, 1], "OpenAI: the order is wrong")
        request = {"input": texts[0], "model": model, "encoding_format": "base64"}
        raw = base64.b64decode(self._json("POST", "/v1/embeddings", request)["data"][0]["embedding"])
        unpacked = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        tei = self._json("POST", "/embed", {"inputs": texts[0]})[0]
        for protocol, vector in (("OpenAI", openai[0]["embedding"]), ("OpenAI, base64", unpacked), ("TEI", tei)):
            _check(cosine(vector, vectors[0]) > SAME_COSINE, f"{protocol}: the embedding differs")

    def _check_baseline(self) -> None:
        for text, vector in self._baseline.items():
            current = self.vectors[text]
            _check(len(current) == len(vector), f"{len(current)} dimensions, {len(vector)} in the baseline")
            same = cosine(current, vector)
            _check(same > SAME_COSINE, f"the embedding of {text[:40]!r} changed: cosine {same:.4f}")

    def _check_search(self) -> None:
        store_sentences(self._client)
        for mode in ("hybrid", "vector", "keyword"):
            first = 0
            for claim, sentences in CLAIMS.items():
                results = self._json("POST", "/api/v1/search", {"query": claim, "limit": 3, "mode": mode})["results"]
                ranks = [item["rank"] for item in results]
                _check(ranks == list(range(1, len(results) + 1)), f"{mode}: the ranks are {ranks}")
                contents = [item["content"] for item in results]
                # Beside the sentences, this tenant has only what the smoke tests themselves stored.
                foreign = [text for text in contents if text not in SENTENCES and "smoke tests" not in text]
                _check(not foreign, f"{mode}: found content that this tenant did not store: {foreign}")
                first += bool(contents) and contents[0] in sentences
            # Measured with all-MiniLM-L6-v2: 12 by vector, 10 hybrid; keywords cannot connect "bread" with "loaf".
            least = len(CLAIMS) // 2 if mode == "keyword" else len(CLAIMS) * 3 // 4
            _check(first >= least, f"{mode}: {first} of {len(CLAIMS)} claims found their own sentence first")

    def _check_pairs(self) -> None:
        claim, sentences = next(iter(CLAIMS.items()))
        pair = {"premise": sentences[0], "hypothesis": claim}
        one = self._entailment_json("POST", "/api/v1/nli", pair)
        pairs = {"pairs": [[sentences[0], claim], [sentences[1], claim]]}
        many = self._entailment_json("POST", "/api/v1/nli/batch", pairs)
        ranked = self._entailment_json("POST", "/predict", {"inputs": [sentences[0], claim]})
        if one is None:
            return
        scores: dict[str, float] = one["scores"]
        total = sum(scores.values())
        _check(math.isclose(total, 1, abs_tol=1e-4), f"the scores sum to {total}")
        _check(
            one["label"] == max(scores, key=scores.__getitem__),
            f"{one['label']} does not have the best score",
        )
        batched = many["results"][0]["scores"]
        is_same = all(math.isclose(batched[label], score, abs_tol=1e-3) for label, score in scores.items())
        _check(is_same, "scores change with batch composition")
        _check(ranked[0]["label"] == one["label"], "TEI: the label differs")

    def _check_verification(self) -> None:
        claim = f"{next(iter(CLAIMS))} ({self._run_id})"
        verdict = self._entailment_json("POST", "/api/v1/verify", {"claim": claim, "max_evidence": 3})
        stored = self._json("POST", "/api/v1/claims", {"text": claim}, expect=201)["id"]
        route = "/api/v1/claims/{claim_id}/verify"
        task = self._entailment_json("POST", f"/api/v1/claims/{stored}/verify", {}, expect=202, route=route)
        verdict_routes = ("/api/v1/verdict/{claim_id}", "/api/v1/verdicts/{claim_id}")
        if verdict is None or task is None:
            for route in verdict_routes:
                self._send("GET", _PATH_PARAMETER.sub(stored, route), expect=404, route=route)
            self._send("GET", f"/api/v1/tasks/{uuid.uuid4()}", expect=404, route="/api/v1/tasks/{task_id}")
            return
        _check(
            verdict["verdict"] in {"SUPPORTED", "REFUTED", "NOT_ENOUGH_INFO"}, f"the verdict is {verdict['verdict']}"
        )
        count = len(verdict["evidence"])
        _check(1 <= count <= 3, f"{count} pieces of evidence, at most 3 were requested")  # noqa: PLR2004
        status = self._wait_for_task(task)
        _check(status["status"] == "completed", f"the task is {status['status']}: {status['error']}")
        verdicts = [
            self._json("GET", _PATH_PARAMETER.sub(stored, route), route=route)["verdict"] for route in verdict_routes
        ]
        expected = status["result"]["verdict"]
        _check(verdicts == [expected] * 2, f"the task's verdict is {expected}, the claim's are {verdicts}")

    def _wait_for_task(self, task: dict[str, Any]) -> dict[str, Any]:
        """Returns the task when it has ended, or at its deadline."""
        deadline = time.monotonic() + _TASK_SECONDS
        status = task
        while status["status"] in {"pending", "processing"} and time.monotonic() < deadline:
            time.sleep(0.2)
            status = self._json("GET", f"/api/v1/tasks/{task['task_id']}", route="/api/v1/tasks/{task_id}")
        return status

    def _check_information(self) -> None:
        name = self._json("GET", "/info")["model_id"]
        ready = self._json("GET", f"/v2/models/{name}/ready", route="/v2/models/{model}/ready")
        _check(ready["ready"] is True, f"KServe: {name} is not ready")
        self._send("GET", "/v2/models/none-such/ready", expect=404, route="/v2/models/{model}/ready")
        limits = self._json("GET", "/rate-limit-stats")
        _check("refused" in limits, f"the rate limits are {limits}")

    def _check_refusals(self) -> None:
        send, json_type = self._client.send_once, {"Content-Type": "application/json"}
        for name, response, statuses in (
            ("a body that is not JSON", send("POST", "/api/v1/embed", b"{", headers=json_type), {400}),
            ("a field of the wrong type", send("POST", "/api/v1/embed", {"texts": "x"}), {400, 422}),
            ("an unknown field", send("POST", "/api/v1/search", {"query": "x", "no": 1}), {400, 422}),
            ("an unknown claim", send("GET", f"/api/v1/claims/{uuid.uuid4()}"), {404}),
            ("an unknown path", send("GET", "/api/v1/none-such"), {404}),
            ("a wrong method", send("PUT", "/api/v1/embed", {}), {405}),
            ("an invalid key", send("GET", "/api/v1/claims", headers={"X-API-Key": "tg_made-up"}), {401}),
            ("no key", send("GET", "/api/v1/claims", is_anonymous=True), {401, 403}),
        ):
            self.requests += 1
            _check(response.status in statuses, f"{name} returned {response.status}: {response.body[:120]!r}")
            content_type = response.headers.get("content-type", "")
            is_problem = "problem+json" in content_type or name == "a wrong method"
            _check(is_problem, f"{name} returned {content_type}, not a problem document")
        try:
            large = send("POST", "/api/v1/embed", b" " * _LARGE_BODY_BYTES, headers=json_type)
        except OSError:
            return  # the server closed the connection before the end of the body: a refusal too
        _check(large.status == 413, f"a body of {_LARGE_BODY_BYTES} bytes returned {large.status}")  # noqa: PLR2004

    def _check_completeness(self) -> None:
        document = self._json("GET", "/openapi.json")
        documented = {
            (method.upper(), _PATH_PARAMETER.sub("{}", path))
            for path, operations in document["paths"].items()
            for method in operations
            if method in {"get", "post", "delete", "put", "patch"}
        }
        _check(bool(documented), "the document names no route")
        _check(documented <= self._requested, f"not requested: {sorted(documented - self._requested)}")


def _check(holds: bool, reason: str) -> None:  # noqa: FBT001 - reads as `assert`
    if not holds:
        raise _CheckFailed(reason)
