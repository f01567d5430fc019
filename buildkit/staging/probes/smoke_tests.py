"""Asks every route of the API that its own document names, with real texts, and checks every answer.

Standard library only: it runs through the proxy, and inside a container of a release that has no traffic yet.
What a missing entailment model makes impossible must be refused as such; anything else is wrong.
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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit.staging.probes.client import Answer, Client, RequestTimedOut
from buildkit.staging.probes.fixtures import CLAIMS, LONG_TEXT, SENTENCES, SOURCE
from buildkit.staging.probes.load import cosine, settle_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SmokeTestReport", "run"]

_SAME_COSINE = 0.9999
_UNIT_TOLERANCE = 1e-4
_TASK_SECONDS = 90.0
_BODY_BYTES = 2_500_000
"""Above the service's own limit of 2,000,000, see `TRUTHGRAPH_BODY_BYTES`."""
_VARIABLE = re.compile(r"\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class SmokeTestReport:
    """What the suite found.

    Attributes:
        checks: sentence -> what was wrong, "" where it holds.
        seconds: of each check, by its sentence.
        requests: that were sent.
        vectors: of the sample's claims, to hold the next release against.
    """

    checks: dict[str, str]
    seconds: dict[str, float]
    requests: int
    vectors: dict[str, list[float]] = field(default_factory=dict, repr=False)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The checks that do not hold, each with its reason."""
        return tuple(f"{name}: {reason}" for name, reason in self.checks.items() if reason)


class _Wrong(Exception):
    """An answer that is not what it must be."""


def run(client: Client, *, vectors: Mapping[str, list[float]] | None = None) -> SmokeTestReport:
    """Runs all checks; none stops the others. *vectors* are what another release answered for the same texts."""
    suite = _Suite(client, vectors or {})
    checks: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name, check in suite.checks().items():
        began = time.monotonic()
        try:
            check()
            checks[name] = ""
        except _Wrong as error:
            checks[name] = str(error)
        except (RequestTimedOut, OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            checks[name] = f"{type(error).__name__}: {error}"
        seconds[name] = round(time.monotonic() - began, 3)
    return SmokeTestReport(checks, seconds, suite.requests, suite.vectors)


def main(configuration: str) -> str:
    """As `run`, for a process inside a container: JSON in, JSON out."""
    given = json.loads(configuration)
    return json.dumps(asdict(run(Client(given["base"], given["key"]), vectors=given["vectors"])))


class _Suite:
    def __init__(self, client: Client, vectors: Mapping[str, list[float]]) -> None:
        self._client = client
        self._expected = vectors
        self._asked: set[tuple[str, str]] = set()
        self._judges = False
        self._mark = uuid.uuid4().hex
        self.requests = 0
        self.vectors: dict[str, list[float]] = {}

    def checks(self) -> dict[str, Callable[[], None]]:
        """In order: later ones use what earlier ones stored."""
        return {
            "the service is alive, ready and healthy": self._health,
            "its map and its documentation are there": self._documentation,
            "its metrics can be read": self._metrics,
            "evidence is kept once, read, and forgotten": self._evidence,
            "a stream of evidence reports its bad line and keeps the rest": self._lines,
            "a claim is kept, read and listed": self._claims,
            "vectors have unit norm, come in order, and are the same in three dialects": self._embeddings,
            "vectors are those of the release before": self._same_vectors,
            "each mode of search finds a claim's own sentences first": self._search,
            "pairs are judged, or refused where no model judges": self._pairs,
            "claims are verified, or refused where no model judges": self._verify,
            "limits and models are told": self._about,
            "bad requests are refused, each with its reason": self._refusals,
            "every route of the document was asked": self._complete,
        }

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, body: object = None, *, expect: int | tuple[int, ...] = 200, route: str = ""
    ) -> Answer:
        """Sends one request; *route* is its name in the document where the path has values in it."""
        self.requests += 1
        self._asked.add((method, _VARIABLE.sub("{}", route or path.partition("?")[0])))
        # 503 is an answer here, not a passing state: only what the caller does not expect is asked again.
        wanted = (expect,) if isinstance(expect, int) else expect
        answer = self._client.once(method, path, body) if 503 in wanted else self._client.send(method, path, body)  # noqa: PLR2004
        if answer.status not in wanted:
            raise _Wrong(f"{method} {path} was answered {answer.status}, not {expect}: {answer.body[:200]!r}")
        return answer

    def _json(self, method: str, path: str, body: object = None, *, expect: int = 200, route: str = "") -> Any:  # noqa: ANN401
        return self._ask(method, path, body, expect=expect, route=route).json()

    def _judged(self, method: str, path: str, body: object, *, expect: int = 200, route: str = "") -> Any:  # noqa: ANN401
        """The answer of a route that needs an entailment model; None where it was refused for want of one."""
        if self._judges:
            return self._json(method, path, body, expect=expect, route=route)
        answer = self._ask(method, path, body, expect=503, route=route)
        _must(b"none is configured" in answer.body, f"{path} was refused for another reason: {answer.body[:200]!r}")
        return None

    # ---- the checks -------------------------------------------------------------------------------------------------

    def _health(self) -> None:
        _must(self._json("GET", "/livez")["is_alive"] is True, "not alive")
        ready = self._json("GET", "/readyz")
        _must(ready["is_ready"] is True, f"not ready: {ready['reasons']}")
        self._judges = "entailment" not in ready["notes"]
        report = self._json("GET", "/health")
        parts = {"process", "device", "database", "embedding", "entailment"}
        _must(parts <= report["services"].keys(), f"health is silent about {parts - report['services'].keys()}")
        _must(report["status"] == ("healthy" if self._judges else "degraded"), f"health is {report['status']}")
        _must(self._json("GET", "/health/detailed")["version"] == report["version"], "two versions")
        _must(self._json("GET", "/v2/health/live")["live"] is True, "KServe: not alive")
        _must(self._json("GET", "/v2/health/ready")["ready"] is True, "KServe: not ready")

    def _documentation(self) -> None:
        places = self._json("GET", "/")
        _must(places["openapi"] == "/openapi.json", f"the map is {places}")
        self._json("GET", "/openapi.json")
        for path, route in (("/docs", ""), ("/docs/openapi.json", ""), ("/docs/x", "/docs/{path}")):
            # A page below /docs need not exist; it must be this service that says so.
            answer = self._ask("GET", path, expect=(200, 404) if route else 200, route=route)
            _must(answer.headers.get("x-request-id", "") != "", f"{path} was not answered by the service")

    def _metrics(self) -> None:
        answer = self._ask("GET", "/metrics")
        _must(b"truthgraph_requests_total{" in answer.body, "the metrics count no requests")

    def _evidence(self) -> None:
        piece = {"content": f"A sentence of the suite, {self._mark}.", "source_url": f"{SOURCE}suite"}
        made = self._json("POST", "/api/v1/evidence", piece, expect=201)
        again = self._json("POST", "/api/v1/evidence", piece)
        _must((again["id"], again["is_new"]) == (made["id"], False), "the same content was kept twice")
        path, route = f"/api/v1/evidence/{made['id']}", "/api/v1/evidence/{evidence_id}"
        _must(self._json("GET", path, route=route)["content"] == piece["content"], "other content came back")
        self._ask("DELETE", path, expect=204, route=route)
        self._ask("GET", path, expect=404, route=route)

    def _lines(self) -> None:
        good = json.dumps({"content": f"A line of the suite, {self._mark}."})
        body = f'{good}\n{{"content": ""}}\n{good}\n'.encode()
        headers = {"Content-Type": "application/x-ndjson"}
        self.requests += 1
        got = self._client.send("POST", "/api/v1/evidence", body, headers=headers).json()
        counts = (got["added"], got["duplicates"], got["failed"], [problem["line"] for problem in got["problems"]])
        _must(counts == (1, 1, 1, [2]), f"added, duplicates, failed, lines are {counts}")

    def _claims(self) -> None:
        text = f"A claim of the suite has the mark {self._mark}."
        made = self._json("POST", "/api/v1/claims", {"text": text, "source_url": f"{SOURCE}claim"}, expect=201)
        path, route = f"/api/v1/claims/{made['id']}", "/api/v1/claims/{claim_id}"
        _must(self._json("GET", path, route=route)["text"] == text, "another text came back")
        page = self._json("GET", "/api/v1/claims?limit=5")
        _must(made["id"] in [item["id"] for item in page["items"]], "the newest claim is not in the list")
        _must(page["total"] >= len(page["items"]), f"{page['total']} claims in all, {len(page['items'])} on a page")

    def _embeddings(self) -> None:
        texts = [*CLAIMS, LONG_TEXT]
        got = self._json("POST", "/api/v1/embed", {"texts": texts})
        vectors: list[list[float]] = got["embeddings"]
        _must(len(vectors) == len(texts) == got["count"], f"{len(vectors)} vectors for {len(texts)} texts")
        for text, vector in zip(texts, vectors, strict=True):
            norm = math.sqrt(math.fsum(value * value for value in vector))
            _must(abs(norm - 1) < _UNIT_TOLERANCE, f"a vector has the norm {norm}")
            alone = self._json("POST", "/api/v1/embed", {"texts": [text]})["embeddings"][0]
            _must(cosine(vector, alone) > _SAME_COSINE, f"a text's vector depends on its company: {text[:40]!r}")
        self.vectors = dict(zip(texts, vectors, strict=True))
        model = self._json("GET", "/v1/models")["data"][0]["id"]
        openai = self._json("POST", "/v1/embeddings", {"input": texts[:2], "model": model})
        _must([item["index"] for item in openai["data"]] == [0, 1], "OpenAI: another order")
        packed = self._json("POST", "/v1/embeddings", {"input": texts[0], "model": model, "encoding_format": "base64"})[
            "data"
        ][0]["embedding"]
        raw = base64.b64decode(packed)
        unpacked = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        tei = self._json("POST", "/embed", {"inputs": texts[0]})[0]
        for dialect, vector in (("OpenAI", openai["data"][0]["embedding"]), ("base64", unpacked), ("TEI", tei)):
            _must(cosine(vector, vectors[0]) > _SAME_COSINE, f"{dialect}: another vector")

    def _same_vectors(self) -> None:
        for text, vector in self._expected.items():
            now = self.vectors[text]
            _must(len(now) == len(vector), f"{len(now)} dimensions, {len(vector)} before")
            same = cosine(now, vector)
            _must(same > _SAME_COSINE, f"{text[:40]!r} has another vector than before: cosine {same:.4f}")

    def _search(self) -> None:
        settle_sample(self._client)
        for mode in ("hybrid", "vector", "keyword"):
            hits = 0
            for claim, own in CLAIMS.items():
                got = self._json("POST", "/api/v1/search", {"query": claim, "limit": 3, "mode": mode})
                results = got["results"]
                _must([item["rank"] for item in results] == list(range(1, len(results) + 1)), f"{mode}: ranks")
                unknown = [
                    i["content"] for i in results if i["content"] not in SENTENCES and self._mark not in i["content"]
                ]
                _must(
                    not [text for text in unknown if "suite" not in text], f"{mode}: found what is nobody's: {unknown}"
                )
                hits += bool(results) and results[0]["content"] in own
            # Measured with all-MiniLM-L6-v2: 12 by vector, 10 hybrid; keywords alone do not know that bread is a loaf.
            least = len(CLAIMS) // 2 if mode == "keyword" else len(CLAIMS) * 3 // 4
            _must(hits >= least, f"{mode}: {hits} of {len(CLAIMS)} claims found their own sentence first")

    def _pairs(self) -> None:
        claim, sentences = next(iter(CLAIMS.items()))
        one = self._judged("POST", "/api/v1/nli", {"premise": sentences[0], "hypothesis": claim})
        many = self._judged("POST", "/api/v1/nli/batch", {"pairs": [[sentences[0], claim], [sentences[1], claim]]})
        ranked = self._judged("POST", "/predict", {"inputs": [sentences[0], claim]})
        if one is None:
            return
        _must(
            math.isclose(sum(one["scores"].values()), 1, abs_tol=1e-4), f"scores sum to {sum(one['scores'].values())}"
        )
        _must(one["label"] == max(one["scores"], key=one["scores"].__getitem__), "the label is not the likeliest")
        first = many["results"][0]["scores"]
        _must(
            all(math.isclose(first[k], v, abs_tol=1e-3) for k, v in one["scores"].items()), "a pair depends on others"
        )
        _must(ranked[0]["label"] == one["label"], "TEI: another label")

    def _verify(self) -> None:
        claim = f"{next(iter(CLAIMS))} ({self._mark})"
        now = self._judged("POST", "/api/v1/verify", {"claim": claim, "max_evidence": 3})
        made = self._json("POST", "/api/v1/claims", {"text": claim}, expect=201)
        path, identifier = f"/api/v1/claims/{made['id']}/verify", {"route": "/api/v1/claims/{claim_id}/verify"}
        task = self._judged("POST", path, {}, expect=202, **identifier)
        one, full = ("/api/v1/verdict/{claim_id}", "/api/v1/verdicts/{claim_id}")
        if now is None or task is None:
            for route in (one, full):
                self._ask("GET", _VARIABLE.sub(made["id"], route), expect=404, route=route)
            self._ask("GET", f"/api/v1/tasks/{uuid.uuid4()}", expect=404, route="/api/v1/tasks/{task_id}")
            return
        _must(now["verdict"] in {"SUPPORTED", "REFUTED", "NOT_ENOUGH_INFO"}, f"the verdict is {now['verdict']}")
        _must(1 <= len(now["evidence"]) <= 3, f"{len(now['evidence'])} pieces of evidence, asked for 3")  # noqa: PLR2004
        deadline = time.monotonic() + _TASK_SECONDS
        status: Any = task
        while status["status"] in {"pending", "processing"} and time.monotonic() < deadline:
            time.sleep(0.2)
            status = self._json("GET", f"/api/v1/tasks/{task['task_id']}", route="/api/v1/tasks/{task_id}")
        _must(status["status"] == "completed", f"a task is {status['status']}: {status['error']}")
        got = [self._json("GET", _VARIABLE.sub(made["id"], route), route=route)["verdict"] for route in (one, full)]
        _must(got == [status["result"]["verdict"]] * 2, f"three verdicts on one claim: {got}")

    def _about(self) -> None:
        info = self._json("GET", "/info")
        name = info["model_id"]
        ready = self._json("GET", f"/v2/models/{name}/ready", route="/v2/models/{model}/ready")
        _must(ready["ready"] is True, f"KServe: {name} is not ready")
        self._ask("GET", "/v2/models/none-such/ready", expect=404, route="/v2/models/{model}/ready")
        stats = self._json("GET", "/rate-limit-stats")
        _must("refused" in stats, f"rate limits are {stats}")

    def _refusals(self) -> None:
        for what, answer, statuses in (
            (
                "no JSON",
                self._client.once("POST", "/api/v1/embed", b"{", headers={"Content-Type": "application/json"}),
                {400},
            ),
            ("a field of the wrong type", self._client.once("POST", "/api/v1/embed", {"texts": "x"}), {400, 422}),
            ("an unknown field", self._client.once("POST", "/api/v1/search", {"query": "x", "no": 1}), {400, 422}),
            ("an unknown claim", self._client.once("GET", f"/api/v1/claims/{uuid.uuid4()}"), {404}),
            ("an unknown path", self._client.once("GET", "/api/v1/none-such"), {404}),
            ("another method", self._client.once("PUT", "/api/v1/embed", {}), {405}),
            ("a made-up key", self._client.once("GET", "/api/v1/claims", headers={"X-API-Key": "tg_made-up"}), {401}),
            ("no key", self._client.once("GET", "/api/v1/claims", anonymous=True), {401, 403}),
        ):
            self.requests += 1
            _must(answer.status in statuses, f"{what} was answered {answer.status}: {answer.body[:120]!r}")
            kind = answer.headers.get("content-type", "")
            _must("problem+json" in kind or what == "another method", f"{what}: the answer is {kind}, not a problem")
        try:
            large = self._client.once(
                "POST", "/api/v1/embed", b" " * _BODY_BYTES, headers={"Content-Type": "application/json"}
            )
        except OSError:
            return  # hung up on in the middle of the body, which is a refusal too
        _must(large.status == 413, f"{_BODY_BYTES} bytes were answered {large.status}")  # noqa: PLR2004

    def _complete(self) -> None:
        document = self._json("GET", "/openapi.json")
        named = {
            (method.upper(), _VARIABLE.sub("{}", path))
            for path, operations in document["paths"].items()
            for method in operations
            if method in {"get", "post", "delete", "put", "patch"}
        }
        _must(bool(named), "the document names no route")
        _must(named <= self._asked, f"not asked: {sorted(named - self._asked)}")


def _must(holds: bool, reason: str) -> None:  # noqa: FBT001 - reads as `assert`
    if not holds:
        raise _Wrong(reason)
