"""Whole runs of the engine as a launcher starts them: real processes, a real log, a real store."""

import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import boto3
import pytest
from PIL import Image

from engine import decode, video
from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.adapters.store import DirStore
from engine.contract.job import Job, State, artifact_key, new_id
from engine.contract.request import Request
from engine.contract.schemas import STAGES
from engine.contract.settings import Settings, env_name
from engine.mesh import Ranks
from engine.pace import PARTS, Pace, Work, pace_key
from tests.engine.ours import a_video_request, our_latents, torchrun
from tests.make import PROMPT, TENANT, an_event
from tests.servers import Child, NatsServer, child

ALONE = [sys.executable, "-m", "engine"]
PAIR = torchrun(2, "-m", "engine")
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
# Dozens of steps, so that there is progress to tell between the first and the last.
REQUEST = a_video_request("tiny-t2v", num_frames=9, steps=40)


@dataclass
class Place:
    """A log, a store and models, for several runs."""

    settings: Settings
    bus: Bus
    store: DirStore

    def accept(self, request: Request = REQUEST) -> str:
        """The id of a job that is accepted and waits for a run."""
        job = new_id()
        self.bus.publish(an_event("requested", job=job, request=request.to_json()))
        return job

    def run(self, job: str, command: list[str], log: Path, **settings: Any) -> AbstractContextManager[Child]:
        """A run of the job's first attempt."""
        own = {**self.settings.environ(), "CINEVENT_JOB": job, "OMP_NUM_THREADS": "1"}
        return child(command, env={**own, **{env_name(name): str(value) for name, value in settings.items()}}, log=log)

    def job(self, job: str) -> Job:
        return History(self.bus).get(TENANT, job)

    def artifact(self, job: str, name: str) -> bytes:
        return self.store.read(artifact_key(TENANT, job, 1, name))


@pytest.fixture(scope="module")
def place(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with ExitStack() as closing:
        nats = NatsServer(folder)
        nats.start()
        closing.callback(nats.kill)
        store = folder / "store"
        settings = Settings(nats_url=nats.url, store_url=f"file:{store}", models_dir=str(models), tenant=TENANT)
        bus = Bus.open(settings)
        closing.callback(bus.close)
        yield Place(settings=settings, bus=bus, store=DirStore(store))


@dataclass
class Ended:
    job: str
    status: int
    log: str
    seconds: float


@pytest.fixture(scope="module")
def ended(place: Place, models: Path, s3_address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Three runs side by side, most of whose time is imports.

    One process; two ranks that fetch their weights from a bucket; two ranks with a cut file.
    """
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(models, folder / "cut")
    # The autoencoder: only one of the ranks reads it, the other waits for that one.
    file = folder / "cut" / "tiny-t2v" / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    upload(models / "tiny-t2v", s3_address)
    bucket = {"models_url": "s3://engine/models", "models_dir": folder / "cache", "s3_endpoint": s3_address}
    keys = ["env", *(f"{name}={value}" for name, value in KEYS.items())]
    runs = {"alone": (ALONE, {}), "pair": ([*keys, *PAIR], bucket), "cut": (PAIR, {"models_dir": folder / "cut"})}
    jobs = {name: place.accept() for name in runs}
    started = time.monotonic()
    with ExitStack() as closing:
        children = {
            name: closing.enter_context(place.run(jobs[name], command, folder / f"{name}.log", **settings))
            for name, (command, settings) in runs.items()
        }
        return {
            name: Ended(jobs[name], run.process.wait(timeout=100), run.log.read_text(), time.monotonic() - started)
            for name, run in children.items()
        }


def upload(model: Path, address: str) -> None:
    session = boto3.Session(*list(KEYS.values())[:2], region_name=KEYS["AWS_DEFAULT_REGION"])
    client = session.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="engine")
    for path in model.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "engine", f"models/tiny-t2v/{path.relative_to(model)}")


@pytest.mark.parametrize("name", ["alone", "pair"])
def test_a_run_leaves_what_its_completed_event_says(place: Place, ended: dict[str, Ended], name: str) -> None:
    run = ended[name]
    job = place.job(run.job)
    assert (run.status, job.state, job.outcome["attempt"]) == (0, State.COMPLETED, 1), run.log
    for artifact in job.outcome["artifacts"].values():
        body = place.store.read(artifact["key"])
        assert artifact["sha256"] == hashlib.sha256(body).hexdigest()
        assert artifact["size_bytes"] == len(body)
    assert job.outcome["timings"]["denoising"] > 0


def test_the_video_is_as_the_request_wants_it(place: Place, ended: dict[str, Ended], tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(place.artifact(ended["alone"].job, "video.mp4"))
    facts = place.job(ended["alone"].job).outcome["artifacts"]["video"]
    assert [facts[name] for name in ("width", "height", "num_frames", "fps")] == [64, 64, 9, 8]
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 9


def test_the_ranks_of_a_node_fetch_their_weights_once(ended: dict[str, Ended]) -> None:
    assert ended["pair"].log.count("tiny-t2v was fetched in") == 1


def test_one_process_and_two_ranks_make_the_same_bytes(place: Place, ended: dict[str, Ended]) -> None:
    videos = [place.artifact(ended[name].job, "video.mp4") for name in ("alone", "pair")]
    assert videos[0] == videos[1]


def test_the_manifest_is_enough_to_make_the_video_again(place: Place, ended: dict[str, Ended]) -> None:
    manifest = json.loads(place.artifact(ended["pair"].job, "manifest.json"))
    assert Request.from_json(manifest["request"]) == REQUEST
    assert (manifest["seed"], manifest["plan"]["cfg"], manifest["plan"]["num_processes"]) == (7, 2, 2)
    assert {"python", "torch", "diffusers", "transformers"} == set(manifest["versions"])
    assert manifest["tile"] == 0
    # What auto became, not auto.
    assert manifest["plan"]["speed"]["attention"] == "native"


def test_the_stages_are_entered_in_their_order(place: Place, ended: dict[str, Ended]) -> None:
    manifest = json.loads(place.artifact(ended["alone"].job, "manifest.json"))
    assert list(manifest["timings"]) == list(STAGES)


def test_frames_that_do_not_fit_are_decoded_in_tiles_by_all_ranks(
    place: Place, models: Path, ranks: Ranks, tmp_path: Path
) -> None:
    request = a_video_request("tiny-ti2v", width=160, height=32, steps=2, fps=12, crf=30)
    job = place.accept(request)
    with place.run(job, PAIR, tmp_path / "log", decode_memory_gib=0.001) as run:
        assert run.process.wait(timeout=100) == 0, run.log.read_text()
    latents, vae = our_latents(request, models, ranks)
    tiles = decode.decode_in_tiles(vae, latents, side=128, ranks=ranks, folder=tmp_path)
    mp4, sizes = tmp_path / "video.mp4", {"num_frames": 5, "fps": 12, "crf": 30}

    def write(chunks: Iterator[Any]) -> None:
        video.write_video(chunks, mp4, tmp_path / "poster.jpg", **sizes)

    decode.film(vae, latents, write, tiles=tiles, folder=tmp_path)
    assert place.artifact(job, "video.mp4") == mp4.read_bytes()
    assert json.loads(place.artifact(job, "manifest.json"))["tile"] == 128


def test_progress_is_told_stage_by_stage_and_never_falls(place: Place, ended: dict[str, Ended]) -> None:
    subject = f"cinevent.{TENANT}.{ended['pair'].job}.progress"
    words = [json.loads(m.body)["data"] for m in place.bus.read("CINEVENT_PROGRESS", matching=subject)]
    percents = [word["percent"] for word in words]
    assert percents == sorted(percents)
    assert {"loading", "encoding_text", "denoising", "decoding"} <= {word["stage"] for word in words}


def test_a_run_leaves_a_preview_and_its_pace(place: Place, ended: dict[str, Ended]) -> None:
    picture = Image.open(io.BytesIO(place.artifact(ended["pair"].job, "preview.jpg")))
    assert (picture.format, picture.size) == ("JPEG", (320, 320))
    pace = Pace.from_json(place.store.read(pace_key(f"{TENANT}/pace", Work.of(REQUEST, world_size=2))))
    assert all(pace.seconds_per_unit[part] > 0 for part in PARTS if part != "warm_up")


def test_a_cut_file_ends_both_ranks_and_the_job(place: Place, ended: dict[str, Ended]) -> None:
    run = ended["cut"]
    job = place.job(run.job)
    assert (run.status, job.state) == (1, State.FAILED), run.log
    assert job.outcome["error"]["code"] == "model_load_failed"
    assert "cut/tiny-t2v/vae" in job.outcome["error"]["message"]
    # Three runs share the processors here; a rank that waits for ever would take the fifteen minutes of the group.
    assert run.seconds < 90


def test_no_prompt_reaches_the_log_of_a_run(ended: dict[str, Ended]) -> None:
    assert all(PROMPT not in run.log for run in ended.values())


def test_a_job_with_an_outcome_is_left_alone(place: Place, ended: dict[str, Ended], tmp_path: Path) -> None:
    job = ended["alone"].job
    before = place.job(job)
    with place.run(job, ALONE, tmp_path / "log") as run:
        assert run.process.wait(timeout=60) == 0, run.log.read_text()
    assert place.job(job) == before


def test_artifacts_without_an_event_are_told_and_not_made_again(place: Place, tmp_path: Path, ended: Any) -> None:
    job = place.accept()
    old = json.loads(place.artifact(ended["alone"].job, "manifest.json"))
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**old, "job": job, "key": artifact_key(TENANT, job, 1, manifest.name)}))
    place.store.put(artifact_key(TENANT, job, 1, manifest.name), manifest, content_type="application/json")
    with place.run(job, ALONE, tmp_path / "log", models_dir="/nowhere") as run:
        assert run.process.wait(timeout=60) == 0, run.log.read_text()
    assert place.job(job).outcome["artifacts"]["manifest"]["size_bytes"] == manifest.stat().st_size
