"""Defines the four slim profiles of images, from `full` (all of torch) to `inference` (text encoders only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.errors import UsageError
from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.rules.stub_rules import choose_stubs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit.slim.rules.rule_sets import Rule

__all__ = ["PROFILES", "Profile", "choose_profile", "rules_of", "uncompiled_packages"]


@dataclass(frozen=True, slots=True)
class Profile:
    """A named choice of steps. The GPU targets are chosen separately.

    Attributes:
        rules: rule sets for files, as `choose_rules` takes them.
        stubs: stub libraries, as `choose_stubs` takes them.
        least_targets: the least number of target GPUs.
        most_targets: the largest number of target GPUs.
        purpose: the GPUs and features that images of the profile are for.
    """

    rules: str
    stubs: str
    least_targets: int
    most_targets: int
    purpose: str


PROFILES: Final[Mapping[str, Profile]] = {
    "full": Profile("runtime", "none", 0, 0, "every GPU, all of torch that works without a compiler"),
    "fleet": Profile("serving", "none", 1, 99, "several GPUs; eager torch, without triton, profilers, estimators"),
    "single": Profile("serving", "none", 1, 1, "one GPU; eager torch, without triton, profilers, estimators"),
    "inference": Profile("inference", "all", 1, 99, "text encoders only; no FFT, convolution, sparse or multi-GPU"),
}


def choose_profile(name: str, targets: frozenset[int]) -> SlimOptions:
    """Returns the steps of a profile for these compute capabilities (90 for 9.0).

    Raises:
        UsageError: there are too few or too many targets for the profile.
        KeyError: there is no such profile.
    """
    profile = PROFILES[name]
    if not profile.least_targets <= len(targets) <= profile.most_targets:
        wanted = {0: "no target", 1: "one target"}.get(profile.most_targets, "at least one target")
        raise UsageError("targets", sorted(targets), f"profile {name} takes {wanted}")
    return SlimOptions(
        rules=rules_of(name),
        strips=True,
        targets=targets or None,
        stubs=choose_stubs(profile.stubs),
    )


def rules_of(name: str) -> tuple[Rule, ...]:
    """Returns the rules for files of a profile.

    Raises:
        KeyError: there is no such profile.
    """
    return choose_rules(PROFILES[name].rules)


def uncompiled_packages(name: str) -> tuple[str, ...]:
    """Returns the packages whose bytecode a profile removes in part, as `torch/`.

    Raises:
        KeyError: there is no such profile.
    """
    globs = (glob for rule in rules_of(name) if rule.is_bytecode_only for glob in rule.globs)
    return tuple(sorted({f"{glob.partition('/')[0]}/" for glob in globs}))
