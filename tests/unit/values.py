"""Strategies of the properties: any JSON, any good request, any event that the codec must carry."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from engine.contract.events import Event
from engine.contract.models import CATALOG, SAMPLERS
from engine.contract.request import WEBHOOK_EVENTS
from engine.contract.upload import NAME_MAX_CHARACTERS, NAME_PATTERN

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
"""What json.loads may give, NaN and lone surrogates included."""

# No lone surrogates: they have no UTF-8 form, so no message can carry them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
attributes = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
sendable_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)

_zones = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=-30)), timezone(timedelta(hours=14))])
_names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(
    lambda name: name not in ("id", "source", "type", "specversion", "time", "subject", "data")
)


events = st.builds(
    Event,
    id=attributes,
    source=attributes,
    type=attributes,
    time=st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=_zones),
    data=st.dictionaries(texts, sendable_json, max_size=3),
    subject=st.none() | attributes,
    dataschema=st.none() | attributes,
    extensions=st.dictionaries(_names, attributes, max_size=3),
)
"""Any event that CloudEvents and the codec allow."""


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Requests that keep every rule."""
    row = draw(st.sampled_from(list(CATALOG.values())))
    side = st.integers(256 // row.size_multiple, 512 // row.size_multiple).map(lambda n: n * row.size_multiple)
    words = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30)
    optional: dict[str, Any] = {
        "negative_prompt": words,
        "width": side,
        "height": side,
        "num_frames": st.integers(1, 30).map(lambda k: 4 * k + 1),
        "steps": st.integers(1, 100) | st.integers(1, 100).map(float),
        "guidance_scale": st.floats(0, 30) | st.integers(0, 30),
        "seed": st.integers(0, 2**32 - 1),
        "crf": st.integers(1, 51),
        "sampler": st.sampled_from(SAMPLERS),
        "cache": st.sampled_from(row.caches),
        "loras": st.lists(st.sampled_from("abcd"), max_size=3, unique=True).map(
            lambda names: [{"name": name, **({"scale": 1} if name > "b" else {})} for name in names]
        ),
    }
    if row.presets:
        optional["preset"] = st.sampled_from(list(row.presets))
    required: dict[str, Any] = {"prompt": words.map(lambda text: f"x{text}")}
    if row.image != "none":
        (required if row.image == "required" else optional)["image"] = st.from_regex(NAME_PATTERN, fullmatch=True).map(
            lambda name: name[:NAME_MAX_CHARACTERS]
        )
    given_input = draw(st.fixed_dictionaries(required, optional=optional))
    hook = st.fixed_dictionaries(
        {"url": st.just("https://example.com/hook")},
        optional={"events": st.lists(st.sampled_from(WEBHOOK_EVENTS), min_size=1, unique=True)},
    )
    options = st.fixed_dictionaries(
        {},
        optional={
            "priority": st.sampled_from(["high", "normal", "low"]),
            "max_attempts": st.integers(1, 10),
            "deadline_s": st.integers(1, 604_800),
            "webhook": hook,
            "metadata": st.dictionaries(words.map(lambda text: f"k{text}"), words, max_size=3),
        },
    )
    return {"model": row.name, "input": given_input, **draw(options)}


def as_body(value: Any) -> bytes:
    """JSON as a careless sender writes it: NaN and lone surrogates as they come."""
    return json.dumps(value).encode()
