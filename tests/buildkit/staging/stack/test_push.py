from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import CommandFailed, RegistryFailed
from buildkit.staging.stack import push as push_module
from buildkit.staging.stack.push import push
from tests.support.fake_engine import FakeEngine
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = f"sha256:{'a' * 64}"
NEW, OLD = "1" * 12, "2" * 12
OUTPUT = f"{NEW}: Preparing\n{OLD}: Layer already exists\n{NEW}: Pushed\nt: digest: {DIGEST} size: 1\n"
MANIFEST = {"layers": [{"digest": f"sha256:{NEW:f<64}", "size": 30}, {"digest": f"sha256:{OLD:f<64}", "size": 100}]}


@pytest.fixture
def engine() -> FakeEngine:
    """An engine that pushes one layer that the registry has and one that it lacks."""
    return FakeEngine(answers={"push": OUTPUT, "buildx imagetools inspect --raw": json.dumps(MANIFEST)})


def test_push_counts_sent_and_present_bytes(engine: FakeEngine) -> None:
    pushed = push(engine, digest=DIGEST, repository="r.test/api", tag="1", log=lambda _: None)

    assert engine.calls[0] == "push r.test/api:1"
    assert pushed.reference == f"r.test/api@{DIGEST}"
    assert (pushed.bytes_sent, pushed.bytes_present) == (30, 100)


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        (
            {"push": CommandFailed(["docker", "push"], 1, f"{OLD}: Layer already exists\n{NEW}: Waiting\ndenied")},
            "registry r.test: denied\n1 of 2 layers are in the registry; the next push sends only what is missing",
        ),
        ({"push": CommandFailed(["docker", "push"], 1)}, "failed with exit code 1"),
        ({"push": f"t: digest: sha256:{'b' * 64} size: 1"}, f"reports sha256:{'b' * 64} for r.test/api:1"),
        ({"push": "nothing"}, "reports no digest for r.test/api:1"),
        ({"buildx imagetools inspect --raw": CommandFailed(["docker", "buildx"], 1, "no manifest")}, "no manifest"),
    ],
)
def test_failed_push_names_registry_and_reason(
    engine: FakeEngine, answers: dict[str, str | BaseException], shown: str
) -> None:
    engine.answers.update(answers)

    with pytest.raises(RegistryFailed) as caught:
        push(engine, digest=DIGEST, repository="r.test/api", tag="1", log=lambda _: None)

    assert shown in str(caught.value)


def test_long_push_logs_its_progress(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "_LOG_EVERY_SECONDS", 0.001)
    lines: list[str] = []

    def stream(_engine: FakeEngine, *arguments: str, on_line: Callable[[str], None]) -> None:
        del arguments
        for line in OUTPUT.splitlines():
            on_line(line)
        until(lambda: any(line.startswith("2 of 2 layers are in the registry after 0 s") for line in lines))

    monkeypatch.setattr(FakeEngine, "stream", stream)

    push(engine, digest=DIGEST, repository="r.test/api", tag="1", log=lines.append)
