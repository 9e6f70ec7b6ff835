"""The documents about this API, served by itself: OpenAPI, AsyncAPI, JSON Schemas, and a page of its own."""

import html
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from flask import Response

from engine.contract.errors import NotFound
from engine.contract.schemas import published
from functions.submit import asyncapi, openapi
from functions.submit.route import Answer, Call, Document, Parameter, Route

_JSON = "application/json"
_HTML = "text/html"
# The page is one file without scripts; nothing is fetched for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Cinevent API</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }}
  h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #d0d7de }}
  code, pre {{ font: 14px/1.4 ui-monospace, monospace; background: #f3f5f7; border-radius: 4px; padding: 0 .25rem }}
  pre {{ padding: .75rem; overflow-x: auto }}
  table {{ border-collapse: collapse }} td {{ text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0 }}
  details {{ margin: .5rem 0 }} summary {{ cursor: pointer }}
  .method {{ font-weight: 600; display: inline-block; width: 4.5rem }}
</style>
<h1>Cinevent API</h1>
<p>{about}</p>
<p><a href="openapi.json">openapi.json</a> · <a href="asyncapi.json">asyncapi.json</a> · schemas: {schemas}</p>
{groups}
<h2>Shapes</h2>
{shapes}
</html>
"""


def make(routes: Iterable[Route]) -> Mapping[str, Document]:
    """All documents by their path under /."""
    described = openapi.document(routes)
    schemas = {f"schemas/{name}": Document(media_type=_JSON, body=_dump(body)) for name, body in published().items()}
    return {
        "openapi.json": Document(media_type=_JSON, body=_dump(described)),
        "asyncapi.json": Document(media_type=_JSON, body=_dump(asyncapi.document())),
        "docs": Document(media_type=_HTML, body=_page(described).encode()),
        **schemas,
    }


def serve(call: Call, *, name: str) -> Response:
    """A document."""
    return _answer(call.documents()[name])


def serve_schema(call: Call, name: str) -> Response:
    """The JSON Schema of an event's data, or of a request."""
    found = call.documents().get(f"schemas/{name}")
    if found is None:
        raise NotFound(f"there is no schema {name[:80]}")
    return _answer(found)


def _answer(document: Document) -> Response:
    response = Response(document.body, mimetype=document.media_type)
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _page(described: Mapping[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    shapes = (
        f'<details id="{name}"><summary><code>{name}</code></summary><pre>{_text(_dump(body).decode())}</pre></details>'
        for name, body in described["components"]["schemas"].items()
    )
    links = (f'<a href="schemas/{name}">{name.removesuffix(".json")}</a>' for name in published())
    return _PAGE.format(
        about=_text(described["info"]["description"]),
        schemas=", ".join(links),
        groups="\n".join(f"<h2>{name}</h2>\n{''.join(found)}" for name, found in groups.items()),
        shapes="\n".join(shapes),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    rows = [
        (f"{parameter['name']} ({parameter['in']})", parameter["description"])
        for parameter in operation.get("parameters", ())
    ]
    rows += [("body", media_type) for media_type in operation.get("requestBody", {}).get("content", ())]
    rows += [(status, answer["description"]) for status, answer in operation["responses"].items()]
    table = "".join(f"<tr><td><code>{_text(left)}</code><td>{_text(right)}" for left, right in rows)
    head = f'<span class="method">{method.upper()}</span><code>{_text(path)}</code> {_text(operation["summary"])}'
    return f"<details><summary>{head}</summary><table>{table}</table></details>\n"


def _text(text: str) -> str:
    return html.escape(text)


def _rows() -> Iterator[Route]:
    for name, media_type, text in (
        ("openapi.json", _JSON, "This API as OpenAPI 3.1."),
        ("asyncapi.json", _JSON, "Subjects and webhooks as AsyncAPI 3."),
        ("docs", _HTML, "This API as a page."),
    ):
        yield Route(
            method="GET",
            path=f"/{name}",
            view=partial(serve, name=name),
            text=text,
            scope=None,
            group="documents",
            answers={200: Answer(text="the document", schema={}, media_types=(media_type,))},
        )
    yield Route(
        method="GET",
        path="/schemas/<name>",
        view=serve_schema,
        text="The JSON Schema of an event's data, or of a request.",
        scope=None,
        group="documents",
        parameters=(
            Parameter(name="name", text="such as job.completed.v1.json", schema={"type": "string"}, place="path"),
        ),
        answers={200: Answer(text="the schema", schema={"type": "object"})},
    )


ROUTES = tuple(_rows())
