"""Calibrate: what MagCache must know of a model, measured: `python -m engine.calibrate --request FILE --models DIR`.

In: a request as JSON, of the length and the size that are usual, and for some models a picture. Out: on standard output
the ratios for the model's row in engine/contract/magnitudes.py. One process; it computes every step.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine import image
from engine.cache import Predict, SkippableBlocks
from engine.contract.artifact import Artifact
from engine.contract.errors import CineventError
from engine.contract.plan import Plan
from engine.contract.request import Request, parse
from engine.image import Picture
from engine.latents import Run, Stages, make_latents
from engine.mesh import Ranks, divide, join
from engine.report import Silence
from engine.stop import Stop

_ALONE = Plan(num_nodes=1, num_processes=1, cfg=1, ring=1, ulysses=1, shard=1)
# Any valid id: it only gives the seed where the request has none.
_JOB = "j" + "a" * 25


class Calibration:
    """A cache that reuses nothing, and notes by how much the residual changed in each step."""

    reused: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.ratios: dict[int, list[float]] = {}
        """Per expert in the order of their turns."""
        self._last: Any = None
        self._residual: torch.Tensor | None = None

    def velocity(self, predict: Predict, *, expert: Any, step: int) -> torch.Tensor:  # noqa: ARG002
        """The expert's."""
        if self._last is not expert:
            expert.blocks = SkippableBlocks(expert.blocks)
            self.ratios[len(self.ratios)] = []
            self._last, self._residual = expert, None
        expert.blocks.begin(is_reused=False)
        velocity = predict()
        # The pass of the prompt, as the published calibrations.
        residual = expert.blocks.residuals[0].to(torch.float32)
        now, before = residual.norm(dim=-1), residual.norm(dim=-1) if self._residual is None else self._residual
        self.ratios[len(self.ratios) - 1].append(round(float((now / before).mean()), 5))
        self._residual = now
        return velocity

    def is_whole(self, step: int) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def memory(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Nothing to recall."""


def measure(
    request: Request, models: Path, ranks: Ranks, *, picture: Picture | None = None
) -> tuple[tuple[float, ...], ...]:
    """The ratios of each expert, the high-noise one first, one per step of it. Raises JobFailed."""
    calibration = Calibration()
    run = Run(
        # Whatever it asks for, all steps are computed.
        request=replace(request, input=replace(request.input, cache="none")),
        folder=models / request.model,
        mesh=divide(ranks, _ALONE),
        stages=Stages(Silence()),
        stop=Stop(),
        picture=picture,
        checkpoints=None,
        cache=calibration,
    )
    make_latents(run)
    return tuple(tuple(ratios) for ratios in calibration.ratios.values())


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.calibrate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--request", type=Path, required=True, metavar="FILE", help="the request, as JSON")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="one folder per model")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture that the request names")
    options = parser.parse_args(arguments)
    try:
        request = parse(json.loads(options.request.read_text()), job=_JOB)
        picture = _picture(request, options.image) if options.image else None
        ranks = join(rank=0, local_rank=0, world_size=1, num_threads=torch.get_num_threads())
        ratios = measure(request, options.models, ranks, picture=picture)
    except (CineventError, OSError, ValueError) as error:
        sys.stderr.write(f"calibrate: {error}\n")
        return 1
    for number, of_expert in enumerate(ratios):
        sys.stdout.write(f"expert {number}, {len(of_expert)} steps: {', '.join(map(str, of_expert))}\n")
    return 0


def _picture(request: Request, file: Path) -> Picture:
    body, given = file.read_bytes(), request.input
    rgb = image.read(body, size=(given.width, given.height))
    return Picture(rgb=rgb, upload=Artifact.of(body, key=file.name, content_type=""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
