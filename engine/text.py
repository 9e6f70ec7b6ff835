"""Text: prompts become embeddings, on one rank, for all.

In: prompts as they were sent, the reporter's text encoder. Out: one embedding per prompt on every rank, equal bit for
bit to diffusers' WanPipeline.encode_prompt.

Shapes: b batch (1), l text tokens (512), d text dimension.
"""

import html
from collections.abc import Sequence

import ftfy
import regex
import torch

from engine.mesh import Ranks
from engine.models.wan import TextParts

# Wan was trained on exactly this many; shorter prompts are filled up with zeros, longer ones are cut.
_TEXT_TOKENS = 512


def encode(parts: TextParts | None, prompts: Sequence[str], *, ranks: Ranks) -> list[torch.Tensor]:
    """The embeddings of `prompts`, in their order. All ranks must call it; only the reporter has `parts`."""
    if parts is not None:
        parts.encoder.to(ranks.device)
    return [ranks.share_tensor(_encode(parts, prompt, ranks.device) if parts else None) for prompt in prompts]


@torch.no_grad()
def _encode(parts: TextParts, prompt: str, device: torch.device) -> torch.Tensor:
    tokens = parts.tokenizer(
        [clean(prompt)],
        padding="max_length",
        max_length=_TEXT_TOKENS,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask_bl = tokens.attention_mask
    embeds_bld = parts.encoder(tokens.input_ids.to(device), mask_bl.to(device)).last_hidden_state
    embeds_bld = embeds_bld.to(parts.encoder.dtype)
    embeds_bld[:, int(mask_bl.sum()) :] = 0
    return embeds_bld


def clean(prompt: str) -> str:
    """The prompt as Wan was trained to read it: broken characters mended, HTML entities resolved, single spaces."""
    # regex, as diffusers has it: its idea of white space differs from re's.
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return regex.sub(r"\s+", " ", mended).strip()
