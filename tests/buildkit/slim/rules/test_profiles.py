from __future__ import annotations

import pytest

from buildkit.slim.rules.profiles import PROFILES, WrongTargets, choose_profile, rules_of, uncompiled_packages


def test_each_profile_takes_out_what_the_one_before_does_and_more() -> None:
    full = choose_profile("full", frozenset())
    fleet = choose_profile("fleet", frozenset({75, 80, 86, 89, 90}))
    single = choose_profile("single", frozenset({90}))
    inference = choose_profile("inference", frozenset({90}))

    assert set(full.rules) < set(fleet.rules) == set(single.rules) < set(inference.rules)
    assert all(choice.strips for choice in (full, fleet, single, inference))
    assert (full.targets, single.targets) == (None, frozenset({90}))
    assert (full.stubs, fleet.stubs, single.stubs) == ((), (), ())
    assert inference.stubs


@pytest.mark.parametrize(
    ("name", "targets"),
    [("full", {90}), ("fleet", set()), ("single", set()), ("single", {80, 90}), ("inference", set())],
    ids=["full for one", "fleet for none", "single for none", "single for two", "inference for none"],
)
def test_a_profile_with_targets_that_it_is_not_for_is_refused(name: str, targets: set[int]) -> None:
    with pytest.raises(WrongTargets) as error:
        choose_profile(name, frozenset(targets))

    assert (error.value.profile, error.value.value) == (name, frozenset(targets))


def test_every_profile_says_what_it_is_for() -> None:
    assert all(profile.says for profile in PROFILES.values())


def test_only_profiles_for_known_gpus_leave_bytecode_out() -> None:
    assert uncompiled_packages("full") == ()
    assert {"torch/", "transformers/"} < set(uncompiled_packages("single")) == set(uncompiled_packages("inference"))
    assert rules_of("single") == choose_profile("single", frozenset({90})).rules
