"""From the start of two processes to the end of the first step: ours, against a plain script on diffusers' pipeline.

Both under torchrun with the same model, one thread per rank, files in the page cache; in turns. What is measured is
what both need before anything is computed: imports, joining, loading, reading the prompt. The model is Wan2.2's 5B with
a tenth of its layers: 500 million parameters each in transformer and text encoder, because with a tiny model both sides
do little but import the same libraries. Ours has one text encoder and one copy of the weights for both ranks, and reads
weights while it reads the prompt; the lines of its log are the timeline.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from engine.contract.models import CATALOG
from engine.models import tiny
from tests.engine.ours import torchrun

MODEL = "tiny-ti2v"
ROW = CATALOG[MODEL]
TEXT_DIM = 1024
SIZE = {"width": 64, "height": 64, "num_frames": 5}
STEPS = 4
RUNS = 3
GOAL = 0.8
PLAIN = """
import sys
import torch
import torch.distributed as dist
from diffusers import WanPipeline

dist.init_process_group("gloo")
torch.set_num_threads(1)
pipe = WanPipeline.from_pretrained(sys.argv[1])


def tell(pipe, step, t, values):
    print("step", step + 1, flush=True)
    return values


pipe("a cat", width=64, height=64, num_frames=5, num_inference_steps=4, output_type="latent", callback_on_step_end=tell)
dist.barrier()
dist.destroy_process_group()
"""


def seconds_to_first_step(command: Sequence[str], *, first: str) -> tuple[float, list[str]]:
    """Until a line of the output matches `first`, and the lines up to it."""
    started = time.perf_counter()
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        lines: list[str] = []
        for line in process.stdout:
            lines.append(f"{time.perf_counter() - started:6.2f} s  {line.rstrip()}")
            if re.search(first, line):
                break
        else:
            raise SystemExit("no step was taken:\n" + "\n".join(lines))
        taken = time.perf_counter() - started
        process.stdout.read()
    return taken, lines


def build(models: Path) -> None:
    """The tiny model of that name, with a larger transformer and text encoder."""
    tiny.build(models)
    folder = models / MODEL
    torch.manual_seed(0)
    shape = {"num_attention_heads": ROW.num_heads, "attention_head_dim": 3072 // ROW.num_heads, "ffn_dim": 14336}
    channels = {"in_channels": ROW.input_channels, "out_channels": ROW.latent_channels}
    transformer = WanTransformer3DModel(
        **shape, **channels, num_layers=ROW.num_layers, text_dim=TEXT_DIM, freq_dim=256, rope_max_seq_len=64
    )
    for name in ("transformer", "text_encoder"):
        shutil.rmtree(folder / name)
    transformer.save_pretrained(folder / "transformer", max_shard_size="500MB")
    config = UMT5Config(vocab_size=262144, d_model=TEXT_DIM, d_kv=64, d_ff=2560, num_layers=20, num_heads=16)
    text_encoder = UMT5EncoderModel(config)
    text_encoder.save_pretrained(folder / "text_encoder")
    for name, model in (("transformer", transformer), ("text encoder", text_encoder)):
        print(f"context: {name}, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters")


def main() -> int:
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder / "models")
        request, script = folder / "request.json", folder / "plain.py"
        request.write_text(json.dumps({"model": MODEL, "input": {"prompt": "a cat", "steps": STEPS, **SIZE}}))
        script.write_text(PLAIN)
        own = ("-m", "engine", "--request", str(request), "--models", str(folder / "models"), "--out")
        for turn in range(RUNS + 1):
            sides = {
                "ours": (torchrun(2, *own, str(folder / f"{turn}")), rf"step 1/{STEPS}"),
                "plain": (torchrun(2, str(script), str(folder / "models" / MODEL)), "step 1"),
            }
            for side in sorted(sides, reverse=bool(turn % 2)):
                taken, lines = seconds_to_first_step(sides[side][0], first=sides[side][1])
                # The first turn fills the page cache.
                seconds[side] += [taken] if turn else []
                timeline = lines if side == "ours" else []
        print("\n".join(timeline))
    ratio = statistics.median(ours / plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True))
    print("context: " + ", ".join(f"{side} {statistics.median(values):.2f} s" for side, values in seconds.items()))
    print(f"engine_start {ratio:.2f} ratio <={GOAL} {'ok' if ratio <= GOAL else 'short'}")
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
