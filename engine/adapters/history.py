"""Jobs read from the log: one by id, a page of the newest, the events of one. Nothing is cached.

A job's events stand in two streams, which count for themselves: a Position is a sequence in each.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from engine.adapters.bus import Bus, Message
from engine.contract.codec import decode
from engine.contract.errors import NotFound
from engine.contract.events import OUTCOMES, Event, job_subjects
from engine.contract.job import Job, fold

REDRIVE_HEADER = "Cinevent-Redrive"
"""On a message that was published again for one consumer only; history has seen the original."""
# Where the events of a job stand.
_STREAMS = ("CINEVENT_JOBS", "CINEVENT_PROGRESS")
# Subjects of one job in the stream of jobs, beside the accepted one: how far back a page may have to look at least.
_WINDOW_PER_JOB = 8
# Jobs that one page may look at for those it keeps: a filter that few jobs pass must not read the whole log at once.
_PAGE_MAX_JOBS = 2000
# Progress events that are kept of a job (contract/streams.py), and far more than a job has others.
_EVENTS_MAX = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Jobs, the newest first; `cursor` continues with older ones, None at the end."""

    jobs: list[Job]
    cursor: int | None


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Position:
    """Up to where the events of a job were read: a sequence in each of the two streams."""

    jobs: int = 0
    progress: int = 0

    def __str__(self) -> str:
        return f"{self.jobs}-{self.progress}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """An event, and the position after it."""

    position: Position
    event: Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which jobs a page is to have: accepted in this time, and such as `keeps` says."""

    keeps: Callable[[Job], bool] = lambda _: True
    after: datetime | None = None
    before: datetime | None = None


_ALL = Query()


class History:
    """Reads over the log, for one tenant at a time."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def get(self, tenant: str, job: str, *, deadline_s: float = 5.0) -> Job:
        """The job as it stands now. Raises NotFound, Unavailable."""
        return self.view(tenant, job, deadline_s=deadline_s)[0]

    def view(self, tenant: str, job: str, *, deadline_s: float = 5.0) -> tuple[Job, Position]:
        """The job as it stands now, and the position up to which it was read. Raises NotFound, Unavailable."""
        filters = [job_subjects(tenant, job)]
        # An outcome that comes between the two reads is seen by the next view; its progress never counts after it.
        found = self._bus.last_of_each(_STREAMS, filters, deadline_s=deadline_s)
        events, progress = (_events(messages) for messages in found)
        folded = fold(_merged(events, progress))
        if folded is None:
            raise NotFound(f"there is no job {job}")
        return folded, Position(
            jobs=max(sequence for sequence, _ in events), progress=max((s for s, _ in progress), default=0)
        )

    def events(
        self, tenant: str, job: str, *, after: Position | None = None, only_progress: bool = False
    ) -> list[Placed]:
        """The events of a job beyond a position, in the order in which they happened. Raises Unavailable.

        `only_progress` spares the reader who knows of no other news half the work.
        """
        start = after or Position()
        # Progress last: whatever came before an outcome is then among what is read.
        jobs = [] if only_progress else self._beyond("CINEVENT_JOBS", tenant, job, start.jobs)
        return _placed(jobs, self._beyond("CINEVENT_PROGRESS", tenant, job, start.progress), start)

    def _beyond(self, stream: str, tenant: str, job: str, after: int) -> list[tuple[int, Event]]:
        found = self._bus.read(stream, matching=job_subjects(tenant, job), after=after, limit=_EVENTS_MAX)
        return _events(message for message in found if _is_first(message))

    def page(self, tenant: str, *, limit: int, before: int | None = None, query: Query = _ALL) -> Page:
        """Up to `limit` jobs accepted before the stream sequence `before`, the newest first.

        Walks back from the end in growing windows, so that a page costs the same however long the log is. With a query
        that few jobs pass, a page may be short and yet have a cursor: go on from there.
        """
        if query.before is not None:
            start = self._bus.sequence_at("CINEVENT_JOBS", query.before)
            before = start if before is None else min(start, before)
        jobs: list[Job] = []
        last = 0
        for looked, (message, job) in enumerate(self._walk(tenant, before=before, step=limit + 1)):
            if query.after is not None and job.created_at < query.after:
                break
            if len(jobs) == limit or looked >= _PAGE_MAX_JOBS:
                return Page(jobs=jobs, cursor=last)
            last = message.sequence
            if query.keeps(job):
                jobs.append(job)
        return Page(jobs=jobs, cursor=None)

    def _walk(self, tenant: str, *, before: int | None, step: int) -> Iterator[tuple[Message, Job]]:
        """The jobs accepted before `before`, the newest first, read so many at a time."""
        while accepted := self._accepted(tenant, limit=step, before=before):
            yield from self._folded(accepted)
            before = accepted[-1].sequence

    def _folded(self, accepted: list[Message]) -> list[tuple[Message, Job]]:
        filters = [f"{message.subject.rpartition('.requested.')[0]}.>" for message in accepted]
        by_job = self._events_of(filters) if filters else {}
        pairs = ((message, fold(by_job.get(_job_of(message), []))) for message in accepted)
        # A job that was erased meanwhile has no events any more.
        return [(message, job) for message, job in pairs if job is not None]

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
            found += (m for m in batch if m.sequence <= end and _is_first(m))
            if after >= end:
                break
        return found

    def _events_of(self, filters: list[str]) -> dict[str, list[tuple[int, Event]]]:
        by_stream = []
        for messages in self._bus.last_of_each(_STREAMS, filters):
            by_job: dict[str, list[tuple[int, Event]]] = defaultdict(list)
            for sequence, event in _events(messages):
                by_job[event.data["job"]].append((sequence, event))
            by_stream.append(by_job)
        jobs, progress = by_stream
        return {job: _merged(events, progress[job]) for job, events in jobs.items()}


def _placed(jobs: list[tuple[int, Event]], progress: list[tuple[int, Event]], start: Position) -> list[Placed]:
    """Both streams as one: by time, but an outcome last, whatever the clocks of different machines say."""
    either = [(event, Position(jobs=sequence)) for sequence, event in jobs]
    either += [(event, Position(progress=sequence)) for sequence, event in progress]
    placed, position = [], start
    for event, own in sorted(either, key=lambda pair: (pair[0].name in OUTCOMES, pair[0].time)):
        position = Position(jobs=max(position.jobs, own.jobs), progress=max(position.progress, own.progress))
        placed.append(Placed(position=position, event=event))
    return placed


def _is_first(message: Message) -> bool:
    """Whether it is no copy for one consumer."""
    return REDRIVE_HEADER not in message.headers


def _merged(events: list[tuple[int, Event]], progress: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """All events of a job in the order of the fold: progress, whose stream counts for itself, before the outcome."""
    outcome = [pair for pair in events if pair[1].name in OUTCOMES]
    return [*(pair for pair in events if pair not in outcome), *progress, *outcome]


def _events(messages: Iterable[Message]) -> list[tuple[int, Event]]:
    return [(m.sequence, decode(m.headers, m.body)) for m in messages]


def _job_of(message: Message) -> str:
    return message.subject.split(".")[2]
