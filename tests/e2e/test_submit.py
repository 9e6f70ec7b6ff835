"""submit over HTTP and a real log: what it accepts, what it refuses, and that nothing refused is published."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from engine.adapters.bus import Bus
from engine.contract.codec import decode
from engine.contract.events import REQUEST_TYPE
from engine.contract.job import upload_key
from engine.contract.settings import Settings
from engine.contract.upload import UPLOAD_MAX_BYTES
from functions.deps import Deps, open_deps
from functions.submit.app import make
from tests.make import TENANT, a_body, a_video, an_event, an_input
from tests.servers import NatsServer, wait_until

GENERATE = "/api/v1/generate"
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": REQUEST_TYPE}


@pytest.fixture
def deps(settings: Settings) -> Iterator[Deps]:
    opened = open_deps(settings)
    yield opened
    opened.close()


@pytest.fixture
def http(deps: Deps) -> FlaskClient:
    client = make(deps).test_client()
    wait_until(lambda: client.get("/readyz").status_code == 200)
    return client


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
IMAGE_BODY = a_body(model="tiny-i2v", input=an_input(image="boat.png"))


def put(http: FlaskClient, name: str = "boat.png", body: bytes = PNG, **more: Any) -> Any:
    return http.put(f"/api/v1/uploads/{name}", **{"data": body, "content_type": "image/png", **more})


def num_accepted(bus: Bus) -> int:
    return len(bus.read("CINEVENT_JOBS", matching="cinevent.*.*.requested.*"))


def test_a_json_request_is_in_the_log_before_the_202(http: FlaskClient, bus: Bus) -> None:
    answer = http.post(GENERATE, json=a_body(priority="high"))

    [message] = bus.read("CINEVENT_JOBS", matching="cinevent.>")
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/api/v1/jobs/{answer.json['id']}"
    assert message.subject == f"cinevent.{TENANT}.{answer.json['id']}.requested.high"


@pytest.mark.parametrize("path", ["/", GENERATE])
def test_an_event_in_binary_mode_is_answered_with_an_empty_body(http: FlaskClient, path: str) -> None:
    answer = http.post(path, json=a_body(), headers=EVENT)

    assert (answer.status_code, answer.data, "Content-Type" in answer.headers) == (202, b"", False)
    assert http.get(answer.headers["Location"]).json["state"] == "PENDING"


def test_an_event_in_structured_mode_is_accepted(http: FlaskClient) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": REQUEST_TYPE, "data": a_body()}

    answer = http.post("/", data=json.dumps(event), content_type="application/cloudevents+json")

    assert answer.status_code == 202


def test_a_redelivered_event_names_the_same_job(http: FlaskClient, bus: Bus) -> None:
    answers = [http.post("/", json=a_body(), headers=EVENT) for _ in range(3)]

    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert num_accepted(bus) == 1


def test_the_same_key_gives_the_same_answer_and_says_so(http: FlaskClient, bus: Bus) -> None:
    first, again = (http.post(GENERATE, json=a_body(), headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert (again.status_code, again.json) == (202, first.json)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert num_accepted(bus) == 1


def test_the_same_key_for_another_request_is_refused(http: FlaskClient, bus: Bus) -> None:
    http.post(GENERATE, json=a_body(), headers={"Idempotency-Key": "k"})

    answer = http.post(GENERATE, json=a_body(priority="low"), headers={"Idempotency-Key": "k"})

    assert (answer.status_code, answer.json["code"]) == (422, "idempotency_key_reused")
    assert num_accepted(bus) == 1


def test_trace_and_correlation_go_on_into_the_log(http: FlaskClient, bus: Bus) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    http.post("/", json=a_body(), headers={**EVENT, "ce-traceparent": trace})

    [message] = bus.read("CINEVENT_JOBS", matching="cinevent.>")

    assert decode(message.headers, message.body).extensions == {"traceparent": trace, "correlationid": "1"}


BAD: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("malformed JSON", {"data": "{", "content_type": "application/json"}, 400, "malformed_json", ""),
    ("not JSON", {"data": "x=1"}, 415, "unsupported_media_type", ""),
    ("an array", {"json": []}, 422, "validation_failed", ""),
    ("wrong type", {"json": a_body(input=an_input(width="wide"))}, 422, "validation_failed", "/input/width"),
    ("unknown model", {"json": a_body(model="sora")}, 422, "validation_failed", "/model"),
    ("unknown field", {"json": a_body(colour="red")}, 422, "validation_failed", ""),
    ("size", {"json": a_body(input=an_input(width=100))}, 422, "validation_failed", "/input/width"),
    ("frames", {"json": a_body(input=an_input(num_frames=10))}, 422, "validation_failed", "/input/num_frames"),
    ("long prompt", {"json": a_body(input={"prompt": "x" * 10_000})}, 422, "validation_failed", "/input/prompt"),
    ("control", {"json": a_body(input={"prompt": "a\0b"})}, 422, "validation_failed", "/input/prompt"),
    ("5 MB", {"data": b"x" * 5_000_000, "content_type": "application/json"}, 413, "payload_too_large", ""),
    ("no id", {"json": a_body(), "headers": EVENT | {"ce-id": ""}}, 400, "malformed_event", "/id"),
    ("other type", {"json": a_body(), "headers": EVENT | {"ce-type": "x"}}, 400, "malformed_event", "/type"),
    ("empty key", {"json": a_body(), "headers": {"Idempotency-Key": ""}}, 422, "validation_failed", "/Idempotency-Key"),
]


@pytest.mark.parametrize(("sent", "status", "code", "pointer"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_a_problem_that_names_the_field_and_publishes_nothing(
    http: FlaskClient, bus: Bus, sent: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    answer = http.post(GENERATE, **sent)

    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert answer.json["code"] == code
    assert not pointer or answer.json["errors"][0]["pointer"] == pointer
    assert num_accepted(bus) == 0


@pytest.mark.parametrize("path", ["/api/v1/jobs/x", "/api/v1/jobs/j" + "a" * 25, "/nowhere"])
def test_what_is_not_there_is_a_404_problem(http: FlaskClient, path: str) -> None:
    answer = http.get(path)

    assert (answer.status_code, answer.json["code"]) == (404, "not_found")


def test_a_wrong_method_names_the_right_ones(http: FlaskClient) -> None:
    answer = http.delete("/api/v1/jobs")

    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_the_list_has_the_newest_first_and_pages(http: FlaskClient) -> None:
    made = [http.post(GENERATE, json=a_body()).json["id"] for _ in range(3)]

    first = http.get("/api/v1/jobs?limit=2").json
    second = http.get(f"/api/v1/jobs?limit=2&cursor={first['next_cursor']}").json

    assert [job["id"] for job in first["jobs"] + second["jobs"]] == made[::-1]
    assert second["next_cursor"] is None


def test_cancel_is_accepted_while_the_job_is_open_and_refused_when_it_is_done(http: FlaskClient, bus: Bus) -> None:
    job = http.post(GENERATE, json=a_body()).json["id"]

    bus.publish(an_event("started", job=job))
    open_answer = http.post(f"/api/v1/jobs/{job}/cancel")
    bus.publish(an_event("failed", job=job))
    done_answer = http.post(f"/api/v1/jobs/{job}/cancel")

    assert (open_answer.status_code, open_answer.json["stage"]) == (202, "cancelling")
    assert (done_answer.status_code, done_answer.json["code"]) == (409, "already_finished")


def test_a_video_is_served_whole_and_in_ranges(http: FlaskClient, bus: Bus, deps: Deps, tmp_path: Any) -> None:
    job = http.post(GENERATE, json=a_body()).json["id"]
    (tmp_path / "v").write_bytes(bytes(range(100)))
    deps.store.put(f"{TENANT}/{job}/a1/video.mp4", tmp_path / "v", content_type="video/mp4")
    artifacts = an_event("completed").data["artifacts"]
    video = a_video(key=f"{TENANT}/{job}/a1/video.mp4", size_bytes=100)
    bus.publish(an_event("completed", job=job, artifacts={**artifacts, "video": video}))

    with (
        http.get(f"/api/v1/jobs/{job}/video") as whole,
        http.get(f"/api/v1/jobs/{job}/video", headers={"Range": "bytes=10-19"}) as part,
    ):
        assert (whole.status_code, whole.content_type, whole.data) == (200, "video/mp4", bytes(range(100)))
        assert (part.status_code, part.data) == (206, bytes(range(10, 20)))
        assert part.headers["Content-Range"] == "bytes 10-19/100"


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("boat.png", PNG, "image/png"),
        ("boat", b"\xff\xd8\xff\xe0" + bytes(8), "image/jpeg; q=1"),
        ("b" * 128, b"RIFF\0\0\0\0WEBP", "image/webp"),
        ("large.png", PNG[:8] + bytes(UPLOAD_MAX_BYTES - 8), "image/png"),
    ],
)
def test_a_picture_is_in_the_store_before_the_201(
    http: FlaskClient, deps: Deps, name: str, body: bytes, kind: str
) -> None:
    answer = put(http, name, body, content_type=kind)

    stored = {"name": name, "size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert (answer.status_code, answer.json) == (201, stored)
    assert answer.headers["Location"] == f"/api/v1/uploads/{name}"
    assert deps.store.read(upload_key(TENANT, name)) == body


def test_a_second_picture_of_a_name_replaces_the_first(http: FlaskClient, deps: Deps) -> None:
    answers = [put(http, body=PNG + number) for number in (b"1", b"2")]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert deps.store.read(upload_key(TENANT, "boat.png")) == PNG + b"2"


BAD_UPLOADS: dict[str, tuple[dict[str, Any], int, str]] = {
    "hidden": ({"name": ".boat.png"}, 422, "validation_failed"),
    "up": ({"name": "%2e%2e"}, 422, "validation_failed"),
    "elsewhere": ({"name": "a%2fb"}, 404, "not_found"),
    "long": ({"name": "b" * 129}, 422, "validation_failed"),
    "another type": ({"content_type": "image/gif"}, 415, "unsupported_media_type"),
    "no type": ({"content_type": ""}, 415, "unsupported_media_type"),
    "a form": ({"content_type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
    "empty": ({"body": b""}, 422, "validation_failed"),
    "text": ({"body": b"a cat"}, 422, "validation_failed"),
    "another picture": ({"body": b"\xff\xd8\xff" + bytes(100)}, 422, "validation_failed"),
    "large": ({"body": PNG + bytes(UPLOAD_MAX_BYTES)}, 413, "payload_too_large"),
    # As gunicorn hands over a body whose sender hung up.
    "cut": ({"environ_overrides": {"CONTENT_LENGTH": "999", "wsgi.input_terminated": True}}, 400, "bad_request"),
}


@pytest.mark.parametrize(("sent", "status", "code"), BAD_UPLOADS.values(), ids=BAD_UPLOADS)
def test_a_bad_upload_is_a_problem_and_is_not_stored(
    http: FlaskClient, settings: Settings, sent: dict[str, Any], status: int, code: str
) -> None:
    answer = put(http, **sent)

    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert answer.json["code"] == code
    assert [path for path in Path(settings.store_url.removeprefix("file:")).rglob("*") if path.is_file()] == []


def test_a_body_that_is_too_large_is_told_its_own_limit(http: FlaskClient) -> None:
    assert str(UPLOAD_MAX_BYTES) in put(http, body=PNG + bytes(UPLOAD_MAX_BYTES)).json["detail"]
    assert "1048576 bytes" in http.post(GENERATE, data=b"x" * 5_000_000, content_type="application/json").json["detail"]


@pytest.mark.parametrize("headers", [{}, EVENT], ids=["json", "event"])
def test_a_request_is_accepted_once_its_picture_is_there(http: FlaskClient, bus: Bus, headers: dict[str, str]) -> None:
    before = http.post("/", json=IMAGE_BODY, headers=headers)
    put(http)
    after = http.post("/", json=IMAGE_BODY, headers=headers)

    assert (before.status_code, before.json["errors"][0]["pointer"]) == (422, "/input/image")
    assert after.status_code == 202
    assert num_accepted(bus) == 1


def test_a_repeat_is_answered_with_its_job_although_the_picture_is_gone(
    http: FlaskClient, bus: Bus, settings: Settings
) -> None:
    put(http)
    first = http.post("/", json=IMAGE_BODY, headers=EVENT)
    (Path(settings.store_url.removeprefix("file:")) / upload_key(TENANT, "boat.png")).unlink()

    again, another = (http.post("/", json=IMAGE_BODY, headers=EVENT | {"ce-id": key}) for key in ("1", "2"))

    assert (again.status_code, again.headers["Location"]) == (202, first.headers["Location"])
    assert another.status_code == 422
    assert num_accepted(bus) == 1


def test_there_is_no_video_before_the_job_is_completed(http: FlaskClient) -> None:
    job = http.post(GENERATE, json=a_body()).json["id"]

    assert http.get(f"/api/v1/jobs/{job}/video").status_code == 409


def test_without_nats_submit_says_503_soon_and_recovers_by_itself(http: FlaskClient, nats: NatsServer) -> None:
    assert http.get("/readyz").status_code == 200
    nats.kill()
    start = time.monotonic()

    away = http.post(GENERATE, json=a_body())

    assert (away.status_code, away.headers["Retry-After"]) == (503, "2")
    # Well below the deadline that a write has of its own; bench/submit_outage.py measures it.
    assert time.monotonic() - start < 3.0
    assert http.get("/healthz").status_code == 200
    nats.start()
    wait_until(lambda: http.post(GENERATE, json=a_body()).status_code == 202)
