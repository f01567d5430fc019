"""The four slims that images are made with, from everything that is installed to what text encoders need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.slim.placeholders.stubs import choose_stubs
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import SlimOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit.slim.rules.rule_sets import Rule

__all__ = ["PROFILES", "Profile", "WrongTargets", "choose_profile", "rules_of", "uncompiled_packages"]


class WrongTargets(ValueError):
    """A profile with another number of target GPUs than it is for.

    Attributes:
        profile: its name.
        value: the targets given.
    """

    def __init__(self, profile: str, value: frozenset[int], wanted: str) -> None:
        super().__init__(f"profile {profile!r} takes {wanted}, given {len(value)}")
        self.profile = profile
        self.value = value


@dataclass(frozen=True, slots=True)
class Profile:
    """A named choice of steps; the targets come with its use.

    Attributes:
        files: sets of file rules.
        stubs: stubs, by name.
        least_targets: how many target GPUs it needs at least, and `most_targets` at most.
        says: what an image of it is for.
    """

    files: str
    stubs: str
    least_targets: int
    most_targets: int
    says: str


PROFILES: Final[Mapping[str, Profile]] = {
    "full": Profile("runtime", "none", 0, 0, "every GPU, everything that torch can do without a compiler"),
    "fleet": Profile("serving", "none", 1, 99, "several GPUs; eager torch, without triton, profilers, learners"),
    "single": Profile("serving", "none", 1, 1, "one GPU; eager torch, without triton, profilers, learners"),
    "inference": Profile("inference", "all", 1, 99, "text encoders only; no FFT, convolution, sparse or several GPUs"),
}


def choose_profile(name: str, targets: frozenset[int]) -> SlimOptions:
    """The steps of a profile for these compute capabilities.

    Raises:
        WrongTargets: too few or too many targets for the profile.
        KeyError: there is no such profile.
    """
    profile = PROFILES[name]
    if not profile.least_targets <= len(targets) <= profile.most_targets:
        wanted = {0: "no target", 1: "one target"}.get(profile.most_targets, "at least one target")
        raise WrongTargets(name, targets, wanted)
    return SlimOptions(
        rules=rules_of(name),
        strips=True,
        targets=targets or None,
        stubs=choose_stubs(profile.stubs),
    )


def rules_of(name: str) -> tuple[Rule, ...]:
    """The rules about files of a profile.

    Raises:
        KeyError: there is no such profile.
    """
    return choose_rules(PROFILES[name].files)


def uncompiled_packages(name: str) -> tuple[str, ...]:
    """The packages in which a profile leaves the bytecode of some modules out, as `torch/`.

    Raises:
        KeyError: there is no such profile.
    """
    globs = (glob for rule in rules_of(name) if rule.is_bytecode_only for glob in rule.globs)
    return tuple(sorted({f"{glob.partition('/')[0]}/" for glob in globs}))
