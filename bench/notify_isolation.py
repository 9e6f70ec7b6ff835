"""What one bad endpoint costs the good ones: the p99 from an outcome to its 2xx, with and without it, in turns.

The others get as many events as the good one: one never answers, one answers a byte a second, one sends 10 GB. Each
round measures with good ones in their place and with them; the figure is the median ratio of the p99s.
"""

import argparse
import contextlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from bench.hooks import a_fleet
from bench.notify_latency import PUBLISHERS, say
from engine.adapters.bus import Bus
from engine.contract.events import Event
from tests.e2e.sources import raw_server
from tests.faults import Receiver, outcomes, publish
from tests.make import a_request, an_event
from tests.servers import wait_until

GOAL = 1.2
HEAD = b"HTTP/1.1 200 OK\r\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=int, default=100, help="outcomes a second, to good and bad together")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    for number in range(options.rounds):
        alone = p99_ms(options.rate, options.seconds, with_bad=False)
        beside = p99_ms(options.rate, options.seconds, with_bad=True)
        ratios.append(beside / alone)
        print(f"round {number + 1}: p99 {alone:.0f} ms without, {beside:.0f} ms with them", flush=True)
    ratio = statistics.median(ratios)
    print(f"notify_isolation {ratio:.2f} times <={GOAL} {'ok' if ratio <= GOAL else 'short'}")
    return 0 if ratio <= GOAL else 1


def p99_ms(rate: int, seconds: int, *, with_bad: bool) -> float:
    """The good endpoint's p99 while as much goes to three others."""
    terms = {"webhook_timeout_s": 15.0, "webhook_patience_s": 1.0, "webhook_time_scale": 1.0}
    others = bad_endpoints() if with_bad else good_endpoints()
    with a_fleet(1, **terms) as (_, receiver, bus), others as urls:
        events = prepared(bus, rate * seconds, urls)
        sent: dict[str, float] = {}
        begun = time.monotonic() + 0.5
        shares = [
            threading.Thread(target=say, args=(bus, events[n::PUBLISHERS], sent, begun + n / rate, rate))
            for n in range(PUBLISHERS)
        ]
        for share in shares:
            share.start()
        for share in shares:
            share.join()
        wait_until(lambda: len(receiver.arrived) == len(events), timeout_s=120, what="all arrive")
        times = sorted((receiver.arrived[name] - at) * 1000 for name, at in sent.items())
    return times[int(len(times) * 0.99)]


def prepared(bus: Bus, num: int, urls: list[str]) -> list[Event]:
    """The outcomes of accepted jobs: each goes to the good endpoint, and to one of these."""
    requests = [a_request(webhook={"url": urls[n % len(urls)]}).to_json() for n in range(num)]
    pairs = list(outcomes(num))
    publish(
        bus, [an_event("requested", job=e.data["job"], request=r) for (e, _), r in zip(pairs, requests, strict=True)]
    )
    return [ended for _, ended in pairs]


@contextlib.contextmanager
def good_endpoints() -> Iterator[list[str]]:
    receivers = [Receiver(share=0.0, seed=1) for _ in range(3)]
    for receiver in receivers:
        receiver.must_verify = False
    yield [f"http://127.0.0.1:{receiver.port}/" for receiver in receivers]
    for receiver in receivers:
        receiver.close()


@contextlib.contextmanager
def bad_endpoints() -> Iterator[list[str]]:
    is_over = threading.Event()

    def hang(_: socket.socket, __: bytes) -> None:
        is_over.wait(60)

    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD)
        while not is_over.wait(1):
            connection.sendall(b"x")

    def flood(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + b"content-length: 10000000000\r\n\r\n")
        while not is_over.is_set():
            connection.sendall(b"x" * 2**16)

    with raw_server(hang) as one, raw_server(drip) as two, raw_server(flood) as three:
        yield [one, two, three]
        is_over.set()


if __name__ == "__main__":
    sys.exit(main())
