"""The plan: how many processes make one video, and how they divide the work. Arithmetic only.

`choose` picks the degrees for a model row; `check` says why a hand-made plan cannot work. Neither knows torch or a
cluster; engine/mesh.py turns a plan into process groups, a launcher turns it into pods or processes.
"""

from dataclasses import asdict, dataclass
from typing import Any

from engine.contract.errors import Invalid, Problem
from engine.contract.models import ModelRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Degrees of parallelism; the mesh order is cfg (outermost), ring, ulysses (innermost, inside one node)."""

    num_nodes: int
    num_processes: int
    """Processes per node, one per GPU."""
    cfg: int
    """2: the prompt and the negative prompt run on different ranks; 1: one after the other."""
    ring: int
    ulysses: int
    """Ranks that share one sequence by exchanging heads; divides the model's heads."""
    shard: int
    """Ranks that share one copy of the weights (FSDP); 1: every rank holds a copy."""
    reshard: bool = False
    """Of sharded weights. True: a layer is whole only during its own forward. False: the whole of the active expert."""

    @property
    def world_size(self) -> int:
        """All ranks of the run."""
        return self.num_nodes * self.num_processes

    def to_json(self) -> dict[str, Any]:
        """The plan as it stands in events and manifests."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(**data)


def choose(row: ModelRow, *, num_nodes: int, num_processes: int) -> Plan:
    """The plan for `row` on this many processes: cfg first, then Ulysses inside a node, then ring across.

    Order after the published best for Wan2.2 (research of TensorRT-LLM VisualGen: 1.9x of 2 for cfg, then Ulysses):
    cfg exchanges one tensor per step, Ulysses four per layer, ring changes the rounding.
    Raises Invalid when no product of degrees fits, naming the process counts that would.
    """
    plan = _fit(row, num_nodes=num_nodes, num_processes=num_processes)
    if plan is None:
        fits = [n for n in range(1, 65) if _fit(row, num_nodes=1, num_processes=n)]
        raise Invalid(
            Problem(
                pointer="/plan",
                rule="degrees",
                message=f"{num_nodes} x {num_processes} processes cannot divide {row.name} ({row.num_heads} heads); "
                f"on one node these process counts fit: {', '.join(map(str, fits))}",
            )
        )
    return plan


def check(plan: Plan, row: ModelRow) -> None:
    """Raise Invalid unless `plan` can run `row`."""
    degrees = {name: value for name, value in plan.to_json().items() if name != "reshard"}
    if low := [f"{name} is {value}" for name, value in degrees.items() if value < 1]:
        raise Invalid(Problem(pointer="/plan", rule="positive", message=f"{', '.join(low)}; allowed: 1 or more"))
    rules = (
        (plan.cfg in (1, 2), "cfg", f"cfg is {plan.cfg}; allowed: 1 or 2"),
        (
            plan.cfg * plan.ring * plan.ulysses == plan.world_size,
            "product",
            f"cfg {plan.cfg} x ring {plan.ring} x ulysses {plan.ulysses} must equal the {plan.world_size} processes",
        ),
        (
            row.num_heads % plan.ulysses == 0,
            "heads",
            f"ulysses is {plan.ulysses}; it must divide the {row.num_heads} heads of {row.name}",
        ),
        (
            plan.num_processes % plan.ulysses == 0,
            "node",
            f"ulysses is {plan.ulysses}; it must divide the {plan.num_processes} processes of one node",
        ),
        (
            plan.world_size % plan.shard == 0,
            "shard",
            f"shard is {plan.shard}; it must divide the {plan.world_size} processes",
        ),
    )
    problems = [Problem(pointer="/plan", rule=rule, message=message) for holds, rule, message in rules if not holds]
    if problems:
        raise Invalid(*problems)


def _fit(row: ModelRow, *, num_nodes: int, num_processes: int) -> Plan | None:
    world = num_nodes * num_processes
    for cfg in (2, 1):
        if world % cfg:
            continue
        ranks = world // cfg
        ulysses = _largest_divisor(ranks, of=(row.num_heads, num_processes))
        if ranks // ulysses == 1 or num_nodes > 1:
            return Plan(
                num_nodes=num_nodes,
                num_processes=num_processes,
                cfg=cfg,
                ring=ranks // ulysses,
                ulysses=ulysses,
                shard=1,
            )
    return None


def _largest_divisor(ranks: int, *, of: tuple[int, int]) -> int:
    return max(n for n in range(1, ranks + 1) if ranks % n == 0 and all(total % n == 0 for total in of))
