"""Writes the documents that follow from the code: docs/schemas, openapi.json, asyncapi.json, events.md, settings.md
and models.md.

`python -m docs.generate` writes them. With `--check` it writes nothing, and ends with 1 if some are stale, naming them.
"""

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

from docs.events_page import events_page
from docs.markdown import table
from engine.contract.memory import GIB, estimate
from engine.contract.models import CATALOG, Limits, ModelRow
from engine.contract.plan import choose
from engine.contract.schemas import published
from engine.contract.settings import Settings, env_name
from functions.submit import asyncapi, openapi
from functions.submit.app import ROUTES

DOCS = Path(__file__).parent
_SHAPES = ((1, 1), (1, 2), (1, 3), (1, 4), (1, 6), (1, 8), (2, 8), (4, 8))
_MODELS = """\
# Models

A request names one of these. Sizes are width x height in pixels; every value that a request leaves out is the model's
default, and [events.md](events.md) has the limits of each field.

{models}

- **Tokens**: the length of the sequence that the default video is to the model. More frames or pixels make it longer,
  and the time of a step grows faster than it.
- **Guidance** with two numbers is that of the high-noise and of the low-noise expert.
- **From** says whether a video starts from the prompt alone or from a picture as well: upload it, and name it in
  `input.image` ([events.md](events.md)).
- The `tiny` models are the real program with small, random weights. They show no picture worth seeing and need no GPU:
  they are for demos, tests and development.

## How many processes can share a video

A process is one GPU. An even number of them computes the prompt and the negative prompt side by side, on one half each
(cfg); the processes of a half, or all of them, share the model's attention heads inside a node (ulysses), and gather
keys and values from other nodes (ring). Every number works up to one process per head; heads and tokens that do not
divide are padded. `cinevent plan MODEL --gpus N --size WxH` explains one case.

The memory of a GPU is an estimate for the default video, in GiB: with all weights on every GPU; with the weights
divided among a node's GPUs and the active expert gathered; with one layer gathered at a time; and offloaded, with the
host memory that each GPU's process takes then. Where `CINEVENT_GPU_MEMORY_GIB` is set, the first of them that fits is
taken, and a job that none fits fails with `plan_invalid` before a GPU is asked for. `CINEVENT_OFFLOAD=never` leaves the
last one out; [engine.md](engine.md) has more choices.

{plans}

## Where weights come from

`CINEVENT_MODELS_DIR` has one diffusers folder per model, named after it. Pods of a node may share it. What is there is
used as it is; what is not is fetched from where `CINEVENT_MODELS_URL` says, by one process while the others wait:

| `CINEVENT_MODELS_URL` | from |
| --- | --- |
| empty | nowhere: a missing model fails the job with `model_load_failed` |
| `s3://BUCKET/PREFIX` | `s3://BUCKET/PREFIX/MODEL/`; credentials and `CINEVENT_S3_ENDPOINT` as for artifacts |
| `hub`, `hub@REVISION` | the Hugging Face repository of the table above; a branch, a tag or a commit of it |

The hub's own variables are obeyed: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`.
A folder appears under its name when all of it is checked and on the disk. Until then it is `.MODEL.partial`; a fetch
that was killed goes on there, and parts that are there are not read again. `.MODEL.lock` says who fetches.

From S3, every file that `SHA256SUMS` lists is compared with it. Write it before the upload:

```bash
cd wan2.2-ti2v-5b
find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS
aws s3 cp --recursive . s3://BUCKET/PREFIX/wan2.2-ti2v-5b/
```

A file that it does not list is compared with what S3 itself knows: a SHA256 or CRC32 of the whole object, or an ETag
that is an md5. Where there is none of these, as with objects that are encrypted with a key of KMS and have a CRC64NVME,
only its size is, and the log says so. From the hub, every file is compared with the hub's own checksum.

## Presets

`input.preset`, or `cinevent submit --preset`, stands for options that belong together. What a request says beside it
comes first, and its LoRAs go with those of the preset.

{presets}

## LoRAs

A request names LoRAs that were put beside the model, never an address: `"loras": [{{"name": "ink", "scale": 0.8}}]`, or
`cinevent submit --lora ink=0.8`. In the model's folder:

| file | for |
| --- | --- |
| `loras/NAME/transformer.safetensors`, or `high_noise_model.safetensors` | the high-noise expert, or the only one |
| `loras/NAME/transformer_2.safetensors`, or `low_noise_model.safetensors` | the low-noise expert |
| `loras/NAME.safetensors` | all experts |

One of a pair may be missing; that expert stays as it is. Files have the names of diffusers and peft, of the original
Wan code (`diffusion_model.`) or of kohya's scripts (`lora_unet_`). A name that is not there, or a file that does not
fit the model, fails the job with `lora_invalid` before weights are read. `lightning` is the pair of a folder of
[lightx2v/Wan2.2-Lightning](https://huggingface.co/lightx2v/Wan2.2-Lightning), copied as it is:

```bash
mkdir -p "$CINEVENT_MODELS_DIR/wan2.2-t2v-a14b/loras/lightning"
cp Wan2.2-T2V-A14B-4steps-lora-rank64-*/*_noise_model.safetensors \
  "$CINEVENT_MODELS_DIR/wan2.2-t2v-a14b/loras/lightning/"
```

They may also lie below the model's S3 prefix; then they come with it, but not to a pod that has the model already.

_Made from engine/contract/models.py, plan.py and memory.py by `make docs`._
"""
_FROM = {"none": "text", "optional": "text, or text and an image", "required": "text and an image"}
_SETTINGS = """\
# Settings

Everything that can be set is an environment variable, read once when a process starts. A variable that is empty counts
as not set; a bad value ends the process with a message that names the variable.

{settings}

Credentials for S3 are found where boto3 looks for them, such as `AWS_ACCESS_KEY_ID` or a pod's role.

_Made from engine/contract/settings.py by `make docs`._
"""


def pages() -> dict[str, str]:
    """Every generated file, by its name within docs, and its text."""
    schemas = {f"schemas/{name}": _json(schema) for name, schema in published().items()}
    apis = {"openapi.json": _json(openapi.document(ROUTES)), "asyncapi.json": _json(asyncapi.document())}
    return {**schemas, **apis, "events.md": events_page(), "models.md": models_page(), "settings.md": settings_page()}


def stale(folder: Path = DOCS) -> list[str]:
    """The files of a folder that are not what the code says: different, missing, or left over."""
    return [name for name, text in pages().items() if _text(folder / name) != text] + _left_over(folder)


def write(folder: Path = DOCS) -> None:
    """Bring a folder in step with the code."""
    for name in _left_over(folder):
        (folder / name).unlink()
    for name, text in pages().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def settings_page() -> str:
    """docs/settings.md."""
    rows = [(f"`{env_name(item.name)}`", _default(item.default), item.metadata["doc"]) for item in fields(Settings)]
    return _SETTINGS.format(settings=table(("Variable", "Default", "What it is"), rows))


_WAYS = ("All weights", "Active expert", "By layer", "Offloaded")
"""To hold weights, as columns of the page of models."""


def models_page() -> str:
    """docs/models.md."""
    models = table(
        ("Model", "From", "Size", "Frames", "fps", "Steps", "Guidance", "Tokens", "Weights"),
        [_model(row) for row in CATALOG.values()],
    )
    plans = table(
        (
            "Model",
            "Heads",
            "Nodes x GPUs",
            "cfg x ring x ulysses",
            "All weights",
            "Active expert",
            "By layer",
            "Offloaded",
        ),
        [_plan(row, nodes=nodes, gpus=gpus) for row in CATALOG.values() if row.hub for nodes, gpus in _SHAPES],
    )
    return _MODELS.format(models=models, plans=plans, presets=_presets())


def _presets() -> str:
    rows = [
        (
            f"`{name}`",
            f"`{row.name}`",
            preset.about,
            ", ".join(f"{key} {_said(of)}" for key, of in preset.options.items()),
        )
        for row in CATALOG.values()
        for name, preset in row.presets.items()
    ]
    return table(("Preset", "Model", "What it is", "Options"), rows)


def _said(value: object) -> str:
    if isinstance(value, list):
        return " and ".join(f"`{one['name']}`" for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _model(row: ModelRow) -> tuple[str, ...]:
    tokens = row.num_tokens(width=row.width.default, height=row.height.default, num_frames=row.num_frames.default)
    guidance = [f"{scale:g}" for scale in (row.guidance_scale, row.guidance_scale_2) if scale is not None]
    return (
        f"`{row.name}`",
        _FROM[row.image],
        f"{row.width.default} x {row.height.default}",
        _limits(row.num_frames),
        str(row.fps.default),
        _limits(row.steps),
        " / ".join(guidance),
        f"{tokens:,}",
        f"[{row.hub}](https://huggingface.co/{row.hub})" if row.hub else "made on the spot",
    )


def _limits(limits: Limits) -> str:
    return f"{limits.default} (up to {limits.high})"


def _plan(row: ModelRow, *, nodes: int, gpus: int) -> tuple[str, ...]:
    size = {"width": row.width.default, "height": row.height.default, "num_frames": row.num_frames.default}
    chosen = choose(row, num_nodes=nodes, num_processes=gpus, **size)
    whole = replace(chosen, shard=1)
    ways = (
        [whole] if gpus == 1 else [whole, *(replace(whole, shard=gpus, reshard=by_layer) for by_layer in (False, True))]
    )
    needs = [f"{estimate(row, way, **size).peak_gib:.0f}" for way in ways]
    degrees = f"{chosen.cfg} x {chosen.ring} x {chosen.ulysses}"
    offloaded = estimate(row, replace(whole, speed=replace(whole.speed, offload="always")), **size)
    away = f"{offloaded.peak_gib:.0f} + {offloaded.host_bytes / GIB:.0f} host"
    return (f"`{row.name}`", str(row.num_heads), f"{nodes} x {gpus}", degrees, *needs, *[""] * (3 - len(needs)), away)


def _default(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`" if text else "empty"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _left_over(folder: Path) -> list[str]:
    """Schemas of events that are no more."""
    return sorted(f"schemas/{path.name}" for path in folder.glob("schemas/*") if path.name not in published())


def main() -> None:
    """Write the files, or only check them."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a file is stale")
    if not parser.parse_args().check:
        write()
    elif names := stale():
        sys.exit(f"in docs/, not in step with the code: {', '.join(names)}; run: make docs")


if __name__ == "__main__":
    main()
