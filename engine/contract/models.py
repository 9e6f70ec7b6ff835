"""The model catalog: one row per model that a request may name.

A row is data: limits that submit checks, defaults that fill a request, shapes that the plan divides, and the name of
the loader family. It does not know torch. Figures of the Wan2.2 rows: the official configurations
(Wan-Video/Wan2.2, wan/configs/*.py); the transformer's patch is (1, 2, 2) in all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.contract import magnitudes
from engine.contract.magnitudes import Magnitudes

SAMPLERS = ("unipc", "euler", "dpm++")
"""Solvers of the noise schedule; the first is the one that Wan2.2 was published with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """An inclusive range and the value used when the request names none."""

    low: int
    high: int
    default: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A component beside the experts."""

    dim: int
    """Channels of what it gives: of an embedding, or of the autoencoder's last level."""
    num_params: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Values for options of a request that belong together, under one name."""

    about: str
    """For people."""
    options: Mapping[str, Any]
    """What a request that names it asks for, where it does not say otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """One model: its limits, its defaults and its shape."""

    name: str
    family: str
    """Module of engine/models that loads it."""
    hub: str
    """Hugging Face id of the diffusers folder; empty for the tiny rows, which are built locally."""
    image: Literal["none", "optional", "required"]
    """Whether a request names a picture for the video to start from."""
    num_heads: int
    head_dim: int
    ffn_dim: int
    num_layers: int
    text: Part
    vae: Part
    latent_channels: int
    spatial_stride: int
    """Pixels per latent cell, each way."""
    temporal_stride: int
    """Frames per latent frame after the first; a video has k * temporal_stride + 1 frames."""
    width: Limits
    height: Limits
    max_pixels: int
    """Most pixels per frame: the largest size the weights were trained for."""
    num_frames: Limits
    fps: Limits
    steps: Limits
    guidance_scale: float
    """Of the only expert, or of the high-noise one."""
    guidance_scale_2: float | None
    """Of the low-noise expert; None where there is one expert."""
    flow_shift: float
    boundary: float | None
    """Share of the noise schedule above which the high-noise expert works; None where there is one expert."""
    dtype: str
    negative_prompt: str
    magnitudes: Magnitudes | None = None
    """What MagCache must know; None: nobody has measured it."""
    presets: Mapping[str, Preset] = field(default_factory=dict)

    @property
    def caches(self) -> tuple[str, ...]:
        """Ways to reuse what earlier steps computed that a request may ask for, the default first."""
        return ("none", "taylorseer") if self.magnitudes is None else ("none", "taylorseer", "magcache")

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.num_heads * self.head_dim

    @property
    def num_experts(self) -> int:
        """Two where a boundary divides the noise schedule between them."""
        return 1 if self.boundary is None else 2

    @property
    def size_multiple(self) -> int:
        """Width and height must be a multiple of this: one latent patch of 2 x 2 cells."""
        return self.spatial_stride * 2

    @property
    def input_channels(self) -> int:
        """Channels that the transformer reads; where there must be an image, its mask and latents are among them."""
        return self.latent_channels + (self.temporal_stride + self.latent_channels if self.image == "required" else 0)

    def num_tokens(self, *, width: int, height: int, num_frames: int) -> int:
        """Length of the transformer's sequence for one video."""
        latent_frames = (num_frames - 1) // self.temporal_stride + 1
        return latent_frames * (height // self.size_multiple) * (width // self.size_multiple)


# The official negative prompt (wan/configs/shared_config.py): the weights were tuned with it.
_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)

# The schedule that these LoRAs were distilled on: sigmas 1, 3/4, 1/2, 1/4 before the shift, one pass per step.
_LIGHTNING = {
    "lightning": Preset(
        about="4 steps of one pass each, with the LoRA pair of lightx2v/Wan2.2-Lightning",
        options={
            "steps": 4,
            "guidance_scale": 1.0,
            "guidance_scale_2": 1.0,
            "flow_shift": 5.0,
            "sampler": "euler",
            "loras": [{"name": "lightning", "scale": 1.0}],
        },
    )
}

# The encoder alone, with its vocabulary of 256,384.
_UMT5_XXL = Part(dim=4096, num_params=5_680_910_336)
_TINY_VAES = {8: Part(dim=12, num_params=1_467_607), 16: Part(dim=16, num_params=2_278_920)}


def _a14b(
    name: str,
    *,
    hub: str,
    image: Literal["none", "required"],
    guidance: tuple[float, float],
    shift: float,
    boundary: float,
    magnitudes: Magnitudes,
) -> ModelRow:
    return ModelRow(
        name=name,
        family="wan",
        hub=hub,
        image=image,
        num_heads=40,
        head_dim=128,
        ffn_dim=13824,
        num_layers=40,
        text=_UMT5_XXL,
        vae=Part(dim=96, num_params=126_892_531),
        latent_channels=16,
        spatial_stride=8,
        temporal_stride=4,
        width=Limits(low=256, high=1280, default=1280),
        height=Limits(low=256, high=1280, default=720),
        max_pixels=1280 * 720,
        num_frames=Limits(low=5, high=121, default=81),
        fps=Limits(low=1, high=60, default=16),
        steps=Limits(low=1, high=100, default=40),
        guidance_scale=guidance[0],
        guidance_scale_2=guidance[1],
        flow_shift=shift,
        boundary=boundary,
        dtype="bfloat16",
        negative_prompt=_NEGATIVE_PROMPT,
        magnitudes=magnitudes,
        presets=_LIGHTNING,
    )


def _tiny(
    name: str,
    *,
    image: Literal["none", "optional", "required"],
    spatial_stride: int,
    guidance: tuple[float, float | None],
    boundary: float | None,
    magnitudes: Magnitudes | None = None,
) -> ModelRow:
    # Real classes, random weights, small enough for a laptop's processor: for tests, demos and development.
    return ModelRow(
        name=name,
        family="wan",
        hub="",
        image=image,
        num_heads=4,
        head_dim=24,
        ffn_dim=256,
        num_layers=3,
        text=Part(dim=64, num_params=100_480),
        vae=_TINY_VAES[spatial_stride],
        latent_channels=16,
        spatial_stride=spatial_stride,
        temporal_stride=4,
        width=Limits(low=32, high=512, default=128),
        height=Limits(low=32, high=512, default=96),
        max_pixels=512 * 512,
        num_frames=Limits(low=5, high=121, default=9),
        fps=Limits(low=1, high=60, default=8),
        steps=Limits(low=1, high=100, default=8),
        guidance_scale=guidance[0],
        guidance_scale_2=guidance[1],
        flow_shift=5.0,
        boundary=boundary,
        dtype="float32",
        negative_prompt="bright colors overexposed static",
        magnitudes=magnitudes,
        presets={} if boundary is None else _LIGHTNING,
    )


_ROWS = (
    _a14b(
        "wan2.2-t2v-a14b",
        hub="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        image="none",
        guidance=(4.0, 3.0),
        shift=12.0,
        boundary=0.875,
        magnitudes=magnitudes.WAN_T2V_A14B,
    ),
    _a14b(
        "wan2.2-i2v-a14b",
        hub="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        image="required",
        guidance=(3.5, 3.5),
        shift=5.0,
        boundary=0.9,
        magnitudes=magnitudes.WAN_I2V_A14B,
    ),
    ModelRow(
        name="wan2.2-ti2v-5b",
        family="wan",
        hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        image="optional",
        num_heads=24,
        head_dim=128,
        ffn_dim=14336,
        num_layers=30,
        text=_UMT5_XXL,
        vae=Part(dim=256, num_params=704_688_668),
        latent_channels=48,
        spatial_stride=16,
        temporal_stride=4,
        width=Limits(low=256, high=1280, default=1280),
        height=Limits(low=256, high=1280, default=704),
        max_pixels=1280 * 704,
        num_frames=Limits(low=5, high=121, default=121),
        fps=Limits(low=1, high=60, default=24),
        steps=Limits(low=1, high=100, default=50),
        guidance_scale=5.0,
        guidance_scale_2=None,
        flow_shift=5.0,
        boundary=None,
        dtype="bfloat16",
        negative_prompt=_NEGATIVE_PROMPT,
        magnitudes=magnitudes.WAN_TI2V_5B,
    ),
    _tiny(
        "tiny-t2v",
        image="none",
        spatial_stride=8,
        guidance=(4.0, 3.0),
        boundary=0.875,
        magnitudes=magnitudes.TINY_T2V,
    ),
    _tiny(
        "tiny-ti2v",
        image="optional",
        spatial_stride=16,
        guidance=(4.0, None),
        boundary=None,
        magnitudes=magnitudes.TINY_TI2V,
    ),
    # Not calibrated, as a model is that nobody has measured yet.
    _tiny("tiny-i2v", image="required", spatial_stride=8, guidance=(3.5, 3.5), boundary=0.9),
)

CATALOG: dict[str, ModelRow] = {row.name: row for row in _ROWS}
