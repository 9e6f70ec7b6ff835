"""Ranks: how the processes of a run find each other, and how a plan divides them.

In: where torchrun put this process, then a plan. Out: Ranks (talk to each other) and Mesh (divide the work). The mesh's
order is cfg (outermost), ring, ulysses (innermost: it talks most, so its ranks share a node). No rank waits for ever:
a rank that fails ends its process, torchrun ends the others, and for silence there is a timeout.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from engine.contract.errors import JobFailed
from engine.contract.plan import Plan

T = TypeVar("T")

# Ranks differ most while weights are read: 57 GB from a network disk take minutes. Dispatch gives up a run that is
# silent for 15 minutes (stall_s), so that nothing is won by waiting longer.
_TIMEOUT = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The processes of this run, able to talk to each other."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_reporter(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The value of rank 0, on every rank; all ranks must call it."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def share_tensor(self, tensor: torch.Tensor | None) -> torch.Tensor:
        """The tensor of rank 0, on every rank; the others give None."""
        shape, dtype = self.share((tensor.shape, tensor.dtype) if tensor is not None else (torch.Size(), torch.float32))
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
        if self.world_size > 1:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, src=0)
        return tensor

    def highest(self, value: int) -> int:
        """The highest value that any rank gives; all ranks must call it."""
        if self.world_size == 1:
            return value
        box = torch.tensor([value], device=self.device)
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def settle(self) -> None:
        """Wait until the device has done what it was given; a processor always has."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def close(self) -> None:
        """Part in order: nobody leaves while another still reads from it."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()


def join(*, rank: int, local_rank: int, world_size: int, num_threads: int) -> Ranks:
    """Meet the other ranks; one process alone needs no group. `num_threads` is for a run without GPUs."""
    device = _device(local_rank)
    if device.type == "cpu":
        torch.set_num_threads(num_threads)
    if world_size > 1:
        backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=_TIMEOUT, device_id=bound)
    return Ranks(rank=rank, world_size=world_size, device=device)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceGroup:
    """The ranks of one sequence, ordered ring first: neighbours in a node hold neighbouring tokens."""

    whole: ProcessGroup
    rank: int
    """Of this process in the whole group: which slice of the tokens is its own."""
    ring: ProcessGroup | None
    """None for a group of one."""
    ulysses: ProcessGroup | None
    """None for a group of one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Ranks divided by a plan."""

    ranks: Ranks
    plan: Plan
    dims: DeviceMesh | None
    """The dims cfg, ring and ulysses; None for one process."""
    sequence: SequenceGroup | None
    """The ranks of this one's sequence; None when it has the sequence for itself."""
    copies: DeviceMesh | None
    """The dims replicate and shard of the weights; None when every rank holds a whole copy."""

    @property
    def cfg_rank(self) -> int:
        """Which branch this rank computes: 0 the prompt, 1 the negative prompt."""
        return self.dims.get_local_rank("cfg") if self.dims else 0

    def gather_cfg(self, branch: torch.Tensor) -> list[torch.Tensor]:
        """The branches of all cfg ranks, that of the prompt first."""
        assert self.dims is not None
        branches = [torch.empty_like(branch) for _ in range(self.plan.cfg)]
        dist.all_gather(branches, branch.contiguous(), group=self.dims.get_group("cfg"))
        return branches


def divide(ranks: Ranks, plan: Plan) -> Mesh:
    """The mesh of `plan`. All ranks must call it. Raises JobFailed when the run is not what the plan says."""
    if plan.world_size != ranks.world_size:
        raise _plan_invalid(f"the plan has {plan.world_size} processes, the run {ranks.world_size}")
    if ranks.world_size == 1:
        return Mesh(ranks=ranks, plan=plan, dims=None, sequence=None, copies=None)
    kind = ranks.device.type
    dims = init_device_mesh(kind, (plan.cfg, plan.ring, plan.ulysses), mesh_dim_names=("cfg", "ring", "ulysses"))
    copies = None
    if plan.shard > 1:
        # Consecutive ranks, which share a node: weights are gathered far more often than anything else is sent.
        shape = (ranks.world_size // plan.shard, plan.shard)
        copies = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    return Mesh(ranks=ranks, plan=plan, dims=dims, sequence=_sequence_group(plan, dims), copies=copies)


def _sequence_group(plan: Plan, dims: DeviceMesh) -> SequenceGroup | None:
    if plan.ring * plan.ulysses == 1:
        return None
    whole = dims["ring", "ulysses"]._flatten("sequence")
    return SequenceGroup(
        whole=whole.get_group(),
        rank=whole.get_local_rank(),
        ring=dims.get_group("ring") if plan.ring > 1 else None,
        ulysses=dims.get_group("ulysses") if plan.ulysses > 1 else None,
    )


def reshard(module: torch.nn.Module) -> None:
    """Keep only this rank's shard of the weights, until the next forward; nothing where they are not sharded."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise _plan_invalid(
            f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}; "
            "num_processes must not be more"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _plan_invalid(message: str) -> JobFailed:
    return JobFailed("plan_invalid", message, retryable=False)
