"""The tiny models: the real classes with few and random weights, for tests, demos and development without a GPU.

In: a folder. Out: in it, one diffusers folder per tiny catalog row, as its pipeline's `save_pretrained` would write it,
with the same bytes on every build. `python -m engine.models.tiny DIR` builds those that are absent.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.contract.models import CATALOG, ModelRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS = ("tiny-t2v", "tiny-ti2v", "tiny-i2v")
# Any fixed number: tests compare with what these weights give.
_SEED = 20
_TEXT_DIM = 64
# Longest sequence of text tokens, as in Wan's tokenizer.
_TEXT_TOKENS = 512
# As on the hub: TI2V's folder is the text pipeline's, which the image pipeline opens as well.
_TEXT_PIPELINE: dict[str, Any] = {"_class_name": "WanPipeline"}
_PIPELINES = {
    "none": _TEXT_PIPELINE,
    "optional": _TEXT_PIPELINE,
    "required": {
        "_class_name": "WanImageToVideoPipeline",
        "image_encoder": [None, None],
        "image_processor": [None, None],
    },
}
_SPACE = "\u2581"
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_WORDS = (
    "a the of on in at and with cat dog bear fox beach sea city night rain snow walks runs jumps flies bright static"
)


def build(directory: Path) -> list[Path]:
    """Build the tiny models that `directory` lacks; returns the new folders.

    Several processes may do this at once: each folder appears whole, and the first one stays.
    """
    # Looked at before torch is imported: a start with nothing to build costs nothing.
    absent = [CATALOG[name] for name in ROWS if not (directory / name).exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return [folder for row in absent if (folder := _build_row(row, directory))]


def _build_row(row: ModelRow, directory: Path) -> Path | None:
    """The new folder, or None when another process was first."""
    partial = Path(tempfile.mkdtemp(prefix=f".{row.name}-", dir=directory))
    try:
        _write(row, partial)
        _make_readable(partial)
        # Fails if the folder is there and not empty.
        return partial.rename(directory / row.name)
    except OSError:
        if not (directory / row.name).exists():
            raise
        return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(row: ModelRow, folder: Path) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        parts = _parts(row)
    index = {**_PIPELINES[row.image], "boundary_ratio": row.boundary, "expand_timesteps": row.boundary is None}
    for name, part in parts.items():
        library = type(part).__module__.partition(".")[0]
        index[name] = [library, type(part).__name__]
        part.save_pretrained(folder / name)
    index.setdefault("transformer_2", [None, None])
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _make_readable(folder: Path) -> None:
    # Temporary folders and safetensors files are their writer's alone; an engine may run as somebody else.
    folder.chmod(0o755)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def _parts(row: ModelRow) -> dict[str, Any]:
    """The components of a diffusers folder, by the name of their subfolder."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    tokenizer = _tokenizer()
    experts = ("transformer",) if row.boundary is None else ("transformer", "transformer_2")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=row.flow_shift
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": _text_encoder(len(tokenizer)),
        "vae": _vae(row),
        "scheduler": scheduler,
        **{name: WanTransformer3DModel(**_transformer_config(row)).eval() for name in experts},
    }


def _transformer_config(row: ModelRow) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": row.num_heads,
        "attention_head_dim": 24,
        "in_channels": row.input_channels,
        "out_channels": row.latent_channels,
        "text_dim": _TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 256,
        "num_layers": row.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 64,
    }


def _text_encoder(vocab_size: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=_TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config).eval()


def _vae(row: ModelRow) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    config: dict[str, Any] = {
        "base_dim": 12,
        "z_dim": row.latent_channels,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    if row.spatial_stride == 16:
        # The Wan2.2 form: residual, and pixels folded 2 x 2 into 4 x 3 channels.
        config |= {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        config |= {"decoder_base_dim": 16, "scale_factor_spatial": 16}
    return AutoencoderKLWan(**config).eval()


def _tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with a vocabulary written out here: a trained one differs from build to build.

    Bytes are in it, so that two different prompts never read the same.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [
        *_SPECIAL.values(),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        _SPACE,
        *(_SPACE + word for word in _WORDS.split()),
    ]
    # Log-probabilities: a longer piece must beat the sum of the shorter ones it covers.
    vocabulary = [(piece, -10.0 if piece.startswith("<") else -1.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.index("<unk>"), byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", pieces.index("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_TEXT_TOKENS, **_SPECIAL)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m engine.models.tiny DIR\n")
        return 2
    directory = Path(arguments[0])
    new = build(directory)
    for name in ROWS:
        sys.stdout.write(f"{directory / name} {'built' if directory / name in new else 'present'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
