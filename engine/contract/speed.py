"""Speed: what an operator may choose to make a run faster or smaller, while the video stays equal, or nearly. Pure.

A request never says any of it: it is about machines. docs/engine.md has what each choice costs and changes;
engine/speed.py does what is chosen, and knows what a machine has.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.contract.models import ModelRow

ATTENTION = ("auto", "native", "math", "cudnn", "flash", "flash3", "sage", "xformers")
WEIGHTS_DTYPES = ("model", "float8")
OFFLOAD = ("auto", "always", "never")
# Their kernels are written for 16 bits.
_HALF_ONLY = ("cudnn", "flash", "flash3", "sage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """The choices; the defaults leave everything as it is."""

    compile: bool = False
    """Layers run as torch.compile made them."""
    attention: str = "auto"
    """One of ATTENTION: who computes attention; auto: the fastest that the device and what is installed have."""
    weights_dtype: str = "model"
    """One of WEIGHTS_DTYPES: in which form a layer's matrices lie in memory; they compute in the model's dtype."""
    offload: str = "never"
    """One of OFFLOAD: layers lie in host memory and arrive ahead of their use; auto: where nothing else fits. A plan
    has no auto."""

    @property
    def is_float8(self) -> bool:
        """Whether a layer's matrices take one byte per number."""
        return self.weights_dtype == "float8"

    @property
    def is_offloaded(self) -> bool:
        """Whether layers lie in host memory."""
        return self.offload == "always"


def unknown(speed: Speed) -> Iterator[tuple[str, str]]:
    """Field and message of every choice that there is not."""
    for name, allowed in (("attention", ATTENTION), ("weights_dtype", WEIGHTS_DTYPES), ("offload", OFFLOAD)):
        if (given := getattr(speed, name)) not in allowed:
            yield name, f"{given!r} is unknown; allowed: {', '.join(allowed)}"


def impossible(speed: Speed, row: ModelRow) -> Iterator[tuple[str, str]]:
    """Field and message of every choice that no machine has for `row`."""
    yield from unknown(speed)
    if speed.attention in _HALF_ONLY and row.dtype == "float32":
        others = ", ".join(name for name in ATTENTION if name not in _HALF_ONLY)
        yield (
            "attention",
            f"{speed.attention} takes 16-bit numbers, and {row.name} computes in {row.dtype}; allowed: {others}",
        )
