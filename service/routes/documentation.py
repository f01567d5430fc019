"""Routes of the OpenAPI document and of a page rendered from it, without scripts or external resources.

The page is the only HTML of the service, so it is built from strings: a template engine would be one more package in
the image.
"""

from html import escape
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, get
from litestar.datastructures import State
from litestar.openapi.plugins import OpenAPIRenderPlugin

from service import schemas
from service.access import Scope
from service.routes import compatible

__all__ = ["HANDLERS", "DocumentationPage", "openapi"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "code,pre{font:13px/1.4 ui-monospace,monospace}pre{background:#f4f4f2;padding:.7rem;overflow:auto}"
    "h2{margin-top:2.5rem;border-bottom:1px solid #ccc}summary{cursor:pointer;padding:.3rem 0}"
    "b.m{display:inline-block;min-width:4rem}table{border-collapse:collapse}td,th{padding:.1rem .8rem .1rem 0;"
    "text-align:left;vertical-align:top}"
)


def openapi(litestar: Litestar) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document: operations described by Litestar, structs by msgspec.

    msgspec validates the requests, so its description is exact. Litestar's lacks the limits of list items, and that
    unknown fields are refused.
    """
    document: dict[str, Any] | None = litestar.state.get("openapi")
    if document is not None:  # cached: building takes a tenth of a second
        return document
    document = litestar.openapi_schema.to_schema()
    structs = [each for each in vars(schemas).values() if _is_struct(each)]
    structs += [each for each in vars(compatible).values() if _is_struct(each)]
    _, exact = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    document["components"]["schemas"].update(exact)
    for example in schemas.EXAMPLES:
        exact[type(example).__name__]["examples"] = [msgspec.to_builtins(example)]
    litestar.state["openapi"] = document
    return document


def _is_struct(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct


class DocumentationPage(OpenAPIRenderPlugin):
    """Renders the operations by tag, each with its parameters, responses and schemas."""

    def __init__(self) -> None:
        super().__init__(path="/", media_type=MediaType.HTML, favicon="", style="")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Returns the page. Uses the exact document of `openapi` instead of `openapi_schema`."""
        openapi_schema = openapi(request.app)
        info = openapi_schema["info"]
        parts = [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>",
            f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f"<p>{escape(info.get('description', ''))} <a href=/openapi.json>OpenAPI document</a></p>",
        ]
        by_tag: dict[str, list[str]] = {}
        for path, operations in openapi_schema["paths"].items():
            for method, operation in operations.items():
                tag = next(iter(operation.get("tags", [])), "other")
                by_tag.setdefault(tag, []).append(_operation(path, method, operation))
        for tag, entries in by_tag.items():
            parts += [f"<h2>{escape(tag)}</h2>", *entries]
        schemas = openapi_schema.get("components", {}).get("schemas", {})
        parts.append("<h2>schemas</h2>")
        parts += [_schema(name, schema) for name, schema in sorted(schemas.items())]
        return "".join(parts).encode()


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(each['name'])}</code><td>{escape(each['in'])}<td>{escape(each.get('description', ''))}"
        for each in operation.get("parameters", [])
    )
    responses = "".join(
        f"<tr><td>{escape(status)}<td>{escape(response.get('description', ''))}<td>{_names(response)}"
        for status, response in operation.get("responses", {}).items()
    )
    body = _names(operation.get("requestBody", {}))
    return (
        f"<details><summary><b class=m>{method.upper()}</b> <code>{escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary><p>{escape(operation.get('description', ''))}</p>"
        f"<table>{rows}</table>{f'<p>Body: {body}</p>' if body else ''}<table>{responses}</table></details>"
    )


def _names(holder: dict[str, Any]) -> str:
    """Returns links to the schemas of a request or response body."""
    references = [media.get("schema", {}).get("$ref", "") for media in (holder.get("content") or {}).values()]
    names = [reference.rsplit("/", 1)[-1] for reference in references if reference]
    return ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names)


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{'required' if field in required else ''}"
        f"<td>{escape(str(shape.get('type', '')))}<td>{escape(str(shape.get('description', '')))}"
        for field, shape in schema.get("properties", {}).items()
    )
    text = escape(schema.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{text}</p><table>{rows}</table>'


@get("/openapi.json", scope=Scope.PUBLIC, include_in_schema=False, media_type=MediaType.JSON)
async def openapi_document(request: Request[object, object, State]) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document."""
    return openapi(request.app)


HANDLERS = [openapi_document]
