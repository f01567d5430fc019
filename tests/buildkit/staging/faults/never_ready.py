"""Makes every replica with workers report not ready; the canary, which has none, works.

`crash.py` says how it is installed.
"""

from __future__ import annotations

import os
import sys

if "serve" in sys.orig_argv and os.environ.get("TRUTHGRAPH_TASK_WORKERS") != "0":
    from service.health import Condition, Health, Level

    correct = Health.conditions

    async def conditions(self: Health) -> list[Condition]:
        sick = Condition("process", Level.DEGRADED, is_ready=False, message="sick")
        return [sick, *[each for each in await correct(self) if each.part != "process"]]

    Health.conditions = conditions  # type: ignore[method-assign] # the fault
