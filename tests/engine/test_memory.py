"""The memory estimate against the real classes: parameters on the meta device, live tensors of one forward."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import UMT5Config, UMT5EncoderModel

from engine import sequence
from engine.contract.memory import estimate, expert_bytes, expert_params
from engine.contract.models import CATALOG, ModelRow
from engine.contract.speed import Speed
from engine.mesh import Mesh, Ranks, divide
from engine.models import float8
from tests.make import a_plan

# The published configurations, as far as they differ from the classes' defaults (config.json of the diffusers folders).
A14B = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40, "in_channels": 16, "out_channels": 16}
TI2V = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}
CONFIGS: dict[str, dict[str, Any]] = {"wan2.2-t2v-a14b": A14B, "wan2.2-ti2v-5b": TI2V}
VAE_22 = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2}
VAE_22 |= {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
VAES: dict[str, dict[str, Any]] = {"wan2.2-t2v-a14b": {}, "wan2.2-ti2v-5b": VAE_22}
UMT5_XXL = {"vocab_size": 256_384, "d_model": 4096, "d_ff": 10_240, "num_layers": 24, "num_heads": 64}
names = pytest.mark.parametrize("name", CONFIGS)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and remembers the most."""

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._seen = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in before})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            if storage not in self._seen:
                self._seen[storage] = None
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)


@contextmanager
def counting(module: torch.nn.Module, *inputs: torch.Tensor) -> Iterator[LiveTensors]:
    """The tensors that a module makes; its own and its inputs are not counted."""
    gc.collect()
    with torch.no_grad(), LiveTensors(*module.parameters(), *module.buffers(), *inputs) as live:
        yield live


def num_params(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def in_row_dtype(row: ModelRow, model: WanTransformer3DModel) -> None:
    """As diffusers loads it: some modules stay in float32."""
    for name, parameter in model.named_parameters():
        if not set(model._keep_in_fp32_modules) & set(name.split(".")):
            parameter.data = parameter.data.to(getattr(torch, row.dtype))


@names
def test_parameters_are_counted_exactly(name: str) -> None:
    with torch.device("meta"):
        expert, vae = WanTransformer3DModel(**CONFIGS[name]), AutoencoderKLWan(**VAES[name])

    assert expert_params(CATALOG[name]) == num_params(expert)
    assert CATALOG[name].vae.num_params == num_params(vae)


@pytest.mark.parametrize("weights_dtype", ["model", "float8"])
@names
def test_weights_take_the_bytes_that_are_counted(name: str, weights_dtype: str) -> None:
    row = CATALOG[name]
    with torch.device("meta"):
        expert = WanTransformer3DModel(**CONFIGS[name])
    in_row_dtype(row, expert)
    if weights_dtype == "float8":
        float8.store(expert.blocks)

    found = expert_bytes(row, Speed(weights_dtype=weights_dtype))
    # Counted without the little that stays float32.
    assert found == pytest.approx(sum(parameter.nbytes for parameter in expert.parameters()), rel=0.01)
    assert found / (2 * expert_params(row)) == pytest.approx(1 if weights_dtype == "model" else 0.51, abs=0.01)


def test_the_text_encoder_is_that_of_umt5_xxl() -> None:
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**UMT5_XXL, d_kv=64, feed_forward_proj="gated-gelu"))

    rows = [row for row in CATALOG.values() if row.hub]
    assert {row.text.num_params for row in rows} == {num_params(encoder)}


@pytest.mark.parametrize("name", ["tiny-t2v", "tiny-ti2v"])
def test_parameters_of_the_tiny_models_are_counted(models: Any, name: str) -> None:
    row, folder = CATALOG[name], models / name
    expert = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
    encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder")

    # Their time embedding is narrower than the real models' is.
    assert expert_params(row) == pytest.approx(num_params(expert), rel=0.05)
    assert (row.vae.num_params, row.text.num_params) == (num_params(vae), num_params(encoder))


@pytest.fixture(scope="module")
def twelve() -> Iterator[Ranks]:
    """One of twelve ranks whose exchanges do nothing: enough to see what it holds."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=12)
    yield Ranks(rank=0, world_size=12, device=torch.device("cpu"))
    dist.destroy_process_group()


def count_activations(row: ModelRow, mesh: Mesh | None, **size: int) -> int:
    """Most that is alive in a forward. Two layers are as full as forty; no tensor has memory here."""
    frames = (size["num_frames"] - 1) // row.temporal_stride + 1
    shape = (1, row.latent_channels, frames, size["height"] // row.spatial_stride, size["width"] // row.spatial_stride)
    times = (1, row.num_tokens(**size)) if row.num_experts == 1 else (1,)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = WanTransformer3DModel(**{**CONFIGS[row.name], "num_layers": 2}).eval()
        in_row_dtype(row, model)
        if mesh and mesh.sequence:
            sequence.split(model, mesh.sequence)
        latents, text = torch.empty(shape, dtype=model.dtype), torch.empty((1, 512, 4096), dtype=model.dtype)
        time = torch.empty(times)
        with counting(model, latents, text, time) as live:
            model(hidden_states=latents, timestep=time, encoder_hidden_states=text, return_dict=False)
    return live.peak_bytes


@names
def test_activations_are_those_of_a_forward(name: str) -> None:
    row = CATALOG[name]
    size = {"width": row.width.default, "height": row.height.default, "num_frames": row.num_frames.default}

    found = estimate(row, a_plan(num_processes=1, cfg=1), **size).activations_bytes

    # A tenth is kept free for the allocator.
    assert found / count_activations(row, None, **size) == pytest.approx(1.1, rel=0.03)


@pytest.mark.parametrize("degrees", [(2, 1, 6), (2, 6, 1), (2, 2, 3), (1, 3, 4), (1, 1, 12)])
@names
def test_activations_are_those_of_one_rank_of_many(twelve: Ranks, name: str, degrees: tuple[int, int, int]) -> None:
    row = CATALOG[name]
    size = {"width": row.width.default, "height": row.height.default, "num_frames": row.num_frames.default}
    plan = a_plan(num_processes=12, **dict(zip(("cfg", "ring", "ulysses"), degrees, strict=True)))

    found = estimate(row, plan, **size).activations_bytes

    assert found / count_activations(row, divide(twelve, plan), **size) == pytest.approx(1.1, rel=0.05)


@names
def test_decoding_holds_what_is_counted_for_whole_frames(name: str) -> None:
    row, size = CATALOG[name], {"width": 832, "height": 480}
    with FakeTensorMode():
        vae = AutoencoderKLWan(**VAES[name]).eval()
        shape = (1, row.latent_channels, 3, size["height"] // row.spatial_stride, size["width"] // row.spatial_stride)
        latents = torch.empty(shape)
        with counting(vae, latents) as live:
            frames = vae.decode(latents, return_dict=False)[0]

    found = estimate(row, a_plan(), **size, num_frames=9).vae_bytes - row.vae.num_params * 4
    # diffusers keeps all frames, which we do not.
    assert found == pytest.approx(live.peak_bytes - frames.nbytes, rel=0.03)
