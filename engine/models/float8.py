"""Float8: the matrices of layers lie in one byte per number, and are cast as they are used.

In: layers without their weights. Out: the same layers, their linear ones with float8 matrices (e4m3fn), and a planner
that writes such matrices as a file is read. Half of bfloat16, with three bits of mantissa left.

The numbers are stored times a fixed power of two: most weights are smaller than the smallest float8 that has all of its
bits, and a power of two changes no others. Fixed, so that a rank can write its shard without knowing the rest.
"""

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem

_DTYPE = torch.float8_e4m3fn
# Full precision from 0.00098 on; weights of the size of 1 / sqrt(5120) lie well above, the largest far below _MAX.
_SCALE = 16.0
_MAX = torch.finfo(_DTYPE).max / _SCALE


class Float8Linear(torch.nn.Linear):
    """A linear layer with a float8 matrix, of the bytes [out, in]; it computes in the dtype of its input.

    As bytes, since neither FSDP nor all its backends send float8.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        weight = self.weight.view(_DTYPE).to(states.dtype).mul_(1 / _SCALE)
        return torch.nn.functional.linear(states, weight, self.bias)


def store(layers: torch.nn.Module) -> None:
    """Make every linear layer in `layers`, which are on the meta device, one with a float8 matrix."""
    for module in layers.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Float8Linear
            module.weight = torch.nn.Parameter(module.weight.to(torch.uint8), requires_grad=False)


def numbers(weight: torch.Tensor) -> torch.Tensor:
    """A matrix that `store` made, or any other parameter, as float32."""
    if weight.dtype != torch.uint8:
        return weight.to(torch.float32)
    return weight.view(_DTYPE).to(torch.float32).mul_(1 / _SCALE)


def write(weight: torch.Tensor, values: torch.Tensor) -> None:
    """Put float32 values into such a matrix, or into any other parameter; the values may change.

    Raises ValueError for one that is too large for float8.
    """
    if weight.dtype != torch.uint8:
        weight.copy_(values)
        return
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not largest <= _MAX:
        raise ValueError(f"a weight of {largest:g} is too large: float8 holds up to {_MAX:g}")
    weight.copy_(values.mul_(_SCALE).to(_DTYPE).view(torch.uint8))


class Planner(DefaultLoadPlanner):
    """Reads into what `store` made, and into any other parameter as it is; `check` when all is read."""

    def __init__(self) -> None:
        super().__init__()
        self._too_large: dict[str, float] = {}

    def check(self) -> None:
        """Raise ValueError if a weight was too large for float8."""
        # Not clipped: a video would be worse for no reason that anybody sees. Not raised where it is found: that is a
        # thread of the reader's, which would keep it to itself.
        for name, largest in self._too_large.items():
            raise ValueError(
                f"{name} has a weight of {largest:g}; float8 holds up to {_MAX:g}: set CINEVENT_WEIGHTS_DTYPE=model"
            )

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """Where to read a slice to: for bytes a place beside them, in float32."""
        place = super().resolve_tensor(read_item)
        return torch.empty_like(place, dtype=torch.float32) if place.dtype == torch.uint8 else place

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """The slice is read: write it in float8, if it is to be."""
        place = super().resolve_tensor(read_item)
        if place.dtype != torch.uint8:
            return
        largest = float(tensor.abs().max())
        # A NaN is not less either.
        if not largest <= _MAX:
            self._too_large[read_item.dest_index.fqn] = largest
        place.copy_(tensor.mul_(_SCALE).to(_DTYPE).view(torch.uint8))
