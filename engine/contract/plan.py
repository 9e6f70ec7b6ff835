"""The plan: how many processes make one video, and how they divide the work. Arithmetic only.

`choose` picks the degrees for a video; `check` says why a hand-made plan cannot work. Neither knows torch or a cluster;
engine/mesh.py turns a plan into process groups, a launcher turns it into pods or processes. A process is one GPU; where
there is none, it is a processor's.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from math import gcd, inf
from typing import Any

from engine.contract.errors import Invalid, Problem
from engine.contract.memory import estimate
from engine.contract.models import ModelRow
from engine.contract.speed import Speed, impossible

# The largest installation that a refusal looks at for what would fit.
_NODES, _GPUS = 4, 8
# From the largest: those that Wan2.2 was trained for (720p, 480p) and what others offer between and below.
_SIZES = ((1280, 720), (1280, 704), (1024, 576), (960, 544), (832, 480), (640, 384), (480, 320), (384, 256), (256, 256))
_PLAIN = Speed()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Degrees of parallelism; the mesh order is cfg (outermost), ring, ulysses (innermost, inside one node)."""

    num_nodes: int
    num_processes: int
    """Processes per node, one per GPU."""
    cfg: int
    """2: the prompt and the negative prompt run on different ranks; 1: one after the other."""
    ring: int
    """Groups that share one sequence by gathering the keys and values of all."""
    ulysses: int
    """Ranks that share one sequence by exchanging heads; heads that do not divide are padded."""
    shard: int
    """Neighbouring ranks that hold one copy of the weights between them (FSDP); 1: every rank holds a copy."""
    reshard: bool = False
    """With shard: each layer is gathered for its own turn and dropped after it; else the active expert, whole."""
    speed: Speed = field(default_factory=Speed)
    """What the operator chose beside the degrees; its offload is decided."""

    @property
    def world_size(self) -> int:
        """All ranks of the run."""
        return self.num_nodes * self.num_processes

    def to_json(self) -> dict[str, Any]:
        """The plan as it stands in events and manifests."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Plan":
        """The inverse of `to_json`. Raises TypeError."""
        return cls(**{**data, "speed": Speed(**data.get("speed", {}))})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Video:
    """What is to be planned for."""

    row: ModelRow
    width: int
    height: int
    num_frames: int
    gpu_memory_gib: float
    has_negative: bool
    speed: Speed

    def needs_gib(self, plan: Plan) -> float:
        """Memory of one GPU."""
        return estimate(self.row, plan, width=self.width, height=self.height, num_frames=self.num_frames).peak_gib


def choose(
    row: ModelRow,
    *,
    num_nodes: int,
    num_processes: int,
    width: int,
    height: int,
    num_frames: int,
    gpu_memory_gib: float = 0.0,
    has_negative: bool = True,
    speed: Speed = _PLAIN,
) -> Plan:
    """The plan for a video of `row` on this many processes: cfg first, then Ulysses inside a node, then ring across.

    Order after the published best for Wan2.2 (research of TensorRT-LLM VisualGen: 1.9x of 2 for cfg, then Ulysses):
    cfg exchanges one tensor per step, Ulysses four parts of tensors per layer, ring two whole ones. Of the ways to hold
    the weights it takes the first that fits into `gpu_memory_gib`; 0 stands for unknown. Offload is the last of them,
    if `speed` leaves it open. Without a negative prompt there is nothing for cfg to share, and all processes share the
    one pass.
    Raises Invalid when nothing fits, naming what would, and when `row` cannot run with `speed`.
    """
    if problems := _speed_problems(speed, row):
        raise Invalid(*problems)
    video = _Video(
        row=row,
        width=width,
        height=height,
        num_frames=num_frames,
        gpu_memory_gib=gpu_memory_gib,
        has_negative=has_negative,
        speed=speed,
    )
    plan = _fitting(video, num_nodes=num_nodes, num_processes=num_processes)
    if plan is None:
        raise Invalid(_refusal(video, num_nodes=num_nodes, num_processes=num_processes))
    return plan


def check(plan: Plan, row: ModelRow) -> None:
    """Raise Invalid unless `plan` can run `row`."""
    counts = {name: value for name, value in plan.to_json().items() if name not in ("reshard", "speed")}
    if low := [f"{name} is {value}" for name, value in counts.items() if value < 1]:
        raise Invalid(Problem(pointer="/plan", rule="positive", message=f"{', '.join(low)}; allowed: 1 or more"))
    of_a_node = f"it must divide the {plan.num_processes} processes of one node"
    rules = (
        (plan.cfg in (1, 2), "cfg", f"cfg is {plan.cfg}; allowed: 1 or 2"),
        (
            plan.cfg * plan.ring * plan.ulysses == plan.world_size,
            "product",
            f"cfg {plan.cfg} x ring {plan.ring} x ulysses {plan.ulysses} must equal the {plan.world_size} processes",
        ),
        (
            plan.ulysses <= row.num_heads,
            "heads",
            f"ulysses is {plan.ulysses}; {row.name} has only {row.num_heads} heads to share",
        ),
        (plan.num_processes % plan.ulysses == 0, "node", f"ulysses is {plan.ulysses}; {of_a_node}"),
        (plan.num_processes % plan.shard == 0, "shard", f"shard is {plan.shard}; {of_a_node}"),
        (plan.speed.offload != "auto", "offload", "offload is auto; a plan has it decided: always or never"),
        (
            plan.shard == 1 or not plan.speed.is_offloaded,
            "offload",
            f"offload is always and shard is {plan.shard}; a layer lies in host memory or on other GPUs: set shard to "
            "1, or offload to never",
        ),
    )
    problems = [Problem(pointer="/plan", rule=rule, message=message) for holds, rule, message in rules if not holds]
    problems += _speed_problems(plan.speed, row)
    if problems:
        raise Invalid(*problems)


def _speed_problems(speed: Speed, row: ModelRow) -> list[Problem]:
    return [Problem(pointer="/plan/speed", rule=name, message=message) for name, message in impossible(speed, row)]


def _fitting(video: _Video, *, num_nodes: int, num_processes: int) -> Plan | None:
    ways = _ways(video, num_nodes=num_nodes, num_processes=num_processes)
    memory_gib = video.gpu_memory_gib or inf
    return next((way for way in ways if video.needs_gib(way) <= memory_gib), None)


def _ways(video: _Video, *, num_nodes: int, num_processes: int) -> list[Plan]:
    """The plans with these processes, in the order in which they are wanted; or none."""
    can_halve = num_nodes * num_processes % 2 == 0
    # What one pass has too few heads for, two ranks of cfg compute both: slower than it could be, but it runs.
    cfgs = ([2] if video.has_negative else [1, 2]) if can_halve else [1]
    found = (_ways_by(cfg, video, num_nodes=num_nodes, num_processes=num_processes) for cfg in cfgs)
    return next((ways for ways in found if ways), [])


def _ways_by(cfg: int, video: _Video, *, num_nodes: int, num_processes: int) -> list[Plan]:
    row, speed = video.row, replace(video.speed, offload="never")
    world_size = num_nodes * num_processes
    ranks = world_size // cfg
    # All ranks of a branch that lie on one node. Where they do not divide the heads, padded heads still use every rank.
    shared = gcd(ranks, num_processes)
    ulysses = max(n for n in range(1, shared + 1) if shared % n == 0 and n <= row.num_heads)
    ring = ranks // ulysses
    if ring > 1 and num_nodes == 1:
        return []
    whole = Plan(
        num_nodes=num_nodes,
        num_processes=num_processes,
        cfg=cfg,
        ring=ring,
        ulysses=ulysses,
        shard=1,
        speed=speed,
    )
    gathered = replace(whole, shard=num_processes)
    # A gathered expert is as fast as a whole copy, and each rank reads only its share of the files. A tiny model's are
    # read in no time, and sharded float32 is rounded in another order (tests/engine/many_ranks.py).
    first, second = (whole, gathered) if row.dtype == "float32" else (gathered, whole)
    on_gpus = [whole] if num_processes == 1 else [first, second, replace(gathered, reshard=True)]
    offloaded = replace(whole, speed=replace(speed, offload="always"))
    return {"never": on_gpus, "auto": [*on_gpus, offloaded], "always": [offloaded]}[video.speed.offload]


def _refusal(video: _Video, *, num_nodes: int, num_processes: int) -> Problem:
    row = video.row
    ways = _ways(video, num_nodes=num_nodes, num_processes=num_processes)
    counts = f"{num_nodes} x {num_processes}"
    if not ways:
        rule = "degrees"
        why = f"{counts} processes cannot share {row.name}, which has {row.num_heads} heads"
    else:
        rule = "memory"
        why = (
            f"{row.name} at {video.width}x{video.height} with {video.num_frames} frames needs "
            f"{min(map(video.needs_gib, ways)):.1f} GiB on each of {counts} GPUs, which have {video.gpu_memory_gib:g}"
        )
    fits = ", ".join(_counts(video)) or f"none up to {_NODES} x {_GPUS}"
    smaller = next(_smaller(video, num_nodes=num_nodes, num_processes=num_processes), None) if ways else None
    here = f"; {counts} would do for {smaller[0]}x{smaller[1]}" if smaller else ""
    choices = ", ".join(_choices(video, num_nodes=num_nodes, num_processes=num_processes)) if ways else ""
    chosen = f"; {counts} would do with {choices}" if choices else ""
    return Problem(pointer="/plan", rule=rule, message=f"{why}; nodes x GPUs that fit: {fits}{here}{chosen}")


def _counts(video: _Video) -> Iterator[str]:
    """What fits, as nodes x GPUs per node; neighbouring counts of GPUs in one."""
    for nodes in range(1, _NODES + 1):
        gpus = [n for n in range(1, _GPUS + 1) if _fitting(video, num_nodes=nodes, num_processes=n)]
        # Neighbours differ from their place in the list by the same number.
        for _, run in groupby(enumerate(gpus), lambda item: item[1] - item[0]):
            found = [count for _, count in run]
            yield f"{nodes} x {found[0]}" + (f"-{found[-1]}" if found[1:] else "")


def _smaller(video: _Video, *, num_nodes: int, num_processes: int) -> Iterator[tuple[int, int]]:
    """The usual sizes that the row makes and these processes fit, the largest first."""
    row = video.row
    for width, height in _SIZES:
        is_allowed = (
            row.width.low <= width <= row.width.high
            and row.height.low <= height <= row.height.high
            and width * height <= row.max_pixels
            and width % row.size_multiple == height % row.size_multiple == 0
        )
        if is_allowed and _fitting(
            replace(video, width=width, height=height), num_nodes=num_nodes, num_processes=num_processes
        ):
            yield width, height


def _choices(video: _Video, *, num_nodes: int, num_processes: int) -> Iterator[str]:
    """What the operator may choose so that these processes fit; each alone."""
    others = {
        "CINEVENT_OFFLOAD=auto": replace(video.speed, offload="auto"),
        "CINEVENT_WEIGHTS_DTYPE=float8": replace(video.speed, weights_dtype="float8"),
    }
    for name, speed in others.items():
        if _fitting(replace(video, speed=speed), num_nodes=num_nodes, num_processes=num_processes):
            yield name
