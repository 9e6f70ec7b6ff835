"""The top of one rank: `torchrun -m engine`. One job, then the process ends.

In: the environment (Settings, and torchrun's variables), or a request on the command line (standalone.py). Out: the
exit status, 0 when nothing is left to do. A failure that no other attempt can mend is told to the log by the rank that
met it; any other ends the process, the reason being its last line, and dispatch tries again.
"""

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.adapters.store import DirStore, Store, open_store
from engine.contract.errors import CineventError, JobFailed, NotFound
from engine.contract.events import Event
from engine.contract.job import Job, artifact_key, checkpoint_folder, upload_key
from engine.contract.request import Request
from engine.contract.settings import Settings
from engine.standalone import Console, Order, read_order
from engine.stop import EXIT_CODE, Stop, Stopped, Why
from engine.voice import LogVoice

_log = logging.getLogger("engine")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# The log is read by people: no bars, and nothing that libraries say about themselves. No download: weights are local.
_QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
}
# Where torch keeps what it compiled, and Triton below it.
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where torchrun put this process; alone without it."""

    rank: int
    local_rank: int
    world_size: int
    num_threads: int
    """For a processor. One unless it is set: another number rounds otherwise, and gives another video."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Place":
        """The place in `environ`."""
        return cls(
            rank=int(environ.get("RANK", "0")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
            num_threads=int(environ.get("OMP_NUM_THREADS") or "1"),
        )


def main(arguments: Sequence[str]) -> int:
    """Run one rank; returns the exit status."""
    faulthandler.enable()
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    place = Place.read(os.environ)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_torchrun()
    _log_to_stderr(place.rank)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        settings = Settings.read(os.environ)
        if arguments:
            _run_order(read_order(arguments, settings), settings, place)
        else:
            _run_job(settings, place)
    except Stopped as stopped:
        _log.info("ended early (%s)", stopped.why.name.lower())
        return EXIT_CODE if stopped.why is Why.DRAIN else 0
    except CineventError as error:
        _log.error("%s", error)
    except Exception:
        _log.exception("unexpected")
    else:
        return 0
    # At once: the ordinary way out can wait for ranks that wait for this one, and torchrun ends them only after it; and
    # for a thread that still reads weights.
    os._exit(1)


def _run_job(settings: Settings, place: Place) -> None:
    """The job that the environment names."""
    _log.info("attempt %d of %s, %d ranks", settings.attempt, settings.job, place.world_size)
    bus = Bus.open(settings) if place.rank == 0 else None
    try:
        with _cancels(bus, settings) as is_cancelled:
            store = open_store(settings)
            job = _claim(store, bus, settings) if bus else None
            outlet = _outlet(job, bus, store, settings) if bus and job else None
            request = job.request if job else None
            _run(request, outlet, settings=settings, place=place, stop=Stop(is_cancelled))
    except JobFailed as error:
        if not error.retryable:
            bus = bus or Bus.open(settings)
            _voice(settings, bus).failed(error)
        raise
    finally:
        if bus:
            bus.close()


def _run_order(order: Order, settings: Settings, place: Place) -> None:
    """The request on the command line."""
    voice = Console()
    outlet = {
        "voice": voice,
        "store": DirStore(order.out),
        "tenant": settings.tenant,
        "job": order.job,
        "attempt": 1,
        "artifacts": "",
        "uploads": "",
        "checkpoints": "checkpoints",
        "paces": "pace",
    }
    own = replace(settings, models_dir=str(order.models))
    try:
        _run(order.request, outlet if place.rank == 0 else None, settings=own, place=place, stop=Stop())
    except JobFailed as error:
        voice.failed(error)
        raise


def _run(
    request: Request | None, outlet: Mapping[str, Any] | None, *, settings: Settings, place: Place, stop: Stop
) -> None:
    """Meet the other ranks and work with them on rank 0's request; nothing if it has none. Rank 0 has the outlet."""
    stop.listen()
    # Looking for garbage between a million objects that all stay takes a tenth of the imports, later a part of a step.
    gc.disable()
    # torch takes a second, diffusers five: each only when it is needed.
    from engine import mesh

    os.environ[_COMPILED] = _compile_dir(settings, os.environ)
    ranks = mesh.join(
        rank=place.rank, local_rank=place.local_rank, world_size=place.world_size, num_threads=place.num_threads
    )
    shared = ranks.share(request.to_json() if request else None)
    if shared is None:
        ranks.close()
        return
    from engine import worker

    gc.freeze()
    gc.enable()
    _log.info("libraries are loaded")
    own = worker.Outlet(**outlet) if outlet else None
    worker.work(Request.from_json(shared), settings=settings, ranks=ranks, outlet=own, stop=stop)


def _compile_dir(settings: Settings, environ: Mapping[str, str]) -> str:
    # Beside the models, where another pod finds what this one compiled; torch's own variable wins over that.
    return settings.compile_dir or environ.get(_COMPILED) or os.path.join(settings.models_dir, ".compiled")


@contextmanager
def _cancels(bus: Bus | None, settings: Settings) -> Iterator[Callable[[], bool]]:
    """Whether a cancel of the job came since this began; the reporter hears it, and the others from it."""
    if bus is None:
        yield lambda: False
        return
    heard: list[Event] = []
    with bus.listen(f"cinevent.{settings.tenant}.{settings.job}.cancel") as next_event:

        def is_cancelled() -> bool:
            heard.extend(event for event in [next_event(0)] if event)
            return bool(heard)

        yield is_cancelled


def _outlet(job: Job, bus: Bus, store: Store, settings: Settings) -> dict[str, Any]:
    return {
        "voice": _voice(settings, bus, job),
        "store": store,
        "tenant": job.tenant,
        "job": job.id,
        "attempt": settings.attempt,
        "artifacts": artifact_key(job.tenant, job.id, settings.attempt, ""),
        "uploads": upload_key(job.tenant, ""),
        "checkpoints": checkpoint_folder(job.tenant, job.id),
        "paces": f"{job.tenant}/pace",
    }


def _claim(store: Store, bus: Bus, settings: Settings) -> Job | None:
    """The job, or None when nothing is left to do of it."""
    job = History(bus).get(settings.tenant, settings.job)
    if job.state.is_final or job.cancel_requested:
        _log.info("the job is %s already", job.stage)
        return None
    try:
        manifest = store.read(artifact_key(job.tenant, job.id, settings.attempt, "manifest.json"))
    except NotFound:
        return job
    # An earlier process of this attempt stored everything and died before it could say so.
    _log.info("the artifacts are in the store already")
    _voice(settings, bus, job).completed(manifest)
    return None


def _voice(settings: Settings, bus: Bus, job: Job | None = None) -> LogVoice:
    own = {"bus": bus, "tenant": settings.tenant, "job": settings.job, "attempt": settings.attempt}
    if job is None:
        return LogVoice(**own)
    # One that was drained and started again under its number counts once.
    drains = job.drains + (job.drained.get("attempt") != settings.attempt)
    return LogVoice(**own, extensions=job.extensions, drains=drains)


def _die_with_torchrun() -> None:
    """SIGKILL for this rank when torchrun is gone, even by kill -9: nobody else would end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _log_to_stderr(rank: int) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank} %(message)s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
