"""The AsyncAPI 3 document: what is said on NATS, subject by subject, and what webhooks get. Pure.

Made of the contract's tables. AsyncAPI's NATS binding knows queues only; what JetStream keeps stands under
`x-jetstream`.
"""

from importlib.metadata import version
from typing import Any

from engine.contract.codec import STRUCTURED
from engine.contract.events import EVENTS, OUTCOMES, TYPE_PREFIX, TYPE_SUFFIX
from engine.contract.job import ID_PATTERN
from engine.contract.request import PRIORITIES
from engine.contract.schemas import published
from engine.contract.streams import STREAMS, Stream

_WEBHOOK = "webhook"
# Tells apart what a subject's tokens stand for: the same places in all of them.
_PARAMETERS = {
    "tenant": {"description": "whose job it is"},
    "job": {"description": f"the job's id: {ID_PATTERN}"},
}


def document() -> dict[str, Any]:
    """The whole document, seen from Cinevent: it sends, others receive."""
    spoken = [name for name, kind in EVENTS.items() if kind.suffix]
    channels = {name: _channel(name) for name in spoken}
    operations = {f"send_{name}": _operation(name) for name in spoken}
    hooks = {
        f"{_WEBHOOK}_{name}": {
            "action": "send",
            "channel": {"$ref": f"#/channels/{_WEBHOOK}"},
            "messages": [{"$ref": f"#/channels/{_WEBHOOK}/messages/{name}"}],
            "bindings": {"http": {"method": "POST"}},
        }
        for name in OUTCOMES
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Cinevent events",
            "version": version("function"),
            "description": "CloudEvents 1.0 in structured JSON. docs/events.md has examples and promises.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": STRUCTURED,
        "servers": {
            "nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "CINEVENT_NATS_URL"},
        },
        "channels": {**channels, _WEBHOOK: _webhook_channel()},
        "operations": {**operations, **hooks},
        "components": {"messages": {name: _message(name) for name in spoken}},
    }


def _channel(name: str) -> dict[str, Any]:
    suffix = EVENTS[name].suffix.replace("<", "{").replace(">", "}")
    parameters: dict[str, Any] = dict(_PARAMETERS)
    if name == "requested":
        parameters["priority"] = {"enum": list(PRIORITIES)}
    return {
        "address": f"cinevent.{{tenant}}.{{job}}.{suffix}",
        "description": f"{EVENTS[name].promise}; said by {EVENTS[name].speaker}",
        "parameters": parameters,
        "servers": [{"$ref": "#/servers/nats"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "x-jetstream": _kept(_stream(name)),
    }


def _operation(name: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
    }


def _webhook_channel() -> dict[str, Any]:
    return {
        "address": None,
        "description": "the address that a request names; signed as Standard Webhooks v1",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in OUTCOMES},
    }


def _message(name: str) -> dict[str, Any]:
    data = {key: value for key, value in published()[f"job.{name}.v1.json"].items() if not key.startswith("$")}
    text = {"type": "string"}
    return {
        "name": f"{TYPE_PREFIX}{name}{TYPE_SUFFIX}",
        "title": name,
        "contentType": STRUCTURED,
        "payload": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": text,
                "source": text,
                "type": {"const": f"{TYPE_PREFIX}{name}{TYPE_SUFFIX}"},
                "subject": {"type": "string", "description": "the job"},
                "time": {"type": "string", "format": "date-time"},
                "dataschema": {"type": "string", "format": "uri"},
                "data": data,
            },
        },
    }


def _stream(name: str) -> Stream:
    """The stream that keeps an event; one and only one does."""
    last = EVENTS[name].suffix.split(".")[0]
    [found] = [stream for stream in STREAMS if any(last in subject.split(".") for subject in stream.subjects)]
    return found


def _kept(stream: Stream) -> dict[str, Any]:
    return {"stream": stream.name, "max_age_s": stream.max_age_s, "max_msgs_per_subject": stream.max_per_subject}
