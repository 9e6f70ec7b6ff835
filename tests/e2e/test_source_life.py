"""The life of a source: it starts, its server comes and goes, it ends; and no event is lost or sent twice for it."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.adapters.bus import Bus
from engine.adapters.topology import consumer_config
from engine.contract.codec import encode_nats
from engine.contract.events import subject
from engine.contract.settings import Settings
from engine.contract.streams import CONSUMERS
from tests.e2e.sources import NOTHING, cancel, ids, in_hand, publish, source_process, source_thread, with_jetstream
from tests.servers import NatsServer, Received, Sink, wait_until


def test_at_sigterm_the_answer_on_its_way_counts_and_the_rest_goes_to_the_next_source(
    nats: NatsServer, bus: Bus, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    slow, refused, unposted = cancel(1), cancel(2), cancel(3)
    may_answer = threading.Event()

    def answer(request: Received) -> tuple[int, dict[str, str]]:
        if request.headers["ce-id"] == slow.id:
            may_answer.wait(10)
            return 204, {}
        return (429, {"retry-after": "60"}) if len(sink.received) == 2 else (204, {})

    sink.answer = answer
    with source_process("cancels", nats.url, sink.url, log=tmp_path / "source.log") as source:
        for number, event in enumerate((slow, refused), start=1):
            publish(bus, event)
            wait_until(lambda number=number: len(sink.received) == number)
        publish(bus, unposted)
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == (3, 0))
        source.process.terminate()
        with source_thread("cancels", settings, sink.url):
            wait_until(lambda: sorted(ids(sink)[2:]) == sorted((refused.id, unposted.id)), timeout_s=5)
            may_answer.set()
            assert source.process.wait(timeout=5) == 0
            wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)


def test_an_event_is_not_delivered_twice_because_its_answer_takes_long(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    ack_wait_s = 0.6

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        time.sleep(3 * ack_wait_s)
        return 204, {}

    async def shorten(js: Any) -> None:
        config = consumer_config(CONSUMERS["dispatch-cancel"], ack_wait_s=ack_wait_s)
        await js.add_consumer("CINEVENT_JOBS", config)

    async def num_deliveries(js: Any) -> int:
        return int((await js.consumer_info("CINEVENT_JOBS", "dispatch-cancel")).delivered.consumer_seq)

    with source_thread("cancels", settings, sink.url, beat_s=ack_wait_s / 3):
        publish(bus, cancel(0))
        wait_until(lambda: sink.received)
        sink.answer = answer
        with_jetstream(settings, shorten)
        publish(bus, cancel(1))
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)
    assert with_jetstream(settings, num_deliveries) == 2
    assert ids(sink) == [cancel(0).id, cancel(1).id]


def test_a_source_goes_on_after_its_server_was_killed_and_repeats_nothing_that_was_answered(
    nats: NatsServer, bus: Bus, sink: Sink, settings: Settings
) -> None:
    may_answer = threading.Event()

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        may_answer.wait(10)
        return 204, {}

    sink.answer = answer
    with source_thread("cancels", settings, sink.url):
        before = publish(bus, cancel(1))
        wait_until(lambda: sink.received)
        # The acknowledgement is sent, and dies unread with the server.
        nats._process.send_signal(signal.SIGSTOP)
        may_answer.set()
        time.sleep(0.3)
        nats.kill()
        nats.start()
        after = publish(bus, cancel(2))
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    assert ids(sink) == before + after


def test_a_source_starts_before_its_server_and_needs_no_stream_to_be_there(
    nats: NatsServer, sink: Sink, settings: Settings, tmp_path: Path
) -> None:
    nats.kill()
    log = tmp_path / "source.log"
    with source_process("cancels", nats.url, sink.url, log=log) as source:
        wait_until(lambda: b"connecting" in log.read_bytes())
        nats.start()
        wait_until(lambda: b"pulling" in log.read_bytes())
        event = cancel(1)
        headers, body = encode_nats(event)
        with_jetstream(settings, lambda js: js.publish(subject(event), body, headers=headers))
        wait_until(lambda: ids(sink) == [event.id])
        assert source.stop() == 0


def test_a_source_without_a_server_ends_at_sigterm(nats: NatsServer, sink: Sink, tmp_path: Path) -> None:
    nats.kill()
    log = tmp_path / "source.log"
    with source_process("cancels", nats.url, sink.url, log=log) as source:
        wait_until(lambda: b"connecting" in log.read_bytes())
        assert source.stop(timeout_s=5) == 0


def test_a_source_that_the_server_sent_away_comes_back(
    nats: NatsServer, bus: Bus, sink: Sink, settings: Settings
) -> None:
    """nats-py closes for good when the server sends it an error, such as one about a payload that is too large."""

    async def limit(js: Any) -> int:
        return int(js._nc.max_payload)

    config = nats.directory / "nats.conf"
    with source_thread("cancels", settings, sink.url, beat_s=0.2):
        publish(bus, cancel(0))
        wait_until(lambda: sink.received)
        config.write_text(config.read_text() + "max_payload: 2000\n")
        nats._process.send_signal(signal.SIGHUP)
        wait_until(lambda: with_jetstream(settings, limit) == 2000)
        # With the reason why it is none, this becomes a dead letter above the limit, which the source does not know.
        bus.publish_bytes(subject(cancel(1)), {}, b"x" * 1950)
        publish(bus, cancel(2))
        wait_until(lambda: cancel(2).id in ids(sink))
        publish(bus, cancel(3))
        wait_until(lambda: cancel(3).id in ids(sink))


def test_a_deleted_consumer_is_made_again(bus: Bus, sink: Sink, settings: Settings) -> None:
    with source_thread("cancels", settings, sink.url):
        publish(bus, cancel(1))
        wait_until(lambda: len(sink.received) == 1)
        with_jetstream(settings, lambda js: js.delete_consumer("CINEVENT_JOBS", "dispatch-cancel"))
        sent = publish(bus, cancel(2))
        wait_until(lambda: sent[0] in ids(sink))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"K_SINK": "dispatch:8080"},
        {"K_SINK": "http://sink", "K_CE_OVERRIDES": '{"extensions": {"Bad-Name": "x"}}'},
        {"K_SINK": "http://sink", "K_CA_CERTS": "none"},
    ],
)
def test_a_wrong_variable_ends_the_source_with_its_name_in_one_line(environ: dict[str, str]) -> None:
    result = subprocess.run([sys.executable, "-m", "functions.source", "cancels"], env=environ, capture_output=True)

    assert result.returncode == 2
    assert list(environ or {"K_SINK": ""})[-1].encode() in result.stderr
    assert result.stderr.count(b"\n") == 1
