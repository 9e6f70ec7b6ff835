"""Decoding goes frame by frame; what does not fit is decoded in tiles, with the same bytes on any number of ranks."""

import os
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import decode, load
from engine.contract.errors import JobFailed
from engine.mesh import Ranks
from engine.tiles import MAX_RANKS, Grid, deal, decode_tiles, run_decoder
from tests.engine.ours import AUTOENCODERS, limit_memory, some_latents, tiled_pixels, torchrun
from tests.engine.tiles_on_ranks import SHORT, SIDE, SIZES, WIDE, WORLDS

# The decoders of the real rows (config.json of the vae folders of Wan-AI/Wan2.2-*-Diffusers); no weights are needed.
WAN21: dict[str, Any] = {}
WAN22: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
GIB = 2**30


@pytest.fixture(params=AUTOENCODERS)
def vae(request: pytest.FixtureRequest, models: Path) -> AutoencoderKLWan:
    """An autoencoder of its own for each test: some put hooks on it."""
    return load.load_vae(models / request.param)


def on_meta(config: dict[str, Any]) -> Any:
    """An autoencoder of real size without memory."""
    with torch.device("meta"):
        return AutoencoderKLWan(**config).eval()


def filmed(vae: Any, latents: torch.Tensor, folder: Path, tiles: Any = None) -> tuple[int, list[np.ndarray]]:
    """The tiles' side, and the frames of each call of `write`; the last ones are the video."""
    calls: list[np.ndarray] = []

    def write(chunks: Iterator[np.ndarray]) -> None:
        calls.append(np.empty((0, 1, 1, 3), np.uint8))
        for chunk in chunks:
            calls[-1] = np.concatenate([calls[-1], chunk]) if calls[-1].size else chunk

    return decode.film(vae, latents, write, tiles=tiles, folder=folder), calls


def tiled_by_diffusers(vae: Any, latents: torch.Tensor, side: int) -> torch.Tensor:
    """What diffusers makes of latents with tiles of the same size."""
    vae.enable_tiling(side, side, side * 3 // 4, side * 3 // 4)
    with torch.no_grad():
        pixels: torch.Tensor = vae.decode(latents, return_dict=False)[0]
    vae.disable_tiling()
    return pixels


def frames_by_diffusers(vae: Any, latents: torch.Tensor, side: int) -> np.ndarray:
    """The same as bytes, of latents as the engine has them."""
    std, mean = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_std, vae.config.latents_mean)
    )
    pixels = tiled_by_diffusers(vae, latents / (1.0 / std) + mean, side)
    return ((pixels[0] * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def test_a_chunk_is_decoded_only_when_it_is_asked_for(vae: Any) -> None:
    calls: list[Any] = []
    vae.decoder.register_forward_hook(lambda *_: calls.append(None))
    chunks = decode.decode(vae, some_latents(vae, 32, 64, num_frames=17))
    shapes = []
    for number, chunk in enumerate(chunks, start=1):
        assert len(calls) == number
        shapes.append(chunk.shape)
    assert shapes == [(1, 32, 64, 3), *[(4, 32, 64, 3)] * 4]


def test_no_more_than_two_chunks_of_a_video_are_in_memory(vae: Any) -> None:
    alive: list[int] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def count(_module: Any, _inputs: Any, pixels: torch.Tensor) -> None:
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(pixels))

    vae.decoder.register_forward_hook(count)
    for _ in decode.decode(vae, some_latents(vae, 32, 32, num_frames=33)):
        pass
    assert len(alive) == 9
    assert max(alive) <= 1


@pytest.mark.parametrize("case", SIZES)
def test_tiles_on_one_process_equal_those_of_diffusers(vae: Any, ranks: Ranks, tmp_path: Path, case: str) -> None:
    latents = some_latents(vae, *SIZES[case])
    with torch.no_grad():
        tiles = decode_tiles(vae, latents, side=SIDE, ranks=ranks, folder=tmp_path)
    assert torch.equal(tiled_pixels(vae, tiles), tiled_by_diffusers(vae, latents, SIDE))


def test_tiles_become_the_same_frames_as_those_of_diffusers(vae: Any, ranks: Ranks, tmp_path: Path) -> None:
    latents = some_latents(vae, *WIDE)
    tiles = decode.decode_in_tiles(vae, latents, side=128, ranks=ranks, folder=tmp_path)
    side, (frames,) = filmed(vae, latents, tmp_path, tiles)
    assert side == 128
    assert np.array_equal(frames, frames_by_diffusers(vae, latents, 128))


@pytest.fixture(scope="session")
def on_ranks(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two, three and four real ranks decoded, as tests/engine/tiles_on_ranks.py writes it."""
    folder = tmp_path_factory.mktemp("tiles_on_ranks")
    script = Path(__file__).with_name("tiles_on_ranks.py")
    command = torchrun(max(WORLDS), str(script), str(models), str(folder))
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    return folder


# The ranks start together on the few processors of a test machine, and import torch and diffusers first.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_tiles_on_many_ranks_equal_those_on_one(models: Path, on_ranks: Path, name: str, case: str) -> None:
    vae = load.load_vae(models / name)
    expected = tiled_by_diffusers(vae, some_latents(vae, *SIZES[case]), SIDE)
    for world in WORLDS:
        assert torch.equal(torch.load(on_ranks / f"{name} {case} {world}.pt"), expected)


@pytest.mark.timeout(600)
def test_when_one_rank_has_not_enough_memory_all_take_smaller_tiles(
    models: Path, ranks: Ranks, on_ranks: Path, tmp_path: Path
) -> None:
    vae = load.load_vae(models / AUTOENCODERS[-1])
    tiles = decode.decode_in_tiles(vae, some_latents(vae, *WIDE), side=128, ranks=ranks, folder=tmp_path)
    expected = tiled_pixels(vae, tiles)
    for world in WORLDS:
        assert torch.equal(torch.load(on_ranks / f"{SHORT} {world}.pt"), expected)


@pytest.mark.parametrize("world_size", range(1, 17))
def test_each_tile_is_dealt_once_and_to_at_most_eight_ranks(world_size: int) -> None:
    grid = Grid(height=90, width=160, tile=32, stride=24, scale=8)
    hands = [deal(grid, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(number for hand in hands for number in hand) == list(range(28))
    assert all(len(hand) > 0 for hand in hands[:MAX_RANKS])
    assert all(len(hand) == 0 for hand in hands[MAX_RANKS:])


@pytest.mark.parametrize("after", [0, 1])
def test_frames_that_do_not_fit_are_decoded_again_in_tiles(vae: Any, tmp_path: Path, after: int) -> None:
    """Also when the first frame fitted: the later ones take more, and all frames of a video are made in one way."""
    latents = some_latents(vae, 32, 160)
    expected = frames_by_diffusers(vae, latents, 128)
    limit_memory(vae, pixels=32 * 128, after=after)
    side, calls = filmed(vae, latents, tmp_path)
    assert (side, [len(frames) for frames in calls]) == (128, [after, 5])
    assert np.array_equal(calls[-1], expected)


def test_tiles_that_do_not_fit_are_made_smaller(vae: Any, tmp_path: Path) -> None:
    latents = some_latents(vae, 32, 544)
    limit_memory(vae, pixels=32 * 256)
    side, calls = filmed(vae, latents, tmp_path)
    assert (side, calls[-1].shape) == (256, (5, 32, 544, 3))


@pytest.mark.parametrize(("width", "pixels"), [(544, 32 * 64), (64, 32 * 32)])
def test_a_device_without_memory_for_the_smallest_tile_fails_the_attempt(
    vae: Any, tmp_path: Path, width: int, pixels: int
) -> None:
    limit_memory(vae, pixels=pixels)
    with pytest.raises(JobFailed, match=f"{width} x 32, whole or in tiles down to 128 pixels") as failure:
        filmed(vae, some_latents(vae, 32, width), tmp_path)
    assert (failure.value.code, failure.value.retryable) == ("out_of_memory", True)


@pytest.mark.parametrize(
    ("config", "height", "width", "gib", "side"),
    [
        (WAN21, 720, 1280, None, 0),
        (WAN21, 720, 1280, 80, 0),
        (WAN21, 720, 1280, 24, 0),
        (WAN21, 480, 832, 16, 0),
        (WAN21, 720, 1280, 16, 512),
        (WAN21, 720, 1280, 2.5, 256),
        (WAN21, 720, 1280, 0.1, 128),
        (WAN22, 704, 1280, 80, 0),
        (WAN22, 704, 1280, 24, 512),
        (WAN22, 704, 1280, 6, 256),
        (WAN21, 128, 128, 0.1, 0),
    ],
)
def test_whole_frames_are_decoded_where_they_fit(
    config: dict[str, Any], height: int, width: int, gib: float | None, side: int
) -> None:
    vae = on_meta(config)
    ratio = vae.spatial_compression_ratio
    latents = torch.empty(1, vae.config.z_dim, 3, height // ratio, width // ratio, device="meta")
    assert decode.first_side(vae, latents, memory_bytes=None if gib is None else int(gib * GIB)) == side


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and their most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return out

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize("config", [WAN21, WAN22], ids=["Wan2.1", "Wan2.2"])
def test_the_estimate_is_what_the_decoder_holds_and_little_more(config: dict[str, Any]) -> None:
    vae = on_meta(config)
    ratio = vae.spatial_compression_ratio
    cells = torch.empty(1, vae.config.z_dim, 4, 480 // ratio, 832 // ratio, device="meta")
    with torch.no_grad(), LiveBytes() as counted:
        for _ in run_decoder(vae, cells.split(1, dim=2)):
            pass
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    estimate = decode.bytes_needed(vae, height=480, width=832)
    assert estimate * 0.95 < weights + counted.most <= estimate
