"""Checks that `Stack` and its fake have the methods of `Orchestrator`, with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from buildkit.staging.stack.orchestrator import Orchestrator
from buildkit.staging.stack.stack import Stack
from tests.support.fake_stack import FakeStack

METHODS = sorted(name for name in vars(Orchestrator) if not name.startswith("_"))


def parameters(method: object) -> list[tuple[str, inspect._ParameterKind]]:
    return [(each.name, each.kind) for each in inspect.signature(method).parameters.values()]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [Stack, FakeStack])
def test_orchestrator_method_has_its_parameters(kind: type, name: str) -> None:
    wanted, found = getattr(Orchestrator, name), getattr(kind, name)
    if isinstance(wanted, property):
        assert not callable(found)
        return
    assert parameters(found) == parameters(wanted)


def test_orchestrator_has_the_operations_of_a_release() -> None:
    assert {"deploy", "wait_for_rollout", "run_job", "start_canary", "execute", "remove"} <= set(METHODS)
