"""Pace: how long each part of a run takes, as earlier runs of the same model on as many ranks took it. Pure.

In: the seconds that finished runs measured. Out: the seconds that a request of any other size will need, part by part.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from engine.contract.request import Request

PARTS = ("loading", "encoding_text", "warm_up", "step", "decoding", "encoding_video", "storing")
"""The stages of a run; denoising is what its first step takes longer than others, and then each step."""

# Of the newest run in the moving average: one on a busy machine does not spoil the estimates of the next.
_NEWEST = 0.3
# Attention grows with the square of the tokens, everything else with their number. Both cost the same at 29,000 tokens
# in A14B and 23,500 in TI2V-5B: floating point operations of one layer, from dim and ffn_dim of wan/configs/*.py.
_EVEN_TOKENS = 26_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a run has to do, in the units that its parts take time for."""

    model: str
    world_size: int
    steps: int
    num_tokens: int
    """Length of the transformer's sequence."""
    num_pixels: int
    """Of all frames."""
    way: str = ""
    """What makes a step of this run another one than that of most: a single pass, a cache."""

    @classmethod
    def of(cls, request: Request, *, world_size: int) -> "Work":
        """What `request` asks of so many ranks."""
        given, row = request.input, request.row
        return cls(
            model=row.name,
            world_size=world_size,
            steps=given.steps,
            num_tokens=row.num_tokens(width=given.width, height=given.height, num_frames=given.num_frames),
            num_pixels=given.width * given.height * given.num_frames,
            way=("" if given.has_negative else "-one-pass") + ("" if given.cache == "none" else f"-{given.cache}"),
        )

    def units(self, part: str) -> float:
        """By how much one part grows with the size of the request; 1 where it does not."""
        if part == "step":
            return self.num_tokens * (1 + self.num_tokens / _EVEN_TOKENS)
        return float(self.num_pixels) if part in ("decoding", "encoding_video") else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds per unit of every part."""

    seconds_per_unit: Mapping[str, float]

    def seconds(self, work: Work) -> dict[str, float]:
        """How long each part of `work` will take."""
        return {part: value * work.units(part) for part, value in self.seconds_per_unit.items()}

    def to_json(self) -> bytes:
        """The pace as it is stored."""
        return json.dumps({"seconds_per_unit": dict(self.seconds_per_unit)}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, body: bytes) -> "Pace":
        """The inverse of `to_json`. Raises ValueError for anything else."""
        data = json.loads(body)
        found = data.get("seconds_per_unit") if isinstance(data, dict) else None
        if not isinstance(found, dict) or set(found) != set(PARTS):
            raise ValueError(f"a pace has seconds_per_unit of {', '.join(PARTS)}")
        # Progress divides by the seconds of a step.
        wrong = [part for part in PARTS if not _is_time(found[part], may_be_zero=part != "step")]
        if wrong:
            raise ValueError(f"no number of seconds: {', '.join(wrong)}")
        return cls(seconds_per_unit={part: float(found[part]) for part in PARTS})


def learn(old: Pace | None, work: Work, seconds: Mapping[str, float]) -> Pace | None:
    """The pace after a run that took `seconds` for these parts of `work`; None while any part was never measured."""
    values = dict(old.seconds_per_unit) if old else {}
    for part in PARTS:
        if part in seconds:
            new = seconds[part] / work.units(part)
            values[part] = values[part] + _NEWEST * (new - values[part]) if part in values else new
    return Pace(seconds_per_unit=values) if set(values) == set(PARTS) else None


def pace_key(folder: str, work: Work) -> str:
    """Where the pace of such runs is in the store; it tells nothing about any request."""
    return f"{folder}/{work.model}-{work.world_size}{work.way}.json"


def _is_time(value: object, *, may_be_zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return value > 0 or (may_be_zero and value == 0)
