"""LoRAs of a request: low-rank changes of the weights, by the names that the operator gave them beside the model. Pure.

Whether there is one of a name is the engine's to find out: submit knows no model folder.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.contract.errors import Problem
from engine.contract.upload import NAME_MAX_CHARACTERS, NAME_PATTERN

# Each is read and added to the weights once per run: more cost minutes of a large model's start.
_MAX = 4
# Beyond it nothing is left of the model; negative scales turn a style around.
_SCALE_MAX = 4

LORAS: dict[str, Any] = {
    "type": "array",
    "maxItems": _MAX,
    "default": [],
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN, "maxLength": NAME_MAX_CHARACTERS},
            "scale": {"type": "number", "minimum": -_SCALE_MAX, "maximum": _SCALE_MAX, "default": 1.0},
        },
    },
}
"""The schema of `input.loras`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """One LoRA, and how much of it is added to the weights."""

    name: str
    scale: float


def read_loras(data: Iterable[Mapping[str, Any]]) -> tuple[Lora, ...]:
    """The LoRAs of JSON that keeps the schema."""
    return tuple(Lora(name=one["name"], scale=float(one.get("scale", 1.0))) for one in data)


def merge_loras(preset: Iterable[Mapping[str, Any]], given: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a preset, then those given beside it; a given one replaces the preset's of the same name."""
    said = [one["name"] for one in given]
    return [*(one for one in preset if one["name"] not in said), *given]


def lora_problems(loras: tuple[Lora, ...]) -> Iterator[Problem]:
    """The rules that the schema cannot say."""
    if len(loras) > _MAX:
        message = f"with those of the preset there are {len(loras)}; allowed: at most {_MAX}"
        yield Problem(pointer="/input/loras", rule="maxItems", message=message)
    names = [lora.name for lora in loras]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        message = f"named more than once: {', '.join(twice)}; name each LoRA once, with the sum of the scales"
        yield Problem(pointer="/input/loras", rule="uniqueItems", message=message)
