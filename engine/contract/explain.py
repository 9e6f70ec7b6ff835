"""A plan in words: what each degree means here, why it is so, and what it needs. Pure."""

from engine.contract.memory import GIB, RESERVE_BYTES, estimate, padded_heads, tokens_per_rank
from engine.contract.models import ModelRow
from engine.contract.plan import Plan


def explain(plan: Plan, row: ModelRow, *, width: int, height: int, num_frames: int) -> list[str]:
    """One sentence per degree, then the sequence, what was chosen for speed, and the memory of one GPU."""
    tokens = row.num_tokens(width=width, height=height, num_frames=num_frames)
    return [
        _cfg(plan),
        _ring(plan),
        _ulysses(plan, row),
        _shard(plan),
        _sequence(plan, tokens),
        *_speed(plan, row, width=width, height=height, num_frames=num_frames),
        *_memory(plan, row, width=width, height=height, num_frames=num_frames),
    ]


def _cfg(plan: Plan) -> str:
    if plan.cfg == 2:
        ranks = plan.world_size // 2
        return f"cfg 2: the prompt and the negative prompt at the same time, on {_gpus(ranks)} each"
    why = "" if plan.world_size % 2 == 0 else f"; {_gpus(plan.world_size)} cannot be halved"
    return f"cfg 1: the prompt and the negative prompt one after the other{why}"


def _ring(plan: Plan) -> str:
    if plan.ring == 1:
        return "ring 1: no keys and values of other parts of the sequence are gathered"
    return (
        f"ring {plan.ring}: {plan.ring} parts of the sequence gather each other's keys and values, since heads are "
        "exchanged inside a node only"
    )


def _ulysses(plan: Plan, row: ModelRow) -> str:
    if plan.ulysses == 1:
        return f"ulysses 1: a GPU computes all {row.num_heads} heads"
    heads = padded_heads(row, plan.ulysses)
    empty = heads - row.num_heads
    waste = (
        f"; {empty} of {heads} are padding, {100 * empty / heads:.1f} % of the attention for nothing" if empty else ""
    )
    return (
        f"ulysses {plan.ulysses}: {_gpus(plan.ulysses)} of one node exchange the {row.num_heads} heads, "
        f"{heads // plan.ulysses} each{waste}"
    )


def _shard(plan: Plan) -> str:
    if plan.shard == 1:
        return "shard 1: every GPU holds all weights"
    gathered = (
        "a layer is gathered for its own turn, again in every step: slower, and the least memory"
        if plan.reshard
        else "an expert is gathered once, while it is the active one"
    )
    return f"shard {plan.shard}: {_gpus(plan.shard)} of one node hold the weights between them; {gathered}"


def _sequence(plan: Plan, tokens: int) -> str:
    ranks = plan.ring * plan.ulysses
    share = tokens_per_rank(tokens, ranks)
    missing = share * ranks - tokens
    padding = f", {missing:,} of them padding" if missing else ""
    return f"sequence: {share * ranks:,} tokens{padding}; {share:,} per GPU"


def _speed(plan: Plan, row: ModelRow, *, width: int, height: int, num_frames: int) -> list[str]:
    speed = plan.speed
    host = _size(estimate(row, plan, width=width, height=height, num_frames=num_frames).host_bytes)
    return [
        "compile on: layers run as torch.compile made them, for which the first step waits"
        if speed.compile
        else "compile off: layers run as they are written",
        "attention auto: the fastest that the GPU and what is installed there have"
        if speed.attention == "auto"
        else f"attention {speed.attention}: on a machine without it the run is refused",
        f"weights {speed.weights_dtype}: matrices of the layers lie in 8 bits and are cast to {row.dtype} as they are "
        "used; the video is another one"
        if speed.is_float8
        else f"weights {speed.weights_dtype}: they lie in {row.dtype}",
        f"offload always: layers lie in host memory, {host} for each GPU, and arrive ahead of their use"
        if speed.is_offloaded
        else "offload never: all weights are on GPUs",
    ]


def _memory(plan: Plan, row: ModelRow, *, width: int, height: int, num_frames: int) -> list[str]:
    need = estimate(row, plan, width=width, height=height, num_frames=num_frames)
    weights, activations = _size(need.weights_bytes), _size(need.activations_bytes)
    return [
        f"memory: {_size(need.peak_bytes)} per GPU, {_size(RESERVE_BYTES)} of it kept free; an estimate",
        f"reading the prompt: {_size(need.text_bytes)}",
        f"denoising: {weights} weights, {activations} activations",
        f"decoding: {_size(need.vae_bytes)} for whole frames, at least {_size(need.tile_bytes)} in tiles",
    ]


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
