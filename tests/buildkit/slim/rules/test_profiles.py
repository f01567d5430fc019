from __future__ import annotations

import pytest

from buildkit.errors import UsageError
from buildkit.slim.rules.profiles import PROFILES, choose_profile, rules_of, uncompiled_packages


def test_each_profile_removes_more_than_the_one_before() -> None:
    full = choose_profile("full", frozenset())
    fleet = choose_profile("fleet", frozenset({75, 80, 86, 89, 90}))
    single = choose_profile("single", frozenset({90}))
    inference = choose_profile("inference", frozenset({90}))

    assert set(full.rules) < set(fleet.rules) == set(single.rules) < set(inference.rules)
    assert all(options.strips for options in (full, fleet, single, inference))
    assert (full.targets, single.targets) == (None, frozenset({90}))
    assert (full.stubs, fleet.stubs, single.stubs) == ((), (), ())
    assert inference.stubs


@pytest.mark.parametrize(
    ("name", "targets"),
    [("full", {90}), ("fleet", set()), ("single", set()), ("single", {80, 90}), ("inference", set())],
    ids=["full for one", "fleet for none", "single for none", "single for two", "inference for none"],
)
def test_choose_profile_wrong_number_of_targets_raises(name: str, targets: set[int]) -> None:
    with pytest.raises(UsageError, match=f"profile {name} takes") as error:
        choose_profile(name, frozenset(targets))

    assert error.value.value == sorted(targets)


def test_every_profile_has_a_purpose() -> None:
    assert all(profile.purpose for profile in PROFILES.values())


def test_uncompiled_packages_only_of_profiles_for_known_gpus() -> None:
    assert uncompiled_packages("full") == ()
    assert {"torch/", "transformers/"} < set(uncompiled_packages("single")) == set(uncompiled_packages("inference"))
    assert rules_of("single") == choose_profile("single", frozenset({90})).rules
