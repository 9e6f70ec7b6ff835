"""OpenAI's /v1/videos: what its SDK does not do in test_local.py, and what goes wrong, in OpenAI's shape."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.door import Door
from tests.e2e.test_jobs import complete
from tests.pictures import a_file

BODY = {"model": "tiny-t2v", "prompt": "a cat", "size": "64x96", "seconds": "2"}


def create(door: Door, **over: Any) -> Any:
    return door.http.post("/v1/videos", json={**BODY, **over})


def test_a_video_says_what_was_asked_for_in_openais_words(door: Door) -> None:
    video = create(door, steps=4).json

    job = door.get(video["id"]).json
    assert (video["status"], video["size"], video["seconds"], video["progress"]) == ("queued", "64x96", "2", 0)
    assert (job["input"]["width"], job["input"]["height"], job["input"]["steps"]) == (64, 96, 4)
    assert job["input"]["num_frames"] == 2 * job["input"]["fps"] + 1


def test_a_form_means_the_same_as_json_and_brings_a_picture(door: Door) -> None:
    form = {**BODY, "model": "tiny-i2v", "steps": "4", "input_reference": (io.BytesIO(a_file()), "boat.png")}

    answer = door.http.post("/v1/videos", data=form, content_type="multipart/form-data")

    job = door.get(answer.json["id"]).json
    assert (job["input"]["steps"], job["input"]["image"][-4:]) == (4, ".png")


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [("started", "in_progress", None), ("failed", "failed", "engine_crashed"), ("cancelled", "failed", "cancelled")],
)
def test_a_state_is_one_of_openais(door: Door, event: str, status: str, code: str | None) -> None:
    video = create(door).json["id"]
    door.say(event, video)

    answer = door.http.get(f"/v1/videos/{video}")

    assert (answer.json["status"], (answer.json["error"] or {}).get("code")) == (status, code)
    assert ("openai-poll-after-ms" in answer.headers) is (status == "in_progress")


def test_pages_go_on_after_an_id(door: Door) -> None:
    made = [create(door).json["id"] for _ in range(3)]

    first = door.http.get("/v1/videos?limit=2").json
    second = door.http.get(f"/v1/videos?limit=2&after={first['last_id']}").json

    assert [video["id"] for video in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_a_finished_video_is_read_and_deleted(door: Door, tmp_path: Path) -> None:
    video = create(door).json["id"]
    early = [door.http.get(f"/v1/videos/{video}/content"), door.http.delete(f"/v1/videos/{video}")]
    complete(door, video, tmp_path)

    files = [door.http.get(f"/v1/videos/{video}/content{query}", buffered=True) for query in ("", "?variant=thumbnail")]
    deleted = door.http.delete(f"/v1/videos/{video}")

    assert [(answer.status_code, answer.json["error"]["code"]) for answer in early] == [(409, "conflict")] * 2
    assert [file.data for file in files] == [b"video", b"poster"]
    assert deleted.json == {"id": video, "object": "video.deleted", "deleted": True}
    assert door.http.get(f"/v1/videos/{video}").status_code == 404


@pytest.mark.parametrize(
    ("over", "param"),
    [
        ({"model": "sora-2"}, "model"),
        ({"size": "large"}, "size"),
        ({"size": "100x100"}, "size"),
        ({"seconds": "long"}, "seconds"),
        ({"seconds": "9999"}, "seconds"),
        ({"input_reference": {"image_url": "x"}}, "input_reference"),
        ({"prompt": 7}, "prompt"),
    ],
)
def test_a_bad_field_is_named_as_openai_names_it(door: Door, over: dict[str, Any], param: str) -> None:
    answer = create(door, **over)

    assert (answer.status_code, answer.content_type) == (422, "application/json")
    assert (answer.json["error"]["type"], answer.json["error"]["param"]) == ("invalid_request_error", param)


def test_other_bodies_are_refused_in_openais_shape(door: Door) -> None:
    answers = [
        door.http.post("/v1/videos", data=b"{", content_type="application/json"),
        door.http.post("/v1/videos", data=json.dumps([1]), content_type="application/json"),
        door.http.get("/v1/videos/none"),
        door.http.get("/v1/videos?order=asc"),
    ]

    assert [answer.status_code for answer in answers] == [400, 422, 404, 422]
    assert all(answer.json["error"]["message"] for answer in answers)
