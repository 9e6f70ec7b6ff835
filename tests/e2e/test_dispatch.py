"""dispatch over a real log, store and local launcher; small commands stand where torchrun would."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from engine.adapters.bus import Bus
from engine.adapters.history import REDRIVE_HEADER
from engine.contract.artifact import encode
from engine.contract.codec import encode_binary
from engine.contract.events import Event
from engine.contract.job import Job, State, checkpoint_folder, run_name
from engine.contract.settings import Settings
from functions.deps import open_deps
from functions.dispatch.app import make
from functions.dispatch.launchers.local import LocalLauncher
from tests.make import JOB, TENANT, a_manifest, a_request, an_event
from tests.servers import NatsServer, wait_until

ALARM = f"cinevent.alarms.due.{TENANT}.{JOB}.check"


class Dispatch:
    """dispatch with `script` in the engine's place, and the log that it reads and writes."""

    def __init__(self, settings: Settings, script: str) -> None:
        command = f"/bin/sh -c '{script}'"
        self.deps = open_deps(replace(settings, engine_command=command, check_interval_s=0.2))
        self.launcher = LocalLauncher(Path(settings.runs_dir), command=command)
        self.http: FlaskClient = make(self.deps, self.launcher, environ=os.environ).test_client()

    def tell(self, event: Event) -> int:
        """The answer to an event as a source would POST it."""
        headers, body = encode_binary(event)
        return self.http.post("/", data=body, headers=headers).status_code

    def accept(self, **over: object) -> None:
        """Put a request into the log and tell dispatch."""
        event = an_event("requested", time=datetime.now(UTC), request=a_request(**over).to_json())
        self.deps.bus.publish(event)
        assert self.tell(event) == 204

    def look(self) -> Job:
        """Ring the job's alarm; returns the job afterwards."""
        assert self.tell(an_event("check")) == 204
        return self.deps.history.get(TENANT, JOB)

    def end(self) -> Job:
        """Ring the alarm until the job has ended."""
        wait_until(lambda: self.look().state.is_final, what="the job ends")
        return self.deps.history.get(TENANT, JOB)


@pytest.fixture
def dispatches(settings: Settings) -> Iterator[list[Dispatch]]:
    made: list[Dispatch] = []
    yield made
    for dispatch in made:
        dispatch.launcher.stop_all()
        dispatch.deps.close()


def a_dispatch(made: list[Dispatch], settings: Settings, script: str) -> Dispatch:
    made.append(Dispatch(settings, script))
    return made[-1]


def test_a_request_is_launched_once_however_often_it_is_delivered(
    dispatches: list[Dispatch], settings: Settings, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    dispatch = a_dispatch(dispatches, settings, f"echo x >> {count}; sleep 60")
    dispatch.accept()
    for _ in range(5):
        assert dispatch.tell(an_event("requested")) == 204
    wait_until(count.exists)

    assert (count.read_text(), [run.name for run in dispatch.launcher.active()]) == ("x\n", [run_name(JOB, 1)])
    assert dispatch.deps.history.get(TENANT, JOB).stage == "launching"


def test_the_run_gets_its_job_by_environment_and_no_prompt(
    dispatches: list[Dispatch], settings: Settings, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    dispatch = a_dispatch(dispatches, settings, f"env > {seen}.part; mv {seen}.part {seen}")
    dispatch.accept(input={"prompt": "a secret plan"})
    wait_until(seen.exists)

    text = seen.read_text()

    assert f"CINEVENT_JOB={JOB}" in text
    assert f"CINEVENT_NATS_URL={settings.nats_url}" in text
    assert "a secret plan" not in text


def test_a_run_that_dies_without_a_word_is_tried_again_and_then_fails_with_its_log(
    dispatches: list[Dispatch], settings: Settings
) -> None:
    dispatch = a_dispatch(dispatches, settings, "echo attempt $CINEVENT_ATTEMPT broke; exit 7")
    dispatch.accept(max_attempts=2)

    job = dispatch.end()

    assert (job.state, job.attempt) == (State.FAILED, 2)
    assert job.outcome["error"]["code"] == "engine_crashed"
    assert job.outcome["error"]["log_tail"] == "attempt 2 broke"


def test_cancel_before_the_launch_ends_the_job_at_once(dispatches: list[Dispatch], settings: Settings) -> None:
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    for event in (an_event("requested", time=datetime.now(UTC)), an_event("cancel")):
        dispatch.deps.bus.publish(event)

    assert dispatch.tell(an_event("cancel")) == 204
    assert dispatch.tell(an_event("requested")) == 204

    assert dispatch.deps.history.get(TENANT, JOB).state is State.CANCELLED
    assert dispatch.launcher.observe(run_name(JOB, 1)).launched_at is None


def test_cancel_of_a_running_job_ends_it_within_ten_seconds_and_tidies_up(
    dispatches: list[Dispatch], settings: Settings, tmp_path: Path
) -> None:
    dispatch = a_dispatch(dispatches, settings, 'trap "" TERM; while true; do sleep 0.1; done')
    dispatch.accept()
    left, note = f"{checkpoint_folder(TENANT, JOB)}/000001.safetensors", tmp_path / "note"
    note.write_text("what a run leaves that has to be killed")
    dispatch.deps.store.put(left, note, content_type="application/octet-stream")
    dispatch.deps.bus.publish(an_event("cancel"))
    start = time.monotonic()

    assert dispatch.tell(an_event("cancel")) == 204

    assert dispatch.deps.history.get(TENANT, JOB).state is State.CANCELLED
    assert dispatch.launcher.active() == []
    assert dispatch.deps.store.list(f"{TENANT}/{JOB}") == []
    assert time.monotonic() - start < 10


def test_at_capacity_dispatch_says_429_and_launches_when_there_is_a_place(
    dispatches: list[Dispatch], settings: Settings, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    dispatch = a_dispatch(dispatches, settings, f"while [ ! -e {go} ]; do sleep 0.02; done")
    dispatch.accept()
    other = an_event("requested", time=datetime.now(UTC), job="j" + "b" * 25)
    dispatch.deps.bus.publish(other)

    assert dispatch.tell(other) == 429
    go.touch()

    wait_until(lambda: dispatch.tell(other) == 204, what="the other job is launched")


def test_an_alarm_without_a_place_rings_again_and_holds_nobody_up(
    dispatches: list[Dispatch], settings: Settings, bus: Bus
) -> None:
    """A 429 would have paused the alarms of the running jobs too, and with them the end that makes a place."""
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    dispatch.accept()
    other = "j" + "b" * 25
    dispatch.deps.bus.publish(an_event("requested", time=datetime.now(UTC), job=other))

    assert dispatch.tell(an_event("check", job=other)) == 204

    due = ALARM.replace(JOB, other)
    wait_until(lambda: bus.read("CINEVENT_ALARMS", matching=due), what="the other job's alarm rings")


def test_a_job_that_is_to_start_later_sleeps_as_an_alarm(
    dispatches: list[Dispatch], settings: Settings, bus: Bus
) -> None:
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    dispatch.accept(process_in_s=1)
    early = dispatch.deps.history.get(TENANT, JOB)

    wait_until(lambda: bus.read("CINEVENT_ALARMS", matching=ALARM), what="the alarm rings")

    assert (early.stage, early.attempt) == ("queued", 0)
    assert datetime.now(UTC) >= early.due_at
    assert dispatch.look().attempt == 1


def test_a_job_that_is_due_while_there_is_no_place_joins_the_queue_of_its_priority(
    dispatches: list[Dispatch], settings: Settings, bus: Bus
) -> None:
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    dispatch.accept()
    other = "j" + "b" * 25
    request = a_request(process_in_s=1, priority="low").to_json()
    event = an_event("requested", time=datetime.now(UTC), job=other, request=request)
    dispatch.deps.bus.publish(event)
    wait_until(lambda: datetime.now(UTC) > dispatch.deps.history.get(TENANT, other).due_at)

    assert dispatch.tell(an_event("check", job=other)) == 204

    messages = bus.read("CINEVENT_JOBS", matching=f"cinevent.{TENANT}.{other}.requested.low")
    assert [message.headers.get(REDRIVE_HEADER) for message in messages] == [None, "dispatch-low"]
    assert dispatch.deps.history.get(TENANT, other).created_at == event.time
    assert dispatch.tell(event) == 429


def test_a_result_without_an_event_is_found_in_the_store(dispatches: list[Dispatch], settings: Settings) -> None:
    dispatch = a_dispatch(dispatches, settings, "exit 0")
    path = Path(settings.store_url.removeprefix("file:")) / TENANT / JOB / "a1" / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(a_manifest()))
    dispatch.accept()

    job = dispatch.end()

    assert (job.state, job.attempt) == (State.COMPLETED, 1)
    assert job.outcome["artifacts"]["video"]["width"] == 128


def test_another_dispatch_finds_the_runs_of_one_that_is_gone(
    dispatches: list[Dispatch], settings: Settings, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    script = f"echo x >> {count}; sleep 60"
    a_dispatch(dispatches, settings, script).accept()
    wait_until(count.exists)

    job = a_dispatch(dispatches, settings, script).look()

    assert (job.attempt, count.read_text()) == (1, "x\n")


def test_a_job_over_its_deadline_is_ended(dispatches: list[Dispatch], settings: Settings) -> None:
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    long_ago = an_event("requested", request=a_request(deadline_s=1).to_json())
    dispatch.deps.bus.publish(long_ago)
    dispatch.tell(long_ago)

    job = dispatch.end()

    assert job.outcome["error"]["code"] == "deadline_exceeded"
    assert dispatch.launcher.active() == []


def test_a_job_that_cannot_fit_is_refused_before_anything_is_started(
    dispatches: list[Dispatch], settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, gpu_memory_gib=1.0)
    dispatch = a_dispatch(dispatches, settings, f"touch {tmp_path / 'started'}")
    dispatch.accept()

    job = dispatch.deps.history.get(TENANT, JOB)

    assert (job.state, job.attempt, job.outcome["error"]["code"]) == (State.FAILED, 0, "plan_invalid")
    assert "needs 2.0 GiB on each of 1 x 1 GPUs, which have 1" in job.outcome["error"]["message"]
    assert not (tmp_path / "started").exists()


def test_a_running_job_always_has_an_alarm(dispatches: list[Dispatch], settings: Settings, bus: Bus) -> None:
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    dispatch.accept()
    for _ in range(3):
        wait_until(lambda: bus.read("CINEVENT_ALARMS", matching=ALARM), what="the alarm rings")
        for message in bus.read("CINEVENT_ALARMS", matching=ALARM):
            bus.delete("CINEVENT_ALARMS", message.sequence)
        dispatch.look()

    wait_until(lambda: bus.read("CINEVENT_ALARMS", matching=ALARM), what="the alarm rings again")


def test_an_event_that_is_not_for_dispatch_is_refused(dispatches: list[Dispatch], settings: Settings) -> None:
    assert a_dispatch(dispatches, settings, "exit 0").tell(an_event("progress")) == 400


def test_without_nats_dispatch_says_503(dispatches: list[Dispatch], settings: Settings, nats: NatsServer) -> None:
    dispatch = a_dispatch(dispatches, settings, "sleep 60")
    dispatch.accept()
    nats.kill()

    assert dispatch.tell(an_event("check")) == 503
