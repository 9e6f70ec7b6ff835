"""notify, over a real log and real receivers; and with its source, from a job's outcome to a webhook."""

import base64
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flask.testing import FlaskClient
from standardwebhooks import Webhook
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from engine.adapters.bus import Bus
from engine.contract.codec import decode, encode_binary
from engine.contract.errors import Invalid
from engine.contract.events import Event
from engine.contract.settings import Settings
from functions.deps import Deps, open_deps
from functions.notify.app import create_app, make
from functions.notify.webhook import read_secret
from tests.e2e.sources import in_hand, raw_server, source_thread
from tests.make import JOB, a_request, an_event
from tests.servers import Sink, free_port, wait_until

SECRET = "whsec_" + base64.b64encode(b"cinevent" * 4).decode()
TIMEOUT_S = 1.0


@pytest.fixture
def deps(settings: Settings) -> Iterator[Deps]:
    opened = open_deps(replace(settings, webhook_timeout_s=TIMEOUT_S))
    opened.ping()
    yield opened
    opened.close()


@pytest.fixture
def client(deps: Deps) -> FlaskClient:
    return make(deps, key=read_secret(SECRET)).test_client()


def accept(bus: Bus, url: str, *events: str) -> None:
    """A job in the log whose outcomes `events` are to be sent to `url`."""
    webhook = {"url": url, "events": list(events or ("completed", "failed", "cancelled"))}
    bus.publish(an_event("requested", request=a_request(webhook=webhook).to_json()))


def post(client: FlaskClient, event: Event) -> TestResponse:
    """What the source does."""
    headers, body = encode_binary(event)
    return client.post("/", data=body, headers=headers)


def test_an_outcome_reaches_its_webhook_signed(bus: Bus, sink: Sink, client: FlaskClient) -> None:
    event = an_event("completed")
    accept(bus, f"{sink.url}hook?of=1")

    response = post(client, event)

    (got,) = sink.received
    assert (response.status_code, response.data) == (204, b"")
    assert got.path == "/hook?of=1"
    assert decode(got.headers, got.body) == event
    assert Webhook(SECRET).verify(got.body, got.headers)["data"]["job"] == JOB


def test_what_was_not_asked_for_is_not_sent(bus: Bus, sink: Sink, client: FlaskClient) -> None:
    accept(bus, sink.url, "failed")

    assert post(client, an_event("completed")).status_code == 204
    assert sink.received == []


def test_a_job_without_a_webhook_is_done_at_once(bus: Bus, client: FlaskClient) -> None:
    bus.publish(an_event("requested"))

    assert post(client, an_event("completed")).status_code == 204


def test_a_receiver_that_is_gone_is_given_up(bus: Bus, sink: Sink, client: FlaskClient) -> None:
    accept(bus, sink.url)
    sink.answer = lambda _: (410, {})

    assert post(client, an_event("completed")).status_code == 204


@pytest.mark.parametrize("status", [301, 400, 404, 500, 503])
def test_a_failing_receiver_makes_the_source_come_again(bus: Bus, sink: Sink, client: FlaskClient, status: int) -> None:
    accept(bus, sink.url)
    sink.answer = lambda _: (status, {"location": f"{sink.url}elsewhere"})

    response = post(client, an_event("completed"))

    assert response.status_code == 503
    assert "retry-after" not in response.headers
    assert str(status) in response.json["detail"]
    assert [got.path for got in sink.received] == ["/"]


def test_a_receiver_that_names_a_time_is_obeyed(bus: Bus, sink: Sink, client: FlaskClient) -> None:
    accept(bus, sink.url)
    sink.answer = lambda _: (429, {"retry-after": "77"})

    response = post(client, an_event("completed"))

    assert (response.status_code, response.headers["retry-after"]) == (503, "77")


def test_an_absent_receiver_makes_the_source_come_again(bus: Bus, client: FlaskClient) -> None:
    accept(bus, f"http://127.0.0.1:{free_port()}/")

    response = post(client, an_event("completed"))

    assert response.status_code == 503
    assert "refused" in response.json["detail"]


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_a_receiver_that_speaks_a_byte_at_a_time_costs_no_more_than_the_time_limit(
    bus: Bus, client: FlaskClient, head: bytes
) -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    with raw_server(serve) as url:
        accept(bus, url)
        before = time.monotonic()
        response = post(client, an_event("completed"))

    assert response.status_code == 503
    assert TIMEOUT_S <= time.monotonic() - before < TIMEOUT_S + 10


def test_an_answer_without_an_end_counts_by_its_status(bus: Bus, client: FlaskClient) -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with raw_server(serve) as url:
        accept(bus, url)

        assert post(client, an_event("completed")).status_code == 204


def test_a_receiver_whose_certificate_nobody_vouches_for_gets_nothing(
    bus: Bus, client: FlaskClient, tmp_path: Path
) -> None:
    got: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    with raw_server(lambda _, request: got.append(request), wrap=context.wrap_socket) as url:
        accept(bus, url.replace("http:", "https:"))
        response = post(client, an_event("completed"))

    assert response.status_code == 503
    assert "CERTIFICATE_VERIFY_FAILED" in response.json["detail"]
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


def test_without_a_secret_the_answer_names_the_variable(bus: Bus, sink: Sink, deps: Deps) -> None:
    accept(bus, sink.url)

    response = post(make(deps, key=None).test_client(), an_event("completed"))

    assert response.status_code == 503
    assert "CINEVENT_WEBHOOK_SECRET" in response.json["detail"]
    assert sink.received == []


def test_a_malformed_secret_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CINEVENT_WEBHOOK_SECRET", "whsec_short")

    with pytest.raises(Invalid, match="CINEVENT_WEBHOOK_SECRET"):
        create_app()


def test_what_is_no_outcome_is_refused(client: FlaskClient) -> None:
    assert post(client, an_event("started")).status_code == 400


def test_an_outcome_gets_through_to_a_receiver_that_was_down(
    bus: Bus, sink: Sink, deps: Deps, settings: Settings
) -> None:
    accept(bus, sink.url)
    sink.answer = lambda _: (503, {"retry-after": "1"}) if len(sink.received) == 1 else (204, {})
    server = make_server("127.0.0.1", 0, make(deps, key=read_secret(SECRET)), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with source_thread("outcomes", settings, f"http://127.0.0.1:{server.server_port}/"):
        bus.publish(an_event("completed"))
        wait_until(lambda: in_hand(settings, "notify-done") == (0, 0))
    server.shutdown()
    thread.join()
    server.server_close()

    first, second = sink.received
    assert second.at - first.at >= 1.0
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == an_event("completed").id
    assert Webhook(SECRET).verify(second.body, second.headers)
