"""What the functions make in JetStream is what the manifests for NACK say, as the server itself tells it."""

import asyncio
import re
from typing import Any

from engine.adapters.bus import Bus
from engine.adapters.topology import connect
from engine.contract.settings import Settings
from engine.contract.streams import CONSUMERS, STREAMS
from tests.manifests import of

UNITS_NS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9}
STREAM = {
    "replicas": "num_replicas",
    "maxMsgsPerSubject": "max_msgs_per_subject",
    "allowAtomicPublish": "allow_atomic",
}
STREAM_DEFAULTS = {"maxConsumers": -1, "maxMsgs": -1, "maxBytes": -1, "discard": "old"}
"""NACK's own, for what the manifests leave out."""
OF_NACK = ("streamName", "preventDelete")


def told(name: str) -> str:
    """The server's name of one of NACK's fields."""
    return STREAM.get(name, re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name))


def in_server_words(value: Any) -> Any:
    """A duration as nanoseconds, anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"(\d+[hms])+", value):
        return sum(int(number) * UNITS_NS[unit] for number, unit in re.findall(r"(\d+)([hms])", value))
    return 0 if value == "" else value


def differences(spec: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    wanted = {told(name): in_server_words(value) for name, value in spec.items() if name not in OF_NACK}
    return {name: (value, found.get(name)) for name, value in wanted.items() if (found.get(name) or 0) != (value or 0)}


def told_by_server(settings: Settings, subjects: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The whole configurations that the server gives at these subjects of its API, by the same names."""

    async def ask() -> dict[str, dict[str, Any]]:
        client = await connect(settings)
        try:
            js: Any = client.jetstream()
            return {
                name: (await js._api_request(f"$JS.API.{subject}", b""))["config"] for name, subject in subjects.items()
            }
        finally:
            await client.close()

    return asyncio.run(ask())


def test_every_stream_is_what_its_manifest_says(settings: Settings, bus: Bus) -> None:
    bus.bounds("CINEVENT_JOBS")
    specs = {name: {**STREAM_DEFAULTS, **item["spec"]} for name, item in of("Stream", "dev", "nack").items()}

    found = told_by_server(settings, {name: f"STREAM.INFO.{spec['name']}" for name, spec in specs.items()})

    assert len(found) == len(STREAMS)
    assert {name: differences(spec, found[name]) for name, spec in specs.items()} == {name: {} for name in specs}


def test_every_consumer_is_what_its_manifest_says(settings: Settings, bus: Bus) -> None:
    bus.bounds("CINEVENT_JOBS")
    specs = {name: item["spec"] for name, item in of("Consumer", "dev", "nack").items()}

    subjects = {name: f"CONSUMER.INFO.{spec['streamName']}.{spec['durableName']}" for name, spec in specs.items()}
    found = told_by_server(settings, subjects)

    assert len(found) == len(CONSUMERS)
    assert {name: differences(spec, found[name]) for name, spec in specs.items()} == {name: {} for name in specs}
