"""Load: the components of a model row, each on the ranks that use it.

In: a row, the folder of models, a mesh. Out: components, placed and split. The text encoder and the autoencoder are the
reporter's alone: no other rank pays for them.
"""

from pathlib import Path
from typing import Any

from engine.contract.models import ModelRow
from engine.mesh import Mesh, Ranks
from engine.models import wan


def load_denoiser(row: ModelRow, models_dir: Path, *, flow_shift: float, mesh: Mesh) -> wan.Denoiser:
    """The experts on this rank's device, sharing their sequence as the plan says. All ranks must call it."""
    denoiser = wan.load_denoiser(row, models_dir / row.name, flow_shift=flow_shift)
    for expert in denoiser.experts:
        expert.to(mesh.ranks.device)
        mesh.split_sequence(expert)
    return denoiser


def load_text_parts(row: ModelRow, models_dir: Path, *, ranks: Ranks) -> wan.TextParts | None:
    """The text encoder, still on the CPU; None on all ranks but the reporter."""
    return wan.load_text_parts(row, models_dir / row.name) if ranks.is_reporter else None


def load_vae(row: ModelRow, models_dir: Path, *, ranks: Ranks, everywhere: bool = False) -> Any:
    """The autoencoder, still on the CPU; None on all ranks but the reporter, unless it is wanted everywhere.

    Long before it is used: a broken file is found before the denoising, not after it.
    """
    return wan.load_vae(models_dir / row.name) if everywhere or ranks.is_reporter else None
