"""Load: the components of a model row, each on the ranks that use it.

In: a row, its folder, a mesh. Out: components, placed, split and sharded. Weights are read into the place where they
stay, by a thread of their own, so that the prompt is encoded meanwhile: each rank reads its own shards, and the ranks
of a node hold one copy together. The text encoder and the autoencoder are the reporter's alone.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from engine import sequence, speed
from engine.cache import MagCache, SkippableBlocks, StepCache, make_cache
from engine.contract.models import ModelRow
from engine.contract.request import Input
from engine.mesh import Mesh, Ranks
from engine.models import float8, lora, wan


def load_text_parts(row: ModelRow, folder: Path, *, ranks: Ranks) -> wan.TextParts | None:
    """The text encoder, still on the CPU; None on all ranks but the reporter."""
    return wan.load_text_parts(row, folder) if ranks.is_reporter else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What is being read; each part waits for itself when it is asked for, and raises JobFailed if it is broken."""

    denoiser: wan.Denoiser
    cache: StepCache
    vae: Callable[[], Any] | None
    """The autoencoder, on the CPU; None on all ranks but the reporter."""


def start(row: ModelRow, folder: Path, given: Input, *, done: int = 0, mesh: Mesh) -> Parts:
    """Begin to read what the steps after `done` need of `row`, in the order of its use. All ranks must call it."""
    index = wan.read_index(row, folder)
    schedule = wan.load_schedule(
        row,
        folder,
        sampler=given.sampler,
        flow_shift=given.flow_shift,
        steps=given.steps,
        device=mesh.ranks.device,
    )
    names = wan.expert_names(row)
    needed = {number: wan.make_expert(row, folder, names[number]) for number in sorted(set(schedule.experts[done:]))}
    vae = wan.make_vae(folder) if mesh.ranks.is_reporter else None
    files = lora.find(folder, given.loras, names)
    changes = {names[number]: lora.read(files[names[number]], expert) for number, expert in needed.items()}
    cached = make_cache(given.cache, row, schedule.experts)
    for expert in needed.values():
        if isinstance(cached, MagCache):
            expert.blocks = SkippableBlocks(expert.blocks)
        place(expert, row, mesh)
    # One thread: what is needed first is read first, with all of the disk.
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")
    modules = {names[number]: expert for number, expert in needed.items()}
    if vae is not None:
        # Before the experts if it has an image to encode; else after them, and long before it is used: a broken one is
        # found before the denoising, not after it.
        modules = {"vae": vae, **modules} if given.image else {**modules, "vae": vae}
    read = {
        name: reader.submit(_fill, module, folder / name, changes.get(name, {})).result
        for name, module in modules.items()
    }
    reader.shutdown(wait=False)
    denoiser = wan.Denoiser(
        experts={number: read[names[number]] for number in needed},
        dtype=getattr(torch, row.dtype),
        schedule=schedule,
        expand_timesteps=bool(index.get("expand_timesteps", False)),
    )
    return Parts(denoiser=denoiser, cache=cached, vae=read.get("vae"))


def _fill(module: torch.nn.Module, path: Path, changes: lora.Changes) -> torch.nn.Module:
    wan.read_weights(module, path)
    # Whatever is made of the weights later is made of the changed ones.
    lora.add(changes, module)
    return module


def load_vae(folder: Path) -> Any:
    """The autoencoder, on the CPU, for a rank that only helps to decode."""
    return wan.read_weights(wan.make_vae(folder), folder / "vae")


def place(expert: Any, row: ModelRow, mesh: Mesh) -> None:
    """Split the expert's sequence and its weights as the plan says, and make room for the weights where they lie."""
    chosen, device = mesh.plan.speed, mesh.ranks.device
    if chosen.is_float8:
        float8.store(expert.blocks)
    if mesh.sequence:
        sequence.split(expert, mesh.sequence)
    # After the split, which has an attention of its own; and before what wraps a layer, so that all of it is compiled.
    speed.use_attention(expert, chosen.attention)
    if chosen.compile:
        speed.compile_layers(expert)
    if mesh.copies:
        dtype = getattr(torch, row.dtype)
        for layer in expert.blocks:
            _shard(layer, torch.uint8 if chosen.is_float8 else dtype, mesh)
        _shard(expert, dtype, mesh)
    wan.make_room(expert, torch.device("cpu") if chosen.is_offloaded else device)
    if chosen.is_offloaded:
        speed.offload_layers(expert, device)


def _shard(module: Any, dtype: torch.dtype, mesh: Mesh) -> None:
    # FSDP wants one dtype per group; what is of another one is tiny, and whole on every rank.
    kept = {parameter for parameter in module.parameters() if parameter.dtype != dtype}
    fully_shard(module, mesh=mesh.copies, reshard_after_forward=mesh.plan.reshard, ignored_params=kept)
