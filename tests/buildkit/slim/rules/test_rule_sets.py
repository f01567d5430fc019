from __future__ import annotations

import pytest

from buildkit.errors import UsageError
from buildkit.slim.rules.rule_sets import RULE_SETS, RULES, choose_rules


def test_every_rule_has_a_reason_a_loss_and_a_set() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason and rule.lost for rule in RULES)
    assert {name for names in RULE_SETS.values() for name in names} == {rule.name for rule in RULES}
    assert set(RULE_SETS["runtime"]) < set(RULE_SETS["serving"])


def test_choose_rules_takes_sets_and_names() -> None:
    assert [rule.name for rule in choose_rules("tests,headers")] == ["headers", "tests"]
    assert choose_rules("none") == ()
    assert len(choose_rules("runtime,triton")) == len(RULE_SETS["runtime"]) + 1


def test_choose_rules_unknown_name_raises() -> None:
    with pytest.raises(UsageError, match="headers") as error:
        choose_rules("runtime,header")
    assert error.value.value == "header"
