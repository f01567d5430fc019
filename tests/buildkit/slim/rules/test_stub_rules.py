from __future__ import annotations

import pytest

from buildkit.errors import UsageError
from buildkit.slim.rules.stub_rules import STUB_RULES, choose_stubs


def test_stub_rules_have_a_loss_and_a_source() -> None:
    assert len({rule.name for rule in STUB_RULES}) == len(STUB_RULES)
    assert all(rule.lost and rule.source for rule in STUB_RULES)


def test_choose_stubs_returns_all_none_or_those_named() -> None:
    assert choose_stubs("all") == STUB_RULES
    assert choose_stubs("none") == ()
    assert [rule.name for rule in choose_stubs("stub-nccl, stub-cufft")] == ["stub-cufft", "stub-nccl"]


def test_choose_stubs_unknown_name_raises() -> None:
    with pytest.raises(UsageError, match="stub-cufft") as error:
        choose_stubs("stub-cudnn")

    assert error.value.value == "stub-cudnn"
