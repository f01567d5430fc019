"""The API against its OpenAPI document: no server error, and no status or body that is not documented."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.service.conftest import ROUTES

if TYPE_CHECKING:
    from schemathesis import Case

    from service.routes.table import Route
    from tests.service.conftest import Served

schemathesis = pytest.importorskip("schemathesis")
from_document = pytest.importorskip("schemathesis.specs.openapi.checks")
SEMANTIC = {
    "/api/v1/claims",
    "/api/v1/verify",
    "/v1/embeddings",
    "/embed",
    "/predict",
    "/api/v1/claims/{claim_id}/verify",
}
"""Routes with checks that a schema cannot express: a claim of one word, inputs of mixed kinds."""
UNDOCUMENTED = {"/openapi.json", "/docs", "/docs/openapi.json", "/docs/{path}"}


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.path not in UNDOCUMENTED],
    ids=lambda route: f"{route.method} {route.path}",
)
def test_responses_match_the_openapi_document(api: Served, route: Route) -> None:
    """Generates valid and invalid requests from the document, the same ones in every run."""
    document = schemathesis.openapi.from_url(f"{api.url}/openapi.json")

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=document[route.path][route.method].as_strategy())
    def check(case: Case) -> None:
        excluded = [from_document.positive_data_acceptance] if route.path in SEMANTIC else []
        case.call_and_validate(timeout=60, excluded_checks=excluded)

    check()
