"""What the benchmarks of webhooks share: a fleet that is up, endpoints that answer at once, memory and CPU."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.adapters.bus import Bus
from tests.e2e.sources import in_hand
from tests.faults import Fleet, Receiver, outcomes, publish
from tests.servers import wait_until


@contextlib.contextmanager
def a_fleet(num_endpoints: int, **over: Any) -> Iterator[tuple[Fleet, Receiver, Bus]]:
    """notify, its sources and nats-server, warm: fifty events went through."""
    receiver = Receiver(share=0.0, seed=1)
    receiver.must_verify = False
    with (
        tempfile.TemporaryDirectory() as folder,
        Fleet(Path(folder), receiver, num_endpoints=num_endpoints, **{"webhook_patience_s": 1.0, **over}) as fleet,
    ):
        bus = Bus.open(fleet.settings)
        pairs = list(outcomes(50, start=10**9))
        publish(bus, [event for pair in pairs for event in pair])
        wait_until(lambda: len(receiver.arrived) == 50, timeout_s=60, what="the warm-up arrives")
        wait_until(lambda: in_hand(fleet.settings, "notify-deliveries") == (0, 0))
        receiver.arrived.clear()
        receiver.ledger.accepted.clear()
        yield fleet, receiver, bus
        bus.close()
    receiver.close()


def peak_mib(pids: list[int]) -> float:
    """The most memory that these processes had, each at its own time."""
    return sum(_status(pid, "VmHWM") for pid in pids) / 1024


def resident_mib(pid: int) -> float:
    return _status(pid, "VmRSS") / 1024


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))
