"""Defines which builds a benchmark makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit.errors import UsageError
from buildkit.timing.record import SCENARIOS

if TYPE_CHECKING:
    from buildkit.timing.record import Scenario

__all__ = ["BenchmarkPlan"]


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """The builds to time.

    Attributes:
        target: the name of the target to time.
        against: the name of the target that is the baseline; None for no baseline.
        scenarios: the scenarios of each target. A full build is always made, and recorded as "cold-empty" or "cold".
        runs: the number of builds of each scenario.
        dependency: the locked distribution that the dependency scenario changes to another version.
    """

    target: str
    against: str | None
    scenarios: tuple[Scenario, ...]
    runs: int
    dependency: str

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UsageError: the number of runs is below 1, the target is its own baseline, or a scenario is unknown.
        """
        if self.runs < 1:
            raise UsageError("runs", self.runs, "at least 1; 3 or more give a better median")
        if self.against == self.target:
            raise UsageError("against", self.against, "must be another target")
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise UsageError("scenario", scenario, f"expected one of {', '.join(SCENARIOS)}")
