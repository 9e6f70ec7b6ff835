"""Sources start when there is work: what KEDA reads of a server with the overlay dev's own configuration."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from engine.contract.streams import SOURCES
from tests.make import JOB, TENANT, an_event
from tests.manifests import data, of
from tests.servers import NatsServer, free_port


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[tuple[Bus, str]]:
    """A bus to a server that is configured as in the overlay dev, and its monitor; only addresses are the test's."""
    server, monitor = NatsServer(tmp_path), free_port()
    config = next(iter(data("nats-config", "dev").values()))
    for theirs, ours in (
        ("port: 4222", f"port: {server.port}"),
        ("http: 8222", f"http: 127.0.0.1:{monitor}"),
        ("store_dir: /data", f"store_dir: {tmp_path / 'data'}"),
    ):
        assert theirs in config
        config = config.replace(theirs, ours)
    server.config.write_text(config)
    server.start()
    bus = Bus.open(Settings(nats_url=server.url))
    yield bus, f"http://127.0.0.1:{monitor}"
    bus.close()
    server.kill()


def lags(monitor: str) -> dict[str, dict[str, int]]:
    """Messages that wait or are in hand, by source and consumer, found as KEDA's nats-jetstream scaler finds them."""
    found: dict[str, dict[str, int]] = {}
    for name, scaled in of("ScaledObject", "dev").items():
        triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
        found[name] = {each["consumer"]: lag(monitor, each) for each in triggers}
    return found


def lag(monitor: str, trigger: dict[str, Any]) -> int:
    url = f"{monitor}/jsz?acc={trigger['account']}&consumers=true&config=true"
    with urllib.request.urlopen(url, timeout=10) as answer:
        accounts = json.load(answer)["account_details"]
    streams = next(account for account in accounts if account["name"] == trigger["account"])["stream_detail"]
    stream = next(stream for stream in streams if stream["name"] == trigger["stream"])
    consumer = next(each for each in stream["consumer_detail"] if each["name"] == trigger["consumer"])
    return int(consumer["num_pending"] + consumer["num_ack_pending"])


def test_a_request_starts_its_source_and_no_other(installed: tuple[Bus, str]) -> None:
    bus, monitor = installed
    bus.bounds("CINEVENT_JOBS")
    idle = lags(monitor)
    bus.publish(an_event("requested"), first=f"cinevent.{TENANT}.{JOB}.requested.*")

    asked = lags(monitor)

    assert set(idle) == {f"source-{name}" for name in SOURCES}
    assert {count for counts in idle.values() for count in counts.values()} == {0}
    assert [name for name, counts in asked.items() if sum(counts.values())] == ["source-requests"]
    assert asked["source-requests"]["dispatch-normal"] == 1
