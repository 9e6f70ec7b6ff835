"""Weights that are absent, cut or another model's end the job with a message that names them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from engine import load
from engine.contract.errors import JobFailed
from engine.contract.models import CATALOG
from engine.mesh import Ranks, divide
from engine.models import wan
from tests.engine.ours import ALONE

ROW = CATALOG["tiny-t2v"]
TRANSFORMER = "transformer_2/diffusion_pytorch_model.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_text("{")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def change(**values: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_an_index(path: Path) -> None:
    path.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"scale_shift_table": path.name, "patch_embedding.weight": "absent.safetensors"}})
    )


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no folder": ("", shutil.rmtree),
    "no index": ("model_index.json", Path.unlink),
    "broken index": ("model_index.json", garble),
    "another boundary": ("model_index.json", change(boundary_ratio=0.9)),
    "no expert": ("transformer_2", shutil.rmtree),
    "no expert's weights": (TRANSFORMER, Path.unlink),
    "cut expert": (TRANSFORMER, cut),
    "empty expert": (TRANSFORMER, empty),
    "expert not downloaded": (TRANSFORMER, pointer),
    "broken expert's config": ("transformer_2/config.json", garble),
    "fewer weights than layers": ("transformer_2/config.json", change(num_layers=4)),
    "other shapes": ("transformer_2/config.json", change(ffn_dim=128)),
    "another model": ("transformer_2/config.json", change(num_attention_heads=2, attention_head_dim=48)),
    "a file less than its index says": (TRANSFORMER, change_an_index),
    "no scheduler": ("scheduler", shutil.rmtree),
    "cut text encoder": ("text_encoder/model.safetensors", cut),
    "other text shapes": ("text_encoder/config.json", change(d_ff=256)),
    "fewer text weights than layers": ("text_encoder/config.json", change(num_layers=4)),
    "no tokenizer": ("tokenizer", shutil.rmtree),
    "broken tokenizer": ("tokenizer/tokenizer.json", garble),
    "cut autoencoder": ("vae/diffusion_pytorch_model.safetensors", cut),
}


def load_all(models: Path, ranks: Ranks) -> None:
    folder = models / ROW.name
    load.load_text_parts(ROW, folder, ranks=ranks)
    parts = load.start(ROW, folder, flow_shift=3.0, steps=8, mesh=divide(ranks, ALONE))
    assert parts.vae
    for part in (*parts.denoiser.experts.values(), parts.vae):
        part()


@pytest.mark.parametrize("case", DAMAGE)
def test_broken_weights_are_named(models: Path, ranks: Ranks, tmp_path: Path, case: str) -> None:
    name, damage = DAMAGE[case]
    folder = tmp_path / ROW.name
    shutil.copytree(models / ROW.name, folder)
    damage(folder / name)
    with pytest.raises(JobFailed) as failure:
        load_all(tmp_path, ranks)
    assert (failure.value.code, failure.value.retryable) == ("model_load_failed", False)
    assert str(folder / name.partition("/")[0]) in failure.value.message


@pytest.mark.parametrize("is_split", [False, True])
def test_other_precisions_beside_the_weights_are_not_read(models: Path, tmp_path: Path, is_split: bool) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(models / ROW.name / "vae", folder)
    whole = wan.make_vae(tmp_path)
    expected = wan.read_weights(whole, folder).state_dict()
    if is_split:
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        whole.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    halves = {name: tensor.half() for name, tensor in expected.items()}
    save_file(halves, folder / "diffusion_pytorch_model.fp16.safetensors")
    found = wan.read_weights(wan.make_vae(tmp_path), folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)


def test_only_the_reporter_reads_the_text_encoder(tmp_path: Path, ranks: Ranks) -> None:
    other = Ranks(rank=1, world_size=2, device=ranks.device)
    assert load.load_text_parts(ROW, tmp_path, ranks=other) is None
