"""On a GPU: step time, load speed and peak memory of the true configurations, against diffusers' pipeline in one run.

Random weights in bfloat16 at the official sizes: TI2V-5B and one expert of A14B. Both sides take the same steps from
the same noise with the same transformer, in turns; the difference of their latents is printed. The matrix peak is
measured here too, with one large product, and says how much of it a step reaches. Without a GPU it runs a tiny size on
the processor, so that it is known to run, and has no goal.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import logging

from engine.contract.models import CATALOG, ModelRow
from engine.denoise import Embeddings, Snapshot, denoise
from engine.mesh import divide, join
from engine.models import feed, wan
from engine.models.schedule import Schedule
from tests.engine.ours import ALONE

GOAL, PEAK_GOAL = 0.7, 0.6
STEPS, RUNS = 3, 3
SCALE = 4.0


@dataclass(frozen=True)
class Size:
    """One transformer, and the video that it is to make."""

    name: str
    row: ModelRow
    latents: tuple[int, ...]
    text_dim: int

    @property
    def config(self) -> dict[str, Any]:
        return _config(self.row, text_dim=self.text_dim)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.row.dtype)
        return found

    @property
    def is_per_token(self) -> bool:
        return self.row.spatial_stride == 16


def _config(row: ModelRow, *, text_dim: int) -> dict[str, Any]:
    shape = {"num_attention_heads": row.num_heads, "attention_head_dim": row.head_dim, "num_layers": row.num_layers}
    channels = {"in_channels": row.latent_channels, "out_channels": row.latent_channels}
    return {**shape, **channels, "ffn_dim": row.ffn_dim, "text_dim": text_dim}


# 1280 x 704 with 121 frames, and 1280 x 720 with 81.
OFFICIAL = (
    Size("TI2V-5B", CATALOG["wan2.2-ti2v-5b"], (1, 48, 31, 44, 80), text_dim=4096),
    Size("A14B, one expert", CATALOG["wan2.2-t2v-a14b"], (1, 16, 21, 90, 160), text_dim=4096),
)
TINY = (Size("tiny", CATALOG["tiny-t2v"], (1, 16, 3, 16, 16), text_dim=64),)


def main() -> int:
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = OFFICIAL if device.type == "cuda" else TINY
    peak = matrix_peak(device, sizes[0].dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: a tiny size on the processor"
    print(f"context: {name}, torch {torch.__version__}, one large product {peak / 1e12:.2f} TFLOP/s", flush=True)
    results = [measure(size, device, peak) for size in sizes]
    ratio, share = max(ratio for ratio, _ in results), min(share for _, share in results)
    if device.type == "cpu":
        print(f"engine_gpu {ratio:.2f}/{share:.2f} x(step/peak) none-without-a-GPU ok")
        return 0
    is_ok = ratio <= GOAL and share >= PEAK_GOAL
    print(f"engine_gpu {ratio:.2f}/{share:.2f} x(step/peak) <={GOAL}/>={PEAK_GOAL} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of one large product."""
    n = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = min(timed(lambda: left @ right, device) for _ in range(5))
    return 2 * n**3 / seconds


def measure(size: Size, device: torch.device, peak: float) -> tuple[float, float]:
    """Our step time over diffusers', and the share of the matrix peak that a step of ours reaches."""
    with tempfile.TemporaryDirectory() as folder:
        transformer = load(size, Path(folder), device)
    text = torch.randn(2, 1, 512, size.text_dim, generator=torch.Generator().manual_seed(1)).to(device)
    noise = torch.randn(size.latents, generator=torch.Generator().manual_seed(2)).to(device)
    sides = {"ours": ours(size, transformer, text, noise), "diffusers": theirs(size, transformer, text, noise)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    latents: dict[str, torch.Tensor] = {}
    for turn in range(RUNS):
        for side in sorted(sides, reverse=bool(turn % 2)):
            times, latents[side] = sides[side]()
            seconds[side].append(statistics.median(times[1:]))
    step = {side: statistics.median(values) for side, values in seconds.items()}
    share = 2 * forward_flops(size) / step["ours"] / peak
    difference = (latents["ours"].float() - latents["diffusers"].float()).abs().max().item()
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    print(
        f"context: {size.name}: step {step['ours']:.3f} s, diffusers {step['diffusers']:.3f} s, "
        f"{share:.0%} of the peak, largest difference {difference:.2g}, peak memory {memory:.1f} GiB",
        flush=True,
    )
    return step["ours"] / step["diffusers"], share


def load(size: Size, folder: Path, device: torch.device) -> Any:
    """A random transformer, written as a diffusers folder and read as the engine does; says how fast."""
    dtype = size.dtype
    with torch.device("meta"):
        made = WanTransformer3DModel(**size.config, cross_attn_norm=True)
    made = made.to(dtype).to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    made.save_pretrained(folder / "transformer", max_shard_size="5GB")
    del made
    expert = wan.make_expert(size.row, folder, "transformer")
    wan.make_room(expert, device)
    seconds = timed(lambda: wan.read_weights(expert, folder / "transformer"), device)
    num_bytes = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    print(
        f"context: {size.name}: {num_bytes / 1e9:.2f} GB read in {seconds:.2f} s, {num_bytes / seconds / 1e9:.2f} GB/s"
    )
    return expert


Run = Callable[[], tuple[list[float], torch.Tensor]]


def ours(size: Size, transformer: Any, text: torch.Tensor, noise: torch.Tensor) -> Run:
    ranks = join(rank=0, local_rank=0, world_size=1, num_threads=1)
    mesh = divide(ranks, ALONE)
    embeddings = Embeddings(prompt_bld=text[0], negative_bld=text[1])

    def run() -> tuple[list[float], torch.Tensor]:
        scheduler = a_scheduler()
        scheduler.set_timesteps(STEPS, device=noise.device)
        scheduler.set_begin_index(0)
        model = wan.Denoiser(
            experts={0: lambda: transformer},
            dtype=size.dtype,
            schedule=Schedule(scheduler=scheduler, experts=(0,) * STEPS),
            expand_timesteps=size.is_per_token,
        )
        fed = feed.from_text(noise, is_per_token=size.is_per_token)
        start = Snapshot(step=0, latents_bcfhw=noise)
        steps = list(denoise(model, embeddings, start, feed=fed, scales=(SCALE, SCALE), mesh=mesh))
        return [step.seconds for step in steps], steps[-1].after.latents_bcfhw

    return run


def theirs(size: Size, transformer: Any, text: torch.Tensor, noise: torch.Tensor) -> Run:
    with torch.device("meta"):
        # Only asked for its strides.
        strides = {"scale_factor_spatial": 16} if size.is_per_token else {}
        vae = AutoencoderKLWan(z_dim=size.latents[1], **strides)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=a_scheduler(),
        transformer=transformer,
        expand_timesteps=size.is_per_token,
    )
    pipe.set_progress_bar_config(disable=True)
    _, _, frames, height, width = size.latents
    stride = pipe.vae_scale_factor_spatial

    def run() -> tuple[list[float], torch.Tensor]:
        at = [time.perf_counter()]

        def note(_pipe: Any, _step: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
            settle(noise.device)
            at.append(time.perf_counter())
            return values

        with torch.no_grad():
            latents = pipe(
                prompt_embeds=text[0].to(size.dtype),
                negative_prompt_embeds=text[1].to(size.dtype),
                latents=noise.clone(),
                height=height * stride,
                width=width * stride,
                num_frames=(frames - 1) * 4 + 1,
                num_inference_steps=STEPS,
                guidance_scale=SCALE,
                output_type="latent",
                callback_on_step_end=note,
            ).frames
        return [end - begin for begin, end in pairwise(at)], latents

    return run


def a_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def forward_flops(size: Size) -> float:
    """Of one forward: the linear layers and both attentions of every block; the rest is far below a percent."""
    _, _, frames, height, width = size.latents
    tokens, text_tokens = frames * (height // 2) * (width // 2), 512
    dim = size.row.dim
    own = 2 * tokens * (4 * dim * dim + 2 * dim * size.row.ffn_dim) + 4 * tokens * tokens * dim
    cross = 2 * (2 * tokens + 2 * text_tokens) * dim * dim + 4 * tokens * text_tokens * dim
    return float(size.row.num_layers * (own + cross))


def timed(call: Callable[[], Any], device: torch.device) -> float:
    settle(device)
    started = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - started


def settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
