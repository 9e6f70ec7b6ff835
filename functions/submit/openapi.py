"""The OpenAPI 3.1 document of submit, made of the same rows that app.py serves. Pure.

Schemas of requests and events are contract/request.py's and schemas.py's; only the shapes of answers are here.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from engine.contract.codec import STRUCTURED
from engine.contract.events import OUTCOMES, REQUEST_TYPE
from engine.contract.job import ID_PATTERN, State
from engine.contract.models import CATALOG
from engine.contract.request import PRIORITIES, schema
from engine.contract.schemas import published
from functions.submit.route import Answer, Parameter, Route, ref

_ABOUT = """\
Ask for videos, follow them, read them. Every error is `application/problem+json` (RFC 9457) with a stable `code`, but
for the routes under /v1, which speak OpenAI's. Requests may also be CloudEvents in binary mode: the request as the
body, the attributes as `ce-` headers. Events, error codes of jobs and webhooks: docs/events.md and asyncapi.json.\
"""
_TIME = {"type": "string", "format": "date-time"}
_TIME_OR_NULL = {"type": ["string", "null"], "format": "date-time"}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER_OR_NULL = {"type": ["number", "null"], "minimum": 0}
_OBJECT_OR_NULL = {"type": ["object", "null"]}
_PROBLEM_TYPE = ("application/problem+json",)


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cinevent",
            "version": version("function"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "webhooks": {name: {"post": _webhook(name)} for name in OUTCOMES},
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "an API key (`cinevent keys new`) or a JSON web token; none where submit is open",
                }
            },
        },
    }


def schemas() -> dict[str, Any]:
    """The schemas that rows name with `ref`."""
    request = {"oneOf": [schema(row) for row in CATALOG.values()]}
    return {**_SCHEMAS, "Request": request, "RequestEvent": _cloud_event(REQUEST_TYPE, ref("Request"))}


def _path(route: Route) -> str:
    return re.sub(r"<(\w+)>", r"{\1}", route.path)


def _operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "summary": route.text,
        "tags": [route.group],
        "responses": {str(status): _response(answer) for status, answer in sorted(_answers(route).items())},
    }
    if route.scope is None:
        found["security"] = []
    if route.parameters:
        found["parameters"] = [_parameter(parameter) for parameter in route.parameters]
    if route.body:
        content = {media_type: {"schema": body} for media_type, body in route.body.items()}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _answers(route: Route) -> Mapping[int, Answer]:
    """What the row says, and what any row answers when something is wrong before or behind it."""
    problem = ref("OpenAIError") if route.on_error else ref("Problem")
    common: dict[int, Answer] = {}
    if route.scope:
        common = {
            401: Answer(text="no key or token that is in force", schema=problem),
            403: Answer(text=f"the key has not the scope {route.scope}", schema=problem),
            503: Answer(
                text="the log or the store does not answer",
                schema=problem,
                headers={"Retry-After": "seconds until it may"},
            ),
        }
    if "<" in route.path:
        common[404] = Answer(text="there is no such thing, for this tenant", schema=problem)
    return {**common, **route.answers}


def _response(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.text}
    if answer.headers:
        found["headers"] = {name: {"description": text, "schema": _TEXT} for name, text in answer.headers.items()}
    if answer.schema is not None:
        is_problem = answer.schema == ref("Problem")
        media_types = _PROBLEM_TYPE if is_problem else answer.media_types
        found["content"] = {
            media_type: {} if media_type == "text/event-stream" else {"schema": answer.schema}
            for media_type in media_types
        }
    return found


def _parameter(parameter: Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.text,
        "schema": parameter.schema,
    }
    if parameter.place == "path":
        found["required"] = True
    if parameter.schema.get("type") == "object":
        # metadata.order=7 cannot be said in OpenAPI; form with explode comes as close as it gets.
        found |= {"style": "form", "explode": True}
    return found


def _webhook(name: str) -> dict[str, Any]:
    data = {key: value for key, value in published()[f"job.{name}.v1.json"].items() if not key.startswith("$")}
    return {
        "summary": data["description"],
        "operationId": f"webhook_{name}",
        "security": [],
        "parameters": [
            {"name": header, "in": "header", "required": True, "schema": _TEXT, "description": text}
            for header, text in (
                ("webhook-id", "the event's id: the same on every try"),
                ("webhook-timestamp", "seconds since 1970, of this try"),
                ("webhook-signature", "Standard Webhooks v1"),
            )
        ],
        "requestBody": {
            "required": True,
            "content": {STRUCTURED: {"schema": _cloud_event(f"io.cinevent.job.{name}.v1", data)}},
        },
        "responses": {
            "2XX": {"description": "the receiver has it"},
            "410": {"description": "the receiver is gone for good: it is not asked again"},
        },
    }


def _cloud_event(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    attribute = {"type": "string", "minLength": 1, "pattern": r"^[ -~]+$"}
    return {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": attribute,
            "source": attribute,
            "type": {"const": kind},
            "time": _TIME,
            "data": data,
        },
        "additionalProperties": False,
    }


def _object(properties: Mapping[str, Any], *, description: str = "") -> dict[str, Any]:
    """An object that has all of these."""
    head = {"description": description} if description else {}
    return {"type": "object", **head, "required": list(properties), "properties": dict(properties)}


def _nullable(name: str) -> dict[str, Any]:
    return {"oneOf": [ref(name), {"type": "null"}]}


_SCHEMAS: dict[str, Any] = {
    "JobId": {"type": "string", "pattern": ID_PATTERN},
    "Model": {"enum": list(CATALOG)},
    "Problem": {
        **_object(
            {
                "type": {"type": "string", "format": "uri"},
                "title": _TEXT,
                "status": {"type": "integer"},
                "code": {"type": "string", "pattern": "^[a-z_]+$", "description": "stable"},
                "detail": {"type": "string", "description": "what is wrong, what is allowed; for people"},
                "instance": {"type": "string", "description": "the path that was asked for"},
            }
        ),
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer"},
            "code": {"type": "string", "pattern": "^[a-z_]+$", "description": "stable"},
            "detail": {"type": "string", "description": "what is wrong, what is allowed; for people"},
            "instance": {"type": "string", "description": "the path that was asked for"},
            "errors": {
                "type": "array",
                "description": "each rule that is broken, with a pointer (RFC 6901) to where",
                "items": _object({"pointer": _TEXT, "rule": _TEXT, "message": _TEXT}),
            },
        },
    },
    "Progress": _object(
        {
            "percent": {"type": "number", "minimum": 0, "maximum": 100},
            "step": _COUNT,
            "steps": _COUNT,
            "eta_s": _NUMBER_OR_NULL,
            "seconds_per_step": _NUMBER_OR_NULL,
        },
        description="how far it is",
    ),
    "Error": _object(
        {"code": _TEXT, "message": _TEXT}, description="why there is no video; docs/events.md has the codes"
    ),
    "Job": _object(
        {
            "id": ref("JobId"),
            "state": {"enum": list(State)},
            "stage": {"type": "string", "description": "the finer word: queued, scheduled, denoising ..."},
            "progress": _nullable("Progress"),
            "attempt": {"type": "integer", "minimum": 0, "description": "0 before the first run"},
            "max_attempts": {"type": "integer", "minimum": 1},
            "model": _TEXT,
            "input": {"type": "object", "description": "with every default filled in"},
            "priority": {"enum": list(PRIORITIES)},
            "position": {"type": ["integer", "null"], "minimum": 1, "description": "its place while it waits"},
            "metadata": {"type": "object", "additionalProperties": _TEXT},
            "webhook": _OBJECT_OR_NULL,
            "retry_of": {"type": ["string", "null"], "description": "the job that this one tries again"},
            "created_at": _TIME,
            "due_at": _TIME,
            "started_at": _TIME_OR_NULL,
            "finished_at": _TIME_OR_NULL,
            "deadline_at": _TIME,
            "error": _nullable("Error"),
            "artifacts": {
                "type": ["object", "null"],
                "description": "video, poster, manifest: size_bytes, sha256, content_type, and a `url` to read it at",
                "additionalProperties": {"type": "object"},
            },
            "timings": {
                "type": ["object", "null"],
                "description": "seconds: waiting, each stage, total",
                "additionalProperties": {"type": "number"},
            },
            "links": {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}},
        }
    ),
    "Page": _object({"jobs": {"type": "array", "items": ref("Job")}, "next_cursor": {"type": ["string", "null"]}}),
    "Accepted": _object(
        {"jobs": {"type": "array", "items": _object({"id": ref("JobId"), "location": _TEXT})}},
        description="the jobs of a batch, in its order",
    ),
    "Upload": _object({"name": _TEXT, "size_bytes": _COUNT, "sha256": _TEXT}),
    "Events": _object(
        {
            "events": {
                "type": "array",
                "items": _object(
                    {
                        "position": {"type": "string", "description": "for Last-Event-ID"},
                        "id": _TEXT,
                        "type": _TEXT,
                        "name": _TEXT,
                        "time": _TIME,
                        "data": {"type": "object"},
                    }
                ),
            }
        }
    ),
    "Models": _object(
        {
            "models": {
                "type": "array",
                "items": _object(
                    {
                        "name": ref("Model"),
                        "image": {"enum": ["none", "optional", "required"]},
                        "hub": {"type": ["string", "null"]},
                        "max_pixels": _COUNT,
                        "size_multiple": _COUNT,
                        "frames": _TEXT,
                        "schema": {"type": "object", "description": "JSON Schema of a request"},
                    }
                ),
            }
        }
    ),
    "Queue": _object(
        {
            "waiting": _object({"total": _COUNT, **dict.fromkeys(PRIORITIES, _COUNT)}),
            "running": _COUNT,
            "oldest_waiting_s": _NUMBER_OR_NULL,
            "last_hour": _object(dict.fromkeys(OUTCOMES, _COUNT)),
        }
    ),
    "OpenAIVideo": _object(
        {
            "id": ref("JobId"),
            "object": {"const": "video"},
            "status": {"enum": ["queued", "in_progress", "completed", "failed"]},
            "progress": {"type": "integer", "minimum": 0, "maximum": 100},
            "model": _TEXT,
            "prompt": _TEXT,
            "size": _TEXT,
            "seconds": _TEXT,
            "created_at": _COUNT,
            "completed_at": {"type": ["integer", "null"]},
            "expires_at": {"type": ["integer", "null"]},
            "error": _nullable("Error"),
            "remixed_from_video_id": {"type": "null"},
        }
    ),
    "OpenAIPage": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref("OpenAIVideo")},
            "has_more": {"type": "boolean"},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
        }
    ),
    "OpenAIDeleted": _object({"id": ref("JobId"), "object": {"const": "video.deleted"}, "deleted": {"const": True}}),
    "OpenAIError": _object(
        {
            "error": _object(
                {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": {"type": "string"}}
            )
        }
    ),
}
