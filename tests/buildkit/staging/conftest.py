from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that bring up the whole stack and break it take half an hour: they run where they are asked for."""
    if "staging" in (config.option.markexpr or ""):
        return
    skip = pytest.mark.skip(reason="brings up the whole stack: run with -m staging")
    for item in items:
        if item.get_closest_marker("staging"):
            item.add_marker(skip)
