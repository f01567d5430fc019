"""Groups faults into a few images, in which each check still finds exactly its own fault."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from checks.expectations import Expectations
    from tests.checks.faults import Fault

__all__ = ["Batch", "group"]

ONCE = {"CMD", "HEALTHCHECK", "STOPSIGNAL", "USER", "WORKDIR"}
"""Instructions of a Dockerfile that replace earlier ones of their kind."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Faults that share an image."""

    faults: tuple[Fault, ...] = ()

    @property
    def dockerfile(self) -> str:
        """The Dockerfile that adds the files of all faults to the image `stand-in` and then runs their instructions."""
        # USER comes last: the instructions after it would run as that user.
        steps = sorted((fault.instructions for fault in self.faults if fault.instructions), key=lambda s: "USER" in s)
        switches = ",".join(fault.switch for fault in self.faults if fault.switch)
        return "\n".join(
            [
                "USER 0",
                "COPY files/ /",
                *steps,
                *(['VOLUME ["/var/cache/truthgraph"]'] if all(fault.has_volume for fault in self.faults) else []),
                *([] if any("USER" in step for step in steps) else ["USER 1000:1000"]),
                *([f'ENV STANDIN_FAULTS="{switches}"'] if switches else []),
            ]
        )

    def expected(self, expectations: Expectations) -> Expectations:
        """Returns *expectations*, changed for the faults of this image."""
        for fault in self.faults:
            expectations = fault.expected(expectations)
        return expectations

    def checks_of_others(self, fault: Fault) -> frozenset[str]:
        """Returns the checks that must fail because of the other faults."""
        return frozenset().union(*(other.checks for other in self.faults if other is not fault))


def group(faults: Iterable[Fault]) -> list[Batch]:
    """Puts each fault into the first batch in which it disturbs no other."""
    batches: list[list[Fault]] = []
    for fault in faults:
        home = next((batch for batch in batches if all(may_share(fault, other) for other in batch)), None)
        if home is None:
            batches.append([fault])
        else:
            home.append(fault)
    return [Batch(tuple(batch)) for batch in batches]


def may_share(one: Fault, other: Fault) -> bool:
    """Whether two faults can be in one image: neither hides, overwrites or replaces the other."""
    return not (
        one.checks & other.checks
        or one.files.keys() & other.files.keys()
        or once(one) & once(other)
        or hides(one.apart_from, other.checks)
        or hides(other.apart_from, one.checks)
    )


def once(fault: Fault) -> set[str]:
    """Returns the instructions of a fault that may occur only once in an image."""
    return ONCE.intersection(re.findall(r"^[A-Z]+", fault.instructions, re.MULTILINE))


def hides(apart_from: Sequence[str], checks: Iterable[str]) -> bool:
    """Whether one of *checks* begins with one of *apart_from*."""
    return any(check.startswith(tuple(apart_from)) for check in checks)
