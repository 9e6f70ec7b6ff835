"""The Wan2.2 family: which classes a diffusers folder holds, in which subfolders, and in which dtype each one runs.

In: the folder of a catalog row, real or tiny. Out: components, first without weights, then with them. It does not know
ranks: where a parameter is sharded, only the shard is read. Whatever is wrong with the files leaves as
JobFailed("model_load_failed") with the path; no other attempt would help.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.utils.constants import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch.distributed.checkpoint import DefaultLoadPlanner, HuggingFaceStorageReader
from torch.distributed.checkpoint.filesystem import FileSystem

from engine.contract.errors import JobFailed
from engine.contract.models import ModelRow

# Files of one component that are read at a time: a network disk serves several readers faster than one.
_READERS = 4


# What UniPC carries from step to step, beside the timesteps that are set before the first one.
_MEMORY = ("model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order", "_step_index")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The noise schedule of one video."""

    scheduler: UniPCMultistepScheduler
    """With its timesteps set."""
    experts: tuple[int, ...]
    """Which expert works in each step."""

    @property
    def steps(self) -> int:
        """All of them."""
        return len(self.experts)

    def memory(self) -> dict[str, Any]:
        """What the scheduler remembers of the steps so far; later steps do not change it."""
        found = {name: getattr(self.scheduler, name) for name in _MEMORY if hasattr(self.scheduler, name)}
        # The lists are shifted in place, what is in them is not changed.
        return {name: list(value) if isinstance(value, list) else value for name, value in found.items()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Have the scheduler remember this; its own lists, as `memory` must not change."""
        for name, value in memory.items():
            setattr(self.scheduler, name, list(value) if isinstance(value, list) else value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoiser:
    """What the step loop needs of a model."""

    experts: Mapping[int, Callable[[], WanTransformer3DModel]]
    """By the schedule's numbers, those that a step needs. Each call waits until the weights are read."""
    dtype: torch.dtype
    """In which the experts compute."""
    schedule: "Schedule"
    expand_timesteps: bool
    """The model takes one timestep per token, not one per video (TI2V)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextParts:
    """What reads a prompt."""

    tokenizer: Any
    encoder: Any


def load_text_parts(row: ModelRow, folder: Path) -> TextParts:
    """The tokenizer and the text encoder."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    with _reading(folder / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    dtype = getattr(torch, row.dtype)
    encoder = _load_module(UMT5EncoderModel.from_pretrained, folder / "text_encoder", dtype=dtype)
    return TextParts(tokenizer=tokenizer, encoder=encoder)


def expert_names(row: ModelRow) -> tuple[str, ...]:
    """The subfolders of the experts, the high-noise one first."""
    return ("transformer",) if row.boundary is None else ("transformer", "transformer_2")


def load_schedule(row: ModelRow, folder: Path, *, flow_shift: float, steps: int, device: torch.device) -> Schedule:
    """The schedule of `steps` steps, with the request's flow shift in place of the folder's."""
    with _reading(folder / "scheduler"):
        scheduler: UniPCMultistepScheduler = UniPCMultistepScheduler.from_pretrained(
            folder, subfolder="scheduler", flow_shift=flow_shift, local_files_only=True
        )
    scheduler.set_timesteps(steps, device=device)
    # Told once, so that the scheduler does not look for it on the device in the first step.
    scheduler.set_begin_index(0)
    boundary = 0.0 if row.boundary is None else row.boundary * scheduler.config.num_train_timesteps
    # As numbers, once: asking a device which expert is next would make it wait in every step.
    return Schedule(scheduler=scheduler, experts=tuple(int(t < boundary) for t in scheduler.timesteps.tolist()))


def make_expert(row: ModelRow, folder: Path, name: str) -> WanTransformer3DModel:
    """One expert without its weights: every parameter is on the meta device, in the dtype in which it runs."""
    path = folder / name
    with _reading(path):
        config = WanTransformer3DModel.load_config(folder, subfolder=name, local_files_only=True)
        with torch.device("meta"):
            expert = WanTransformer3DModel.from_config(config)
    _check_shape(row, path, expert)
    # Tables that are computed, not read.
    expert.rope = WanRotaryPosEmbed(
        expert.config.attention_head_dim, expert.config.patch_size, expert.config.rope_max_seq_len
    )
    for parameter_name, parameter in expert.named_parameters():
        if not set(expert._keep_in_fp32_modules).intersection(parameter_name.split(".")):
            parameter.data = parameter.data.to(getattr(torch, row.dtype))
    return expert.eval().requires_grad_(requires_grad=False)


def make_vae(folder: Path) -> AutoencoderKLWan:
    """The autoencoder without its weights, in float32 whatever the row says: in bfloat16 its output shows bands."""
    with _reading(folder / "vae"):
        config = AutoencoderKLWan.load_config(folder, subfolder="vae", local_files_only=True)
        with torch.device("meta"):
            vae = AutoencoderKLWan.from_config(config)
    make_room(vae, torch.device("cpu"))
    return vae.eval().requires_grad_(requires_grad=False)


def make_room(module: torch.nn.Module, device: torch.device) -> None:
    """Give every parameter its place on `device`, or the place of this rank's shard; buffers keep their values."""
    buffers = {name: buffer.to(device) for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


def read_weights(module: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Fill the parameters of `module` from its safetensors files in `path`, and return it.

    Each rank reads the slices that are its own, straight into their place and dtype. Raises JobFailed.
    """
    places = {name: parameter.data for name, parameter in module.named_parameters()}
    with _reading(path):
        # What dcp.load does, less its collectives: there is nothing to agree upon, and other threads may be using them.
        reader, planner = HuggingFaceStorageReader(str(path), thread_count=_READERS), DefaultLoadPlanner()
        reader.fs = _WeightFiles()
        found = reader.read_metadata()
        planner.set_up_planner(places, found, is_coordinator=True)
        reader.set_up_storage_reader(found, is_coordinator=True)
        reader.read_data(planner.create_local_plan(), planner).wait()
    return module


class _WeightFiles(FileSystem):
    """The files that a component is made of, as diffusers chooses them: other precisions may lie beside them."""

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        index = Path(path) / SAFE_WEIGHTS_INDEX_NAME
        if not index.exists():
            return [str(Path(path) / SAFETENSORS_WEIGHTS_NAME)]
        return [str(Path(path) / name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _check_shape(row: ModelRow, path: Path, expert: WanTransformer3DModel) -> None:
    config = expert.config
    found = (config.num_attention_heads, config.num_layers, config.in_channels)
    expected = (row.num_heads, row.num_layers, row.input_channels)
    if found != expected:
        raise _failed(
            path, f"(heads, layers, channels) are {found}; {row.name} has {expected}: these are another model's weights"
        )


def _load_module(load: Callable[..., Any], path: Path, **options: Any) -> Any:
    """The module in `path`, for inference; every parameter must come from its files."""
    with _reading(path):
        module, info = load(
            path.parent, subfolder=path.name, local_files_only=True, output_loading_info=True, **options
        )
    # The libraries only warn and go on with random numbers.
    if missing := sorted(info["missing_keys"]):
        raise _failed(path, f"the weights lack {len(missing)} tensors, the first is {missing[0]}")
    return module.eval().requires_grad_(requires_grad=False)


def read_index(row: ModelRow, folder: Path) -> dict[str, Any]:
    """model_index.json, if it is of this row."""
    path = folder / "model_index.json"
    with _reading(path):
        index = dict(json.loads(path.read_text()))
    if index.get("boundary_ratio") != row.boundary:
        raise _failed(path, f"boundary_ratio is {index.get('boundary_ratio')}; {row.name} has {row.boundary}")
    return index


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    # What the libraries raise for absent, cut, unreadable or foreign files; RuntimeError is for a tensor's shape.
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _failed(path, first_line or type(error).__name__) from error


def _failed(path: Path, why: str) -> JobFailed:
    return JobFailed("model_load_failed", f"{path} cannot be loaded: {why}", retryable=False)
