"""Choices for speed: what each leaves equal, how far the others go, and what a machine without them says."""

import gc
import shutil
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from engine import load, speed, worker
from engine.contract.errors import JobFailed
from engine.contract.memory import expert_bytes
from engine.contract.models import CATALOG, ModelRow
from engine.contract.settings import Settings
from engine.contract.speed import Speed
from engine.mesh import Ranks, divide
from engine.models import wan
from engine.stop import Stop
from tests.engine.many_ranks import OPTIONS, latents, with_option
from tests.engine.ours import ALONE, a_video_request

ROW, A14B = CATALOG["tiny-t2v"], CATALOG["wan2.2-t2v-a14b"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
MATRIX = "blocks.1.ffn.net.2.weight"
# As docs/engine.md says; of latents of the tiny model.
FLOAT8 = 0.03
COMPILED = 1e-5


def made(models: Path, ranks: Ranks, way: str = "tiny-t2v", dtype: str = "float32", **chosen: Any) -> torch.Tensor:
    """The latents of one rank."""
    return latents(way, {}, models, ranks, plan=replace(ALONE, speed=Speed(**chosen)), dtype=dtype)


def an_expert(models: Path, ranks: Ranks, dtype: str = "float32", **chosen: Any) -> Any:
    """The high-noise expert, with its weights."""
    row = replace(ROW, dtype=dtype)
    folder = models / row.name
    expert = wan.make_expert(row, folder, "transformer")
    load.place(expert, row, divide(ranks, replace(ALONE, speed=Speed(**chosen))))
    return wan.read_weights(expert, folder / "transformer")


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative error, in the Euclidean norm."""
    return float((one - other).norm() / other.norm())


def refusal(call: Any, *arguments: Any) -> str:
    """The message of a refused plan."""
    with pytest.raises(JobFailed) as caught:
        call(*arguments)
    assert (caught.value.code, caught.value.retryable) == ("plan_invalid", False)
    return caught.value.message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["tiny-t2v", "tiny-ti2v", "tiny-i2v from an image"])
def test_offload_and_native_attention_change_no_bit(models: Path, ranks: Ranks, way: str, dtype: str) -> None:
    plain = made(models, ranks, way, dtype)

    assert torch.equal(made(models, ranks, way, dtype, offload="always"), plain)
    assert torch.equal(made(models, ranks, way, dtype, attention="native"), plain)


def test_layers_that_are_offloaded_lie_in_host_memory_and_are_brought_for_their_turn(
    models: Path, ranks: Ranks
) -> None:
    expert = an_expert(models, ranks, offload="always")

    assert all(hasattr(layer, "_diffusers_hook") for layer in expert.blocks)
    groups = [layer._diffusers_hook.get_hook("group_offloading").group for layer in expert.blocks]
    assert [group.modules for group in groups] == [[layer] for layer in expert.blocks]


def test_another_attention_is_used_by_every_layer(models: Path, ranks: Ranks) -> None:
    expert = an_expert(models, ranks, attention="math")
    used = Counter(
        attention.processor._attention_backend.value
        for layer in expert.blocks
        for attention in (layer.attn1, layer.attn2)
    )

    assert used == {"_native_math": 2 * ROW.num_layers}
    assert error(made(models, ranks, attention="math"), made(models, ranks)) < COMPILED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_is_near_and_computes_in_the_models_dtype(models: Path, ranks: Ranks, dtype: str) -> None:
    plain, near = made(models, ranks, dtype=dtype), made(models, ranks, dtype=dtype, weights_dtype="float8")

    assert near.dtype == plain.dtype
    assert 0 < error(near, plain) < FLOAT8
    assert torch.equal(made(models, ranks, dtype=dtype, weights_dtype="float8", offload="always"), near)


def test_float8_takes_the_memory_that_is_counted_which_is_half(models: Path, ranks: Ranks) -> None:
    row = replace(ROW, dtype="bfloat16")
    sizes = {}
    for dtype in ("model", "float8"):
        expert = an_expert(models, ranks, "bfloat16", weights_dtype=dtype)
        sizes[dtype] = sum(parameter.nbytes for parameter in expert.parameters())
        # What stays float32 is not counted: it is little, except in a tiny model.
        assert sizes[dtype] == pytest.approx(expert_bytes(row, Speed(weights_dtype=dtype)), rel=0.1)
    layers = sum(parameter.numel() for parameter in expert.blocks.parameters() if parameter.ndim == 2)
    assert sizes["model"] - sizes["float8"] == layers


def test_float8_keeps_three_bits_of_every_weight_that_is_not_tiny(models: Path, ranks: Ranks) -> None:
    expert = an_expert(models, ranks, weights_dtype="float8")
    layer = expert.get_submodule(MATRIX.removesuffix(".weight"))
    file = load_file(models / ROW.name / WEIGHTS)

    kept = layer(torch.eye(layer.in_features)).T - layer.bias[:, None]
    wanted = file[MATRIX]
    is_whole = wanted.abs() > 2**-10
    assert ((kept - wanted).abs() <= wanted.abs() * 2**-4 + 1e-6)[is_whole].all()
    assert (kept - wanted)[~is_whole].abs().max() <= 2**-13


@pytest.mark.parametrize("weight", [29.0, float("nan")])
def test_a_weight_that_float8_cannot_hold_is_named(models: Path, ranks: Ranks, tmp_path: Path, weight: float) -> None:
    folder = tmp_path / ROW.name
    shutil.copytree(models / ROW.name, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors[MATRIX][3, 5] = weight
    save_file(tensors, folder / WEIGHTS)

    an_expert(tmp_path, ranks)
    with pytest.raises(JobFailed) as caught:
        an_expert(tmp_path, ranks, weights_dtype="float8")
    assert caught.value.code == "model_load_failed"
    assert f"{MATRIX} has a weight of {weight:g}; float8 holds up to 28" in caught.value.message


def test_layers_are_compiled_once_for_all_and_found_again(models: Path, ranks: Ranks, compiled: Path) -> None:
    plain = made(models, ranks)
    found: list[tuple[int, int]] = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        result = made(models, ranks, compile=True)
        found.append((counters["stats"]["unique_graphs"], counters["inductor"]["fxgraph_cache_hit"]))
        assert error(result, plain) < COMPILED
    away = made(models, ranks, compile=True, offload="always")

    # Both experts have six layers; the second time, as in another pod, the code is there already.
    assert found == [(1, 0), (1, 1)]
    assert any(compiled.rglob("*.so"))
    assert torch.equal(away, result)


@pytest.mark.parametrize("chosen", [{"compile": True}, {"weights_dtype": "float8"}, {"attention": "math"}])
def test_an_expert_is_freed_when_nobody_has_it(models: Path, ranks: Ranks, chosen: dict[str, Any]) -> None:
    """A function on each layer kept the layer, and 28 GB of weights, until somebody looked for garbage."""
    expert = an_expert(models, ranks, **chosen)
    kept = weakref.ref(expert.blocks[0].ffn.net[2])
    gc.disable()
    try:
        del expert
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("row", "capability", "expected"),
    [
        # FlashAttention is not installed here.
        (ROW, None, "native"),
        (A14B, None, "native"),
        (A14B, (8, 0), "native"),
        (A14B, (9, 0), "cudnn"),
        (A14B, (10, 0), "cudnn"),
        (ROW, (9, 0), "native"),
    ],
)
def test_auto_takes_the_fastest_attention_that_is_there(
    row: ModelRow, capability: tuple[int, int] | None, expected: str
) -> None:
    assert speed.choose_attention("auto", row, capability) == expected


@pytest.mark.parametrize(
    ("name", "row", "capability", "why", "there"),
    [
        ("flash", A14B, None, "there is no GPU", "native, math"),
        ("flash", ROW, (9, 0), "takes 16-bit numbers", "native, math"),
        ("flash", A14B, (9, 0), "install `flash-attn>=", "native, math, cudnn"),
        ("flash3", A14B, (8, 6), "it needs compute capability 9.x, and the GPU has 8.6", "native, math, cudnn"),
        ("flash3", A14B, (10, 0), "it needs compute capability 9.x, and the GPU has 10.0", "native, math, cudnn"),
        ("sage", A14B, (9, 0), "install `sageattention>=", "native, math, cudnn"),
        ("xformers", A14B, (9, 0), "install `xformers>=", "native, math, cudnn"),
        ("cudnn", A14B, (7, 5), "it needs compute capability 8.0 or more", "native, math"),
    ],
)
def test_an_attention_that_is_not_there_is_refused_with_those_that_are(
    name: str, row: ModelRow, capability: tuple[int, int] | None, why: str, there: str
) -> None:
    message = refusal(speed.choose_attention, name, row, capability)

    assert message.startswith(f"CINEVENT_ATTENTION={name} cannot be used: ")
    assert why in message
    assert message.endswith(f"; here are: {there}")


def a_job(ranks: Ranks, tmp_path: Path, **chosen: Any) -> None:
    """A whole run, of a model that is not there."""
    request = a_video_request("tiny-t2v")
    worker.work(request, settings=Settings(models_dir=str(tmp_path), **chosen), ranks=ranks, outlet=None, stop=Stop())


def test_a_compiler_that_is_not_there_is_refused_before_weights_are_looked_for(ranks: Ranks, tmp_path: Path) -> None:
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        message = refusal(lambda: a_job(ranks, tmp_path, compile=True))

    assert message.startswith("CINEVENT_COMPILE cannot be used: No working C++ compiler found")
    assert "have a C++ compiler, Python's headers" in message
    with pytest.raises(JobFailed, match="model_load_failed"):
        a_job(ranks, tmp_path)


def test_an_attention_that_is_not_there_is_refused_before_weights_are_looked_for(ranks: Ranks, tmp_path: Path) -> None:
    message = refusal(lambda: a_job(ranks, tmp_path, attention="xformers"))

    assert message == "CINEVENT_ATTENTION=xformers cannot be used: there is no GPU; here are: native, math"


def test_offload_into_more_memory_than_the_machine_has_is_refused(ranks: Ranks) -> None:
    plan = replace(ALONE, num_processes=1000, speed=Speed(offload="always"))
    message = refusal(speed.ready, plan, A14B, ranks.device)

    assert "offload needs 80885.0 GiB of host memory for 1000 processes on a node" in message


def test_a_plan_that_is_ready_says_who_computes_attention(ranks: Ranks) -> None:
    plan = replace(ALONE, speed=Speed(offload="always"))

    assert speed.ready(plan, ROW, ranks.device) == replace(plan, speed=replace(plan.speed, attention="native"))


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_a_request_go_with_every_choice(models: Path, ranks: Ranks, option: str) -> None:
    """A LoRA is added before weights are stored and moved; steps that reuse others leave layers out, not hooks."""

    def with_choices(**chosen: Any) -> torch.Tensor:
        return with_option(option, models, ranks, plan=replace(ALONE, speed=Speed(**chosen)))

    plain = with_choices()
    assert torch.equal(with_choices(offload="always"), plain)
    near = with_choices(weights_dtype="float8")
    assert 0 < error(near, plain) < 2 * FLOAT8
    assert torch.equal(with_choices(weights_dtype="float8", offload="always"), near)
    if option == "magcache":
        assert error(with_choices(compile=True), plain) < COMPILED
