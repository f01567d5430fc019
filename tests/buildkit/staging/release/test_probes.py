from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from buildkit.staging.probes import container_exec, smoke_tests
from buildkit.staging.probes.client import Client
from buildkit.staging.probes.container_exec import ApiKey
from buildkit.staging.probes.load import Load
from buildkit.staging.probes.smoke_tests import SmokeTestReport
from buildkit.staging.release import probes as probes_module
from buildkit.staging.release.probes import ServiceProbes
from buildkit.staging.stack.stack import Stack
from tests.support.fake_engine import FakeEngine
from tests.support.http_server import Reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KEY = ApiKey("checks-1", "secret")
PLAN = (
    '{"current": "0001", "target": "0002", "direction": "up", "revisions": ["0002"],'
    ' "is_compatible": true, "data_loss": []}'
)


@pytest.fixture
def engine() -> FakeEngine:
    """An engine with one healthy container."""
    return FakeEngine(answers={"ps": "container Up 2 s (healthy)"})


@pytest.fixture
def stack(engine: FakeEngine, tmp_path: Path) -> Stack:
    """A stack on `engine`."""
    return Stack(engine=engine, name="s", file=tmp_path / "stack.yaml")


def at(stack: Stack, url: str) -> Stack:
    """Returns *stack* with its proxy at *url*."""
    return stack.with_release({}, {"TRUTHGRAPH_PUBLISHED_PORT": url.rpartition(":")[2]})


@pytest.mark.parametrize(("status", "is_alive"), [(200, True), (404, False)])
def test_answers_asks_through_the_proxy(stack: Stack, status: int, *, is_alive: bool) -> None:
    with serve(lambda _: Reply(status)) as url:
        assert ServiceProbes().answers(at(stack, url)) is is_alive


def test_answers_is_false_without_a_container(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["ps"] = ""

    assert not ServiceProbes().answers(stack)


def test_answers_is_false_if_the_proxy_stays_silent(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "_ANSWER_SECONDS", 0.05)

    with serve(lambda _: Reply(503)) as url:
        assert not ServiceProbes().answers(at(stack, url))


def test_api_key_is_made_and_purged_in_a_container(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["exec --interactive container python -m service keys add"] = "tg_secret\n"

    with ServiceProbes().api_key(stack, "api") as key:
        assert key.secret == "tg_secret"  # noqa: S105 - made up
        assert not [call for call in engine.calls if "keys purge" in call]

    assert [call for call in engine.calls if "keys purge" in call]


def test_migration_plan_is_that_of_the_code_in_the_container(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["exec --interactive c python -m service migrate --plan --to head"] = PLAN

    plan = ServiceProbes().migration_plan(stack, "c")

    assert (plan.direction, plan.revisions) == ("up", ("0002",))


def test_scrape_gives_a_page_for_each_replica(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["exec --interactive container python -m service scrape"] = '{"10.0.0.2": ""}'

    assert [each.replica for each in ServiceProbes().scrape(stack)] == ["10.0.0.2"]


def test_smoke_tests_get_key_and_baseline(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the proxy, and inside the canary."""
    seen: list[tuple[str, str, Mapping[str, list[float]]]] = []

    def run(client: Client, *, baseline: Mapping[str, list[float]]) -> SmokeTestReport:
        seen.append((client.base_url, client.api_key, baseline))
        return SmokeTestReport(checks={}, seconds={}, requests=0)

    @contextmanager
    def canary_client(_stack: Stack, container: str, key: ApiKey) -> Iterator[Client]:
        yield Client(f"http://{container}", key.secret)

    monkeypatch.setattr(smoke_tests, "run", run)
    monkeypatch.setattr(container_exec, "canary_client", canary_client)

    ServiceProbes().smoke_test(stack, KEY, {"text": [1.0]})
    ServiceProbes().smoke_test_inside(stack, "canary", KEY, {})

    assert seen == [("http://127.0.0.1:8080", "secret", {"text": [1.0]}), ("http://canary", "secret", {})]


def test_load_sends_nothing_before_it_starts(stack: Stack) -> None:
    assert isinstance(ServiceProbes().load(stack, KEY, workers=2), Load)
