"""One obvious valid value of each type of the contract; `over` replaces parts of it. Everybody's tests start here."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from engine.contract.artifact import Artifact, Manifest
from engine.contract.events import Event, job_event
from engine.contract.job import Job, artifact_key, fold, upload_key
from engine.contract.models import CATALOG
from engine.contract.plan import Plan
from engine.contract.request import Request, parse
from engine.pace import PARTS, Pace, Work
from functions.dispatch.launchers.pod import Order

JOB = "j" + "abc23" * 5
TENANT = "default"
AT = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
PROMPT = "a paper boat on a river"


def an_input(**over: Any) -> dict[str, Any]:
    """The input of a request, as a producer sends it."""
    return {"prompt": PROMPT, **over}


def an_input_for(model: str, **over: Any) -> dict[str, Any]:
    """The input of a request for this model, with an image where it cannot do without."""
    return an_input(**({"image": "boat.png"} if CATALOG[model].image == "required" else {}), **over)


def a_body(**over: Any) -> dict[str, Any]:
    """A request as a producer sends it: no default is filled in yet."""
    return {"model": "tiny-t2v", "input": an_input(), **over}


def a_request(**over: Any) -> Request:
    """The request that `a_body(**over)` becomes."""
    return parse(a_body(**over), job=JOB)


def a_plan(**over: Any) -> Plan:
    """Two processes on one node."""
    degrees: dict[str, Any] = {
        "num_nodes": 1,
        "num_processes": 2,
        "cfg": 2,
        "ring": 1,
        "ulysses": 1,
        "shard": 1,
        "reshard": False,
    }
    return Plan(**{**degrees, **over})


def a_work(**over: Any) -> Work:
    """What a run of a small request on one rank has to do."""
    sizes: dict[str, Any] = {"model": "tiny-t2v", "world_size": 1, "steps": 20, "num_tokens": 48, "num_pixels": 20480}
    return Work(**{**sizes, **over})


def a_pace(**seconds: float) -> Pace:
    """The pace at which each part of `a_work()` takes a second, or so many."""
    each = {part: seconds.get(part, 1.0) / a_work().units(part) for part in PARTS}
    return Pace(seconds_per_unit=each)


def an_artifact(name: str, **over: Any) -> dict[str, Any]:
    """An artifact as a `completed` event describes it."""
    kinds = {"mp4": "video/mp4", "jpg": "image/jpeg", "json": "application/json"}
    artifact = {
        "key": artifact_key(TENANT, JOB, 1, name),
        "content_type": kinds[name.rpartition(".")[2]],
        "size_bytes": 1000,
        "sha256": "0123456789abcdef" * 4,
    }
    return {**artifact, **over}


def a_video(**over: Any) -> dict[str, Any]:
    """The video among the artifacts."""
    shape = {"width": 128, "height": 96, "num_frames": 9, "fps": 8, "duration_s": 1.125}
    return an_artifact("video.mp4", **{**shape, **over})


def a_manifest(**over: Any) -> Manifest:
    """What a finished attempt left in the store."""
    shape = {"width": 128, "height": 96, "num_frames": 9, "fps": 8, "duration_s": 1.125}
    parts: dict[str, Any] = {
        "key": artifact_key(TENANT, JOB, 1, "manifest.json"),
        "job": JOB,
        "tenant": TENANT,
        "attempt": 1,
        "request": a_request().to_json(),
        "seed": a_request().input.seed,
        "tile": 256,
        "plan": a_plan(),
        "versions": {"python": "3.11.0", "torch": "2.13.0"},
        "timings": {"loading": 2.0, "denoising": 30.0},
        "artifacts": {
            "video": Artifact.of(b"video", key="video.mp4", content_type="video/mp4", facts=shape),
            "poster": Artifact.of(b"poster", key="poster.jpg", content_type="image/jpeg"),
        },
        "inputs": {"image": Artifact.of(b"image", key=upload_key(TENANT, "boat.png"), content_type="image/png")},
    }
    return Manifest(**{**parts, **over})


def an_event(name: str, *, time: datetime = AT, key: str = "", **over: Any) -> Event:
    """The event `name` of a job; `over` replaces fields of its data, `job` and `tenant` too, or its `extensions`."""
    options = {part: over.pop(part) for part in ("tenant", "job", "extensions") if part in over}
    event = job_event(name, {**_data(name), **over}, **{"tenant": TENANT, "job": JOB, **options}, key=key)
    return replace(event, time=time)


def a_job(*names: str, **over: Any) -> Job:
    """A job after `requested` and the events `names`, with these fields replaced."""
    events = [an_event(name) for name in ("requested", *names)]
    job = fold(enumerate(events, start=1))
    assert job is not None
    return replace(job, **over)


def an_order(num_nodes: int = 2, **over: Any) -> Order:
    """What is to be started in a cluster: two processes per node."""
    plan = a_plan(num_nodes=num_nodes, ring=num_nodes)
    parts: dict[str, Any] = {
        "job": a_job(),
        "attempt": 1,
        "plan": plan,
        "deadline_s": 3600,
        "environ": {"CINEVENT_NATS_URL": "nats://nats:4222"},
        "overlay": {},
        "image": "registry.example/engine:1.0",
    }
    return Order(**{**parts, **over})


def _data(name: str) -> dict[str, Any]:
    error = {"code": "engine_crashed", "message": "the run ended without a word"}
    data: dict[str, dict[str, Any]] = {
        "requested": {"request": a_request().to_json()},
        "launched": {"attempt": 1, "launcher": "local", "run": f"{JOB}-a1", "plan": a_plan().to_json()},
        "waiting": {"attempt": 1, "reason": "unschedulable", "message": "0/4 nodes are available"},
        "started": {"attempt": 1, "world_size": 2},
        "progress": {
            "attempt": 1,
            "stage": "denoising",
            "step": 3,
            "steps": 8,
            "percent": 40.0,
            "eta_s": 5.0,
            "seconds_per_step": 1.0,
            "peak_memory_bytes": 600_000_000,
            "preview": {"key": artifact_key(TENANT, JOB, 1, "preview.jpg"), "step": 2, "size_bytes": 9000},
        },
        "drained": {"attempt": 1, "drains": 1},
        "retrying": {"attempt": 2, "error": error},
        "completed": {
            "attempt": 1,
            "artifacts": {
                "video": a_video(),
                "poster": an_artifact("poster.jpg"),
                "manifest": an_artifact("manifest.json"),
            },
            "timings": {"loading": 2.0, "denoising": 8.0},
        },
        "failed": {"attempt": 3, "error": error},
        "cancelled": {"attempt": 1},
    }
    return data.get(name, {})
