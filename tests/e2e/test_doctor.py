"""`cinevent doctor` on one machine: against a real nats-server, a real store, and what may be wrong with them."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from functions.doctor.finding import Finding, Verdict
from functions.doctor.report import Where, examine
from tests.e2e.system import cinevent
from tests.servers import NatsServer, free_port


def one(settings: Settings, part: str, *, nats_monitor: str = "") -> Finding:
    """The last finding about a part: that of the part itself."""
    return list(examine(settings, Where(nats_monitor=nats_monitor), [part]))[-1]


@pytest.fixture
def monitored(tmp_path: Path) -> Iterator[tuple[NatsServer, str]]:
    """A nats-server with a monitor, and its address; it does not start by itself."""
    server = NatsServer(tmp_path)
    monitor = free_port()
    server.config.write_text(f"{server.config.read_text()}http: 127.0.0.1:{monitor}\n")
    yield server, f"http://127.0.0.1:{monitor}"
    server.kill()


def test_without_a_system_each_part_says_what_mends_it(tmp_path: Path) -> None:
    env = {
        "CINEVENT_PUBLIC_URL": f"http://127.0.0.1:{free_port()}",
        "CINEVENT_NATS_URL": f"nats://doctor:secret@127.0.0.1:{free_port()}",
        "CINEVENT_STORE_URL": "file:/proc/store",
        "CINEVENT_MODELS_DIR": str(tmp_path),
        "CINEVENT_WEBHOOK_SECRET": "whsec_short",
    }
    done = cinevent("doctor", "--json", env=env)

    lines = [line for line in done.out.splitlines() if '"wrong"' in line]
    assert (done.code, done.err, len(lines)) == (1, "", 5)
    assert all('"fix": ""' not in line for line in lines)
    assert "secret@" not in done.out


def test_an_unknown_part_is_refused_with_those_that_are_known() -> None:
    done = cinevent("doctor", "gpus")

    assert (done.code, done.out) == (2, "")
    assert "there is no part 'gpus'; allowed: submit, nats" in done.err


def test_streams_that_nobody_made_are_missing(settings: Settings) -> None:
    found = list(examine(settings, Where(), ["nats"]))

    assert [finding.part for finding in found][:2] == ["nats", "streams"]
    assert "stream CINEVENT_JOBS is missing" in [finding.text for finding in found]
    assert {finding.verdict for finding in found[1:]} == {Verdict.WRONG}


def test_streams_that_a_function_made_are_ok(settings: Settings, bus: Bus) -> None:
    bus.bounds("CINEVENT_JOBS")

    assert one(settings, "nats").verdict is Verdict.OK


def test_a_stream_that_differs_is_named_with_the_field(settings: Settings, bus: Bus) -> None:
    bus.bounds("CINEVENT_JOBS")

    found = one(replace(settings, nats_replicas=3), "nats")

    assert (found.verdict, found.text) == (Verdict.WRONG, "stream CINEVENT_DEAD: num_replicas is 1, not 3")
    assert "CINEVENT_NATS_REPLICAS" in found.fix


def test_a_server_without_jetstream_is_wrong(settings: Settings, nats: NatsServer) -> None:
    nats.kill()
    nats.config.write_text(f'listen: "127.0.0.1:{nats.port}"\n')
    nats.start()

    found = list(examine(settings, Where(), ["nats"]))

    assert [(finding.part, finding.verdict) for finding in found] == [
        ("nats", Verdict.WRONG),
        ("streams", Verdict.NOT_CHECKED),
    ]
    assert "JetStream" in found[0].text


def test_credentials_that_are_not_there_are_named(settings: Settings, tmp_path: Path) -> None:
    found = list(examine(replace(settings, nats_creds=str(tmp_path / "user.creds")), Where(), ["nats"]))

    assert [(finding.verdict, "user.creds is no file" in finding.text) for finding in found] == [(Verdict.WRONG, True)]


@pytest.mark.parametrize(("said", "verdict"), [("always", Verdict.OK), ("1m", Verdict.WRONG)])
def test_a_server_that_syncs_late_is_wrong(monitored: tuple[NatsServer, str], said: str, verdict: Verdict) -> None:
    server, monitor = monitored
    server.config.write_text(server.config.read_text().replace("always", said))
    server.start()

    assert one(Settings(), "sync", nats_monitor=monitor).verdict is verdict


def test_an_address_that_is_no_monitor_is_wrong(nats: NatsServer) -> None:
    assert one(Settings(), "sync", nats_monitor=f"http://127.0.0.1:{nats.port}").verdict is Verdict.WRONG


def test_a_bucket_is_written_read_linked_and_left_as_it_was(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=s3_address)
    name = f"doctor-{uuid.uuid4()}"
    settings = Settings(store_url=f"s3://{name}/videos", s3_endpoint=s3_address)

    missing = one(settings, "store")
    client.create_bucket(Bucket=name)
    there = one(settings, "store")

    assert (missing.verdict, f"aws s3 mb s3://{name} --endpoint-url {s3_address}" in missing.fix) == (
        Verdict.WRONG,
        True,
    )
    assert (there.verdict, "linked" in there.text) == (Verdict.OK, True)
    assert client.list_objects_v2(Bucket=name)["KeyCount"] == 0


def test_a_store_that_cannot_be_written_is_wrong() -> None:
    assert one(Settings(store_url="file:/proc/store"), "store").verdict is Verdict.WRONG


def test_weights_may_come_from_elsewhere(tmp_path: Path) -> None:
    here, there = Settings(models_dir=str(tmp_path)), Settings(models_dir=str(tmp_path), models_url="hub")

    assert (one(here, "weights").verdict, one(there, "weights").verdict) == (Verdict.WRONG, Verdict.OK)
