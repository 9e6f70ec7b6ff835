"""docs/events.md: its prose, and the tables and examples that follow from the code."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from docs.examples import EXAMPLES, JOB, REQUEST, TENANT
from docs.markdown import code, table
from engine.contract.codec import encode_binary, encode_nats
from engine.contract.delivery import MAX_TRIES
from engine.contract.errors import JOB_ERRORS
from engine.contract.events import EVENTS, REQUEST_TYPE, TYPE_PREFIX, TYPE_SUFFIX, Event, job_event, subject
from engine.contract.models import CATALOG
from engine.contract.request import OPTIONS, parse, schema
from engine.contract.schemas import published, validate
from engine.contract.streams import STREAMS
from engine.contract.upload import EXTENSIONS, NAME_MAX_CHARACTERS, UPLOAD_MAX_BYTES, UPLOAD_MAX_PIXELS

_AT = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
_STREAMS = {stream.name: stream for stream in STREAMS}
_MEANING = {
    "prompt": "what the video shows",
    "negative_prompt": "what it must not show; default: the model's own",
    "width": "pixels",
    "height": "pixels",
    "num_frames": "4k + 1 of them: 5, 9, 13 and so on",
    "fps": "frames per second of the file",
    "steps": "denoising steps: more are slower and finer",
    "guidance_scale": "how closely it follows the prompt",
    "guidance_scale_2": "the same, of the low-noise expert; `guidance_scale` is then of the other",
    "flow_shift": "where on the noise schedule the steps lie",
    "image": "the picture that the video starts from: the name of an upload, or an `https://` address to fetch it from",
    "seed": "the same request with the same seed gives the same video; default: taken from the job's id",
    "crf": "how much the mp4 may lose: less is finer and larger",
    "sampler": "how a step follows from those before",
    "cache": "what of earlier steps stands in for later ones: faster, and not the same video ([engine.md](engine.md))",
    "loras": "LoRAs that were put beside the model ([models.md](models.md)): a `name` each, and a `scale` from -4 to 4",
    "preset": "options that belong together ([models.md](models.md)); those that are given beside it come first",
}
_OPTION_MEANING = {
    "priority": "who starts first; while all three wait, six to three to one, so that none waits for ever",
    "max_attempts": "how many runs the job may have",
    "deadline_s": "seconds from when it may start (at once, unless the next two say otherwise) to the end",
    "process_at": "not before this time (RFC 3339), up to seven days from now",
    "process_in_s": "or not before so many seconds after it was accepted",
    "webhook": "where to tell the outcome: a `url` (http or https), and `events`: of `completed`, `failed`, `cancelled`"
    " and `progress`, the first three unless it says which",
    "metadata": "your own labels, given back with the job: up to 16 texts of 256 characters, under names of up to 64",
}
_PAGE = """\
# Events

Cinevent takes a request as an event and tells what becomes of it in events: that it was accepted, how far it is, how it
ended. They are [CloudEvents](https://cloudevents.io) 1.0 with a JSON object as data. Subscribe to them on NATS, or have
the outcome sent to a webhook.

## Ask for a video

POST an event of type `{request_type}` to submit. Only `model` and `input.prompt` are required,
and `input.image` by a model that starts from a picture; this one says all that can be said:

{request}

The answer is `202` with an empty body; `Location` is the job. Not sure that it arrived? Send it again: the same
`source` and `id` are the same job. With another request under them, the answer is `422`.

### input

Ranges include both ends; the value in bold is the model's default.

{inputs}

A text may have newlines and tabs, but no other control characters. An unknown field is refused, not ignored.

### A picture to start from

`PUT /api/v1/uploads/<name>` stores a picture, with the `Content-Type` {types} and at most
{upload_mib} MiB; the answer is `201`. A name is 1 to {name_max} of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, and begins
with no dot. A request whose `image` names no upload is answered with `422`. Give a new picture a new name, such as its
sha256: a job reads it when it runs, and the manifest says which bytes it read.

The picture is turned upright as its EXIF says, put on white where it is transparent, cropped around its middle to the
shape of the video and scaled to its size. One that is damaged, animated or larger than {upload_megapixels} megapixels
fails the job with `input_invalid`.

### Beside input

{options}

## What you hear

The types are `{prefix}<event>{suffix}`, the NATS subjects `cinevent.<tenant>.<job>.<rest>`.

{events}

`cinevent.{tenant}.*.done.>` hears every outcome, `cinevent.{tenant}.<job>.>` all about one job. A plain NATS
subscription hears what happens while it is connected; a JetStream consumer of the stream CINEVENT_JOBS misses nothing.
The type `check` is dispatch's note to itself and has no such subject.

## What they say

Every event's data has `job` and `tenant`; where there is an `attempt`, it counts from 1. Fields may be added to a v1
event, so ignore what you do not know. The JSON Schemas are in [schemas](schemas); `dataschema` names the event's own.

{data}

## Errors

`retrying` and `failed` carry an `error`; its `code` is one of these and stays what it is. After the last attempt,
`failed` has the code of the last error.

{errors}

## On the wire

On NATS an event is in structured mode: one JSON object, with the header `content-type: application/cloudevents+json`
and never a `ce-specversion` header.

{nats}

Over HTTP, submit takes binary mode (attributes in `ce-` headers, data as the body) and structured mode, but no batches.
A webhook gets structured mode, signed as [Standard Webhooks](https://www.standardwebhooks.com) says; its `webhook-id`
is the event's `id`.

- `specversion`, `id`, `source` and `type` are required; `time` is RFC 3339 with a time zone.
- In headers, everything but printable ASCII is percent-encoded UTF-8, and so are space, `"` and `%`.
- `traceparent` and `tracestate` of a request are carried on by every event of its job. So is `correlationid`; without
  one it is the `id` of the event that asked.

## What is promised

- **At least once.** An event may reach you twice, with the same `source` and `id` each time: drop what you have seen.
- **One outcome.** A job has exactly one of `completed`, `failed` and `cancelled`. What comes later means nothing.
- **Order.** JetStream has a job's events in the order in which they were written. `launched` may stand after `started`,
  for two parts say them, and `progress` is a stream of its own. Ignore an `attempt` below one that you have seen.
- **Progress** never falls within an attempt. The last {progress_kept} of a job are kept for {progress_days} day, all
  other events for {days} days.
- **Webhooks** are tried up to {tries} times in three days, until the answer is 2xx; 410 ends it.
  [webhooks.md](webhooks.md) has the rest.

_Made from engine/contract by `make docs`._
"""


def events_page() -> str:
    """docs/events.md."""
    progress = _STREAMS["CINEVENT_PROGRESS"]
    return _PAGE.format(
        request_type=REQUEST_TYPE,
        request=_request(),
        inputs=_inputs(),
        types=", ".join(f"`{name}`" for name in EXTENSIONS),
        upload_mib=UPLOAD_MAX_BYTES // 2**20,
        upload_megapixels=UPLOAD_MAX_PIXELS // 1_000_000,
        name_max=NAME_MAX_CHARACTERS,
        options=_options(),
        prefix=TYPE_PREFIX,
        suffix=TYPE_SUFFIX,
        events=_events(),
        tenant=TENANT,
        data="\n\n".join(_data(name) for name in EVENTS if name != "check"),
        errors=table(("Code", "What it means"), [(f"`{name}`", text) for name, text in JOB_ERRORS.items()]),
        nats=_nats(),
        progress_kept=progress.max_per_subject,
        progress_days=_days(progress.max_age_s),
        days=_days(_STREAMS["CINEVENT_JOBS"].max_age_s),
        tries=MAX_TRIES,
    )


def _request() -> str:
    parse(REQUEST, job=JOB)
    event = Event(id="order-7", source="/shop", type=REQUEST_TYPE, time=_AT, data=REQUEST)
    headers, _ = encode_binary(event)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    body = json.dumps(REQUEST, indent=2)
    return "\n".join(("```http", "POST / HTTP/1.1", *lines, "", body, "```"))


def _inputs() -> str:
    rows = list(CATALOG.values())
    schemas = [schema(row)["properties"]["input"] for row in rows]
    names = dict.fromkeys(name for given in schemas for name in given["properties"])
    lines = [(f"`{name}`", _MEANING[name], *(_input(name, given) for given in schemas)) for name in names]
    sizes = ("`width` x `height`", "pixels of a frame", *(f"up to {row.max_pixels:,}" for row in rows))
    return table(("Field", "Meaning", *(f"`{row.name}`" for row in rows)), [*lines, sizes])


def _input(name: str, described: Mapping[str, Any]) -> str:
    rule = described["properties"].get(name)
    if rule is None:
        return "not taken"
    if name == "image":
        return "required" if name in described["required"] else "optional"
    if "enum" in rule:
        return ", ".join(f"**`{value}`**" if value == rule.get("default") else f"`{value}`" for value in rule["enum"])
    if rule["type"] == "array":
        return f"up to {rule['maxItems']}"
    if rule["type"] == "string":
        return f"up to {rule['maxLength']:,} characters"
    return _range(rule) + (f"; **{rule['default']:g}**" if "default" in rule else "")


def _options() -> str:
    rows = [(f"`{name}`", _OPTION_MEANING[name], _limits(rule)) for name, rule in OPTIONS.items()]
    return table(("Field", "Meaning", "Values"), rows)


def _events() -> str:
    rows = [
        (f"`{name}`", f"`{kind.suffix}`", kind.speaker, kind.promise) for name, kind in EVENTS.items() if kind.suffix
    ]
    return table(("Event", "Rest of the subject", "Speaker", "It means"), rows)


def _data(name: str) -> str:
    event = validate(job_event(name, EXAMPLES[name], tenant=TENANT, job=JOB))
    fields = [row for row in _fields(published()[f"job.{name}.v1.json"]) if row[0] not in ("`job`", "`tenant`")]
    said = f"{table(('Field', 'Value', 'Meaning'), fields)}\n\n" if fields else ""
    return f"### {name}\n\n{said}{code(dict(event.data))}"


def _fields(described: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str, str]]:
    """Every field of a schema, those of objects in it with their whole path."""
    required = described.get("required", ())
    for name, rule in described["properties"].items():
        optional = "" if name in required or not required else "optional"
        about = "; ".join(text for text in (rule.get("description", ""), optional) if text)
        if "properties" in rule and "description" not in rule:
            yield from _fields(rule, f"{before}{name}.")
        else:
            yield f"`{before}{name}`", _limits(rule), about


def _limits(rule: Mapping[str, Any]) -> str:
    """The values that a schema allows, in words, and its default."""
    if "enum" in rule:
        allowed = ", ".join(f"`{value}`" for value in rule["enum"])
    else:
        allowed = " ".join(part for part in (_kind(rule["type"]), _range(rule)) if part)
    return f"{allowed}; default {rule['default']}" if "default" in rule else allowed


def _range(rule: Mapping[str, Any]) -> str:
    low, high = rule.get("minimum"), rule.get("maximum")
    limits = {(False, True): f"from {low}", (False, False): f"{low} to {high}"}.get((low is None, high is None), "")
    return f"{limits} by {rule['multipleOf']}" if "multipleOf" in rule else limits


def _kind(kind: str | list[str]) -> str:
    words = {"string": "text", "integer": "whole number", "null": "null"}
    return " or ".join(words.get(one, one) for one in ([kind] if isinstance(kind, str) else kind))


def _nats() -> str:
    event = job_event("started", EXAMPLES["started"], tenant=TENANT, job=JOB, key="a1")
    headers, body = encode_nats(event)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    attributes = {**json.loads(body), "time": "2026-11-20T10:00:05Z"}
    shown = json.dumps(attributes, indent=2)
    return "\n".join(("```", f"subject: {subject(event)}", *lines, "", shown, "```"))


def _days(seconds: int) -> int:
    return seconds // (24 * 3600)
