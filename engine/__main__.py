"""The top of one rank: `torchrun -m engine`. One job, then the process ends.

In: the environment (Settings, and torchrun's variables). Out: the exit status, 0 when nothing is left to do. A failure
that no other attempt can mend is told to the log by the rank that met it; any other ends the process, the reason being
its last line, and dispatch tries again.
"""

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.adapters.store import Store, open_store
from engine.contract.errors import CineventError, JobFailed, NotFound
from engine.contract.job import Job, artifact_key
from engine.contract.request import Request
from engine.contract.settings import Settings
from engine.report import Voice

_log = logging.getLogger("engine")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# The log is read by people: no bars, and nothing that libraries say about themselves. No download: weights are local.
_QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
}


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


def main() -> int:
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
        _log.info("attempt %d of %s, %d ranks", settings.attempt, settings.job, place.world_size)
        _run(settings, place)
    except CineventError as error:
        _log.error("%s", error)
    except Exception:
        _log.exception("unexpected")
    else:
        return 0
    if place.world_size > 1:
        # At once: the ordinary way out can wait for ranks that wait for this one, and torchrun ends them only after it.
        os._exit(1)
    return 1


def _run(settings: Settings, place: Place) -> None:
    bus = Bus.open(settings) if place.rank == 0 else None
    try:
        _work(settings, place, bus)
    except JobFailed as error:
        if not error.retryable:
            bus = bus or Bus.open(settings)
            _voice(settings, bus).failed(error)
        raise
    finally:
        if bus:
            bus.close()


def _work(settings: Settings, place: Place, bus: Bus | None) -> None:
    store = open_store(settings)
    job = _claim(store, bus, settings) if bus else None
    # Looking for garbage between a million objects that all stay takes a tenth of the imports, later a part of a step.
    gc.disable()
    # torch takes a second, diffusers five: each only when it is needed.
    from engine import mesh

    ranks = mesh.join(
        rank=place.rank, local_rank=place.local_rank, world_size=place.world_size, num_threads=place.num_threads
    )
    shared = ranks.share(job.request.to_json() if job else None)
    if shared is None:
        ranks.close()
        return
    from engine import worker

    gc.freeze()
    gc.enable()
    _log.info("libraries are loaded")
    outlet = worker.Outlet(voice=_voice(settings, bus, job), store=store) if bus and job else None
    worker.work(Request.from_json(shared), settings=settings, ranks=ranks, outlet=outlet)


def _claim(store: Store, bus: Bus, settings: Settings) -> Job | None:
    """The job, or None when nothing is left to do of it."""
    job = History(bus).get(settings.tenant, settings.job)
    if job.state.is_final:
        _log.info("the job is %s already", job.state)
        return None
    try:
        manifest = store.read(artifact_key(job.tenant, job.id, settings.attempt, "manifest.json"))
    except NotFound:
        return job
    # An earlier process of this attempt stored everything and died before it could say so.
    _log.info("the artifacts are in the store already")
    _voice(settings, bus, job).completed(manifest)
    return None


def _voice(settings: Settings, bus: Bus, job: Job | None = None) -> Voice:
    extensions = job.extensions if job else {}
    return Voice(bus=bus, tenant=settings.tenant, job=settings.job, attempt=settings.attempt, extensions=extensions)


def _die_with_torchrun() -> None:
    """SIGKILL for this rank when torchrun is gone, even by kill -9: nobody else would end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _log_to_stderr(rank: int) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank} %(message)s")


if __name__ == "__main__":
    sys.exit(main())
