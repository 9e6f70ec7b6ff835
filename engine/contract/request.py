"""A request: what a producer may ask for, and how it becomes a complete, checked value.

In: the JSON that a producer sent, and the id its job will have. Out: a Request in which every default is filled in, so
that the same request gives the same video on any later attempt. Limits come from the model row alone. No I/O.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

import jsonschema_rs

from engine.contract.errors import Invalid, Problem
from engine.contract.lora import LORAS, Lora, lora_problems, merge_loras, read_loras
from engine.contract.models import CATALOG, SAMPLERS, Limits, ModelRow
from engine.contract.offers import refuse_unavailable
from engine.contract.rules import (
    TIMESTAMP_RULE,
    integer_rule,
    number_rule,
    pointer_to,
    read_timestamp,
    schema_problems,
    text_problems,
    url_problems,
)
from engine.contract.upload import NAME_MAX_CHARACTERS, NAME_PATTERN

PRIORITIES = ("high", "normal", "low")
WEBHOOK_EVENTS = ("completed", "failed", "cancelled")
"""What a webhook hears unless it chooses."""
WEBHOOK_CHOICES = (*WEBHOOK_EVENTS, "progress")
# Wan's text encoder reads 512 tokens; 4,000 characters is beyond that in every language.
PROMPT_MAX_CHARACTERS = 4000
MAX_ATTEMPTS = 10
_ATTEMPTS = 3
_DEADLINE_S = 6 * 3600
# A week: longer than any real job, short enough that a forgotten one ends.
DEADLINE_MAX_S = 7 * 24 * 3600
# A week, too: the log keeps a request for 30 days, which must be enough for the wait and the job.
PROCESS_IN_MAX_S = 7 * 24 * 3600
SEED_MAX = 2**32 - 1
# x264's scale; 18 looks like the frames themselves. Not 0: that is lossless, in an H.264 profile that browsers lack.
CRF = Limits(low=1, high=51, default=18)


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What the model gets; sizes in pixels."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    flow_shift: float
    seed: int
    image: str | None = None
    """Name of an upload: the picture that the video starts from."""
    crf: int = CRF.default
    """What the mp4 loses: less is larger. This and all below have a default, since requests of before have none."""
    sampler: str = SAMPLERS[0]
    cache: str = "none"
    """What of earlier steps stands in for later ones; one of the row's caches."""
    loras: tuple[Lora, ...] = ()

    @property
    def has_negative(self) -> bool:
        """Whether each step has a second pass, for the negative prompt; as in diffusers, the first scale decides."""
        return self.guidance_scale > 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """Where to tell the outcome, and which outcomes."""

    url: str
    events: tuple[str, ...] = WEBHOOK_EVENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A checked request; immutable. Two equal requests ask for the same thing."""

    model: str
    input: Input
    priority: str = "normal"
    max_attempts: int = _ATTEMPTS
    deadline_s: int = _DEADLINE_S
    """From when it may start (acceptance, or the time it asks for) to the end, attempts and waits included."""
    process_at: str | None = None
    """Not before this time: RFC 3339 in UTC."""
    process_in_s: int | None = None
    """Not before so long after acceptance."""
    webhook: Webhook | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> ModelRow:
        """The catalog row of its model."""
        return CATALOG[self.model]

    def to_json(self) -> dict[str, Any]:
        """The request as it stands in events; `from_json` is the inverse."""
        found: dict[str, Any] = _as_json(self)
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Request":
        """Rebuild a request from an event that was valid when it was accepted."""
        hook = data.get("webhook")
        return cls(
            **{
                **data,
                "input": _input(data["input"]),
                "webhook": hook and Webhook(url=hook["url"], events=tuple(hook["events"])),
            }
        )


def parse(data: Any, *, job: str) -> Request:
    """Check a producer's JSON and fill in every default; the seed comes from the job's id, so a repeat is equal.

    Raises Invalid with one Problem per broken rule.
    """
    row = _row(data)
    refuse_unavailable(data, row)
    broken = list(schema_problems(_validator(row.name), data))
    if broken:
        raise Invalid(*broken)
    given = {name: _plain(value) for name, value in data["input"].items()}
    # Whole numbers may be written 3.0, in JSON's one number type.
    whole = ("max_attempts", "deadline_s", "process_in_s")
    options: dict[str, Any] = {name: int(data[name]) for name in whole if name in data}
    options |= {name: data[name] for name in ("priority", "metadata") if name in data}
    request = Request(
        **options,
        process_at=_process_at(data.get("process_at")),
        model=row.name,
        input=_fill(given, row, job=job),
        webhook=_webhook(data.get("webhook")),
    )
    broken = list(_rule_problems(request))
    if broken:
        raise Invalid(*broken)
    return request


def check_size(row: ModelRow, *, width: int, height: int, num_frames: int) -> None:
    """Raise Invalid unless a request for `row` may ask for this size; the problems are those of `parse`."""
    given = {"width": width, "height": height, "num_frames": num_frames}
    inputs = schema(row)["properties"]["input"]["properties"]
    rules = {"properties": {"input": {"properties": {name: inputs[name] for name in given}}}}
    broken = list(schema_problems(jsonschema_rs.Draft202012Validator(rules), {"input": given}))
    if broken := broken or list(_size_problems(row, **given)):
        raise Invalid(*broken)


def schema(row: ModelRow) -> dict[str, Any]:
    """JSON Schema (2020-12) of a request for `row`; the rules it cannot say are in `parse`."""
    inputs = {
        "prompt": {"type": "string", "minLength": 1, "maxLength": PROMPT_MAX_CHARACTERS},
        "negative_prompt": {"type": "string", "maxLength": PROMPT_MAX_CHARACTERS, "default": row.negative_prompt},
        "width": integer_rule(row.width, multiple_of=row.size_multiple),
        "height": integer_rule(row.height, multiple_of=row.size_multiple),
        "num_frames": integer_rule(row.num_frames),
        "fps": integer_rule(row.fps),
        "steps": integer_rule(row.steps),
        "guidance_scale": number_rule(0, 30, row.guidance_scale),
        "flow_shift": number_rule(0.1, 30, row.flow_shift),
        "seed": {"type": "integer", "minimum": 0, "maximum": SEED_MAX},
        "crf": integer_rule(CRF),
        "sampler": {"enum": list(SAMPLERS), "default": SAMPLERS[0]},
        "cache": {"enum": list(row.caches), "default": row.caches[0]},
        "loras": LORAS,
    }
    if row.presets:
        inputs["preset"] = {"enum": list(row.presets)}
    if row.guidance_scale_2 is not None:
        inputs["guidance_scale_2"] = number_rule(0, 30, row.guidance_scale_2)
    if row.image != "none":
        inputs["image"] = {"type": "string", "pattern": NAME_PATTERN, "maxLength": NAME_MAX_CHARACTERS}
    required = ["prompt", "image"] if row.image == "required" else ["prompt"]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "input"],
        "properties": {
            "model": {"const": row.name},
            "input": {"type": "object", "additionalProperties": False, "required": required, "properties": inputs},
            **OPTIONS,
        },
    }


OPTIONS: dict[str, Any] = {
    "priority": {"enum": list(PRIORITIES), "default": "normal"},
    "max_attempts": {"type": "integer", "minimum": 1, "maximum": MAX_ATTEMPTS, "default": _ATTEMPTS},
    "deadline_s": {"type": "integer", "minimum": 1, "maximum": DEADLINE_MAX_S, "default": _DEADLINE_S},
    "process_at": {"type": "string", "minLength": 20, "maxLength": 40, "format": "date-time"},
    "process_in_s": {"type": "integer", "minimum": 0, "maximum": PROCESS_IN_MAX_S},
    "webhook": {
        "type": "object",
        "additionalProperties": False,
        "required": ["url"],
        "properties": {
            "url": {"type": "string", "minLength": 1, "maxLength": 2048},
            "events": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                "items": {"enum": list(WEBHOOK_CHOICES)},
                "default": list(WEBHOOK_EVENTS),
            },
        },
    },
    "metadata": {
        "type": "object",
        "maxProperties": 16,
        "propertyNames": {"minLength": 1, "maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 256},
    },
}
"""Schemas of the fields beside `model` and `input`, the same for every model."""


def _as_json(value: Any) -> Any:
    """Dataclasses as objects, tuples as arrays. dataclasses.asdict copies every text, in five times the time."""
    if is_dataclass(value):
        return {name: _as_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def _row(data: Any) -> ModelRow:
    if not isinstance(data, dict):
        raise Invalid(Problem(pointer="", rule="type", message=f"a request is a JSON object, not {_kind(data)}"))
    name = data.get("model")
    if not isinstance(name, str) or name not in CATALOG:
        given = "missing" if "model" not in data else repr(name)[:80]
        raise Invalid(
            Problem(pointer="/model", rule="enum", message=f"model is {given}; allowed: {', '.join(CATALOG)}")
        )
    return CATALOG[name]


@cache
def _validator(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema(CATALOG[name]))


def _fill(given: Mapping[str, Any], row: ModelRow, *, job: str) -> Input:
    defaults = {
        "negative_prompt": row.negative_prompt,
        "width": row.width.default,
        "height": row.height.default,
        "num_frames": row.num_frames.default,
        "fps": row.fps.default,
        "steps": row.steps.default,
        "guidance_scale": row.guidance_scale,
        "guidance_scale_2": row.guidance_scale_2,
        "flow_shift": row.flow_shift,
        "seed": int.from_bytes(hashlib.sha256(job.encode()).digest()[:4]),
        "crf": CRF.default,
    }
    # What it stands for is kept, not its name: a job stays what it was accepted as when the catalog changes.
    preset = row.presets[given["preset"]].options if "preset" in given else {}
    said = {name: value for name, value in given.items() if name != "preset"}
    return _input({**defaults, **preset, **said, "loras": merge_loras(preset.get("loras", ()), given.get("loras", ()))})


def _input(values: Mapping[str, Any]) -> Input:
    """An Input of JSON values, which has one number type: 5 and 5.0 ask for the same video and must compare equal."""
    whole = {f.name for f in fields(Input) if f.type is int}
    real = {"guidance_scale", "guidance_scale_2", "flow_shift"}
    cast: dict[str, Any] = {
        n: int(v) if n in whole else float(v) if n in real and v is not None else v for n, v in values.items()
    }
    return Input(**{**cast, "loras": read_loras(values.get("loras", ()))})


def _plain(value: Any) -> Any:
    """Text in one form: composed characters, and newlines as they are everywhere but on Windows."""
    return unicodedata.normalize("NFC", value.replace("\r\n", "\n")) if isinstance(value, str) else value


def _process_at(given: str | None) -> str | None:
    if given is None:
        return None
    try:
        # One form for one instant: a repeat may write it with another offset.
        return read_timestamp(given).isoformat().replace("+00:00", "Z")
    except ValueError as error:
        message = f"process_at is {given[:40]!r}; {TIMESTAMP_RULE}"
        raise Invalid(Problem(pointer="/process_at", rule="timestamp", message=message)) from error


def _webhook(data: Mapping[str, Any] | None) -> Webhook | None:
    if data is None:
        return None
    return Webhook(url=data["url"], events=tuple(data.get("events", WEBHOOK_EVENTS)))


def _rule_problems(request: Request) -> Iterator[Problem]:
    given = request.input
    for name in ("prompt", "negative_prompt"):
        yield from text_problems(getattr(given, name), f"/input/{name}", may_be_empty=name != "prompt")
    for name, value in request.metadata.items():
        yield from text_problems(name + value, pointer_to("metadata", name), may_be_empty=True)
    yield from lora_problems(given.loras)
    yield from _size_problems(request.row, width=given.width, height=given.height, num_frames=given.num_frames)
    if request.process_at is not None and request.process_in_s is not None:
        yield Problem(pointer="/process_in_s", rule="either", message="leave out process_at or process_in_s")
    if request.webhook:
        yield from url_problems(request.webhook.url, "/webhook/url")


def _size_problems(row: ModelRow, *, width: int, height: int, num_frames: int) -> Iterator[Problem]:
    stride = row.temporal_stride
    if over := (num_frames - 1) % stride:
        below = num_frames - over
        message = f"num_frames is {num_frames}; allowed: {stride}k + 1, such as {below} or {below + stride}"
        yield Problem(pointer="/input/num_frames", rule="frames", message=message)
    if width * height > row.max_pixels:
        message = f"{width} x {height} is {width * height} pixels; {row.name} makes at most {row.max_pixels}"
        yield Problem(pointer="/input/width", rule="max_pixels", message=message)


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
