"""A run that ends before its time goes on where it was, on any number of ranks, and gives the bytes of one that was not
disturbed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.adapters.store import DirStore
from engine.checkpoint import Checkpoints, identity
from engine.contract.request import Request
from engine.denoise import Snapshot
from engine.latents import make_latents
from engine.mesh import Ranks, divide
from engine.stop import EXIT_CODE, Stop, Stopped, Why
from tests.engine.lives import Life, to_json
from tests.engine.ours import ALONE, WAYS, a_run, a_video_request, our_model, our_steps
from tests.pictures import a_file

# Far more than the kills need: on a busy machine a run takes some steps before the signal comes.
STEPS = 100
LAST_KILL = 60
KILLS = 10


@pytest.fixture(scope="module")
def lives(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of a job of each model: one run without a disturbance, and many that were ended."""
    folder = tmp_path_factory.mktemp("lives")
    steps = sorted(random.sample(range(2, LAST_KILL), KILLS))
    script = [
        a_life(folder, models, "quiet-t2v", num_ranks=1),
        *(
            a_life(folder, models, "killed-t2v", num_ranks=num_ranks, end="SIGKILL", at_step=step)
            for step, num_ranks in zip(steps, (2, 1, 2, 2, 1, 1, 2, 2, 1, 2), strict=True)
        ),
        a_life(folder, models, "killed-t2v", num_ranks=1),
        a_life(folder, models, "quiet-ti2v", num_ranks=2),
        a_life(folder, models, "drained-ti2v", num_ranks=2, end="SIGTERM", at_step=5),
        a_life(folder, models, "drained-ti2v", num_ranks=2, end="SIGKILL", at_step=STEPS // 2, only_rank=1),
        a_life(folder, models, "drained-ti2v", num_ranks=1),
    ]
    command = [sys.executable, "-m", "tests.engine.lives", to_json(script)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    statuses = [json.loads(line) for line in done.stdout.splitlines()]
    return {"folder": folder, "steps": steps, "statuses": statuses}


def a_life(folder: Path, models: Path, name: str, **over: Any) -> Life:
    kind = name.partition("-")[2]
    request = folder / f"{kind}.json"
    small = {"prompt": "a cat", "width": 64, "height": 64, "num_frames": 5, "steps": STEPS, "seed": 7}
    if kind == "ti2v":
        # Its first frame is held in every step: each life must make it anew, the same.
        small["image"] = "boat.png"
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "boat.png").write_bytes(a_file())
    request.write_text(json.dumps({"model": f"tiny-{kind}", "input": small}))
    return Life(request=str(request), out=str(folder / name), models=str(models), **over)


def log(lives: dict[str, Any], name: str) -> str:
    return str((lives["folder"] / name / "log").read_text())


def resumed_at(lives: dict[str, Any], name: str) -> list[int]:
    return [int(step) for step in re.findall(r"rank 0 going on after step (\d+)", log(lives, name))]


def video(lives: dict[str, Any], name: str) -> bytes:
    return bytes((lives["folder"] / name / "video.mp4").read_bytes())


def test_ten_kills_at_random_steps_on_changing_numbers_of_ranks_change_no_byte(lives: dict[str, Any]) -> None:
    assert video(lives, "killed-t2v") == video(lives, "quiet-t2v"), lives["steps"]


def test_each_life_goes_on_where_the_last_one_was_killed(lives: dict[str, Any]) -> None:
    found = resumed_at(lives, "killed-t2v")
    assert lives["statuses"][1][0] == -signal.SIGKILL
    assert len(found) == KILLS
    assert all(at >= killed for at, killed in zip(found, lives["steps"], strict=True))


def test_a_drained_run_leaves_a_checkpoint_and_says_so_on_all_ranks(lives: dict[str, Any]) -> None:
    assert lives["statuses"][-3] == [EXIT_CODE, EXIT_CODE]
    first_life = log(lives, "drained-ti2v").partition('{"event": "drained"}')[0]
    left = [int(step) for step in re.findall(r"told to end \(drain\), after step (\d+)", first_life)]
    assert left == [resumed_at(lives, "drained-ti2v")[0]] * 2
    assert video(lives, "drained-ti2v") == video(lives, "quiet-ti2v")


def test_a_rank_that_is_killed_ends_the_other(lives: dict[str, Any]) -> None:
    first, second = lives["statuses"][-2]
    assert (first, second) == (1, -signal.SIGKILL)


def test_a_finished_job_leaves_no_checkpoint(lives: dict[str, Any]) -> None:
    assert DirStore(lives["folder"] / "killed-t2v").list("checkpoints") == []


# Without processes: what is kept, and what is refused.


def some_checkpoints(folder: Path, of: str = "this video") -> Checkpoints:
    return Checkpoints(DirStore(folder), "default/job/checkpoints", identity=of, interval_s=1000)


def some_snapshots(models: Path, ranks: Ranks, request: Request) -> list[Snapshot]:
    mesh = divide(ranks, ALONE)
    model = our_model(request.row, request.input, models, mesh)
    return [step.after for step in our_steps(model, request.row, request.input, mesh)]


def test_a_snapshot_survives_the_store_bit_for_bit(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    for snapshot in some_snapshots(models, ranks, a_video_request("tiny-t2v", steps=5)):
        some_checkpoints(tmp_path).write(snapshot)
        found = some_checkpoints(tmp_path).newest()
        assert found
        assert found.step == snapshot.step
        assert torch.equal(found.latents_bcfhw, snapshot.latents_bcfhw)
        assert repr(found.scheduler) == repr(dict(snapshot.scheduler))


def test_the_last_two_are_kept(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    checkpoints = some_checkpoints(tmp_path)
    for snapshot in some_snapshots(models, ranks, a_video_request("tiny-t2v", steps=5)):
        checkpoints.write(snapshot)
    kept = DirStore(tmp_path).list("default/job/checkpoints")
    assert [key.rpartition("/")[2] for key in kept] == ["000004.safetensors", "000005.safetensors"]


def test_a_broken_checkpoint_gives_way_to_the_one_before(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    checkpoints = some_checkpoints(tmp_path)
    for snapshot in some_snapshots(models, ranks, a_video_request("tiny-t2v", steps=3)):
        checkpoints.write(snapshot)
    newest = tmp_path / DirStore(tmp_path).list("default/job/checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    found = checkpoints.newest()
    assert found
    assert found.step == 2


def test_a_checkpoint_of_something_else_is_refused_and_removed(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    snapshot = some_snapshots(models, ranks, a_video_request("tiny-t2v", steps=1))[0]
    some_checkpoints(tmp_path, of="another video").write(snapshot)
    assert some_checkpoints(tmp_path).newest() is None
    assert DirStore(tmp_path).list("default/job/checkpoints") == []


def test_between_two_checkpoints_lies_the_interval(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    checkpoints = some_checkpoints(tmp_path)
    for snapshot in some_snapshots(models, ranks, a_video_request("tiny-t2v", steps=3)):
        checkpoints.offer(snapshot)
    checkpoints.clear()
    assert DirStore(tmp_path).list("default/job/checkpoints") == []


def test_an_identity_is_of_the_video_the_weights_and_the_versions(models: Path, tmp_path: Path) -> None:
    request, folder = a_video_request("tiny-t2v"), models / "tiny-t2v"
    own = identity(request, folder)
    assert own == identity(replace(request, priority="high", metadata={"a": "b"}), folder)
    assert own != identity(a_video_request("tiny-t2v", seed=8), folder)
    assert own != identity(a_video_request("tiny-t2v", prompt="a dog"), folder)
    assert own != identity(request, folder, image="another picture under the same name")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    one = identity(request, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    assert own != one != identity(request, tmp_path)


def test_an_identity_is_of_the_loras_that_are_used_and_of_no_others(tmp_path: Path) -> None:
    plain, inked = a_video_request("tiny-t2v"), a_video_request("tiny-t2v", loras=[{"name": "ink"}])
    before = [identity(request, tmp_path) for request in (plain, inked)]
    (tmp_path / "loras" / "ink").mkdir(parents=True)
    (tmp_path / "loras" / "ink" / "transformer.safetensors").write_bytes(b"x")
    (tmp_path / "loras" / "oil.safetensors").write_bytes(b"x")
    after = [identity(request, tmp_path) for request in (plain, inked)]
    assert before[0] == after[0]
    assert len({*before, *after}) == 3


def test_a_store_that_fails_costs_no_job(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    checkpoints = some_checkpoints(tmp_path / "file")
    checkpoints.write(some_snapshots(models, ranks, a_video_request("tiny-t2v", steps=1))[0])
    assert checkpoints.newest() is None
    checkpoints.clear()


def test_a_cancelled_run_leaves_after_the_step_and_no_checkpoint(models: Path, ranks: Ranks, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    run = a_run(
        a_video_request("tiny-t2v", steps=5),
        models,
        ranks,
        stop=Stop(lambda: next(asked)),
        checkpoints=some_checkpoints(tmp_path),
    )
    with pytest.raises(Stopped) as stopped:
        make_latents(run)
    assert stopped.value.why is Why.CANCEL
    assert next(asked, None) is None
    assert DirStore(tmp_path).list("default/job/checkpoints") == []


@pytest.mark.parametrize("way", ["tiny-t2v", "tiny-ti2v from an image"])
def test_a_finished_denoising_is_not_repeated(models: Path, ranks: Ranks, tmp_path: Path, way: str) -> None:
    """A decoding that fails, as for want of memory, must not cost the steps again: they need no expert, and no text."""
    name, image = WAYS[way]
    request = a_video_request(name, steps=3, **image)
    first, _ = make_latents(a_run(request, models, ranks, checkpoints=some_checkpoints(tmp_path)))
    again = a_run(request, models, ranks, checkpoints=some_checkpoints(tmp_path))
    latents, vae = make_latents(again)
    assert torch.equal(latents, first)
    assert vae
    assert list(again.stages.end()) == ["loading"]


# A rank that hangs, and signals at any time.


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_step_that_hangs_ends_the_process_and_the_log_shows_where() -> None:
    code = (
        "import time; from engine.latents import watched\n"
        "def hanging_collective(): time.sleep(600)\n"
        "with watched(patience_s=0.1) as watch:\n  watch(0.001); hanging_collective()"
    )
    done = run_python(code)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "hanging_collective" in done.stderr


def test_steps_in_time_are_left_alone() -> None:
    code = "from engine.latents import watched\nwith watched() as watch:\n  watch(1.0)\nprint('done')"
    assert run_python(code).stdout == "done\n"


def test_sigterm_outside_the_loop_stops_at_once_and_in_it_after_the_step() -> None:
    code = (
        "import os, signal; from engine.stop import Stop, Stopped, Why\n"
        "def term(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "stop = Stop(); stop.listen()\n"
        "try:\n"
        "  with stop.held():\n    term(); term(); print(stop.why().name)\n"
        "except Stopped as stopped: print('after', stopped.why.name)\n"
        "stop = Stop(); stop.listen()\n"
        "try:\n  term(); print('not reached')\n"
        "except Stopped as stopped: print('at once', stopped.why.name); term(); print('once')"
    )
    assert run_python(code).stdout.splitlines() == ["DRAIN", "after DRAIN", "at once DRAIN", "once"]
