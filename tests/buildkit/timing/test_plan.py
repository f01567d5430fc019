from __future__ import annotations

from dataclasses import replace

import pytest

from buildkit.errors import UsageError
from buildkit.timing.plan import BenchmarkPlan

PLAN = BenchmarkPlan(target="small", against=None, scenarios=("cold",), runs=1, dependency="tqdm")


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"runs": 0}, "runs"), ({"against": "small"}, "against"), ({"scenarios": ("warm",)}, "scenario")],
)
def test_invalid_plan_is_refused_with_its_field(changed: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(PLAN, **changed)  # type: ignore[arg-type] # fields of the plan

    assert caught.value.field == field
