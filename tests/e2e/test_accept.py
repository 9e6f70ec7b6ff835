"""Every way in which a request comes in: events one by one and in batches, forms with a picture, repeats, limits."""

import http.server
import io
import json
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from engine.contract.codec import BATCH
from engine.contract.events import REQUEST_TYPE
from engine.contract.job import upload_key
from engine.contract.upload import UPLOAD_MAX_BYTES
from tests.e2e.door import GENERATE, Door, a_door
from tests.make import a_body, an_input
from tests.pictures import a_file


def an_event(number: int, **over: Any) -> dict[str, Any]:
    event = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": REQUEST_TYPE, "data": a_body()}
    return {**event, **over}


def batch(door: Door, events: Any) -> Any:
    return door.http.post("/", data=json.dumps(events), content_type=BATCH)


def jobs(door: Door) -> list[str]:
    return [job["id"] for job in door.http.get("/api/v1/jobs").json["jobs"]]


def form(door: Door, **fields: Any) -> Any:
    return door.http.post(GENERATE, data=fields, content_type="multipart/form-data")


def a_bomb() -> bytes:
    """A PNG of a few bytes that asks for 30 GB."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def test_a_batch_makes_a_job_of_each_event_and_a_repeat_makes_none(door: Door) -> None:
    first, again = (batch(door, [an_event(1), an_event(2)]) for _ in range(2))

    assert (first.status_code, first.json) == (202, again.json)
    assert [job["id"] for job in first.json["jobs"]] == jobs(door)[::-1]


BAD_BATCHES: dict[str, tuple[Any, int, str]] = {
    "empty": ([], 400, ""),
    "no array": (an_event(1), 400, ""),
    "too many": ([an_event(number) for number in range(101)], 400, ""),
    "no id": ([an_event(1), an_event(2, id="")], 400, "/1/id"),
    "bad data": ([an_event(1), an_event(2, data=a_body(input=an_input(width=1)))], 422, "/1/input/width"),
    "another type": ([an_event(1, type="x")], 400, "/0/type"),
    "no object": ([an_event(1), 7], 400, "/1"),
}


@pytest.mark.parametrize(("events", "status", "pointer"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_batch_with_a_bad_event_is_refused_whole(door: Door, events: Any, status: int, pointer: str) -> None:
    answer = batch(door, events)

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (status, pointer)
    assert jobs(door) == []


def test_an_id_of_a_batch_that_was_used_for_another_request_is_named(door: Door) -> None:
    batch(door, [an_event(1)])

    answer = batch(door, [an_event(1, data=a_body(priority="low"))])

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, "/0/id")


def test_a_bad_key_is_a_mistake_beside_an_event_too(door: Door) -> None:
    key = {"Idempotency-Key": ""}
    kinds = {BATCH: [an_event(1)], "application/cloudevents+json": an_event(1), "application/json": a_body()}

    answers = [
        door.http.post("/", data=json.dumps(body), content_type=kind, headers=key) for kind, body in kinds.items()
    ]

    assert [answer.json["errors"][0]["pointer"] for answer in answers] == ["/Idempotency-Key"] * 3
    assert jobs(door) == []


def test_a_form_brings_its_picture_along(door: Door) -> None:
    body = json.dumps(a_body(model="tiny-i2v"))

    answers = [form(door, request=body, image=(io.BytesIO(a_file()), "boat.png")) for _ in range(2)]

    names = {answer.json["input"]["image"] for answer in answers}
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len(names) == 1
    assert door.deps.store.read(upload_key(door.tenant, names.pop())) == a_file()


def test_a_form_without_a_request_says_so(door: Door) -> None:
    answer = form(door, prompt="a cat")

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, "/request")


@pytest.mark.parametrize("way", ["form", "upload"])
def test_a_picture_that_would_not_fit_in_memory_is_refused_by_its_head(door: Door, way: str) -> None:
    bomb = a_bomb()
    if way == "upload":
        answer = door.http.put("/api/v1/uploads/bomb.png", data=bomb, content_type="image/png")
    else:
        body = json.dumps(a_body(model="tiny-i2v"))
        answer = form(door, request=body, image=(io.BytesIO(bomb), "bomb.png"))

    assert len(bomb) < 1000
    assert (answer.status_code, answer.json["errors"][0]["rule"]) == (422, "max_pixels")
    assert door.deps.store.list(f"{door.tenant}/uploads") == []


def test_a_job_may_start_later(door: Door) -> None:
    job = door.get(door.submit(process_in_s=3600)).json

    assert (job["state"], job["stage"]) == ("PENDING", "scheduled")
    assert job["due_at"] > job["created_at"]


@pytest.mark.parametrize(
    ("over", "pointer"),
    [
        ({"process_at": "tomorrow at noon, if you can"}, "/process_at"),
        ({"process_at": "2126-01-01T00:00:00Z"}, "/process_at"),
        ({"process_in_s": 7 * 24 * 3600 + 1}, "/process_in_s"),
        ({"process_in_s": 1, "process_at": "2026-01-01T00:00:00Z"}, "/process_in_s"),
    ],
)
def test_a_bad_start_is_named(door: Door, over: dict[str, Any], pointer: str) -> None:
    answer = door.http.post(GENERATE, json=a_body(**over))

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, pointer)


def test_a_repeat_may_write_the_same_start_another_way(door: Door) -> None:
    key = {"Idempotency-Key": "k"}
    starts = ("2026-01-01T00:00:00Z", "2026-01-01t01:00:00.000+01:00")

    answers = [door.http.post(GENERATE, json=a_body(process_at=start), headers=key) for start in starts]

    assert [answer.status_code for answer in answers] == [202, 202]


def test_a_tenant_over_its_rate_is_told_when_to_come_again_and_others_are_not(door: Door) -> None:
    limited = a_door(door.deps.bus, door.deps.settings, max_submits_per_minute=2)
    key = {"Idempotency-Key": "k"}
    taken = [limited.http.post(GENERATE, json=a_body(), headers=headers) for headers in (key, {})]

    refused = limited.http.post(GENERATE, json=a_body())
    repeat = limited.http.post(GENERATE, json=a_body(), headers=key)

    assert [answer.headers["RateLimit"].partition(";t")[0] for answer in taken] == ['"submit";r=1', '"submit";r=0']
    assert (refused.status_code, refused.json["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit-Policy"] == '"submit";q=2;w=60'
    assert (repeat.status_code, repeat.json["id"]) == (202, taken[0].json["id"])
    assert door.submit()


def test_a_tenant_with_a_full_queue_may_submit_again_once_a_job_starts(door: Door) -> None:
    limited = a_door(door.deps.bus, door.deps.settings, max_waiting=2)
    job = limited.submit()
    limited.submit()

    refused = limited.http.post(GENERATE, json=a_body())
    limited.say("launched", job)
    again = a_door(door.deps.bus, limited.deps.settings, tenant=limited.tenant, max_waiting=2)

    assert (refused.status_code, refused.json["code"]) == (429, "queue_full")
    assert again.submit()


class Pictures:
    """An https server that answers with a picture, or as a test says; its certificate is vouched for by a file."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(hours=1))
        self.certificate = folder / "certificate.pem"
        self.certificate.write_bytes(
            made.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        )
        secret = folder / "key.pem"
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, a_file())
        pictures = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = pictures.answer
                self.send_response(status)
                for header in ({"content-length": str(len(body))} | headers).items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, secret)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}/boat.png"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictures]:
    made = Pictures(tmp_path_factory.mktemp("pictures"))
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def outside(door: Door, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> Door:
    """submit that may fetch from this machine, and trusts the server's certificate."""
    pictures.answer = (200, {}, a_file())
    context = ssl.create_default_context(cafile=str(pictures.certificate))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", context)
    return a_door(door.deps.bus, door.deps.settings, webhook_allow="127.0.0.0/8")


def with_picture(url: str) -> dict[str, Any]:
    return a_body(model="tiny-i2v", input=an_input(image=url))


def test_a_picture_at_an_https_address_becomes_an_upload(outside: Door, pictures: Pictures) -> None:
    key = {"Idempotency-Key": "k"}
    first, again = (outside.http.post(GENERATE, json=with_picture(pictures.url), headers=key) for _ in range(2))
    event = outside.http.post("/", data=json.dumps([an_event(1, data=with_picture(pictures.url))]), content_type=BATCH)
    openai = {"model": "tiny-i2v", "prompt": "a boat", "input_reference": {"image_url": pictures.url}}
    video = outside.http.post("/v1/videos", json=openai)

    assert (first.status_code, again.json["id"]) == (202, first.json["id"])
    assert outside.deps.store.read(upload_key(outside.tenant, first.json["input"]["image"])) == a_file()
    assert outside.get(event.json["jobs"][0]["id"]).json["input"]["image"] == first.json["input"]["image"]
    assert outside.get(video.json["id"]).json["input"]["image"] == first.json["input"]["image"]


BAD_ADDRESSES: dict[str, tuple[tuple[int, dict[str, str], bytes], str]] = {
    "missing": ((404, {}, b""), "fetch"),
    "a redirect": ((302, {"location": "http://169.254.169.254/"}, b""), "fetch"),
    "no picture": ((200, {}, b"<html>"), "type"),
    "cut off": ((200, {"content-length": "9999"}, b"\x89PNG"), "fetch"),
    "a bomb": ((200, {}, a_bomb()), "max_pixels"),
    "without end": ((200, {}, b"\x89PNG\r\n\x1a\n" + bytes(UPLOAD_MAX_BYTES)), "maximum"),
}


@pytest.mark.parametrize(("answer", "rule"), BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_what_an_address_answers_is_judged(
    outside: Door, pictures: Pictures, answer: tuple[int, dict[str, str], bytes], rule: str
) -> None:
    pictures.answer = answer

    refused = outside.http.post(GENERATE, json=with_picture(pictures.url))

    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (422, "/input/image")
    assert refused.json["errors"][0]["rule"] == rule
    assert jobs(outside) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:443/x",
        "https://localhost/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://2130706433/x",
        "https://127.1/x",
        "https://user@example.com/x",
        "https://nats.default.svc/x",
        "https://",
    ],
)
def test_no_picture_is_fetched_from_inside(door: Door, url: str) -> None:
    answer = door.http.post(GENERATE, json=with_picture(url))

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, "/input/image")
    assert answer.json["errors"][0]["rule"] in ("address", "userinfo", "uri")
