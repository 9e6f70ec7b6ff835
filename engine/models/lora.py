"""LoRA: low-rank changes of the experts' weights, from files beside the model, added to the weights once.

In: a model's folder and the LoRAs of a request. Out: per expert the changes, checked against its parameters before any
weight is read, and then the same parameters with the changes in them: what is split, sharded or compiled later knows
nothing of them. Files are safetensors in the names of diffusers and peft, of the original Wan code or of kohya's
scripts; diffusers translates the last two. Whatever is wrong leaves as JobFailed("lora_invalid").

In FOLDER/loras: `NAME/transformer.safetensors` and `NAME/transformer_2.safetensors`, the high-noise expert's first, one
of them or both, or under the names of the original code; or `NAME.safetensors` for all experts.

Shapes: o features out, i features in, r rank.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from engine.contract.errors import JobFailed
from engine.contract.lora import Lora
from engine.models import float8

_log = logging.getLogger(__name__)

FOLDER = "loras"
_FILES = {
    "transformer": ("transformer", "high_noise_model"),
    "transformer_2": ("transformer_2", "low_noise_model"),
}
# What peft and diffusers put before the names of the transformer's own modules.
_PREFIXES = ("base_model.model.", "transformer.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What one LoRA adds to one module, already scaled: `up @ down` to its weight, `bias` to its bias."""

    up_or: torch.Tensor
    down_ri: torch.Tensor
    scale: float
    bias_o: torch.Tensor | None


Changes = Mapping[str, Sequence[Change]]
"""By the name of the module."""


def find(folder: Path, loras: Iterable[Lora], experts: Sequence[str]) -> dict[str, list[tuple[Lora, Path]]]:
    """The files of the LoRAs, per expert. Raises JobFailed for a name that has none."""
    found: dict[str, list[tuple[Lora, Path]]] = {expert: [] for expert in experts}
    for lora in loras:
        files = {expert: file for expert in experts if (file := _file(folder / FOLDER, lora.name, expert))}
        if not files:
            raise _failed(
                f"there is no LoRA {lora.name} for {', '.join(experts)} in {folder / FOLDER}; it has: "
                f"{', '.join(available(folder)) or 'none'}; put the files there, or name one of these"
            )
        for expert, file in files.items():
            found[expert].append((lora, file))
    return found


def available(folder: Path) -> list[str]:
    """The names of the LoRAs beside a model."""
    return sorted(
        {path.name.removesuffix(".safetensors") for path in (folder / FOLDER).glob("*") if path.name[0] != "."}
    )


def read(files: Iterable[tuple[Lora, Path]], expert: torch.nn.Module) -> Changes:
    """The changes that these files make to `expert`, whose parameters need no values yet. Raises JobFailed."""
    changes: dict[str, list[Change]] = {}
    for lora, file in files:
        found = _read(file, scale=lora.scale)
        for module, change in found.items():
            _check(file, module, change, expert)
            changes.setdefault(module, []).append(change)
        _log.info("LoRA %s, scale %g: %d modules from %s", lora.name, lora.scale, len(found), file)
    return changes


def add(changes: Changes, expert: torch.nn.Module) -> None:
    """Add the changes to the parameters, or to this rank's shard of them; the sum is in float32."""
    parameters = dict(expert.named_parameters())
    for module, of_module in changes.items():
        weight, rows = _local(parameters[f"{module}.weight"])
        total = float8.numbers(weight)
        for change in of_module:
            up_or, down_ri = (part.to(weight.device, torch.float32) for part in (change.up_or[rows], change.down_ri))
            total += (change.scale * (up_or.flatten(1) @ down_ri.flatten(1))).view(total.shape)
        try:
            float8.write(weight, total)
        except ValueError as error:
            raise _failed(f"{module} with its LoRAs: {error}; set CINEVENT_WEIGHTS_DTYPE=model") from error
        for change in of_module:
            if change.bias_o is not None:
                bias, rows = _local(parameters[f"{module}.bias"])
                bias += (change.scale * change.bias_o[rows].to(torch.float32)).to(bias.device, bias.dtype)


def _file(folder: Path, name: str, expert: str) -> Path | None:
    candidates = (*(folder / name / f"{stem}.safetensors" for stem in _FILES[expert]), folder / f"{name}.safetensors")
    return next((path for path in candidates if path.is_file()), None)


def _read(file: Path, *, scale: float) -> dict[str, Change]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
            head = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
        named = _named(tensors)
        modules = sorted({name.rpartition(".lora_A.")[0] for name in named if ".lora_A." in name})
        changes = {module: _change(module, named, _plain(head), scale=scale) for module in modules}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _failed(f"{file} cannot be read as a LoRA: {first_line or type(error).__name__}") from error
    if named or not changes:
        raise _failed(f"{file} has tensors that are of no LoRA known here, such as {next(iter(named), 'none at all')}")
    return changes


def _named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of diffusers and peft, without what stands before the transformer's modules."""
    from diffusers.loaders import lora_conversion_utils as theirs

    if any(name.startswith("diffusion_model.") for name in tensors):
        tensors = theirs._convert_non_diffusers_wan_lora_to_diffusers(tensors)
    elif any(name.startswith("lora_unet_") for name in tensors):
        tensors = theirs._convert_musubi_wan_lora_to_diffusers(tensors)
    return {_without_prefix(name).replace(".default.", "."): tensor for name, tensor in tensors.items()}


def _plain(head: Mapping[str, Any]) -> dict[str, Any]:
    return {_without_prefix(name): value for name, value in head.items()}


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _change(module: str, named: dict[str, torch.Tensor], head: Mapping[str, Any], *, scale: float) -> Change:
    """Take one module's change out of `named`; `head` is peft's description, where there is one."""
    down_ri, up_or = (named.pop(f"{module}.lora_{side}.weight") for side in "AB")
    rank = down_ri.shape[0]
    alpha = head.get("alpha_pattern", {}).get(module, head.get("lora_alpha", rank))
    if (given := named.pop(f"{module}.alpha", None)) is not None:
        alpha = given.item()
    divisor = math.sqrt(rank) if head.get("use_rslora") else rank
    return Change(
        up_or=up_or,
        down_ri=down_ri,
        scale=scale * alpha / divisor,
        bias_o=named.pop(f"{module}.lora_B.bias", None),
    )


def _check(file: Path, name: str, change: Change, expert: torch.nn.Module) -> None:
    parameters = dict(expert.named_parameters())
    weight = parameters.get(f"{name}.weight")
    if weight is None:
        raise _failed(f"{file} changes {name}, which the model does not have: it was made for another model")
    made_for = (change.up_or.shape[0], *change.down_ri.shape[1:])
    if made_for != tuple(weight.shape) or change.up_or.shape[1] != change.down_ri.shape[0]:
        raise _failed(
            f"{file} changes {name} as one of {'x'.join(map(str, made_for))}, it has "
            f"{'x'.join(map(str, weight.shape))}: the LoRA was made for another model"
        )
    bias = parameters.get(f"{name}.bias")
    if change.bias_o is not None and (bias is None or bias.shape != change.bias_o.shape):
        raise _failed(f"{file} changes the bias of {name}, which has {'none' if bias is None else 'another shape'}")


def _local(parameter: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """What this rank holds of a parameter, and which of its rows they are."""
    if not isinstance(parameter, DTensor):
        return parameter.data, slice(None)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    # Sharded by rows alone (load.py); an empty shard has no place.
    first = offset[0] if shape[0] else 0
    return parameter.to_local().data, slice(first, first + shape[0])


def _failed(why: str) -> JobFailed:
    return JobFailed("lora_invalid", why, retryable=False)
