"""Ranks: how the processes of a run find each other, and how a plan divides them.

In: where torchrun put this process, then a plan. Out: Ranks (talk to each other) and Mesh (divide the work). The mesh's
order is cfg (outermost), ring, ulysses (innermost: it talks most, so its ranks share a node). No rank waits for ever:
a rank that fails ends its process, torchrun ends the others, and for silence there is a timeout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from engine.contract.errors import JobFailed
from engine.contract.plan import Plan

T = TypeVar("T")

# Ranks differ most while weights are read: 57 GB from a network disk take minutes. Dispatch gives up a run that is
# silent for 15 minutes (stall_s), so that nothing is won by waiting longer.
_TIMEOUT = timedelta(minutes=15)
_DIMS = ("cfg", "ring", "ulysses")


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
class Mesh:
    """Ranks divided by a plan."""

    ranks: Ranks
    plan: Plan
    dims: DeviceMesh | None
    """None for one process."""

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

    def split_sequence(self, transformer: Any) -> None:
        """Have the ranks of one Ulysses group share this transformer's sequence."""
        if self.plan.ulysses == 1:
            return
        from diffusers.models._modeling_parallel import ContextParallelConfig

        # diffusers reads the dims "ring" and "ulysses" of the mesh and leaves "cfg" alone.
        config = ContextParallelConfig(ulysses_degree=self.plan.ulysses, mesh=self.dims)
        with _counted_device(self.ranks):
            transformer.enable_parallelism(config=config)


def divide(ranks: Ranks, plan: Plan, *, num_tokens: int) -> Mesh:
    """The mesh of `plan`, for a sequence of `num_tokens`. Raises JobFailed for what this engine cannot divide."""
    if plan.world_size != ranks.world_size:
        raise _plan_invalid(f"the plan has {plan.world_size} processes, the run {ranks.world_size}")
    if plan.ring > 1 or plan.shard > 1:
        raise _plan_invalid(f"ring is {plan.ring} and shard is {plan.shard}; this engine has only 1 of each yet")
    if num_tokens % plan.ulysses:
        raise JobFailed(
            "input_invalid",
            f"the video has {num_tokens} tokens, which {plan.ulysses} ranks (ulysses) cannot share evenly; change "
            "width, height or num_frames, or the number of processes",
            retryable=False,
        )
    shape = (plan.cfg, plan.ring, plan.ulysses)
    dims = init_device_mesh(ranks.device.type, shape, mesh_dim_names=_DIMS) if ranks.world_size > 1 else None
    return Mesh(ranks=ranks, plan=plan, dims=dims)


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


@contextmanager
def _counted_device(ranks: Ranks) -> Iterator[None]:
    """diffusers 0.42 computes rank % torch.accelerator.device_count(), which is rank % 0 without an accelerator."""
    count = torch.accelerator.device_count
    if ranks.device.type == "cpu":
        torch.accelerator.device_count = lambda: ranks.world_size
    try:
        yield
    finally:
        torch.accelerator.device_count = count


def _plan_invalid(message: str) -> JobFailed:
    return JobFailed("plan_invalid", message, retryable=False)
