"""Memory: what the fullest GPU of a run holds, which is the reporter's. An estimate, and arithmetic only.

Weights are counted from the row's dimensions. Activations are the live tensors of one layer of diffusers 0.42's
WanTransformer3DModel at its fullest moment, each with its reason below. tests/engine/test_memory.py counts both again
over the real classes, without a GPU. What such a count cannot see is kept free: RESERVE_BYTES, and a tenth of the
activations.
"""

from dataclasses import dataclass
from math import ceil
from typing import Protocol

from engine.contract.models import ModelRow
from engine.contract.speed import Speed

GIB = 2**30
# CUDA's context and kernels, workspaces of cuBLAS and cuDNN, NCCL's buffers for the groups of a mesh, the latents.
RESERVE_BYTES = 2 * GIB
# Kept free for the allocator's gaps: activations come and go in every layer, weights do not.
_GAPS = 1.1
_ITEMSIZE = {"float32": 4, "bfloat16": 2}
# Width of the sinusoidal time embedding, and tokens of a prompt, in every Wan model.
_TIME_DIM, _TEXT_TOKENS = 256, 512
# Tokens of a rank are a multiple of this: matrix products of fewer rows, or of a remainder, are rounded in another
# order, and the numbers would no longer be those of one rank.
_ROWS = 16
# A layer at work, the next one as it arrives from the other ranks or from host memory, and the copy of it into place or
# the one before, until the device is done with it.
_LAYERS_GATHERED = 3
# Most that the autoencoder's decoder holds, in float32: bytes per pixel of a frame and channel of its last level,
# however many frames there are. Counted over live tensors. That of stride 16 works on a quarter of the pixels.
_DECODER_BYTES = {8: 204, 16: 85}
# Frames that do not fit are decoded in tiles of this side or less.
_TILE = 256


class Share(Protocol):
    """What a plan says about one rank's part; `Plan` is one."""

    @property
    def ring(self) -> int: ...
    @property
    def ulysses(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def reshard(self) -> bool: ...
    @property
    def speed(self) -> Speed: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What one GPU holds, in bytes, stage by stage."""

    text_bytes: int
    """While the prompt is read: the text encoder, and the experts as they lie. The encoder is freed after that."""
    weights_bytes: int
    """While a step is made: the experts, the active one gathered as planned. They are freed before the decoding."""
    activations_bytes: int
    """While a step is made: the tensors of one layer."""
    vae_bytes: int
    """While whole frames are decoded, which is the better way."""
    tile_bytes: int
    """While frames that do not fit are decoded in tiles: what decoding needs at least."""
    host_bytes: int
    """Offloaded weights of one process, in host memory; 0 where they are on the GPU."""

    @property
    def peak_bytes(self) -> int:
        """What the GPU must have, the reserve included."""
        stages = (self.text_bytes, self.weights_bytes + self.activations_bytes, self.tile_bytes)
        return max(stages) + RESERVE_BYTES

    @property
    def peak_gib(self) -> float:
        """The same in GiB."""
        return self.peak_bytes / GIB


def estimate(row: ModelRow, plan: Share, *, width: int, height: int, num_frames: int) -> Memory:
    """The memory per GPU of one video under a plan."""
    size = _ITEMSIZE[row.dtype]
    tokens = row.num_tokens(width=width, height=height, num_frames=num_frames)
    decoder = row.vae.dim * _DECODER_BYTES[row.spatial_stride]
    lying = 0 if plan.speed.is_offloaded else ceil(row.num_experts * expert_bytes(row, plan.speed) / plan.shard)
    return Memory(
        text_bytes=row.text.num_params * size + lying,
        weights_bytes=_weights(row, plan),
        activations_bytes=ceil(_activations(row, plan, tokens) * _GAPS),
        vae_bytes=row.vae.num_params * 4 + width * height * decoder,
        tile_bytes=row.vae.num_params * 4 + min(width, _TILE) * min(height, _TILE) * decoder,
        host_bytes=host_bytes(row, plan.speed) if plan.speed.is_offloaded else 0,
    )


def expert_params(row: ModelRow) -> int:
    """Parameters of one expert."""
    return row.num_layers * _layer_params(row) + _outer_params(row)


def expert_bytes(row: ModelRow, speed: Speed) -> int:
    """Bytes of one expert as it lies in memory."""
    return row.num_layers * _layer_bytes(row, speed) + _outer_params(row) * _ITEMSIZE[row.dtype]


def _layer_bytes(row: ModelRow, speed: Speed) -> int:
    matrices = sum(_matrices(row))
    return matrices * _matrix_itemsize(row, speed) + (_layer_params(row) - matrices) * _ITEMSIZE[row.dtype]


def _matrices(row: ModelRow) -> list[int]:
    """Parameters of each matrix of a layer: q, k, v and out of two attentions, and two of the feed-forward."""
    return [row.dim * row.dim] * 8 + [row.dim * row.ffn_dim] * 2


def _matrix_itemsize(row: ModelRow, speed: Speed) -> int:
    return 1 if speed.is_float8 else _ITEMSIZE[row.dtype]


def host_bytes(row: ModelRow, speed: Speed) -> int:
    """Bytes of the experts in host memory, if they are offloaded: pinned, which torch gives out by powers of two."""
    matrices = [params * _matrix_itemsize(row, speed) for params in _matrices(row)]
    rounded = [1 << (size - 1).bit_length() for size in matrices]
    return row.num_experts * (expert_bytes(row, speed) + row.num_layers * (sum(rounded) - sum(matrices)))


def _layer_params(row: ModelRow) -> int:
    dim = row.dim
    # Self- and cross-attention: q, k, v and out with their biases, and the norms of q and k.
    attention = 4 * (dim * dim + dim) + 2 * dim
    feed_forward = 2 * dim * row.ffn_dim + row.ffn_dim + dim
    # The norm before the cross-attention, and the table of six shifts, scales and gates.
    return 2 * attention + feed_forward + 2 * dim + 6 * dim


def _outer_params(row: ModelRow) -> int:
    """What is not in a layer: patches in and out, the embeddings of text and time, the last norm's table."""
    dim, patch = row.dim, 4 * row.latent_channels
    text = row.text.dim * dim + dim + dim * dim + dim
    time = _TIME_DIM * dim + dim + dim * dim + dim + 6 * (dim * dim + dim)
    return (patch * dim + dim) + text + time + (dim * patch + patch) + 2 * dim


def _weights(row: ModelRow, plan: Share) -> int:
    """Bytes held while one expert works.

    FSDP2 keeps a rank's own part beside the gathered whole, so that two ranks that gather a whole expert save nothing.
    """
    speed, size = plan.speed, _ITEMSIZE[row.dtype]
    expert = expert_bytes(row, speed)
    # Of 8-bit matrices one at a time lies there in the dtype in which it computes.
    cast = max(_matrices(row)) * size if speed.is_float8 else 0
    some = _outer_params(row) * size + _LAYERS_GATHERED * _layer_bytes(row, speed)
    if speed.is_offloaded:
        return some + cast
    if plan.shard == 1:
        return row.num_experts * expert + cast
    return ceil(row.num_experts * expert / plan.shard) + (some if plan.reshard else expert) + cast


def _activations(row: ModelRow, plan: Share, tokens: int) -> int:
    """Bytes of the tensors alive at the fullest moment of the first layer.

    Its input has all tokens on every rank (the sequence is divided inside of it), the rest this rank's tokens. Numbers
    below are tensors of tokens x dim; those of the row's dtype cost `size`, and float32 4, which is only a copy where
    the dtype is another.
    """
    size, dim = _ITEMSIZE[row.dtype], row.dim
    cast = 0 if row.dtype == "float32" else 4
    local = tokens_per_rank(tokens, plan.ring * plan.ulysses)
    moments = [
        # After the feed-forward: state, its norm, outputs of cross-attention and feed-forward; in float32 the gate's
        # product and a cast or sum on either side of it.
        4 * size + 8 + cast,
        # Inside it: state, norm, output of the cross-attention; two tensors of its own width, around its GELU.
        3 * size + 2 * size * row.ffn_dim / dim,
        _attention(row, plan, size),
    ]
    modulation = 0.0
    if row.num_experts == 1:
        # One time per token: an embedding, six shifts, scales and gates of it, and these once more in float32 with the
        # layer's own added; as they are added, also cast.
        modulation = 7 * size + 24
        moments.append(6 * cast)
    rotary = tokens * row.head_dim * 2 * 4
    # The prompt: its embedding and, in the cross-attention, keys and values before and after their norm.
    text = _TEXT_TOKENS * dim * 6 * size
    return ceil(tokens * dim * size + local * dim * (max(moments) + modulation)) + rotary + text


def _attention(row: ModelRow, plan: Share, size: int) -> float:
    """The same for the self-attention, as engine/sequence.py divides it: norm, q, k, v and one of two moments."""
    heads = padded_heads(row, plan.ulysses) / row.num_heads
    # Heads go for tokens: q, k and v stacked, as they are sent, as they arrive, and in order.
    exchange = 12 * heads if plan.ulysses > 1 else 0
    # Attention: what was exchanged, K and V of all ranks of the ring, the output.
    attend = heads * (1 + (3 if plan.ulysses > 1 else 0) + (2 * plan.ring if plan.ring > 1 else 0))
    return size * (4 + max(exchange, attend))


def tokens_per_rank(num_tokens: int, num_ranks: int) -> int:
    """Tokens that each of several ranks computes; zeros fill up what is missing at the end."""
    return num_tokens if num_ranks == 1 else ceil(num_tokens / (num_ranks * _ROWS)) * _ROWS


def padded_heads(row: ModelRow, ulysses: int) -> int:
    """Heads that the attention computes: those of the row, filled up so that all ranks get the same number."""
    return ceil(row.num_heads / ulysses) * ulysses
