"""Reading and changing jobs over HTTP: a job at each point of its life, lists, streams, cancel, retry, erase."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.contract.job import artifact_key
from engine.contract.streams import alarm_subjects
from tests.e2e.door import GENERATE, Door, a_door
from tests.make import a_body, a_video, an_artifact
from tests.servers import wait_until


def stored(door: Door, job: str, folder: Path, name: str, body: bytes) -> str:
    """The key of an artifact that is in the store."""
    (folder / name).write_bytes(body)
    key = artifact_key(door.tenant, job, 1, name)
    door.deps.store.put(key, folder / name, content_type="application/octet-stream")
    return key


def complete(door: Door, job: str, folder: Path) -> None:
    files = {"video": "video.mp4", "poster": "poster.jpg", "manifest": "manifest.json"}
    keys = {name: stored(door, job, folder, file, name.encode()) for name, file in files.items()}
    artifacts = {name: an_artifact(files[name], key=key) for name, key in keys.items()}
    artifacts["video"] = a_video(key=keys["video"])
    door.say("completed", job, artifacts=artifacts)


def stream_of(answer: Any) -> Iterator[tuple[str, str, Any]]:
    """(event, id, data) of each message of a stream, as it comes."""
    for piece in answer.response:
        for block in piece.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                yield fields["event"], fields["id"], json.loads(fields["data"])


def test_a_job_shows_where_it_is_at_each_point_of_its_life(door: Door, tmp_path: Path) -> None:
    job = door.submit()
    queued = door.get(job)
    door.say("launched", job)
    door.say("started", job)
    door.say("progress", job)
    running = door.get(job)
    complete(door, job, tmp_path)
    done = door.get(job)

    assert (queued.json["state"], queued.json["stage"], queued.headers["Retry-After"]) == ("PENDING", "queued", "5")
    assert (running.json["state"], running.json["stage"], running.json["attempt"]) == ("PROCESSING", "denoising", 1)
    assert running.json["progress"]["percent"] == 40.0
    assert set(running.json["links"]) == {"self", "events", "cancel", "preview"}
    assert (done.json["state"], "Retry-After" in done.headers) == ("COMPLETED", False)
    assert done.json["timings"]["denoising"] == 8.0
    assert done.json["timings"]["total"] >= done.json["timings"]["waiting"]
    assert done.json["artifacts"]["video"]["url"] == done.json["links"]["video"]


def test_a_reader_that_has_the_job_as_it_is_gets_a_304(door: Door) -> None:
    job = door.submit()
    etag = door.get(job).headers["ETag"]

    same = door.get(job, **{"If-None-Match": etag})
    door.say("launched", job)
    changed = door.get(job, **{"If-None-Match": etag})

    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", etag)
    assert (changed.status_code, changed.json["stage"]) == (200, "launching")


def test_a_waiting_job_knows_its_place_among_those_of_its_priority(door: Door) -> None:
    low = [door.submit(priority="low") for _ in range(3)]
    places = [door.get(job).json["position"] for job in low]
    door.say("launched", low[0])

    assert places == [places[0], places[0] + 1, places[0] + 2]
    assert door.get(low[0]).json["position"] is None


def test_a_list_keeps_what_it_is_asked_for(door: Door) -> None:
    plain, labelled, failed = door.submit(), door.submit(metadata={"order": "7", "shop": "a"}), door.submit()
    door.say("failed", failed)
    between = door.get(labelled).json["created_at"]

    def found(query: str) -> list[str]:
        return [job["id"] for job in door.http.get(f"/api/v1/jobs?{query}").json["jobs"]]

    assert found("") == [failed, labelled, plain]
    assert found("state=FAILED") == [failed]
    assert found("state=PENDING&limit=1") == [labelled]
    assert found("metadata.order=7") == [labelled]
    assert found("metadata.order=7&metadata.shop=b") == []
    assert found("model=tiny-i2v") == []
    assert found(f"created_after={between}") == [failed, labelled]
    assert plain in found(f"created_before={between}")
    assert failed not in found(f"created_before={between}")


def test_pages_of_a_filtered_list_follow_each_other_to_the_end(door: Door) -> None:
    jobs = [door.submit(metadata={"odd": str(number % 2)}) for number in range(7)]
    found: list[str] = []
    cursor = ""
    while True:
        page = door.http.get(f"/api/v1/jobs?limit=2&metadata.odd=1{cursor}").json
        found += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == jobs[1::2][::-1]


@pytest.mark.parametrize("when", ["0008-01-01T00:00:00Z", "1969-12-31T00:00:00Z", "9999-01-01T00:00:00Z"])
def test_a_list_may_name_any_time(door: Door, when: str) -> None:
    """The log's server counts nanoseconds from 1970, and refused such times as malformed."""
    job = door.submit()

    before, after = (door.http.get(f"/api/v1/jobs?created_{side}={when}") for side in ("before", "after"))

    is_late = when > "2026"
    assert [job["id"] for job in before.json["jobs"]] == ([job] if is_late else [])
    assert [job["id"] for job in after.json["jobs"]] == ([] if is_late else [job])


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=DONE", "/state"),
        ("model=sora", "/model"),
        ("created_after=yesterday", "/created_after"),
        ("limit=0", "/limit"),
        ("cursor=x", "/cursor"),
        ("colour=red", "/colour"),
        ("limit=1&limit=2", "/limit"),
    ],
)
def test_a_bad_query_is_named(door: Door, query: str, pointer: str) -> None:
    answer = door.http.get(f"/api/v1/jobs?{query}")

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, pointer)


def test_the_timeline_has_every_event_in_order(door: Door) -> None:
    job = door.submit()
    for name in ("launched", "started", "progress"):
        door.say(name, job, time=datetime.now(UTC))
    door.say("failed", job, time=datetime.now(UTC) - timedelta(hours=1))

    events = door.http.get(f"/api/v1/jobs/{job}/events").json["events"]

    assert [event["name"] for event in events] == ["requested", "launched", "started", "progress", "failed"]
    assert events[3]["data"]["step"] == 3


def test_a_stream_begins_with_the_job_and_ends_with_it(door: Door) -> None:
    job = door.submit()
    answer = door.http.get(f"/api/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"})
    messages = stream_of(answer)
    first = next(messages)

    door.say("started", job)
    door.say("progress", job)
    live = [next(messages)[0], next(messages)[0]]
    door.say("failed", job)
    rest = [name for name, _, _ in messages]

    assert (first[0], first[2]["id"], first[2]["state"]) == ("snapshot", job, "PENDING")
    assert live == ["started", "progress"]
    assert rest == ["failed", "end"]
    assert (answer.content_type, answer.headers["Cache-Control"]) == ("text/event-stream; charset=utf-8", "no-store")


def test_a_stream_goes_on_after_the_last_event_without_gap_or_repeat(door: Door) -> None:
    job = door.submit()
    messages = stream_of(door.http.get(f"/api/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}))
    next(messages)
    door.say("started", job)
    _, last, _ = next(messages)
    messages.close()
    door.say("progress", job)
    door.say("failed", job)

    headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
    resumed = list(stream_of(door.http.get(f"/api/v1/jobs/{job}/events", headers=headers)))
    over = door.http.get(f"/api/v1/jobs/{job}/events", headers={**headers, "Last-Event-ID": resumed[-1][1]})

    assert [name for name, _, _ in resumed] == ["progress", "failed", "end"]
    assert over.status_code == 204


def test_followers_have_a_limit_and_leave_their_place(door: Door) -> None:
    one = a_door(door.deps.bus, door.deps.settings, max_followers=1)
    path, headers = f"/api/v1/jobs/{one.submit()}/events", {"Accept": "text/event-stream"}

    first = one.http.get(path, headers=headers)
    second = one.http.get(path, headers=headers)
    first.close()

    assert (second.status_code, second.json["code"]) == (429, "too_many_followers")
    with one.http.get(path, headers=headers) as third:
        assert third.status_code == 200


def test_whoever_prefers_to_wait_gets_the_end(door: Door) -> None:
    key = {"Idempotency-Key": "k", "Prefer": "wait=30"}
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(door.http.post(GENERATE, json=a_body(), headers=key)))
    thread.start()
    wait_until(lambda: door.http.get("/api/v1/jobs").json["jobs"])
    job = door.http.get("/api/v1/jobs").json["jobs"][0]["id"]
    door.say("failed", job)
    thread.join(timeout=20)

    [answer] = answers
    assert (answer.status_code, answer.json["state"]) == (200, "FAILED")
    assert answer.headers["Preference-Applied"] == "wait=30"


def test_a_wait_that_is_over_before_the_job_is_a_202(door: Door) -> None:
    answer = door.http.post(GENERATE, json=a_body(), headers={"Prefer": "respond-async, wait=1"})

    assert (answer.status_code, answer.json["state"]) == (202, "PENDING")


def test_files_are_served_and_the_preview_while_there_is_no_video(door: Door, tmp_path: Path) -> None:
    job = door.submit()
    none = door.http.get(f"/api/v1/jobs/{job}/preview")
    door.say("started", job)
    key = stored(door, job, tmp_path, "preview.jpg", b"small")
    door.say("progress", job, preview={"key": key, "step": 2, "size_bytes": 999})
    preview = door.http.get(f"/api/v1/jobs/{job}/preview", buffered=True)
    complete(door, job, tmp_path)
    poster = door.http.get(f"/api/v1/jobs/{job}/poster", buffered=True)
    tail = door.http.get(f"/api/v1/jobs/{job}/video", headers={"Range": "bytes=-2"}, buffered=True)
    beyond = door.http.get(f"/api/v1/jobs/{job}/video", headers={"Range": "bytes=99-"})

    assert (none.status_code, none.json["code"]) == (409, "no_preview")
    assert (preview.data, preview.content_type) == (b"small", "image/jpeg")
    assert poster.data == b"poster"
    assert (tail.status_code, tail.data) == (206, b"eo")
    assert (beyond.status_code, beyond.json["code"]) == (416, "requested_range_not_satisfiable")


def test_cancel_ends_a_job_at_once_that_no_run_was_started_for(door: Door) -> None:
    job = door.submit(process_in_s=3600)

    answers = [door.http.post(f"/api/v1/jobs/{job}/cancel") for _ in range(2)]

    assert [(answer.status_code, answer.json["state"]) for answer in answers] == [(200, "CANCELLED")] * 2
    alarm, _ = alarm_subjects(door.tenant, job)
    assert door.deps.bus.read("CINEVENT_ALARMS", matching=alarm) == []


def test_cancel_waits_for_the_end_of_a_run(door: Door) -> None:
    job = door.submit()
    door.say("launched", job)

    first = door.http.post(f"/api/v1/jobs/{job}/cancel")
    door.say("cancelled", job)
    second = door.http.post(f"/api/v1/jobs/{job}/cancel")

    assert (first.status_code, first.json["stage"]) == (202, "cancelling")
    assert (second.status_code, second.json["state"]) == (200, "CANCELLED")


def test_a_failed_job_is_tried_again_as_a_new_one_once(door: Door) -> None:
    job = door.submit(metadata={"order": "7"})
    early = door.http.post(f"/api/v1/jobs/{job}/retry")
    door.say("failed", job)

    first, second = (door.http.post(f"/api/v1/jobs/{job}/retry") for _ in range(2))

    assert (early.status_code, early.json["code"]) == (409, "not_retryable")
    assert (first.status_code, first.json["state"], first.json["retry_of"]) == (202, "PENDING", job)
    assert first.json["input"] == door.get(job).json["input"]
    assert (second.json["id"], second.headers["Idempotency-Replayed"]) == (first.json["id"], "true")


def test_an_erased_job_is_gone_from_the_store_and_the_log(door: Door, tmp_path: Path) -> None:
    job, other = door.submit(), door.submit()
    early = door.http.delete(f"/api/v1/jobs/{job}")
    door.say("started", job)
    door.say("progress", job)
    complete(door, job, tmp_path)

    answer = door.http.delete(f"/api/v1/jobs/{job}")

    assert (early.status_code, early.json["code"]) == (409, "not_finished")
    assert (answer.status_code, answer.data) == (204, b"")
    assert door.get(job).status_code == 404
    assert door.deps.store.list(f"{door.tenant}/{job}") == []
    for stream in ("CINEVENT_JOBS", "CINEVENT_PROGRESS"):
        assert door.deps.bus.read(stream, matching=f"cinevent.{door.tenant}.{job}.>") == []
    assert [job["id"] for job in door.http.get("/api/v1/jobs").json["jobs"]] == [other]


def test_the_queue_counts_what_waits_runs_and_ended(door: Door) -> None:
    jobs = [door.submit(priority=priority) for priority in ("high", "low", "low", "normal")]
    door.say("launched", jobs[1])
    door.say("failed", jobs[3])

    queue = a_door(door.deps.bus, door.deps.settings, tenant=door.tenant).http.get("/api/v1/queue").json

    assert queue["waiting"] == {"total": 2, "high": 1, "normal": 0, "low": 1}
    assert (queue["running"], queue["last_hour"]["failed"]) == (1, 1)
    assert queue["oldest_waiting_s"] >= 0


def test_the_models_say_what_may_be_asked_of_them(door: Door) -> None:
    models = {model["name"]: model for model in door.http.get("/api/v1/models").json["models"]}

    assert models["tiny-i2v"]["image"] == "required"
    assert models["wan2.2-t2v-a14b"]["schema"]["properties"]["input"]["properties"]["width"]["maximum"] == 1280
