"""The whole system on one machine with the real engine: a request becomes a video, whatever happens in between."""

import hashlib
import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import av
import boto3
import openai
import pytest
from standardwebhooks import Webhook

from engine.contract.codec import decode
from engine.contract.schemas import STAGES
from tests.e2e.system import System, a_system, cinevent, left, power_off
from tests.pictures import a_file, a_picture
from tests.servers import Sink, accepts, free_port, wait_until

SMALL = ("--width", "64", "--height", "64", "--num-frames", "9", "--steps", "4", "--seed", "7")
LONG = ("--steps", "100", "--num-frames", "33", "--width", "256", "--height", "256")


def test_a_request_becomes_a_video_and_a_signed_webhook(system: System, sink: Sink, tmp_path: Path) -> None:
    job = system.submit(*SMALL, "--webhook", sink.url)
    state = system.await_state(job, "COMPLETED", "FAILED")
    video = tmp_path / "video.mp4"

    done = system.cinevent("video", job, "-o", str(video))

    assert (state["state"], done.code) == ("COMPLETED", 0)
    assert hashlib.sha256(video.read_bytes()).hexdigest() == state["artifacts"]["video"]["sha256"]
    with av.open(video) as opened:
        stream = opened.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.frames) == ("h264", 64, 64, 9)
    wait_until(lambda: sink.received, what="the webhook comes")
    [hook] = sink.received
    Webhook(system.addresses["webhook_secret"]).verify(hook.body, hook.headers)
    assert decode(hook.headers, hook.body).name == "completed"


def test_the_openai_sdk_makes_and_reads_a_video_as_it_is(system: System, tmp_path: Path) -> None:
    with (
        openai.OpenAI(base_url=f"{system.addresses['submit']}/v1", api_key="none") as client,
        warnings.catch_warnings(),
    ):
        # The SDK says of every call that OpenAI's own service has ended.
        warnings.simplefilter("ignore", DeprecationWarning)
        made = client.videos.create(
            model="tiny-t2v", prompt="a kite", size="64x64", seconds="1", extra_body={"steps": 4, "fps": 8}
        )
        video = client.videos.poll(made.id)
        listed = [each.id for each in client.videos.list(limit=5)]
        client.videos.download_content(made.id).write_to_file(tmp_path / "video.mp4")
        client.videos.download_content(made.id, variant="thumbnail").write_to_file(tmp_path / "poster.jpg")
        deleted = client.videos.delete(made.id)

    assert (made.status, video.status, video.progress, video.seconds) == ("queued", "completed", 100, "1")
    assert made.id in listed
    with av.open(tmp_path / "video.mp4") as opened:
        assert opened.streams.video[0].frames == 9
    assert (tmp_path / "poster.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert deleted.deleted
    assert not (system.data / "store" / "default" / made.id / "a1" / "video.mp4").exists()


def test_a_picture_becomes_a_video(system: System, tmp_path: Path) -> None:
    file = tmp_path / "boat.jpg"
    file.write_bytes(a_file(a_picture(200, 100), "JPEG"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    job = system.submit(*SMALL, "--model", "tiny-i2v", "--image", str(file))

    state = system.await_state(job, "COMPLETED", "FAILED")
    assert (state["state"], state["input"]["image"]) == ("COMPLETED", f"{digest}.jpg")
    manifest = json.loads((system.data / "store" / state["artifacts"]["manifest"]["key"]).read_text())
    assert manifest["inputs"]["image"] == {
        "key": f"default/uploads/{digest}.jpg",
        "content_type": "image/jpeg",
        "size_bytes": file.stat().st_size,
        "sha256": digest,
    }


def test_a_damaged_picture_fails_the_job_with_the_reason(system: System, tmp_path: Path) -> None:
    file = tmp_path / "boat.png"
    file.write_bytes(a_file()[:100])

    state = system.await_state(system.submit("--model", "tiny-i2v", "--image", str(file)), "COMPLETED", "FAILED")

    assert (state["error"]["code"], state["attempt"]) == ("input_invalid", 1)


def test_watch_shows_stages_and_steps_until_the_end(system: System) -> None:
    done = system.cinevent("submit", "a kite", *SMALL, "--watch")

    lines = done.out.splitlines()
    assert done.code == 0, done.err
    # The newest news replaces older ones: a stage that is over in no time may not be seen.
    assert {"loading", "denoising", "decoding"} <= {stage for stage in STAGES if stage in done.out}
    assert "step 4/4" in done.out
    assert lines[-1].endswith("COMPLETED")


def test_cancel_ends_a_running_job_within_ten_seconds(system: System) -> None:
    job = system.submit(*LONG)
    system.await_state(job, "PROCESSING")
    start = time.monotonic()

    assert system.cinevent("cancel", job).code == 0
    system.await_state(job, "CANCELLED")

    assert time.monotonic() - start < 10
    wait_until(lambda: not engine_processes(system.data), what="the engine is gone")


def test_ranks_end_with_their_torchrun_and_the_next_attempt_follows(system: System) -> None:
    job = system.submit(*LONG)
    system.await_state(job, "PROCESSING")
    ranks = engine_processes(system.data)
    for pid in [pid for pid in left(system.data) if "torch.distributed.run" in command_of(pid)]:
        os.kill(pid, signal.SIGKILL)

    wait_until(lambda: not set(ranks) & set(engine_processes(system.data)), what="the ranks are gone")

    wait_until(lambda: system.state(job)["attempt"] == 2, what="the next attempt")
    assert system.cinevent("cancel", job).code == 0
    system.await_state(job, "CANCELLED")


def test_a_part_that_dies_is_started_again(system: System) -> None:
    nats_port = int(system.addresses["nats"].rsplit(":", 1)[1])
    for name in ("nats-server", "functions.submit.app", "functions.source"):
        for pid in [pid for pid in left(system.data) if name in command_of(pid)]:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: accepts(nats_port), what="nats-server is back")

    wait_until(lambda: system.cinevent("list").code == 0, timeout_s=20, what="submit is back")
    job = system.submit(*SMALL)

    assert system.await_state(job, "COMPLETED", "FAILED")["state"] == "COMPLETED"


def test_after_a_power_loss_a_job_that_was_processing_is_finished(models: Path, tmp_path: Path) -> None:
    data, nats_port = tmp_path / "data", free_port()
    with a_system(data, models=models, nats_port=nats_port) as system:
        job = system.submit("--steps", "40", "--num-frames", "17")
        waiting = system.submit(*SMALL)
        system.await_state(job, "PROCESSING")
        power_off(data)

    with a_system(data, models=models, nats_port=nats_port) as system:
        finished = system.await_state(job, "COMPLETED", "FAILED")
        second = system.await_state(waiting, "COMPLETED", "FAILED")

    assert (finished["state"], finished["attempt"]) == ("COMPLETED", 2)
    assert (second["state"], second["attempt"]) == ("COMPLETED", 1)


def test_sigterm_leaves_no_process_and_the_job_goes_on_with_its_next_step(models: Path, tmp_path: Path) -> None:
    data, nats_port = tmp_path / "data", free_port()
    with a_system(data, models=models, nats_port=nats_port) as system:
        job = system.submit("--steps", "100", "--num-frames", "17")
        wait_until(lambda: system.state(job)["stage"] == "denoising", timeout_s=60, what="the first step")

        assert system.process.stop(timeout_s=60) == 0
        assert left(data) == []

    with a_system(data, models=models, nats_port=nats_port) as system:
        state = system.await_state(job, "COMPLETED", "FAILED")

    assert (state["state"], state["attempt"]) == ("COMPLETED", 1)
    assert "going on after step" in (data / "runs" / f"{job}-a1" / "log").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_damaged_weights_fail_the_job_with_the_files_name(models: Path, tmp_path: Path, processes: int) -> None:
    damaged = tmp_path / "models"
    shutil.copytree(models, damaged)
    weights = next((damaged / "tiny-t2v" / "transformer_2").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with a_system(tmp_path / "data", models=damaged, processes=processes) as system:
        state = system.await_state(system.submit(*SMALL), "FAILED", "COMPLETED", timeout_s=40)

    assert (state["error"]["code"], state["attempt"]) == ("model_load_failed", 1)
    assert "transformer_2" in state["error"]["message"]


def test_two_processes_make_the_same_video_as_one(models: Path, tmp_path: Path, system: System) -> None:
    one = system.await_state(system.submit(*SMALL), "COMPLETED", "FAILED")
    with a_system(tmp_path / "data", models=models, processes=2) as two_processes:
        two = two_processes.await_state(two_processes.submit(*SMALL), "COMPLETED", "FAILED")

    assert one["artifacts"]["video"]["sha256"] == two["artifacts"]["video"]["sha256"]


def test_artifacts_go_to_s3_and_the_video_is_read_from_there(models: Path, tmp_path: Path, s3_address: str) -> None:
    env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.Session("a", "s", region_name="us-east-1").client("s3", endpoint_url=s3_address).create_bucket(
        Bucket="videos"
    )
    env |= {"CINEVENT_STORE_URL": "s3://videos/made", "CINEVENT_S3_ENDPOINT": s3_address}
    with a_system(tmp_path / "data", models=models, env=env) as system:
        state = system.await_state(system.submit(*SMALL), "COMPLETED", "FAILED")
        done = system.cinevent("video", state["id"], "-o", str(tmp_path / "video.mp4"))

    assert (state["state"], done.code) == ("COMPLETED", 0), done.err
    digest = hashlib.sha256((tmp_path / "video.mp4").read_bytes()).hexdigest()
    assert digest == state["artifacts"]["video"]["sha256"]


def test_a_second_system_on_the_same_data_is_refused_in_one_line(system: System) -> None:
    done = cinevent("local", "--data", str(system.data), "--port", "0", "--nats-port", "0")

    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "in use" in done.err


@pytest.mark.parametrize(("address", "option"), [("submit", "--port"), ("nats", "--nats-port")])
def test_a_port_that_is_taken_is_named(system: System, tmp_path: Path, address: str, option: str) -> None:
    port = system.addresses[address].rsplit(":", 1)[1]
    ports = {"--port": "0", "--nats-port": "0", option: port}

    done = cinevent("local", "--data", str(tmp_path / "data"), *(word for pair in ports.items() for word in pair))

    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert f"port {port}" in done.err
    assert f"choose another {option}" in done.err


def engine_processes(data: Path) -> list[int]:
    return [pid for pid in left(data) if "-m engine" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
