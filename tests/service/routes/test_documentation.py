"""The OpenAPI document and the page rendered from it."""

from __future__ import annotations

import msgspec

from service.schemas import EXAMPLES
from tests.service.conftest import ROUTES, Served


def test_the_document_is_openapi_3_1_with_every_route(api: Served) -> None:
    document = api.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    hidden = {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/docs/openapi.json"), ("GET", "/docs/{path}")}
    assert described == {(route.method, route.path) for route in ROUTES} - hidden


def test_every_request_has_a_valid_example(api: Served) -> None:
    import jsonschema

    components = api.client.get("/openapi.json").json()["components"]
    assert len(EXAMPLES) == 8
    for example in EXAMPLES:
        schema = components["schemas"][type(example).__name__]
        [described] = schema["examples"]
        jsonschema.validate(described, {**schema, "components": components})
        assert msgspec.convert(described, type(example), strict=False) == example


def test_the_page_loads_no_external_resource(api: Served) -> None:
    page = api.client.get("/docs").text
    assert "/api/v1/verify" in page
    assert not any(word in page for word in ("<script", "<link", "src=", "@import", "url("))
