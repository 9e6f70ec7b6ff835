"""The tiny models: real folders of real classes, the same on every build."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from engine.contract.models import CATALOG
from engine.models import tiny


def a_tree(folder: Path) -> dict[str, bytes]:
    """The files that are built; the tests' LoRAs lie beside them."""
    found = [path for path in folder.rglob("*") if path.is_file() and "loras" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("name", tiny.ROWS)
def test_diffusers_own_pipeline_loads_the_folder(models: Path, name: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(models / name)
    assert pipe.config.boundary_ratio == CATALOG[name].boundary
    assert pipe.vae_scale_factor_spatial == CATALOG[name].spatial_stride
    assert pipe.transformer.config.in_channels == CATALOG[name].input_channels
    assert pipe.transformer.config.num_attention_heads == CATALOG[name].num_heads
    assert (pipe.transformer_2 is None) == (CATALOG[name].guidance_scale_2 is None)


def test_two_builds_give_the_same_bytes(models: Path, tmp_path: Path) -> None:
    tiny.build(tmp_path)
    assert a_tree(tmp_path) == a_tree(models)


def test_builders_at_the_same_time_leave_one_whole_folder_each(models: Path, tmp_path: Path) -> None:
    # Forked: a new interpreter would spend its seconds on imports.
    builders = [multiprocessing.get_context("fork").Process(target=tiny.build, args=(tmp_path,)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert a_tree(tmp_path) == a_tree(models)


def test_models_that_are_there_cost_no_import_of_torch(models: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "engine.models.tiny", str(models)]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "engine.contract.models" in imported
    assert not {"torch", "diffusers", "transformers"} & imported
    assert done.stdout.splitlines() == [f"{models / name} present" for name in tiny.ROWS]


def test_different_prompts_read_differently(models: Path) -> None:
    tokenizer = DiffusionPipeline.from_pretrained(models / "tiny-t2v").tokenizer
    prompts = ["a cat", "a Cat", "a car", "\u4e2d\u6587", "\u4e2d\u56fd", "?"]
    assert len({tuple(tokenizer(prompt).input_ids) for prompt in prompts}) == len(prompts)
