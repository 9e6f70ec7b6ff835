"""The reporter tells progress without holding anybody up; the outcome is heard whatever happens to the server."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engine.adapters.bus import Bus
from engine.adapters.store import DirStore, S3Store, Store
from engine.contract.artifact import encode
from engine.contract.errors import JobFailed
from engine.contract.job import artifact_key
from engine.contract.schemas import STAGES
from engine.contract.settings import Settings
from engine.pace import PARTS, Pace, pace_key
from engine.paces import Paces
from engine.preview import Previews
from engine.report import Reporter
from engine.voice import LogVoice
from tests.make import JOB, TENANT, a_manifest, a_pace, a_work
from tests.servers import NatsServer, free_port, wait_until

CPU = torch.device("cpu")
PACE = pace_key(f"{TENANT}/pace", a_work())
PREVIEW = artifact_key(TENANT, JOB, 1, "preview.jpg")


def heard(bus: Bus) -> list[dict[str, Any]]:
    messages = bus.read("CINEVENT_PROGRESS", matching=f"cinevent.{TENANT}.{JOB}.progress")
    return [json.loads(message.body) for message in messages]


def outcomes(bus: Bus) -> list[str]:
    return [message.subject for message in bus.read("CINEVENT_JOBS", matching=f"cinevent.{TENANT}.{JOB}.done.*")]


def a_voice(bus: Bus) -> LogVoice:
    return LogVoice(bus=bus, tenant=TENANT, job=JOB, attempt=1)


@pytest.fixture
def store(tmp_path: Path) -> DirStore:
    return DirStore(tmp_path / "store")


@pytest.fixture
def broken(tmp_path: Path) -> DirStore:
    """A store whose directory is a file."""
    (tmp_path / "file").write_bytes(b"")
    return DirStore(tmp_path / "file")


@pytest.fixture
def away() -> Iterator[Bus]:
    """A bus without a server. A publish on it tries for seconds; a hundred in line would take minutes."""
    bus = Bus.open(Settings(nats_url=f"nats://127.0.0.1:{free_port()}"))
    yield bus
    bus.close()


def a_reporter(bus: Bus, store: Store, *, steps: int = 10, interval_s: float = 0.01) -> Reporter:
    paces, previews = Paces(store, PACE), Previews(store, PREVIEW)
    work = a_work(steps=steps)
    return Reporter(a_voice(bus), work=work, paces=paces, previews=previews, device=CPU, interval_s=interval_s)


def run_through(reporter: Reporter) -> None:
    """A run of one step of three seconds."""
    for name in STAGES:
        reporter.stage(name)
        if name == "denoising":
            reporter.step(1, seconds=3.0, clean_bcfhw=torch.zeros(1, 16, 1, 2, 2))


def keep_pace(store: DirStore, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "pace.json").write_bytes(body)
    store.put(PACE, tmp_path / "pace.json", content_type="application/json")


def test_a_stage_is_heard_at_once(bus: Bus, store: DirStore) -> None:
    reporter = a_reporter(bus, store, interval_s=1000)
    for name in STAGES[:3]:
        reporter.stage(name)
        wait_until(lambda name=name: heard(bus) and heard(bus)[-1]["data"]["stage"] == name, what=name)
    reporter.close()


def test_steps_are_heard_now_and_then_and_the_last_one_surely(bus: Bus, store: DirStore) -> None:
    started = time.monotonic()
    reporter = a_reporter(bus, store, steps=1000, interval_s=0.2)
    for step in range(1, 1001):
        reporter.step(step, seconds=0.001)
        time.sleep(0.0005)
    wait_until(lambda: heard(bus) and heard(bus)[-1]["data"]["step"] == 1000, what="the last step is heard")
    reporter.close()
    words = heard(bus)
    # On a busy machine the thousand steps take longer, and more of them are heard.
    assert 1 <= len(words) <= (time.monotonic() - started) / 0.2
    assert [word["sequence"] for word in words] == sorted({word["sequence"] for word in words})


def test_the_peak_of_memory_is_told(bus: Bus, store: DirStore) -> None:
    reporter = a_reporter(bus, store)
    reporter.stage("loading")
    wait_until(lambda: heard(bus), what="the stage is heard")
    reporter.close()
    # Python and torch alone.
    assert heard(bus)[0]["data"]["peak_memory_bytes"] > 50e6


def test_a_log_that_does_not_answer_holds_nobody_up(away: Bus, store: DirStore) -> None:
    reporter = a_reporter(away, store, steps=100)
    started = time.monotonic()
    for step in range(1, 101):
        reporter.step(step, seconds=1.0, clean_bcfhw=torch.zeros(1, 16, 1, 2, 2))
    assert time.monotonic() - started < 10
    reporter.close()


def test_an_outage_during_a_run_costs_no_outcome(nats: NatsServer, bus: Bus, store: DirStore) -> None:
    """Progress is under way when the server is lost; it neither delays nor replaces the outcome."""
    reporter = a_reporter(bus, store)
    reporter.stage("denoising")
    wait_until(lambda: heard(bus), what="the stage is heard")
    nats.kill()
    for step in range(1, 11):
        reporter.step(step, seconds=1.0)
    back = threading.Timer(2.0, nats.start)
    back.start()
    reporter.close()
    a_voice(bus).completed(encode(a_manifest()))
    back.join()
    assert outcomes(bus) == [f"cinevent.{TENANT}.{JOB}.done.completed"]


def test_the_first_outcome_stays(bus: Bus) -> None:
    a_voice(bus).completed(encode(a_manifest()))
    a_voice(bus).failed(JobFailed("out_of_memory", "too late", retryable=False))
    assert outcomes(bus) == [f"cinevent.{TENANT}.{JOB}.done.completed"]


def test_a_preview_is_stored_and_the_next_event_tells_of_it(bus: Bus, store: DirStore) -> None:
    reporter = a_reporter(bus, store)
    reporter.stage("denoising")
    reporter.step(1, seconds=1.0, clean_bcfhw=torch.randn(1, 16, 3, 12, 16))

    def told() -> list[dict[str, Any]]:
        reporter.step(2, seconds=1.0)
        return [word["data"]["preview"] for word in heard(bus) if "preview" in word["data"]]

    wait_until(told, what="an event tells of the preview")
    reporter.close()
    body = store.read(PREVIEW)
    assert told()[-1] == {"key": PREVIEW, "step": 1, "size_bytes": len(body)}
    assert Image.open(BytesIO(body)).size == (320, 240)


def test_a_store_that_fails_costs_a_run_nothing(bus: Bus, broken: DirStore, caplog: pytest.LogCaptureFixture) -> None:
    reporter = a_reporter(bus, broken, steps=1)
    run_through(reporter)
    wait_until(lambda: heard(bus) and heard(bus)[-1]["data"]["stage"] == STAGES[-1], what="the last stage is heard")
    reporter.close()
    reporter.remember()
    assert "the pace of this run is not kept" in caplog.text


def test_a_run_learns_from_the_one_before(bus: Bus, store: DirStore, tmp_path: Path) -> None:
    keep_pace(store, tmp_path, a_pace().to_json())
    reporter = a_reporter(bus, store, steps=4)
    for name in STAGES[:3]:
        reporter.stage(name)
    wait_until(lambda: heard(bus), what="a stage is heard")
    assert heard(bus)[0]["data"]["eta_s"] is not None
    for step in range(1, 5):
        reporter.step(step, seconds=2.0)
    for name in STAGES[3:]:
        reporter.stage(name)
    reporter.close()
    reporter.remember()
    learned = Pace.from_json(store.read(PACE)).seconds(a_work())
    # Three tenths of the way from one second to what was measured: two seconds, or next to nothing.
    assert learned["step"] == pytest.approx(1.3)
    assert all(learned[part] < 1 for part in PARTS if part != "step")


def test_the_first_run_of_a_model_leaves_a_pace(bus: Bus, store: DirStore) -> None:
    reporter = a_reporter(bus, store, steps=1)
    run_through(reporter)
    reporter.close()
    reporter.remember()
    assert Pace.from_json(store.read(PACE)).seconds(a_work())["step"] == pytest.approx(3)


def test_a_pace_that_cannot_be_read_is_as_if_there_were_none(
    bus: Bus, store: DirStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_pace(store, tmp_path, b"{")
    reporter = a_reporter(bus, store)
    reporter.stage("loading")
    wait_until(lambda: heard(bus), what="the stage is heard")
    reporter.close()
    assert heard(bus)[0]["data"]["eta_s"] is None
    assert "the pace of earlier runs cannot be read" in caplog.text


def test_a_store_that_does_not_answer_holds_nobody_up(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that takes connections and says nothing; boto3 alone would wait for minutes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = S3Store("videos", prefix="", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        reporter = a_reporter(bus, store, steps=1)
        run_through(reporter)
        wait_until(lambda: heard(bus), what="progress is heard")
        reporter.close()
        reporter.remember()
    assert caplog.text.count("the store took more than") == 2
