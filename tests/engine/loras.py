"""LoRAs of the tiny models, in each form that they come in."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file

RANK, ALPHA = 4, 2.0
# Our names of what the original code calls otherwise.
_ORIGINAL = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
FORMS = ("diffusers", "original", "kohya")


def write_lora(file: Path, model: Path, expert: str, *, form: str = "diffusers", seed: int = 1) -> None:
    """A LoRA of every layer of the expert's blocks, large enough to be seen."""
    config = WanTransformer3DModel.load_config(model, subfolder=expert)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in WanTransformer3DModel.from_config(config).named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for block in range(config["num_layers"]):
        for ours, theirs in _ORIGINAL.items():
            features_out, features_in = shapes[f"blocks.{block}.{ours}.weight"]
            down = torch.randn(RANK, features_in, generator=generator) * 0.2
            up = torch.randn(features_out, RANK, generator=generator) * 0.2
            names = {"diffusers": f"blocks.{block}.{ours}", "original": f"blocks.{block}.{theirs}"}
            names["kohya"] = names["original"].replace(".", "_")
            tensors |= _tensors(names[form], down, up, form=form)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


def _tensors(name: str, down: torch.Tensor, up: torch.Tensor, *, form: str) -> dict[str, torch.Tensor]:
    if form == "diffusers":
        return {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    prefix = {"original": "diffusion_model.", "kohya": "lora_unet_"}[form]
    sides = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
    return {f"{prefix}{name}.{side}": tensor for side, tensor in sides.items()}


def write_loras(models: Path) -> None:
    """Beside tiny-t2v: `ink` of both experts, and the pair of its preset under the names that it is published with."""
    model = models / "tiny-t2v"
    for seed, expert in enumerate(("transformer", "transformer_2")):
        write_lora(model / "loras" / "ink" / f"{expert}.safetensors", model, expert, seed=seed)
    for expert, stem in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        write_lora(model / "loras" / "lightning" / f"{stem}.safetensors", model, expert, form="original", seed=5)
