"""Jobs read from the log: one by id, or a page of the newest. The log alone has them; nothing is cached."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from engine.adapters.bus import Bus, Message
from engine.contract.codec import decode
from engine.contract.errors import NotFound
from engine.contract.events import OUTCOMES, Event, job_subjects
from engine.contract.job import Job, fold

REDRIVE_HEADER = "Cinevent-Redrive"
"""On a message that was published again for one consumer only; history has seen the original."""
# Subjects of one job in the stream of jobs, beside the accepted one: how far back a page may have to look at least.
_WINDOW_PER_JOB = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Jobs, the newest first; `cursor` continues with older ones, None at the end."""

    jobs: list[Job]
    cursor: int | None


class History:
    """Reads over the log, for one tenant at a time."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def get(self, tenant: str, job: str, *, deadline_s: float = 5.0) -> Job:
        """The job as it stands now. Raises NotFound, Unavailable."""
        filters = [job_subjects(tenant, job)]
        events = _events(self._bus.last("CINEVENT_JOBS", filters, deadline_s=deadline_s))
        # Before its start a job has no progress: one question less for each look at a job that waits.
        has_started = any(event.name == "started" for _, event in events)
        progress = _events(self._bus.last("CINEVENT_PROGRESS", filters, deadline_s=deadline_s)) if has_started else []
        folded = fold(_merged(events, progress))
        if folded is None:
            raise NotFound(f"there is no job {job}")
        return folded

    def page(self, tenant: str, *, limit: int, before: int | None = None) -> Page:
        """Up to `limit` jobs accepted before the stream sequence `before`, the newest first.

        Walks back from the end in growing windows, so that a page costs the same however long the log is.
        """
        accepted = self._accepted(tenant, limit=limit + 1, before=before)
        page = accepted[:limit]
        filters = [job_subjects(tenant, _job_of(message)) for message in page]
        by_job = self._events_of(filters) if filters else {}
        jobs = [job for message in page if (job := fold(by_job[_job_of(message)])) is not None]
        return Page(jobs=jobs, cursor=page[-1].sequence if len(accepted) > limit else None)

    def _accepted(self, tenant: str, *, limit: int, before: int | None) -> list[Message]:
        first, last = self._bus.bounds("CINEVENT_JOBS")
        end = last if before is None else min(last, before - 1)
        window = limit * _WINDOW_PER_JOB
        found: list[Message] = []
        while end >= first and len(found) < limit:
            start = max(first, end - window + 1)
            found += reversed(self._between(f"cinevent.{tenant}.*.requested.*", start, end))
            end, window = start - 1, window * 4
        return found[:limit]

    def _between(self, matching: str, start: int, end: int) -> list[Message]:
        found: list[Message] = []
        after = start - 1
        while batch := self._bus.read("CINEVENT_JOBS", matching=matching, after=after):
            after = batch[-1].sequence
            found += (m for m in batch if m.sequence <= end and REDRIVE_HEADER not in m.headers)
            if after >= end:
                break
        return found

    def _events_of(self, filters: list[str]) -> dict[str, list[tuple[int, Event]]]:
        by_stream = {}
        for stream in ("CINEVENT_JOBS", "CINEVENT_PROGRESS"):
            by_job: dict[str, list[tuple[int, Event]]] = defaultdict(list)
            for sequence, event in _events(self._bus.last(stream, filters)):
                by_job[event.data["job"]].append((sequence, event))
            by_stream[stream] = by_job
        jobs, progress = by_stream.values()
        return {job: _merged(events, progress[job]) for job, events in jobs.items()}


def _merged(events: list[tuple[int, Event]], progress: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """All events of a job in the order of the fold: progress, whose stream counts for itself, before the outcome."""
    outcome = [pair for pair in events if pair[1].name in OUTCOMES]
    return [*(pair for pair in events if pair not in outcome), *progress, *outcome]


def _events(messages: Iterable[Message]) -> list[tuple[int, Event]]:
    return [(m.sequence, decode(m.headers, m.body)) for m in messages]


def _job_of(message: Message) -> str:
    return message.subject.split(".")[2]
