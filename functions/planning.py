"""`cinevent plan`: what `choose` would do with a video on given GPUs, and why. Arithmetic only, no system is asked."""

import argparse
import json
from dataclasses import asdict, replace
from math import inf, nan
from typing import Any

from engine.contract.explain import explain
from engine.contract.memory import estimate
from engine.contract.models import CATALOG
from engine.contract.plan import choose
from engine.contract.request import check_size
from engine.contract.settings import Settings, env_name
from engine.contract.speed import ATTENTION, OFFLOAD, WEIGHTS_DTYPES


def add(commands: Any) -> None:
    """Add the command to those of a parser."""
    text = "show how GPUs would share a video, why, and what each needs"
    command = commands.add_parser("plan", help=text, description=f"{text[0].upper()}{text[1:]}; no system is asked.")
    command.set_defaults(command=_run)
    command.add_argument("model", choices=CATALOG, metavar="MODEL", help=", ".join(CATALOG))
    command.add_argument("--nodes", type=_count, metavar="N", help="default: CINEVENT_NUM_NODES or 1")
    command.add_argument("--gpus", type=_count, metavar="N", help="of one node; default: CINEVENT_NUM_PROCESSES or 1")
    command.add_argument("--size", type=_size, metavar="WxH", help="in pixels; default: the model's")
    command.add_argument("--num-frames", type=_count, metavar="N", help="4k + 1; default: the model's")
    command.add_argument(
        "--gpu-memory",
        type=_memory,
        metavar="GIB",
        help="of one GPU, 0: unknown; default: CINEVENT_GPU_MEMORY_GIB or 0",
    )
    command.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: CINEVENT_COMPILE or --no-compile"
    )
    for name, choices in (("attention", ATTENTION), ("weights-dtype", WEIGHTS_DTYPES), ("offload", OFFLOAD)):
        variable = env_name(name.replace("-", "_"))
        command.add_argument(f"--{name}", choices=choices, help=f"default: {variable} or {choices[0]}")
    command.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace, settings: Settings) -> int:
    given = {
        "num_nodes": options.nodes,
        "num_processes": options.gpus,
        "gpu_memory_gib": options.gpu_memory,
        **{name: getattr(options, name) for name in ("compile", "attention", "weights_dtype", "offload")},
    }
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    answer = _plan(options, settings)
    print(json.dumps(answer, ensure_ascii=False) if options.json else _text(answer))
    return 0


def _plan(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    row = CATALOG[options.model]
    width, height = options.size or (row.width.default, row.height.default)
    video = {"width": width, "height": height, "num_frames": options.num_frames or row.num_frames.default}
    check_size(row, **video)
    chosen = choose(
        row,
        num_nodes=settings.num_nodes,
        num_processes=settings.num_processes,
        gpu_memory_gib=settings.gpu_memory_gib,
        has_negative=row.guidance_scale > 1,
        speed=settings.speed,
        **video,
    )
    need = estimate(row, chosen, **video)
    return {
        "model": row.name,
        **video,
        "plan": chosen.to_json(),
        "why": explain(chosen, row, **video),
        "memory": {**asdict(need), "peak_bytes": need.peak_bytes},
    }


def _text(answer: dict[str, Any]) -> str:
    plan = answer["plan"]
    title = "{model}, {width}x{height}, {num_frames} frames".format(**answer)
    return "\n".join([f"{title}, on {plan['num_nodes']} x {plan['num_processes']} GPUs", *answer["why"]])


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _memory(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    # float() reads "nan" and "inf" too: no memory is that.
    if not 0 <= value < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    try:
        return _count(width), _count(height)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1280x720") from error
