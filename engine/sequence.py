"""Sequence: the ranks of one sequence group share a transformer's tokens.

In: a transformer of the Wan family and the group. Out: the same transformer, which now computes a slice of the tokens
on each rank and gives the whole prediction on all. Attention alone looks across: Ulysses ranks exchange heads for
tokens (arXiv:2309.14509), ring ranks gather the keys and values of all. Whatever does not divide is filled up with
zeros that no real token ever sees, so that any number of ranks gives the numbers of one.

Shapes: b batch (1), l tokens of the video, s tokens of one rank, h heads, d head dimension, n dim (h * d).
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.distributed import ProcessGroup

from engine.contract.memory import tokens_per_rank
from engine.mesh import SequenceGroup


def split(transformer: Any, group: SequenceGroup) -> None:
    """Have the ranks of `group` share this transformer's sequence. All of them must call its forward."""
    slices = _Slices(group)
    transformer.register_forward_pre_hook(slices.of_timestep, with_kwargs=True)
    transformer.rope.register_forward_hook(slices.of_rope)
    # Blocks that may be skipped have an input of their own.
    first = getattr(transformer.blocks, "entry", transformer.blocks[0])
    first.register_forward_pre_hook(slices.of_hidden)
    transformer.proj_out.register_forward_hook(slices.gather)
    for block in transformer.blocks:
        block.attn1.set_processor(SharedAttention(group, slices))


class _Slices:
    """Which tokens are this rank's, as hooks on a transformer: cut where tokens are independent, gather at the end."""

    def __init__(self, group: SequenceGroup) -> None:
        self._group = group
        self._num_parts = dist.get_world_size(group.whole)
        self.num_tokens = 0
        """Of the video in the current forward; the rotary embedding tells it first."""

    def of_rope(self, _module: Any, _args: Any, tables: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Sine and cosine [1, l, 1, d] -> [1, s, 1, d]."""
        self.num_tokens = tables[0].shape[1]
        return tuple(self._cut(table) for table in tables)

    def of_hidden(self, _module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Hidden states [b, l, n] -> [b, s, n]; what else the first block gets stays."""
        return (self._cut(args[0]), *args[1:])

    def of_timestep(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Timesteps per token [b, l] -> [b, s]: their embedding takes six times the memory of the tokens."""
        timestep = kwargs["timestep"]
        return args, {**kwargs, "timestep": self._cut(timestep) if timestep.ndim == 2 else timestep}

    def gather(self, _module: Any, _args: Any, part_bsn: torch.Tensor) -> torch.Tensor:
        """Every rank's tokens [b, s, n] -> [b, l, n]."""
        return _gather_tokens(part_bsn, self._group.whole)[:, : self.num_tokens]

    def _cut(self, whole: torch.Tensor) -> torch.Tensor:
        size = tokens_per_rank(whole.shape[1], self._num_parts)
        return _fill(whole[:, self._group.rank * size : (self._group.rank + 1) * size], size, dim=1)


class SharedAttention:
    """Self-attention over the tokens of all ranks; in the place of diffusers' WanAttnProcessor."""

    # The names by which diffusers' set_attention_backend finds and sets them.
    _attention_backend: Any = None
    _parallel_config = None

    def __init__(self, group: SequenceGroup, slices: _Slices) -> None:
        self._group = group
        self._slices = slices

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Hidden states [b, s, n] of this rank -> [b, s, n]."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert rotary_emb is not None
        queries = _rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)), rotary_emb)
        keys = _rotate(attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1)), rotary_emb)
        values = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        mixed_bshd = self._attend(queries, keys, values)
        return attn.to_out[1](attn.to_out[0](mixed_bshd.flatten(2, 3).type_as(queries)))

    # A layer is compiled in two parts, before and after this: neither exchanges nor attention can be made faster.
    @torch.compiler.disable
    def _attend(self, *qkv_bshd: torch.Tensor) -> torch.Tensor:
        ring, ulysses = self._group.ring, self._group.ulysses
        num_heads = qkv_bshd[0].shape[2]
        queries, keys, values = _heads_for_tokens(qkv_bshd, ulysses) if ulysses else qkv_bshd
        num_queries = queries.shape[1]
        if ring:
            keys, values = (_gather_tokens(part, ring) for part in (keys, values))
        # Without the zeros at the end: that is the attention of one rank, to the last bit. A rank that has nothing but
        # zeros computes one of them.
        first = (self._group.rank // dist.get_world_size(ulysses) if ulysses else self._group.rank) * num_queries
        own = max(1, min(num_queries, self._slices.num_tokens - first))
        keys, values = (part[:, : self._slices.num_tokens] for part in (keys, values))
        mixed = dispatch_attention_fn(queries[:, :own], keys, values, backend=self._attention_backend)
        mixed = _fill(mixed, num_queries, dim=1)
        return _tokens_for_heads(mixed, ulysses, num_heads=num_heads) if ulysses else mixed


def _heads_for_tokens(qkv_bshd: tuple[torch.Tensor, ...], group: ProcessGroup) -> tuple[torch.Tensor, ...]:
    """Some tokens of all heads -> all tokens of some heads, for queries, keys and values in one exchange."""
    num_ranks = dist.get_world_size(group)
    num_heads = -(-qkv_bshd[0].shape[2] // num_ranks) * num_ranks
    stacked = _fill(torch.stack(qkv_bshd), num_heads, dim=3)
    # The receiver first: [ranks, 3, b, s, h / ranks, d].
    parts = stacked.unflatten(3, (num_ranks, -1)).movedim(3, 0).contiguous()
    return _exchange(parts, group).movedim(0, 2).flatten(2, 3).unbind(0)


def _tokens_for_heads(mixed: torch.Tensor, group: ProcessGroup, *, num_heads: int) -> torch.Tensor:
    """The inverse, for what attention gave; the heads that filled up are dropped."""
    parts = mixed.unflatten(1, (dist.get_world_size(group), -1)).movedim(1, 0).contiguous()
    # Contiguous: a matrix product of rows with gaps between them is rounded in another order.
    return _exchange(parts, group).movedim(0, 2).flatten(2, 3)[:, :, :num_heads].contiguous()


def _exchange(parts: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The k-th part goes to the k-th rank; what comes from the k-th rank is the k-th part."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received


def _gather_tokens(part: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Every rank's [b, s, ...] -> [b, ranks * s, ...]."""
    num_ranks = dist.get_world_size(group)
    gathered = part.new_empty((num_ranks * part.shape[0], *part.shape[1:]))
    dist.all_gather_single(gathered, part.contiguous(), group=group)
    return gathered.unflatten(0, (num_ranks, -1)).movedim(0, 1).flatten(1, 2)


def _fill(part: torch.Tensor, size: int, *, dim: int) -> torch.Tensor:
    """`part` with zeros at the end of `dim`, so that it has `size` there."""
    missing = size - part.shape[dim]
    if missing == 0:
        return part
    shape = list(part.shape)
    shape[dim] = missing
    return torch.cat([part, part.new_zeros(shape)], dim=dim)


def _rotate(states: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding (arXiv:2104.09864) of neighbouring pairs, in the order of operations of diffusers' own."""
    cosine, sine = tables[0][..., 0::2], tables[1][..., 1::2]
    left, right = states.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([left * cosine - right * sine, left * sine + right * cosine], dim=-1)
    return rotated.flatten(-2).type_as(states)
