"""How well a run knows when it will end: real runs of the tiny models, each a process as a launcher starts it.

Per model one run of one size leaves its pace in the store; then each run of another size starts with that pace alone.
Of every run, the newest progress event at half of its time says when it will end; the figure is the mean error of that,
in percent of the time that is really left. A run is repeated that other programs took the processor from: how long they
do is nothing that an estimate could know. With a folder as argument, what the runs did is recorded there
(tests/engine/recorded; tests/engine/test_progress.py replays it).
"""

import json
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.adapters.bus import Bus
from engine.contract.job import new_id
from engine.contract.models import CATALOG
from engine.contract.request import parse
from engine.contract.schemas import STAGES
from engine.contract.settings import Settings
from engine.models import tiny
from engine.pace import Pace, Work, pace_key
from tests.make import TENANT, an_event
from tests.servers import NatsServer, child

GOAL = 15.0
# Width, height, frames, steps.
FIRST = (128, 96, 9, 20)
OTHERS = ((128, 128, 9, 100), (192, 128, 5, 80), (160, 128, 13, 60))
TIMEOUT_S = 600
# Of a run's time, spent on the processor: a run that is alone on a core comes to 0.95 and more; the rest is files.
ALONE = 0.93
TRIES = 9


@dataclass(frozen=True)
class Run:
    """What became of one job."""

    work: Work
    pace: Pace | None
    """What it knew of earlier runs."""
    left: Pace
    """What later ones will know."""
    words: list[tuple[float, dict[str, Any]]]
    """Progress: seconds after `started`, and the data."""
    end_s: float
    log: str
    began: float
    core: float
    """The share of the process's time that it had a core."""

    @property
    def error(self) -> float:
        half = self.end_s / 2
        at_s, word = [(at_s, word) for at_s, word in self.words if at_s <= half][-1]
        return 100 * (at_s + word["eta_s"] - self.end_s) / (self.end_s - half)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, a_bus(Path(folder)) as (bus, url):
        tiny.build(Path(folder) / "models")
        names = [name for name in tiny.ROWS if CATALOG[name].image != "required"]
        runs = [run for name in names for run in measure(name, Path(folder), bus, url)]
    if sys.argv[1:]:
        record(runs, Path(sys.argv[1]))
    mean = statistics.mean(abs(run.error) for run in runs)
    print(f"engine_eta {mean:.1f} % <={GOAL:g} {'ok' if mean <= GOAL else 'short'}")
    return 0 if mean <= GOAL else 1


def measure(name: str, folder: Path, bus: Bus, url: str) -> Iterator[Run]:
    first = a_quiet_run(name, FIRST, bus, url, folder, pace=None)
    for size in OTHERS:
        run = a_quiet_run(name, size, bus, url, folder, pace=first.left)
        text = f"{'x'.join(map(str, size[:3]))}, {size[3]} steps: {run.end_s:.1f} s, {run.core:.0%} of a core"
        print(f"context: {name} {text}, at half way {run.error:+.1f} %", flush=True)
        yield run


def a_quiet_run(*arguments: Any, pace: Pace | None) -> Run:
    """The first of some runs that had a core, else the one that had most of it."""
    runs: list[Run] = []
    while not (runs and runs[-1].core >= ALONE) and len(runs) < TRIES:
        runs.append(one_run(*arguments, pace=pace))
    return max(runs, key=lambda run: run.core)


def one_run(name: str, size: tuple[int, int, int, int], bus: Bus, url: str, folder: Path, *, pace: Pace | None) -> Run:
    given = dict(zip(("width", "height", "num_frames", "steps"), size, strict=True))
    job = new_id()
    request = parse({"model": name, "input": {"prompt": "a cat walks on the beach", "seed": 7, **given}}, job=job)
    work = Work.of(request, world_size=1)
    kept = folder / "store" / pace_key(f"{TENANT}/pace", work)
    kept.unlink(missing_ok=True)
    if pace:
        kept.write_bytes(pace.to_json())
    bus.publish(an_event("requested", job=job, request=request.to_json()))
    settings = Settings(nats_url=url, store_url=f"file:{folder / 'store'}", models_dir=str(folder / "models"), job=job)
    log = folder / f"{job}.log"
    launched, used = time.monotonic(), cpu_seconds()
    with child([sys.executable, "-m", "engine"], env={**settings.environ(), "OMP_NUM_THREADS": "1"}, log=log) as run:
        assert run.process.wait(timeout=TIMEOUT_S) == 0, log.read_text()
    core = (cpu_seconds() - used) / (time.monotonic() - launched)
    began, end = (at(bus, f"cinevent.{TENANT}.{job}.{name}") for name in ("started", "done.completed"))
    words = [(moment(event) - began, event["data"]) for event in events(bus, "CINEVENT_PROGRESS", job)]
    left = Pace.from_json(kept.read_bytes())
    return Run(
        work=work, pace=pace, left=left, words=words, end_s=end - began, log=log.read_text(), began=began, core=core
    )


def cpu_seconds() -> float:
    """What all children that ended had of the processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def record(runs: list[Run], folder: Path) -> None:
    """Every stage, step and part with its time, from the log: events have only the newest."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs, start=1):
        assert run.pace
        calls = [[0.0, "stage", STAGES[0]], *steps_and_stages(run)]
        head = {"work": asdict(run.work), "seconds_per_unit": dict(run.pace.seconds_per_unit)}
        data = {**head, "calls": calls, "end_s": round(run.end_s, 3)}
        (folder / f"{run.work.model}-{number}.json").write_text(json.dumps(data) + "\n")


def steps_and_stages(run: Run) -> Iterator[list[Any]]:
    line = r"^(\S+ \S+) INFO rank 0 (\S+)(?: (\d+)/\d+)? (?:took ([\d.]+) s|is ([\d.]+) % done)$"
    for when, what, step, seconds, percent in re.findall(line, run.log, re.MULTILINE):
        at_s = time.mktime(time.strptime(when[:19], "%Y-%m-%d %H:%M:%S")) + int(when[20:]) / 1000 - run.began
        if percent:
            yield [round(at_s, 3), "part", float(percent) / 100]
        elif step:
            yield [round(at_s, 3), int(step), float(seconds)]
        elif what in STAGES[:-1]:
            yield [round(at_s, 3), "stage", STAGES[STAGES.index(what) + 1]]


def events(bus: Bus, stream: str, job: str) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in bus.read(stream, matching=f"cinevent.{TENANT}.{job}.progress")]


def at(bus: Bus, subject: str) -> float:
    return moment(json.loads(bus.last("CINEVENT_JOBS", [subject])[0].body))


def moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


@contextmanager
def a_bus(folder: Path) -> Iterator[tuple[Bus, str]]:
    nats = NatsServer(folder)
    nats.start()
    bus = Bus.open(Settings(nats_url=nats.url))
    try:
        yield bus, nats.url
    finally:
        bus.close()
        nats.kill()


if __name__ == "__main__":
    sys.exit(main())
