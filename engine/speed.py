"""Speed: what a plan's choices become on this machine (engine/contract/speed.py has the choices).

In: a plan, a model row, a device. Out: the same plan with who computes attention, or a refusal that names what the
machine lacks, before any weight is read; then an expert whose layers run as the plan says. It does not know ranks:
sharded layers and a split sequence run the same way.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName as Backend

from engine.contract.errors import JobFailed
from engine.contract.memory import GIB, host_bytes
from engine.contract.models import ModelRow
from engine.contract.plan import Plan
from engine.contract.speed import Speed, impossible

_BACKENDS = {
    "native": Backend.NATIVE,
    "math": Backend._NATIVE_MATH,
    "cudnn": Backend._NATIVE_CUDNN,
    "flash": Backend.FLASH,
    "flash3": Backend._FLASH_3,
    "sage": Backend.SAGE,
    "xformers": Backend.XFORMERS,
}
_AMPERE, _HOPPER, _LATEST = 8, 9, 99
_NEEDS = {
    "cudnn": (_AMPERE, _LATEST),
    "flash": (_AMPERE, _LATEST),
    # FlashAttention 3 is written for Hopper alone.
    "flash3": (_HOPPER, _HOPPER),
    "sage": (_AMPERE, _LATEST),
    "xformers": (_AMPERE, _LATEST),
}
"""The first and the last major compute capability of a GPU that does; what is not here runs everywhere."""
# What auto looks for, from the fastest, before it takes native. None that computes with fewer bits; and cuDNN's
# attention is faster than FlashAttention 2 from Hopper on.
_FAST = {False: ("flash",), True: ("flash3", "cudnn", "flash")}


def ready(plan: Plan, row: ModelRow, device: torch.device) -> Plan:
    """The plan with its attention chosen. Raises JobFailed where this machine lacks something that it asks for."""
    chosen = plan.speed
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    attention = choose_attention(chosen.attention, row, capability)
    if chosen.compile:
        try_compiler(device)
    if chosen.is_offloaded:
        _check_host(plan.num_processes * host_bytes(row, chosen), plan.num_processes)
    return replace(plan, speed=replace(chosen, attention=attention))


def choose_attention(name: str, row: ModelRow, capability: tuple[int, int] | None) -> str:
    """`name`, or for auto the fastest that there is on a GPU of this compute capability; None: there is no GPU.

    Raises JobFailed where it cannot be used.
    """
    if name == "auto":
        fast = _FAST[bool(capability and capability[0] >= _HOPPER)]
        return next((one for one in fast if _lacks(one, row, capability) is None), "native")
    if why := _lacks(name, row, capability):
        there = ", ".join(other for other in _BACKENDS if _lacks(other, row, capability) is None)
        raise _refused(f"CINEVENT_ATTENTION={name} cannot be used: {why}; here are: {there}")
    return name


def _lacks(name: str, row: ModelRow, capability: tuple[int, int] | None) -> str | None:
    """What is lacking to compute attention so; None when all is there."""
    if problem := next((message for _, message in impossible(Speed(attention=name), row)), None):
        return problem
    if needed := _NEEDS.get(name):
        if capability is None:
            return "there is no GPU"
        first, last = needed
        if not first <= capability[0] <= last:
            allowed = f"{first}.x" if last == first else f"{first}.0 or more"
            return f"it needs compute capability {allowed}, and the GPU has {capability[0]}.{capability[1]}"
    try:
        # diffusers' own words for a package that is absent or too old.
        attention_dispatch._check_attention_backend_requirements(_BACKENDS[name])
    except RuntimeError as error:
        return str(error).rstrip(".")
    return None


def use_attention(expert: Any, name: str) -> None:
    """Have every attention of the expert computed so; for auto as torch does."""
    # Not by diffusers' set_attention_backend: it would change what all other models use, and looks for downloads.
    for layer in expert.blocks:
        for attention in (layer.attn1, layer.attn2):
            attention.processor._attention_backend = _BACKENDS["native" if name == "auto" else name]


def try_compiler(device: torch.device) -> None:
    """Compile something small and run it. Raises JobFailed where that does not work."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        # Looked for beside the trial, which may find what another run compiled.
        get_cpp_compiler()
        torch.compile(_something, dynamic=False)(torch.ones(16, device=device))
    # Whatever the compiler is made of may fail: no C++ compiler, no headers of Python, no Triton, a full disk.
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise _refused(
            f"CINEVENT_COMPILE cannot be used: {reason.strip()}; have a C++ compiler, Python's headers, and Triton for "
            "a GPU where the engine runs, and a CINEVENT_COMPILE_DIR that it can write to; or set CINEVENT_COMPILE=0"
        ) from error


def _something(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.exp() * 2


def compile_layers(expert: Any) -> None:
    """Have every layer run as torch.compile made it: compiled with the first one, for all that are like it."""
    for layer in expert.blocks:
        layer.__class__ = _compiled(type(layer))


@cache
def _compiled(layer_class: type) -> type:
    # A class and not a function on each layer: that would keep the layer alive by a cycle, and its weights with it.
    forward = torch.compile(layer_class.forward, dynamic=False)
    return type(f"Compiled{layer_class.__name__}", (layer_class,), {"forward": forward})


def offload_layers(expert: Any, device: torch.device) -> None:
    """Have the weights of an expert, which lie in host memory, brought to the device ahead of their use.

    Layer by layer, by a stream of its own; what is not in a layer comes for a whole forward.
    """
    has_streams = device.type == "cuda"
    apply_group_offloading(
        expert,
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=has_streams,
        record_stream=has_streams,
    )


def _check_host(needed_bytes: int, num_processes: int) -> None:
    there = _memory_bytes()
    if needed_bytes > there:
        raise _refused(
            f"offload needs {needed_bytes / GIB:.1f} GiB of host memory for {num_processes} processes on a node, which "
            f"has {there / GIB:.1f}; set CINEVENT_WEIGHTS_DTYPE=float8, or CINEVENT_OFFLOAD=never and more GPUs"
        )


def _memory_bytes() -> int:
    """Memory that processes of this machine, or of this container, can have."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return whole if text == "max" else min(whole, int(text))


def _refused(message: str) -> JobFailed:
    return JobFailed("plan_invalid", message, retryable=False)
