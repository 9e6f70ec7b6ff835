"""What a producer may ask for, rule by rule, and what a checked request keeps."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.errors import Invalid
from engine.contract.lora import Lora
from engine.contract.models import CATALOG
from engine.contract.request import OPTIONS, WEBHOOK_EVENTS, Input, Request, check_size, parse
from tests.make import JOB, a_body, a_request, an_input, an_input_for
from tests.unit.values import any_json, bodies

OTHER_JOB = "j" + "z" * 25


def broken_rules(body: Any) -> set[tuple[str, str]]:
    """Pointer and rule of every problem that `body` has."""
    with pytest.raises(Invalid) as caught:
        parse(body, job=JOB)
    return {(problem.pointer, problem.rule) for problem in caught.value.problems}


def with_input(**over: Any) -> dict[str, Any]:
    return a_body(input=an_input(**over))


def with_image(name: Any) -> dict[str, Any]:
    return a_body(model="tiny-ti2v", input=an_input(image=name))


def with_hook(**over: Any) -> dict[str, Any]:
    return a_body(webhook={"url": "https://example.com", **over})


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


BROKEN: dict[str, tuple[Any, str, str]] = {
    "a list": ([], "", "type"),
    "a text": ("a boat", "", "type"),
    "nothing": (None, "", "type"),
    "a number": (5, "", "type"),
    "no model": ({"input": an_input()}, "/model", "enum"),
    "an unknown model": (a_body(model="sora"), "/model", "enum"),
    "a model that is a list": (a_body(model=[]), "/model", "enum"),
    "no image where there must be one": (a_body(model="wan2.2-i2v-a14b"), "/input", "required"),
    "an image where there can be none": (with_input(image="boat.png"), "/input/image", "unavailable"),
    "an image that is null": (with_image(None), "/input/image", "type"),
    "an image without a name": (with_image(""), "/input/image", "pattern"),
    "a hidden image": (with_image(".boat.png"), "/input/image", "pattern"),
    "an image elsewhere": (with_image("../other/boat.png"), "/input/image", "pattern"),
    "an image on the web": (with_image("https://example.com/boat.png"), "/input/image", "pattern"),
    "an image with a line break": (with_image("boat.png\n"), "/input/image", "pattern"),
    "an image with a long name": (with_image("a" * 129), "/input/image", "maxLength"),
    "no input": ({"model": "tiny-t2v"}, "", "required"),
    "an input that is a text": (a_body(input="a boat"), "/input", "type"),
    "no prompt": (a_body(input={}), "/input", "required"),
    "a prompt that is a number": (with_input(prompt=5), "/input/prompt", "type"),
    "an empty prompt": (with_input(prompt=""), "/input/prompt", "minLength"),
    "a blank prompt": (with_input(prompt=" \n\t "), "/input/prompt", "blank"),
    "a prompt of 10,000 characters": (with_input(prompt="a" * 10_000), "/input/prompt", "maxLength"),
    "a long negative prompt": (with_input(negative_prompt="a" * 4001), "/input/negative_prompt", "maxLength"),
    "a control character": (with_input(prompt="a\x00b"), "/input/prompt", "control_characters"),
    "an escape in the negative prompt": (
        with_input(negative_prompt="\x1b[0m"),
        "/input/negative_prompt",
        "control_characters",
    ),
    "half a character": (with_input(prompt="a \ud83d"), "/input/prompt", "control_characters"),
    "a width between two multiples": (with_input(width=130), "/input/width", "multipleOf"),
    "a height between two multiples": (with_input(height=90), "/input/height", "multipleOf"),
    "a width below the limit": (with_input(width=16), "/input/width", "minimum"),
    "a width above the limit": (with_input(width=528), "/input/width", "maximum"),
    "steps that are a fraction": (with_input(steps=2.5), "/input/steps", "type"),
    "a width that is a boolean": (with_input(width=True), "/input/width", "type"),
    "frames that are not 4k + 1": (with_input(num_frames=10), "/input/num_frames", "frames"),
    "too few frames": (with_input(num_frames=1), "/input/num_frames", "minimum"),
    "too many frames": (with_input(num_frames=125), "/input/num_frames", "maximum"),
    "no steps": (with_input(steps=0), "/input/steps", "minimum"),
    "a negative seed": (with_input(seed=-1), "/input/seed", "minimum"),
    "a seed of 401 digits": (with_input(seed=10**400), "/input/seed", "maximum"),
    "a quality that no browser plays": (with_input(crf=0), "/input/crf", "minimum"),
    "a quality beyond the scale": (with_input(crf=52), "/input/crf", "maximum"),
    "a quality that is a fraction": (with_input(crf=18.5), "/input/crf", "type"),
    "a guidance that is no number": (with_input(guidance_scale=float("nan")), "/input/guidance_scale", "type"),
    "a second guidance for one expert": (
        a_body(model="tiny-ti2v", input=an_input(guidance_scale_2=3)),
        "/input",
        "additionalProperties",
    ),
    "an unknown field": (a_body(size="720p"), "", "additionalProperties"),
    "an unknown field of the input": (with_input(size="720p"), "/input", "additionalProperties"),
    "an unknown sampler": (with_input(sampler="ddim"), "/input/sampler", "enum"),
    "an unknown cache": (with_input(cache="teacache"), "/input/cache", "enum"),
    "a cache that is null": (with_input(cache=None), "/input/cache", "enum"),
    "a cache that nobody calibrated": (
        a_body(model="tiny-i2v", input=an_input(image="boat.png", cache="magcache")),
        "/input/cache",
        "unavailable",
    ),
    "an unknown preset": (with_input(preset="thunder"), "/input/preset", "enum"),
    "a preset where there are none": (
        a_body(model="wan2.2-ti2v-5b", input=an_input(preset="lightning")),
        "/input/preset",
        "unavailable",
    ),
    "a shift of nothing": (with_input(flow_shift=0), "/input/flow_shift", "minimum"),
    "LoRAs that are one": (with_input(loras={"name": "ink"}), "/input/loras", "type"),
    "a LoRA without a name": (with_input(loras=[{"scale": 1}]), "/input/loras/0", "required"),
    "a LoRA elsewhere": (with_input(loras=[{"name": "../ink"}]), "/input/loras/0/name", "pattern"),
    "a LoRA on the web": (with_input(loras=[{"name": "https://a.b/ink"}]), "/input/loras/0/name", "pattern"),
    "a LoRA of too much": (with_input(loras=[{"name": "ink", "scale": 4.5}]), "/input/loras/0/scale", "maximum"),
    "a LoRA with a path": (with_input(loras=[{"name": "a", "path": "x"}]), "/input/loras/0", "additionalProperties"),
    "five LoRAs": (with_input(loras=[{"name": f"a{n}"} for n in range(5)]), "/input/loras", "maxItems"),
    "four LoRAs beside a preset's": (
        with_input(preset="lightning", loras=[{"name": f"a{n}"} for n in range(4)]),
        "/input/loras",
        "maxItems",
    ),
    "a LoRA twice": (with_input(loras=[{"name": "a"}, {"name": "a", "scale": 2}]), "/input/loras", "uniqueItems"),
    "an unknown priority": (a_body(priority="urgent"), "/priority", "enum"),
    "no attempts": (a_body(max_attempts=0), "/max_attempts", "minimum"),
    "eleven attempts": (a_body(max_attempts=11), "/max_attempts", "maximum"),
    "a deadline beyond a week": (a_body(deadline_s=604_801), "/deadline_s", "maximum"),
    "a webhook that is null": (a_body(webhook=None), "/webhook", "type"),
    "a webhook without address": (a_body(webhook={}), "/webhook", "required"),
    "an unknown field of the webhook": (with_hook(retries=3), "/webhook", "additionalProperties"),
    "a webhook for no event": (with_hook(events=[]), "/webhook/events", "minItems"),
    "a webhook for an unknown event": (with_hook(events=["started"]), "/webhook/events/0", "enum"),
    "a webhook for one event twice": (with_hook(events=["failed", "failed"]), "/webhook/events", "uniqueItems"),
    "metadata that is a text": (a_body(metadata="x"), "/metadata", "type"),
    "17 metadata": (a_body(metadata={f"k{n}": "" for n in range(17)}), "/metadata", "maxProperties"),
    "a metadata number": (a_body(metadata={"shot": 5}), "/metadata/shot", "type"),
    "long metadata": (a_body(metadata={"shot": "a" * 257}), "/metadata/shot", "maxLength"),
    "a long metadata name": (a_body(metadata={"a" * 65: ""}), "/metadata", "propertyNames"),
    "an empty metadata name": (a_body(metadata={"": ""}), "/metadata", "propertyNames"),
    "a control character in metadata": (a_body(metadata={"shot": "\x07"}), "/metadata/shot", "control_characters"),
    "a bad value under a name with slashes": (
        a_body(metadata={"a/b~c": "\x07"}),
        "/metadata/a~1b~0c",
        "control_characters",
    ),
    "metadata nested 300 deep": (a_body(metadata=deep(300)), "", "json"),
    "a name that has no UTF-8 form": (a_body(metadata={"\ud83d": "x"}), "", "json"),
}


@pytest.mark.parametrize(("body", "pointer", "rule"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_named_with_its_place(body: Any, pointer: str, rule: str) -> None:
    assert broken_rules(body) == {(pointer, rule)}


def test_every_broken_rule_is_named_at_once() -> None:
    body = a_body(input=an_input(width=130, steps=0), priority="urgent")

    assert broken_rules(body) == {("/input/width", "multipleOf"), ("/input/steps", "minimum"), ("/priority", "enum")}


def test_a_frame_beyond_the_trained_size_is_refused_although_each_side_is_allowed() -> None:
    body = a_body(model="wan2.2-t2v-a14b", input=an_input(width=1280, height=1280))

    assert broken_rules(body) == {("/input/width", "max_pixels")}


@pytest.mark.parametrize("name", ["wan2.2-i2v-a14b", "tiny-t2v"])
@pytest.mark.parametrize(
    ("size", "broken"),
    [
        ({}, set()),
        ({"width": 16}, {("/input/width", "minimum")}),
        ({"height": 8008}, {("/input/height", "maximum"), ("/input/height", "multipleOf")}),
        ({"num_frames": 12}, {("/input/num_frames", "frames")}),
    ],
)
def test_a_size_alone_keeps_the_rules_of_a_request(name: str, size: dict[str, int], broken: set[Any]) -> None:
    found: set[Any] = set()
    try:
        check_size(CATALOG[name], **{"width": 256, "height": 256, "num_frames": 9, **size})
    except Invalid as error:
        found = {(problem.pointer, problem.rule) for problem in error.problems}

    assert found == broken


def test_wrong_frames_are_answered_with_the_next_right_ones() -> None:
    with pytest.raises(Invalid, match=r"such as 9 or 13$"):
        parse(with_input(num_frames=12), job=JOB)


def test_a_message_never_repeats_a_long_value_whole() -> None:
    with pytest.raises(Invalid) as caught:
        parse(with_input(prompt=["a" * 10_000]), job=JOB)

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ftp://example.com/", "uri"),
        ("example.com/hook", "uri"),
        ("https:///hook", "uri"),
        ("http://[::1", "uri"),
        ("http://example.com:0/", "uri"),
        ("http://example.com:99999/", "uri"),
        ("http://example.com:http/", "uri"),
        ("https://exa mple.com/", "uri"),
        ("https://example.com/\r\nX-Other: 1", "uri"),
        ("https://example.com/\x00", "uri"),
        ("https://example.com/\x7f", "uri"),
        ("https://ex\u00e4mple.com/", "uri"),
        ("https://user@example.com/", "userinfo"),
        ("https://user:word@example.com/", "userinfo"),
        ("https://@example.com/", "userinfo"),
    ],
)
def test_a_webhook_address_of_another_form_is_refused(url: str, rule: str) -> None:
    assert broken_rules(a_body(webhook={"url": url})) == {("/webhook/url", rule)}


@pytest.mark.parametrize(
    "url", ["https://example.com", "http://example.com:8080/hook?a=b", "https://[2001:db8::1]:8443/", "HTTP://a.b/%20"]
)
def test_a_webhook_address_is_kept_as_it_was_given(url: str) -> None:
    request = a_request(webhook={"url": url})

    assert request.webhook is not None
    assert request.webhook.url == url
    assert request.webhook.events == WEBHOOK_EVENTS


def test_a_model_without_images_is_answered_with_those_that_take_one() -> None:
    with pytest.raises(Invalid, match=r"tiny-t2v starts from the prompt alone.*wan2\.2-i2v-a14b, wan2\.2-ti2v-5b"):
        parse(with_input(image="boat.png"), job=JOB)


def test_a_cache_without_calibration_is_answered_with_the_models_that_have_one() -> None:
    with pytest.raises(Invalid, match=r"tiny-i2v has no calibration for magcache; ask for none or taylorseer.*a14b"):
        parse(a_body(model="tiny-i2v", input=an_input(image="boat.png", cache="magcache")), job=JOB)


def test_a_preset_stands_for_its_options_and_what_is_said_beside_it_comes_first() -> None:
    preset = a_request(model="wan2.2-t2v-a14b", input=an_input(preset="lightning", steps=8)).input

    assert (preset.guidance_scale, preset.guidance_scale_2, preset.flow_shift) == (1.0, 1.0, 5.0)
    assert (preset.steps, preset.sampler) == (8, "euler")
    assert preset.loras == (Lora(name="lightning", scale=1.0),)


@pytest.mark.parametrize(
    ("given_loras", "scales"),
    [
        ([{"name": "ink", "scale": 0.5}], {"lightning": 1.0, "ink": 0.5}),
        ([{"name": "lightning", "scale": 0.8}], {"lightning": 0.8}),
    ],
)
def test_a_lora_goes_with_those_of_a_preset_and_replaces_its_namesake(
    given_loras: list[dict[str, Any]], scales: dict[str, float]
) -> None:
    loras = a_request(input=an_input(preset="lightning", loras=given_loras)).input.loras

    assert {lora.name: lora.scale for lora in loras} == scales


def test_a_request_that_was_accepted_before_there_were_samplers_caches_and_loras_is_a_plain_one() -> None:
    carried = a_request().to_json()
    for name in ("sampler", "cache", "loras"):
        del carried["input"][name]

    assert Request.from_json(carried) == a_request()
    assert (a_request().input.sampler, a_request().input.cache, a_request().input.loras) == ("unipc", "none", ())


def test_a_request_accepted_before_there_were_images_is_still_one() -> None:
    accepted = a_request().to_json()
    del accepted["input"]["image"]

    assert Request.from_json(accepted) == a_request()


@pytest.mark.parametrize("model", CATALOG)
def test_defaults_are_filled_in_from_the_model_row(model: str) -> None:
    row = CATALOG[model]

    request = a_request(model=model, input=an_input_for(model))

    filled = request.input
    assert filled.negative_prompt == row.negative_prompt
    assert (filled.width, filled.height, filled.num_frames) == (
        row.width.default,
        row.height.default,
        row.num_frames.default,
    )
    assert (filled.fps, filled.steps) == (row.fps.default, row.steps.default)
    assert (filled.guidance_scale, filled.guidance_scale_2) == (row.guidance_scale, row.guidance_scale_2)
    assert (filled.flow_shift, filled.crf) == (row.flow_shift, 18)


def test_the_options_that_are_filled_in_are_the_ones_that_the_schema_names() -> None:
    request = a_request()

    for name in ("priority", "max_attempts", "deadline_s"):
        assert getattr(request, name) == OPTIONS[name]["default"]
    assert request.webhook is None
    assert request.metadata == {}


def test_the_same_job_gets_the_same_seed_and_another_job_another() -> None:
    assert parse(a_body(), job=JOB) == parse(a_body(), job=JOB)
    assert parse(a_body(), job=JOB).input.seed != parse(a_body(), job=OTHER_JOB).input.seed


def test_a_given_seed_wins_over_the_one_of_the_job() -> None:
    body = a_body(input=an_input(seed=7))

    assert parse(body, job=JOB) == parse(body, job=OTHER_JOB)


def test_whole_numbers_written_as_fractions_ask_for_the_same() -> None:
    floats = a_request(input=an_input(steps=5.0, seed=7.0, guidance_scale=5.0), max_attempts=2.0, deadline_s=60.0)
    wholes = a_request(input=an_input(steps=5, seed=7, guidance_scale=5), max_attempts=2, deadline_s=60)

    assert floats == wholes
    # The bytes too: the log compares an event that is sent again with the one it has.
    assert json.dumps(floats.to_json()) == json.dumps(wholes.to_json())


def test_two_spellings_of_one_text_are_one_prompt() -> None:
    composed, decomposed = "\u00e9clair", "e\u0301clair"

    assert a_request(input=an_input(prompt=decomposed)) == a_request(input=an_input(prompt=composed))


def test_newlines_tabs_and_other_scripts_are_allowed_in_a_prompt() -> None:
    prompt = "first line\n\tsecond \u6c34\u58a8 \U0001f6a3"

    assert a_request(input=an_input(prompt=prompt)).input.prompt == prompt


def test_a_request_that_was_accepted_before_there_was_a_quality_gets_the_default() -> None:
    carried = a_request(input=an_input(crf=18)).to_json()
    del carried["input"]["crf"]

    assert Request.from_json(carried) == a_request()


@given(bodies())
def test_a_request_survives_the_way_through_an_event(body: dict[str, Any]) -> None:
    request = parse(body, job=JOB)

    carried = json.loads(json.dumps(request.to_json()))

    assert Request.from_json(carried) == request


@given(bodies())
def test_a_complete_request_is_a_valid_request_for_the_same(body: dict[str, Any]) -> None:
    request = parse(body, job=JOB)
    complete = {name: value for name, value in request.to_json().items() if value is not None}
    complete["input"] = {name: value for name, value in complete["input"].items() if value is not None}

    assert parse(complete, job=OTHER_JOB) == request


_nearly = st.fixed_dictionaries(
    {"model": st.just("tiny-t2v") | any_json, "input": any_json},
    optional=dict.fromkeys((*OPTIONS, "other"), any_json),
)
_close = st.fixed_dictionaries(
    {"prompt": any_json}, optional={item.name: any_json for item in fields(Input) if item.name != "prompt"}
).map(lambda given_input: a_body(input=given_input))


@given(any_json | _nearly | _close)
def test_any_json_is_a_request_or_invalid(body: Any) -> None:
    try:
        answer: Request | Invalid = parse(body, job=JOB)
    except Invalid as error:
        answer = error

    assert isinstance(answer, Request) or answer.problems
