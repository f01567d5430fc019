"""Holds the content of a report on an image, for every format."""

from dataclasses import dataclass

from buildkit.check.budget import BudgetReport
from buildkit.diff.model import Comparison
from buildkit.image.model import Measurement
from buildkit.report.builds import Timeline

__all__ = ["ImageReport"]


@dataclass(frozen=True, slots=True)
class ImageReport:
    """The content of a report on an image.

    Attributes:
        measurement: the image.
        comparison: what changed in this image since another; None for a report on one image.
        budgets: the results of its budgets; None if none were evaluated.
        timelines: builds of the image.
        history: measurements for the trend, the oldest first.
        before: the name of the other image.
        after: the name of this image in the comparison.
    """

    measurement: Measurement
    comparison: Comparison | None = None
    budgets: BudgetReport | None = None
    timelines: tuple[Timeline, ...] = ()
    history: tuple[Measurement, ...] = ()
    before: str = "Before"
    after: str = "After"
