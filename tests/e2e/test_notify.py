"""notify with its sources, over a real log and real receivers: from a job's outcome to a webhook."""

import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from standardwebhooks import Webhook

from engine.adapters.bus import Bus
from engine.adapters.dead import dead_letters, redrive
from engine.adapters.deliveries import Deliveries
from engine.contract.codec import batch, decode, encode, encode_binary
from engine.contract.delivery import MAX_TRIES
from engine.contract.errors import Invalid
from engine.contract.events import Event
from engine.contract.settings import Settings
from functions.deps import open_deps
from functions.notify.app import create_app, make
from tests.e2e.hooks import (
    OTHER_SECRET,
    SECRET,
    accept,
    accept_quietly,
    ended,
    endpoints_file,
    hook_settings,
    is_idle,
    notify_server,
    notify_system,
    records,
)
from tests.e2e.sources import NOTHING, in_hand, in_turn, raw_server, source_thread
from tests.make import TENANT, an_event
from tests.servers import Received, Sink, free_port, wait_until


def fields(event: Event, **over: object) -> dict[str, object]:
    return {**{name: getattr(event, name) for name in event.__slots__}, **over}


def test_an_outcome_reaches_its_webhook_signed_and_is_on_record(bus: Bus, sink: Sink, settings: Settings) -> None:
    job = accept(bus, f"{sink.url}hook?of=1")
    event = ended(job)
    with notify_system(hook_settings(settings)):
        bus.publish(event)
        wait_until(lambda: records(bus, job))

    (got,) = sink.received
    assert got.path == "/hook?of=1"
    received = decode(got.headers, got.body)
    assert fields(received, extensions={}) == fields(event, extensions={})
    assert received.extensions["sequence"] == f"{int(event.time.timestamp()) * 10**6:020d}"
    assert Webhook(SECRET).verify(got.body, got.headers)["data"]["job"] == job
    (record,) = records(bus, job)
    assert {name: record.data[name] for name in ("state", "status", "number", "event_id", "error")} == {
        "state": "delivered",
        "status": 204,
        "number": 1,
        "event_id": event.id,
        "error": "",
    }


def test_what_was_not_asked_for_is_not_sent(bus: Bus, sink: Sink, settings: Settings) -> None:
    job = accept(bus, sink.url, "failed")
    with notify_system(hook_settings(settings)):
        bus.publish(ended(job))
        bus.publish(ended(accept_quietly(bus, 1)))
        wait_until(lambda: is_idle(settings))

    assert sink.received == []
    assert records(bus, job) == []


def test_an_event_becomes_one_delivery_per_endpoint_however_often_it_comes(
    bus: Bus, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    file = endpoints_file(tmp_path / "e.yaml", {"url": f"{sink.url}a"}, {"url": f"{sink.url}b", "events": ["failed"]})
    job = accept(bus, f"{sink.url}own")
    event = ended(job)
    settings = hook_settings(settings, webhook_endpoints=file)
    with notify_server(settings) as url, Poster(url) as poster:
        assert poster.post(event) == poster.post(event) == 204
        with source_thread("deliveries", settings, url):
            wait_until(lambda: len(records(bus, job)) == 2)
            wait_until(lambda: is_idle(settings))

    assert sorted(got.path for got in sink.received) == ["/a", "/own"]


class Poster:
    """Posts to notify as a source would."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> "Poster":
        import urllib3

        self._http = urllib3.PoolManager(retries=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.clear()

    def post(self, *events: Event) -> int:
        headers, body = encode_binary(events[0]) if len(events) == 1 else batch(encode(event)[1] for event in events)
        return int(self._http.request("POST", self._url, body=body, headers=headers).status)


@pytest.mark.parametrize("status", [301, 404])
def test_a_failing_endpoint_is_tried_again_with_the_same_id_and_the_same_bytes(
    bus: Bus, sink: Sink, settings: Settings, status: int
) -> None:
    sink.answer = in_turn((status, {"location": f"{sink.url}elsewhere"}), (500, {}), (204, {}))
    job = accept(bus, sink.url)
    with notify_system(hook_settings(settings)):
        bus.publish(ended(job))
        wait_until(lambda: [r.data["state"] for r in records(bus, job)] == ["waiting", "waiting", "delivered"])

    assert [got.path for got in sink.received] == ["/"] * 3
    assert len({(got.headers["webhook-id"], got.body) for got in sink.received}) == 1
    assert [got.headers["webhook-attempt"] for got in sink.received] == ["1", "2", "3"]
    assert [r.data["status"] for r in records(bus, job)] == [status, 500, 204]


def test_an_endpoint_that_names_a_time_is_obeyed(bus: Bus, sink: Sink, settings: Settings) -> None:
    sink.answer = in_turn((429, {"retry-after": "1500"}), (204, {}))
    job = accept(bus, sink.url)
    with notify_system(hook_settings(settings)):
        bus.publish(ended(job))
        wait_until(lambda: len(records(bus, job)) == 2)

    first, second = sink.received
    assert second.at - first.at >= 1.5


def test_a_delivery_that_no_attempt_could_make_is_a_dead_letter_and_can_be_redriven(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    sink.answer = lambda _: (500, {})
    job = accept(bus, sink.url)
    settings = hook_settings(settings, webhook_time_scale=1e-9)
    with notify_system(settings):
        bus.publish(ended(job))
        wait_until(lambda: list(dead_letters(bus, limit=10)))
        wait_until(lambda: is_idle(settings))
        assert len(sink.received) == MAX_TRIES
        assert records(bus, job)[-1].data["state"] == "failed"
        (letter,) = dead_letters(bus, limit=10)
        assert letter.reason == f"{MAX_TRIES} attempts, the last one: HTTP 500"
        sink.answer = lambda _: (204, {})
        assert redrive(bus, letter.sequence) == "notify-deliveries"
        wait_until(lambda: records(bus, job)[-1].data["state"] == "delivered")

    told = [decode(m.headers, m.body) for m in bus.read("CINEVENT_DELIVERIES", matching="cinevent.deliveries.>")]
    (exhausted,) = [event for event in told if event.type == "io.cinevent.webhook.exhausted.v1"]
    assert (exhausted.data["job"], exhausted.data["number"]) == (job, MAX_TRIES)


def test_an_endpoint_that_is_gone_is_given_up_at_once(bus: Bus, sink: Sink, settings: Settings) -> None:
    sink.answer = lambda _: (410, {})
    job = accept(bus, sink.url)
    with notify_system(hook_settings(settings)):
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job))

    assert [(r.data["state"], r.data["why"]) for r in records(bus, job)] == [("failed", "the endpoint is gone (410)")]
    assert len(sink.received) == 1


def test_a_standing_endpoint_that_is_gone_is_disabled_until_somebody_enables_it(
    bus: Bus, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    sink.answer = in_turn((410, {}), (204, {}))
    file = endpoints_file(tmp_path / "e.yaml", {"url": sink.url})
    first, second = accept_quietly(bus, 1), accept_quietly(bus, 2)
    settings = hook_settings(settings, webhook_endpoints=file)
    with notify_system(settings):
        bus.publish(ended(first))
        wait_until(lambda: Deliveries(bus).statuses())
        bus.publish(ended(second))
        wait_until(lambda: is_idle(settings))

    assert Deliveries(bus).statuses()[TENANT, "shop-0"]["state"] == "disabled"
    assert len(sink.received) == 1


def test_a_standing_endpoint_that_does_nothing_but_fail_is_disabled_in_the_end(
    bus: Bus, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    sink.answer = lambda _: (500, {})
    file = endpoints_file(tmp_path / "e.yaml", {"url": sink.url})
    job = accept_quietly(bus, 1)
    settings = hook_settings(settings, webhook_endpoints=file, webhook_time_scale=1e-5, webhook_disable_after_s=0.1)
    with notify_system(settings):
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job) and records(bus, job)[-1].data["state"] == "failed")

    status = Deliveries(bus).statuses()[TENANT, "shop-0"]
    assert status["state"] == "disabled"
    assert status["why"].startswith("nothing but failures since ")


def test_a_failing_endpoint_that_works_again_is_healthy(
    bus: Bus, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    sink.answer = in_turn(*[(500, {})] * 6, (204, {}))
    file = endpoints_file(tmp_path / "e.yaml", {"url": sink.url})
    job = accept_quietly(bus, 1)
    with notify_system(hook_settings(settings, webhook_endpoints=file, webhook_time_scale=1e-9)):
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job) and records(bus, job)[-1].data["state"] == "delivered")
        wait_until(lambda: Deliveries(bus).statuses()[TENANT, "shop-0"]["state"] == "healthy")


def test_an_absent_endpoint_is_tried_again(bus: Bus, settings: Settings) -> None:
    job = accept(bus, f"http://127.0.0.1:{free_port()}/")
    with notify_system(hook_settings(settings)):
        bus.publish(ended(job))
        wait_until(lambda: len(records(bus, job)) >= 2)

    assert records(bus, job)[0].data["status"] == 0
    assert "ClientConnectorError" in records(bus, job)[0].data["error"]


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_an_endpoint_that_is_silent_or_speaks_a_byte_at_a_time_costs_no_more_than_the_time_limit(
    bus: Bus, settings: Settings, head: bytes
) -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x" if head else b"")
            time.sleep(0.05)

    with raw_server(serve) as url, notify_system(hook_settings(settings)):
        job = accept(bus, url)
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job))

    record = records(bus, job)[0]
    assert (record.data["state"], record.data["error"]) == ("waiting", "time-out: no answer within 1 s")
    assert 900 <= record.data["ms"] < 10_000


def test_an_answer_without_an_end_counts_by_its_status_and_is_cut(bus: Bus, settings: Settings) -> None:
    num_sent = 0

    def serve(connection: socket.socket, _: bytes) -> None:
        nonlocal num_sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            num_sent += connection.send(b"x" * 65536)

    with raw_server(serve) as url, notify_system(hook_settings(settings)):
        job = accept(bus, url)
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job))

    (record,) = records(bus, job)
    assert (record.data["state"], record.data["answer"]) == ("delivered", "x" * 500)
    # What the kernels of both sides hold, and nothing near what the endpoint would send.
    assert num_sent < 50 * 2**20


def test_an_endpoint_whose_certificate_nobody_vouches_for_gets_nothing(
    bus: Bus, settings: Settings, tmp_path: Path
) -> None:
    got: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    with (
        raw_server(lambda _, request: got.append(request), wrap=context.wrap_socket) as url,
        notify_system(hook_settings(settings)),
    ):
        job = accept(bus, url.replace("http:", "https:"))
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job))

    assert "CERTIFICATE_VERIFY_FAILED" in records(bus, job)[0].data["error"]
    assert got == []


def self_signed(directory: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that it signed itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, names = datetime.now(UTC), x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    certificate = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = directory / "receiver.pem"
    path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    return path


def test_without_a_secret_nothing_is_sent_and_the_record_names_the_variable(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    job = accept(bus, sink.url)
    with notify_system(hook_settings(settings, webhook_secret="")):
        bus.publish(ended(job))
        wait_until(lambda: records(bus, job))

    assert "CINEVENT_WEBHOOK_SECRET" in records(bus, job)[0].data["error"]
    assert sink.received == []


def test_a_malformed_secret_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CINEVENT_WEBHOOK_SECRET", "whsec_short")

    with pytest.raises(Invalid, match="CINEVENT_WEBHOOK_SECRET"):
        create_app()


def test_what_is_no_news_for_webhooks_is_refused(settings: Settings) -> None:
    deps = open_deps(hook_settings(settings))
    client = make(deps).test_client()
    headers, body = encode_binary(an_event("started"))

    assert client.post("/", data=body, headers=headers).status_code == 400
    assert (
        client.post("/", data=b"[1]", headers={"content-type": "application/cloudevents-batch+json"}).status_code == 400
    )
    deps.close()


def test_one_endpoint_that_hangs_takes_no_time_of_the_others(bus: Bus, sink: Sink, settings: Settings) -> None:
    release = threading.Event()

    def serve(connection: socket.socket, _: bytes) -> None:
        release.wait(20)

    settings = hook_settings(settings, webhook_timeout_s=20.0, webhook_patience_s=0.2)
    with raw_server(serve) as hanging, notify_system(settings):
        for number in range(30):
            bus.publish(ended(accept(bus, hanging, number=number)))
        for number in range(100, 130):
            bus.publish(ended(accept(bus, sink.url, number=number)))
        # Long before the first of those that hang has its time-out, and with their messages out of the source's hand.
        wait_until(lambda: len(sink.received) == 30, timeout_s=15)
        wait_until(lambda: in_hand(settings, "notify-deliveries") == NOTHING, timeout_s=15)
        release.set()


def test_progress_is_the_newest_only_and_never_after_the_end(bus: Bus, sink: Sink, settings: Settings) -> None:
    free = threading.Event()
    most: list[int] = []
    lock, now_in = threading.Lock(), 0

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        nonlocal now_in
        with lock:
            now_in += 1
            most.append(now_in)
        free.wait(5)
        with lock:
            now_in -= 1
        return 204, {}

    sink.answer = answer
    job = accept(bus, sink.url, "progress", "completed")
    with notify_system(hook_settings(settings, webhook_timeout_s=10.0)):
        bus.publish(an_event("progress", job=job, key="0", percent=0.0))
        wait_until(lambda: sink.received)
        for percent in range(1, 50):
            bus.publish(an_event("progress", job=job, key=str(percent), percent=float(percent)))
        free.set()
        wait_until(lambda: percents(sink)[-1] == 49.0)
        bus.publish(ended(job))
        bus.publish(an_event("progress", job=job, key="late", percent=99.0))
        wait_until(lambda: [r for r in records(bus, job) if r.data["event"] == "completed"])
        wait_until(lambda: is_idle(settings))

    assert percents(sink) == sorted(percents(sink))
    # While the first was held, one after the other replaced the one before.
    assert len(percents(sink)) < 25
    assert max(most) == 1
    assert json.loads(sink.received[-1].body)["type"] == "io.cinevent.job.completed.v1"


def percents(sink: Sink) -> list[float]:
    bodies = [json.loads(got.body) for got in sink.received]
    return [body["data"]["percent"] for body in bodies if body["type"].endswith("progress.v1")]


def test_while_a_secret_is_changed_both_sign(bus: Bus, sink: Sink, settings: Settings) -> None:
    job = accept(bus, sink.url)
    with notify_system(hook_settings(settings, webhook_secret=f"{SECRET},{OTHER_SECRET}")):
        bus.publish(ended(job))
        wait_until(lambda: sink.received)

    (got,) = sink.received
    for secret in (SECRET, OTHER_SECRET):
        assert Webhook(secret).verify(got.body, got.headers)


def test_an_endpoint_may_want_binary_mode_with_headers_of_its_own(
    bus: Bus, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    endpoint = {"url": sink.url, "format": "binary", "headers": {"authorization": "Bearer abc"}}
    job = accept_quietly(bus, 1)
    event = ended(job)
    settings = hook_settings(settings, webhook_endpoints=endpoints_file(tmp_path / "e.yaml", endpoint))
    with notify_system(settings):
        bus.publish(event)
        wait_until(lambda: sink.received)

    (got,) = sink.received
    assert (got.headers["authorization"], got.headers["ce-id"]) == ("Bearer abc", event.id)
    # The signature covers the body alone: it has to say what the event is about.
    verified = Webhook(SECRET).verify(got.body, got.headers)
    assert (verified["type"], verified["subject"]) == (event.type, job)


def test_a_handshake_comes_first_and_its_rate_is_obeyed(bus: Bus, settings: Settings, tmp_path: Path) -> None:
    got: list[tuple[bytes, float]] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        got.append((request, time.monotonic()))
        allowed = b"webhook-allowed-origin: cinevent.example\r\nwebhook-allowed-rate: 300\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + allowed + b"content-length: 0\r\n\r\n")

    with raw_server(serve) as url:
        file = endpoints_file(tmp_path / "e.yaml", {"url": url, "handshake": True})
        with notify_system(hook_settings(settings, webhook_endpoints=file)):
            for number in range(4):
                bus.publish(ended(accept_quietly(bus, number)))
            wait_until(lambda: sum(request.startswith(b"POST") for request, _ in got) == 4)

    assert got[0][0].startswith(b"OPTIONS ")
    assert b"webhook-request-origin: cinevent.example" in got[0][0].lower()
    posts = [at for request, at in got if request.startswith(b"POST")]
    # 300 a minute are five a second; the first may come with the consent.
    assert posts[-1] - posts[1] >= 0.35


@pytest.mark.parametrize("allowed", ["", "cinevent.example.evil.com"])
def test_without_consent_to_this_very_origin_nothing_is_sent(
    bus: Bus, settings: Settings, tmp_path: Path, allowed: str
) -> None:
    got: list[bytes] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        got.append(request)
        reply = f"HTTP/1.1 200 OK\r\nwebhook-allowed-origin: {allowed}\r\ncontent-length: 0\r\n\r\n"
        connection.sendall(reply.encode())

    job = accept_quietly(bus, 1)
    with raw_server(serve) as url:
        file = endpoints_file(tmp_path / "e.yaml", {"url": url, "handshake": True})
        with notify_system(hook_settings(settings, webhook_endpoints=file)):
            bus.publish(ended(job))
            wait_until(lambda: records(bus, job))

    assert "does not consent" in records(bus, job)[0].data["error"]
    assert not [request for request in got if request.startswith(b"POST")]
