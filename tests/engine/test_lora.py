"""LoRAs: the weights are those that diffusers makes of the same files, and a wrong one is named before any is read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import load
from engine.contract.errors import JobFailed
from engine.contract.request import Request
from engine.mesh import Ranks, divide
from tests.engine.loras import FORMS, write_lora
from tests.engine.ours import ALONE, a_video_request, block_calls, our_latents, our_parts, our_steps
from tests.engine.theirs import arguments, pipeline
from tests.make import a_request, an_input

SCALE = 0.7
EXPERTS = ("transformer", "transformer_2")


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A folder of models with LoRAs of its own."""
    model = tmp_path / "tiny-t2v"
    model.mkdir()
    for part in (models / "tiny-t2v").iterdir():
        if part.name != "loras":
            (model / part.name).symlink_to(part)
    return tmp_path


def with_loras(*names: str, **inputs: Any) -> Request:
    return a_video_request("tiny-t2v", loras=[{"name": name, "scale": SCALE} for name in names], **inputs)


def loaded(request: Request, models: Path, ranks: Ranks) -> list[dict[str, torch.Tensor]]:
    experts = our_parts(request, models, divide(ranks, ALONE)).denoiser.experts
    return [dict(experts[number]().named_parameters()) for number in (0, 1)]


def fused(
    request: Request,
    models: Path,
    files: dict[str, Path],
    *,
    scale: float = SCALE,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """diffusers' pipeline with these files in its experts."""
    pipe = pipeline(request, models, dtype=dtype)
    for expert, file in files.items():
        into = {"load_into_transformer_2": True} if expert == "transformer_2" else {}
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="one", **into)
        getattr(pipe, expert).fuse_lora(lora_scale=scale)
        getattr(pipe, expert).unload_lora()
    return pipe


@pytest.mark.parametrize("form", FORMS)
def test_weights_and_latents_are_those_of_diffusers(folder: Path, ranks: Ranks, form: str) -> None:
    model = folder / "tiny-t2v"
    files = {expert: model / "loras" / "ink" / f"{expert}.safetensors" for expert in EXPERTS}
    for seed, (expert, file) in enumerate(files.items()):
        write_lora(file, model, expert, form=form, seed=seed)
    request = with_loras("ink")
    pipe, mine = fused(request, folder, files), loaded(request, folder, ranks)
    for number, expert in enumerate(EXPERTS):
        expected = dict(getattr(pipe, expert).named_parameters())
        assert expected.keys() == mine[number].keys()
        for name, parameter in expected.items():
            torch.testing.assert_close(mine[number][name], parameter, atol=1e-6, rtol=1e-6)
    latents = pipe(**arguments(request), output_type="latent").frames
    torch.testing.assert_close(our_latents(request, folder, ranks)[0], latents, atol=1e-4, rtol=1e-4)


def test_bfloat16_weights_are_those_of_diffusers_to_their_last_bit_but_one(models: Path, ranks: Ranks) -> None:
    """They round the change before they add it, we the sum alone."""
    request = with_loras("ink")
    folder = models / "tiny-t2v"
    files = {expert: folder / "loras" / "ink" / f"{expert}.safetensors" for expert in EXPERTS}
    pipe = fused(request, models, files, dtype=torch.bfloat16)
    row = replace(request.row, dtype="bfloat16")
    experts = load.start(row, folder, request.input, mesh=divide(ranks, ALONE)).denoiser.experts
    for number, expert in enumerate(EXPERTS):
        mine = dict(experts[number]().named_parameters())
        for name, parameter in getattr(pipe, expert).named_parameters():
            assert mine[name].dtype == parameter.dtype
            torch.testing.assert_close(mine[name], parameter, atol=2**-8, rtol=2**-7)


def test_one_file_is_for_both_experts_and_one_of_a_pair_for_its_own(folder: Path, ranks: Ranks) -> None:
    model = folder / "tiny-t2v"
    write_lora(model / "loras" / "both.safetensors", model, "transformer")
    write_lora(model / "loras" / "low" / "low_noise_model.safetensors", model, "transformer_2")
    name = "blocks.1.ffn.net.2.weight"
    plain, both, low = (loaded(with_loras(*names), folder, ranks) for names in ((), ("both",), ("low",)))
    assert [torch.equal(a[name], b[name]) for a, b in zip(plain, both, strict=True)] == [False, False]
    assert [torch.equal(a[name], b[name]) for a, b in zip(plain, low, strict=True)] == [True, False]


def test_two_loras_add_up(models: Path, ranks: Ranks) -> None:
    name = "blocks.0.attn1.to_q.weight"
    sets = (loaded(with_loras(*names), models, ranks)[0][name] for names in ((), ("ink",), ("lightning",)))
    plain, ink, lightning = sets
    both = loaded(with_loras("ink", "lightning"), models, ranks)[0][name]
    torch.testing.assert_close(both - plain, (ink - plain) + (lightning - plain), atol=1e-6, rtol=1e-5)


def test_what_peft_says_of_alpha_is_obeyed_and_a_bias_is_added(folder: Path, ranks: Ranks) -> None:
    model, name = folder / "tiny-t2v", "blocks.0.attn1.to_q"
    down, up, bias = torch.randn(4, 96), torch.randn(96, 4), torch.randn(96)
    tensors = {f"transformer.{name}.lora_{part}": t for part, t in
               {"A.weight": down, "B.weight": up, "B.bias": bias}.items()}  # fmt: skip
    (model / "loras").mkdir()
    head = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": True}
    save_file(tensors, model / "loras" / "ink.safetensors", metadata={"lora_adapter_metadata": json.dumps(head)})
    plain, mine = loaded(with_loras(), folder, ranks)[0], loaded(with_loras("ink"), folder, ranks)[0]
    expected = SCALE * 8 / 4**0.5
    torch.testing.assert_close(mine[f"{name}.weight"], plain[f"{name}.weight"] + expected * (up @ down))
    torch.testing.assert_close(mine[f"{name}.bias"], plain[f"{name}.bias"] + expected * bias)


def test_lightning_is_four_steps_of_one_pass_as_in_diffusers(models: Path, ranks: Ranks) -> None:
    """One option stands for the LoRA pair, the steps, the sampler and guidance 1, which needs no negative prompt."""
    size = {"width": 64, "height": 64, "num_frames": 5, "seed": 7}
    request = a_request(model="tiny-t2v", input=an_input(preset="lightning", **size))
    row, mesh = request.row, divide(ranks, ALONE)
    parts = our_parts(request, models, mesh)
    calls = [block_calls(parts.denoiser.experts[number]()) for number in (0, 1)]
    *_, last = our_steps(parts.denoiser, row, request.input, mesh)
    assert last.after.step == 4
    # Two steps of each expert, through three blocks.
    assert [len(of_expert) for of_expert in calls] == [6, 6]
    stems = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
    files = {
        expert: models / "tiny-t2v" / "loras" / "lightning" / f"{stem}.safetensors" for expert, stem in stems.items()
    }
    latents = fused(request, models, files, scale=1.0)(**arguments(request), output_type="latent").frames
    torch.testing.assert_close(our_latents(request, models, ranks)[0], latents, atol=1e-4, rtol=1e-4)


# What is wrong with a file.


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)

    return write


Q = "transformer.blocks.0.attn1.to_q"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no safetensors": (lambda file: file.write_bytes(b"x" * 50), "cannot be read as a LoRA"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-1000]), "cannot be read as a LoRA"),
    "of a wider model": (
        changed(lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 5120)})),
        "blocks.0.attn1.to_q as one of 96x5120, it has 96x96: the LoRA was made for another model",
    ),
    "of a deeper model": (
        changed(lambda t: t.update({name.replace("blocks.0", "blocks.9"): t[name].clone() for name in list(t)})),
        "changes blocks.9.attn1.to_k, which the model does not have",
    ),
    "half a change": (changed(lambda t: t.pop(f"{Q}.lora_B.weight")), f"{Q[12:]}.lora_B.weight"),
    "another kind": (changed(lambda t: t.update({f"{Q}.lokr_w1": torch.zeros(1)})), "of no LoRA known here"),
    "a bias of another size": (
        changed(lambda t: t.update({f"{Q}.lora_B.bias": torch.zeros(7)})),
        "the bias of blocks.0.attn1.to_q, which has another shape",
    ),
    "nothing in it": (changed(lambda t: t.clear()), "of no LoRA known here"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_lora_is_named_before_weights_are_read(folder: Path, ranks: Ranks, case: str) -> None:
    model, (break_it, why) = folder / "tiny-t2v", BROKEN[case]
    file = model / "loras" / "ink" / "transformer.safetensors"
    write_lora(file, model, "transformer")
    break_it(file)
    with pytest.raises(JobFailed) as caught:
        our_parts(with_loras("ink"), folder, divide(ranks, ALONE))
    assert caught.value.code == "lora_invalid"
    assert not caught.value.retryable
    assert str(file) in caught.value.message
    assert why in caught.value.message


def test_an_unknown_lora_is_answered_with_those_that_there_are(models: Path, ranks: Ranks) -> None:
    with pytest.raises(JobFailed, match=r"no LoRA oil for transformer.*it has: ink, lightning; put the files there"):
        our_parts(with_loras("oil"), models, divide(ranks, ALONE))
