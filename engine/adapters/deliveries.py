"""Deliveries in the log: queue them, write down their attempts, read how they stand, send them again.

CINEVENT_WEBHOOKS has one message per delivery that is due or waits, CINEVENT_DELIVERIES one per attempt, for 30 days,
CINEVENT_ENDPOINTS the last word about each standing endpoint. A Delivery's meaning is contract/delivery.py's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from engine.adapters.bus import Bus, Message, Outgoing, scheduled
from engine.adapters.dead import CONSUMER_HEADER, REASON_HEADER, SUBJECT_HEADER, TRIES_HEADER
from engine.contract.codec import decode, encode_nats, loads
from engine.contract.delivery import (
    ATTEMPT,
    Delivery,
    Judgement,
    Said,
    State,
    attempt_event,
    deliver,
    exhausted_event,
    is_delivery_id,
    test_event,
)
from engine.contract.endpoint import Endpoint
from engine.contract.errors import Conflict, NotFound
from engine.contract.events import Event, job_subjects
from engine.contract.request import Webhook
from engine.contract.streams import (
    dead_subject,
    delivery_subjects,
    record_subject,
    status_subject,
)

_QUEUE = "notify-deliveries"
_RECORDS = "CINEVENT_DELIVERIES"
# How many records a page looks through at once, beside those it may show: a delivery has one per attempt.
_WINDOW_PER_DELIVERY = 4
# A server takes this many filters in one read.
_FILTERS = 500
# What one call may send again; the next call goes on with the rest.
RECOVER_MAX = 10_000
TEST_JOB = "test"
"""Stands for the job of a test, which has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One attempt and what it leads to."""

    delivery: Delivery
    said: Said
    judgement: Judgement


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One attempt as it stands in the log; `sequence` is its place."""

    sequence: int
    time: datetime
    data: dict[str, Any]

    @property
    def delivery(self) -> str:
        """The id of its delivery."""
        return str(self.data["delivery"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Deliveries by their last attempt, the newest first; `cursor` continues with older ones, None at the end."""

    records: list[Record]
    cursor: int | None


class Deliveries:
    """Deliveries and endpoints in the log."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def queue(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries in line; the same event for the same endpoint is there once. Raises Unavailable."""
        self._bus.publish_all([_due(delivery) for delivery in deliveries])

    def postpone(self, deliveries: Iterable[tuple[Delivery, datetime]]) -> None:
        """Have these deliveries in line again at a time of their own. Raises Unavailable."""
        self._bus.publish_all([_later(replace(delivery, is_again=True), when) for delivery, when in deliveries])

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Make what became of attempts durable: the next try, or the dead letter, and the record. Raises Unavailable.

        In this order: an attempt that is written down has had its consequences.
        """
        self.postpone(
            (replace(o.delivery, number=o.delivery.number + 1), o.judgement.next_at)
            for o in outcomes
            if o.judgement.next_at
        )
        self._bus.publish_all([_dead(o) for o in outcomes if o.judgement.state is State.FAILED])
        self._bus.publish_all([message for o in outcomes for message in _records(o)])

    def delivered(self, deliveries: Iterable[Delivery]) -> set[str]:
        """Those of these deliveries, by id, whose last attempt arrived, in this round."""
        by_id = {delivery.id: delivery for delivery in deliveries}
        filters = [record_subject(d.tenant, endpoint=d.endpoint, job=d.job, delivery=d.id) for d in by_id.values()]
        return {
            record.delivery
            for record in _parsed(self._last(_RECORDS, filters))
            if record.data["state"] == State.DELIVERED and record.data["round"] == by_id[record.delivery].round
        }

    def of_job(self, tenant: str, job: str) -> list[Record]:
        """Every attempt of a job's deliveries that is kept, the oldest first."""
        return self._attempts(record_subject(tenant, job=job))

    def attempts(self, tenant: str, delivery: str) -> list[Record]:
        """Every attempt of a delivery that is kept, the oldest first. Raises NotFound."""
        found = self._attempts(record_subject(tenant, delivery=delivery)) if is_delivery_id(delivery) else []
        if not found:
            raise NotFound(f"no attempt of a delivery {delivery[:40]} is on record")
        return found

    def page(self, tenant: str, *, endpoint: str = "*", state: str = "", limit: int, before: int | None = None) -> Page:
        """Up to `limit` deliveries whose last attempt came before the stream sequence `before`, the newest first."""
        found: list[Record] = []
        for record in self._newest(tenant, endpoint, before=before):
            if not state or record.data["state"] == state:
                found.append(record)
            if len(found) > limit:
                return Page(records=found[:limit], cursor=found[limit - 1].sequence)
        return Page(records=found, cursor=None)

    def replay(self, record: Record, *, form: str) -> None:
        """Send a delivery again, whatever became of it: the same id, a new round. Raises Conflict."""
        if not self._replay([record], form=form):
            message = (
                f"the event {record.data['event_id']} is not in the log any more, or is not one that is sent again"
            )
            raise Conflict(message)

    def recover(self, tenant: str, endpoint: Endpoint, *, since: datetime) -> int:
        """Send again what failed at this endpoint since then, up to 10,000 deliveries; returns how many."""
        failed: list[Record] = []
        for record in self._newest(tenant, endpoint.name, before=None):
            if record.time < since or len(failed) >= RECOVER_MAX:
                break
            if record.data["state"] == State.FAILED:
                failed.append(record)
        return sum(
            self._replay(failed[start : start + _FILTERS], form=endpoint.format)
            for start in range(0, len(failed), _FILTERS)
        )

    def test(self, endpoint: Endpoint) -> Delivery:
        """Send an event that says nothing to an endpoint."""
        delivery = deliver(
            test_event(endpoint.tenant, endpoint.name),
            job=TEST_JOB,
            endpoint=endpoint.name,
            url="",
            form=endpoint.format,
        )
        self.queue([delivery])
        return delivery

    def webhooks(self, jobs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Webhook | None]:
        """What the requests of these jobs, tenant and id, say about webhooks; a job that is not there is missing."""
        filters = [f"cinevent.{tenant}.{job}.requested.*" for tenant, job in dict.fromkeys(jobs)]
        found = {}
        for message in self._last("CINEVENT_JOBS", filters):
            # Not as an event with all its checks: it had them when it was accepted, and thousands may come a second.
            data = loads(message.body)["data"]
            given = data["request"].get("webhook")
            webhook = Webhook(url=given["url"], events=tuple(given["events"])) if given else None
            found[data["tenant"], data["job"]] = webhook
        return found

    def newest_progress(self, jobs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, Event]]:
        """The newest progress of these jobs with its stream sequence; none of those that are done."""
        keys = list(dict.fromkeys(jobs))
        filters = [f"cinevent.{tenant}.{job}.done.*" for tenant, job in keys]
        progress = self._last("CINEVENT_PROGRESS", [job_subjects(*key) for key in keys])
        # Asked second: an outcome that comes in between is seen.
        done = {(e.data["tenant"], e.data["job"]) for e in _events(self._last("CINEVENT_JOBS", filters))}
        found = {}
        for message, event in zip(progress, _events(progress), strict=True):
            key = (event.data["tenant"], event.data["job"])
            if key not in done:
                found[key] = (message.sequence, event)
        return found

    def statuses(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The last word about each standing endpoint, by tenant and name."""
        events = _events(self._bus.last("CINEVENT_ENDPOINTS", [status_subject("*")]))
        return {(event.data["tenant"], event.data["endpoint"]): dict(event.data) for event in events}

    def say_status(self, event: Event) -> None:
        """Put a word about an endpoint in the place of the last one. Raises Unavailable."""
        headers, body = encode_nats(event)
        self._bus.publish_bytes(status_subject(event.data["tenant"], event.data["endpoint"]), headers, body)

    def _replay(self, records: Sequence[Record], *, form: str) -> int:
        """Queue these again whose events the log still has; returns how many."""
        filters = [f"cinevent.{r.data['tenant']}.{r.data['job']}.done.*" for r in records]
        events = {event.id: event for event in _events(self._last("CINEVENT_JOBS", list(dict.fromkeys(filters))))}
        again = [
            replace(
                deliver(event, job=data["job"], endpoint=data["endpoint"], url=data["url"], form=form),
                round=uuid4().hex,
            )
            for data in (record.data for record in records)
            if (event := events.get(data["event_id"]))
        ]
        self.queue(again)
        return len(again)

    def _newest(self, tenant: str, endpoint: str, *, before: int | None) -> Iterator[Record]:
        """The last attempt of each delivery, the newest first. Walks back from the end in growing windows."""
        matching = record_subject(tenant, endpoint=endpoint)
        first, last = self._bus.bounds(_RECORDS)
        end = last if before is None else min(last, before - 1)
        window = 100 * _WINDOW_PER_DELIVERY
        while end >= first:
            start = max(first, end - window + 1)
            records = self._between(matching, start, end)
            last_ones = self._last_of(tenant, records)
            yield from (r for r in reversed(records) if last_ones[r.delivery] == r.sequence)
            end, window = start - 1, min(window * 4, 100_000)

    def _last_of(self, tenant: str, records: list[Record]) -> dict[str, int]:
        """The sequence of the last attempt of each of these deliveries."""
        filters = list(
            dict.fromkeys(
                record_subject(tenant, endpoint=r.data["endpoint"], job=r.data["job"], delivery=r.delivery)
                for r in records
            )
        )
        return {record.delivery: record.sequence for record in _parsed(self._last(_RECORDS, filters))}

    def _between(self, matching: str, start: int, end: int) -> list[Record]:
        found: list[Record] = []
        after = start - 1
        while batch := self._bus.read(_RECORDS, matching=matching, after=after):
            after = batch[-1].sequence
            found += _parsed(message for message in batch if message.sequence <= end)
            if after >= end:
                break
        return found

    def _attempts(self, matching: str) -> list[Record]:
        found: dict[str, Record] = {}
        after = 0
        while batch := self._bus.read(_RECORDS, matching=matching, after=after):
            after = batch[-1].sequence
            # A record whose confirmation was lost may stand twice.
            found |= {str(decode(m.headers, m.body).id): r for m in batch for r in _parsed([m])}
        return list(found.values())

    def _last(self, stream: str, filters: Sequence[str]) -> list[Message]:
        return [
            message
            for start in range(0, len(filters), _FILTERS)
            for message in self._bus.last(stream, filters[start : start + _FILTERS])
        ]


def _due(delivery: Delivery) -> Outgoing:
    _, due_on = delivery_subjects(delivery.tenant, delivery.endpoint, delivery.id)
    headers, body = encode_nats(delivery.to_event())
    # A replay and news of progress have a delivery's id again, and another message's.
    return Outgoing(subject=due_on, headers={**headers, "Nats-Msg-Id": _message_id(delivery)}, body=body)


def _message_id(delivery: Delivery) -> str:
    return f"{delivery.id}#{delivery.event_id if delivery.is_progress else delivery.round}"


def _later(delivery: Delivery, when: datetime) -> Outgoing:
    set_on, due_on = delivery_subjects(delivery.tenant, delivery.endpoint, delivery.id)
    return scheduled(delivery.to_event(), set_on=set_on, due_on=due_on, when=when)


def _dead(outcome: Outcome) -> Outgoing:
    delivery = outcome.delivery
    _, due_on = delivery_subjects(delivery.tenant, delivery.endpoint, delivery.id)
    headers, body = encode_nats(replace(delivery, number=1, is_again=False).to_event())
    facts = {
        "Nats-Msg-Id": _message_id(delivery),
        REASON_HEADER: outcome.judgement.why.encode("ascii", "replace").decode()[:300],
        TRIES_HEADER: str(delivery.number),
        SUBJECT_HEADER: due_on,
        CONSUMER_HEADER: _QUEUE,
    }
    return Outgoing(subject=dead_subject(_QUEUE, due_on), headers={**headers, **facts}, body=body)


def _records(outcome: Outcome) -> Iterator[Outgoing]:
    delivery = outcome.delivery
    where = record_subject(delivery.tenant, endpoint=delivery.endpoint, job=delivery.job, delivery=delivery.id)
    events = [attempt_event(delivery, outcome.said, outcome.judgement)]
    if outcome.judgement.state is State.FAILED:
        # Before the record: the last message of a delivery says how it stands.
        events.insert(0, exhausted_event(delivery, outcome.judgement.why))
    for event in events:
        headers, body = encode_nats(event)
        yield Outgoing(subject=where, headers=headers, body=body)


def _parsed(messages: Iterable[Message]) -> list[Record]:
    pairs = ((message.sequence, decode(message.headers, message.body)) for message in messages)
    return [
        Record(sequence=sequence, time=event.time, data=dict(event.data))
        for sequence, event in pairs
        if event.type == ATTEMPT
    ]


def _events(messages: Iterable[Message]) -> list[Event]:
    return [decode(message.headers, message.body) for message in messages]
