"""The Wan2.2 family: which classes a diffusers folder holds, in which subfolders, and in which dtype each one runs.

In: the folder of a catalog row, real or tiny. Out: components on the CPU, ready to be moved. It does not know ranks.
Whatever is wrong with the files leaves as JobFailed("model_load_failed") with the path; no other attempt would help.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from safetensors import SafetensorError

from engine.contract.errors import JobFailed
from engine.contract.models import ModelRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoiser:
    """What the step loop needs of a model."""

    experts: tuple[WanTransformer3DModel, ...]
    """The high-noise one first; or the only one."""
    scheduler: UniPCMultistepScheduler
    boundary: float | None
    """Share of the noise schedule above which the first expert works; None where there is one."""
    expand_timesteps: bool
    """The model takes one timestep per token, not one per video (TI2V)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextParts:
    """What reads a prompt."""

    tokenizer: Any
    encoder: Any


def load_denoiser(row: ModelRow, folder: Path, *, flow_shift: float) -> Denoiser:
    """The experts and the scheduler, with the request's flow shift in place of the folder's."""
    index = _read_index(row, folder)
    names = ("transformer",) if row.boundary is None else ("transformer", "transformer_2")
    with _reading(folder / "scheduler"):
        scheduler = UniPCMultistepScheduler.from_pretrained(
            folder, subfolder="scheduler", flow_shift=flow_shift, local_files_only=True
        )
    return Denoiser(
        experts=tuple(_load_expert(row, folder, name) for name in names),
        scheduler=scheduler,
        boundary=row.boundary,
        expand_timesteps=bool(index.get("expand_timesteps", False)),
    )


def load_text_parts(row: ModelRow, folder: Path) -> TextParts:
    """The tokenizer and the text encoder."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    with _reading(folder / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    dtype = getattr(torch, row.dtype)
    encoder = _load_module(UMT5EncoderModel.from_pretrained, folder / "text_encoder", dtype=dtype)
    return TextParts(tokenizer=tokenizer, encoder=encoder)


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The autoencoder, in float32 whatever the row says: in bfloat16 its output shows bands."""
    return _load_module(AutoencoderKLWan.from_pretrained, folder / "vae", dtype=torch.float32)


def _load_expert(row: ModelRow, folder: Path, name: str) -> WanTransformer3DModel:
    # diffusers keeps the modules of _keep_in_fp32_modules in float32 when the rest is bfloat16.
    expert = _load_module(WanTransformer3DModel.from_pretrained, folder / name, dtype=getattr(torch, row.dtype))
    config = expert.config
    found = (config.num_attention_heads, config.num_layers, config.in_channels)
    expected = (row.num_heads, row.num_layers, row.input_channels)
    if found != expected:
        raise _failed(
            folder / name,
            f"(heads, layers, channels) are {found}; {row.name} has {expected}: these are another model's weights",
        )
    return expert


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


def _read_index(row: ModelRow, folder: Path) -> dict[str, Any]:
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
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _failed(path, first_line or type(error).__name__) from error


def _failed(path: Path, why: str) -> JobFailed:
    return JobFailed("model_load_failed", f"{path} cannot be loaded: {why}", retryable=False)
