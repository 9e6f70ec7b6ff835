"""What notify does with a batch: an event becomes deliveries, a delivery becomes an attempt and what follows from it.

Everything is durable before it returns: the source may then forget what it carried. What it does again after a crash,
it does with the same ids.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.adapters.deliveries import Deliveries, Outcome
from engine.contract.delivery import Delivery, Judgement, Said, State, after, brief, deliver, event_bytes
from engine.contract.endpoint import Endpoint, of_request
from engine.contract.errors import NotFound
from engine.contract.events import Event
from engine.contract.request import Webhook
from engine.contract.settings import Settings
from functions.directory import DISABLED, FAILING, HEALTHY, Directory
from functions.notify.courier import Comeback, Courier, Parcel, Result, Slow, Terms

# After an attempt's time limit, before its alarm: what it takes to write down how it ended.
_MARGIN_S = 15.0
_MARGIN_MIN_S = 1.0
# An endpoint that fails this often in a row, or at this attempt of one delivery, is not merely busy.
_FAILING_AT = 5
_GONE = 410
# News of progress that were sent last, for jobs that run at the moment.
_SENT_MAX = 10_000


class PostOffice:
    """Fan-out and delivery."""

    def __init__(
        self, settings: Settings, deliveries: Deliveries, directory: Directory, terms: Terms, *, keys: Sequence[bytes]
    ) -> None:
        self._settings = settings
        self._deliveries = deliveries
        self._directory = directory
        self._keys = tuple(keys)
        self._lease_s = settings.webhook_timeout_s + max(_MARGIN_MIN_S, _MARGIN_S * settings.webhook_time_scale)
        self._disable_after = timedelta(seconds=settings.webhook_disable_after_s)
        self._courier = Courier(terms, late=self._settle_late)
        self._sent: OrderedDict[str, str] = OrderedDict()
        """The id of the last news that each delivery of progress took."""

    def close(self) -> None:
        """Finish what is being sent."""
        self._courier.close()

    def spread(self, events: Sequence[Event]) -> None:
        """Queue one delivery per event and endpoint that wants it. Raises Unavailable."""
        jobs = [(event.data["tenant"], event.data["job"]) for event in events]
        webhooks = self._deliveries.webhooks(jobs)
        self._deliveries.queue(
            [
                delivery
                for event, job in zip(events, jobs, strict=True)
                for delivery in self._wanted(event, webhooks.get(job))
            ]
        )

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Attempt each of these once, and make durable what follows. Raises Unavailable."""
        # The newest word about each: news of progress that was replaced, a message that came again beside its alarm.
        deliveries = list({delivery.id: delivery for delivery in deliveries}.values())
        arrived = self._deliveries.delivered(d for d in deliveries if d.is_again and not d.is_progress)
        waiting = self._refreshed([d for d in deliveries if d.id not in arrived])
        parcels, refused = self._addressed(waiting)
        results = list(zip(parcels, self._courier.carry(parcels) if parcels else [], strict=True))
        now = datetime.now(UTC)
        self._deliveries.postpone(_postponed(results, now=now, lease_s=self._lease_s))
        heard = [(parcel, result) for parcel, result in results if isinstance(result, Said)]
        self._deliveries.settle([*refused, *(self._outcome(parcel, said, now) for parcel, said in heard)])
        for parcel, said in heard:
            self._note(parcel, said, now)

    def _wanted(self, event: Event, webhook: Webhook | None) -> Iterator[Delivery]:
        job, tenant = event.data["job"], event.data["tenant"]
        if webhook and event.name in webhook.events:
            endpoint = of_request(webhook.url, tenant=tenant, keys=())
            yield deliver(event, job=job, endpoint=endpoint.name, url=webhook.url, form=endpoint.format)
        for endpoint in self._directory.all(tenant):
            if event.name in endpoint.events and self._is_on(endpoint):
                yield deliver(event, job=job, endpoint=endpoint.name, url="", form=endpoint.format)

    def _is_on(self, endpoint: Endpoint) -> bool:
        return endpoint.enabled and self._directory.status(endpoint)["state"] != DISABLED

    def _refreshed(self, deliveries: Sequence[Delivery]) -> list[tuple[Delivery, int]]:
        """The same, with the newest news and its sequence in those of progress; without those that have no news."""
        jobs = [(d.tenant, d.job) for d in deliveries if d.is_progress]
        newest = self._deliveries.newest_progress(jobs) if jobs else {}
        found = []
        for delivery in deliveries:
            sequence, event = newest.get((delivery.tenant, delivery.job), (0, None))
            if not delivery.is_progress:
                found.append((delivery, 0))
            elif event and self._sent.get(delivery.id) != event.id:
                found.append((self._with_news(delivery, event), sequence))
        return found

    def _with_news(self, delivery: Delivery, event: Event) -> Delivery:
        form = "structured"
        with suppress(NotFound):
            form = self._directory.find(delivery.tenant, delivery.endpoint).format
        headers, body = event_bytes(event, form=form)
        return replace(delivery, event_id=event.id, headers=headers, body=body.decode())

    def _addressed(self, deliveries: Sequence[tuple[Delivery, int]]) -> tuple[list[Parcel], list[Outcome]]:
        """Each delivery with its endpoint; and the end of those whose endpoint is no more."""
        parcels, refused = [], []
        for delivery, sequence in deliveries:
            endpoint, why = self._endpoint(delivery)
            if endpoint:
                parcels.append(Parcel(delivery=delivery, endpoint=endpoint, sequence=sequence))
            else:
                judgement = Judgement(state=State.FAILED, why=why)
                refused.append(Outcome(delivery=delivery, said=Said(error=why), judgement=judgement))
        return parcels, refused

    def _endpoint(self, delivery: Delivery) -> tuple[Endpoint | None, str]:
        if delivery.url:
            return of_request(delivery.url, tenant=delivery.tenant, keys=self._keys), ""
        try:
            endpoint = self._directory.find(delivery.tenant, delivery.endpoint)
        except NotFound as error:
            return None, str(error)
        status = self._directory.status(endpoint)
        if not endpoint.enabled or status["state"] == DISABLED:
            return None, f"the endpoint {endpoint.name!r} is disabled: {status.get('why') or 'in the file'}"
        return endpoint, ""

    def _outcome(self, parcel: Parcel, said: Said, now: datetime) -> Outcome:
        judgement = after(parcel.delivery, said, now=now, time_scale=self._settings.webhook_time_scale)
        return Outcome(delivery=parcel.delivery, said=said, judgement=judgement)

    def _settle_late(self, heard: Sequence[tuple[Parcel, Said]]) -> None:
        now = datetime.now(UTC)
        self._deliveries.settle([self._outcome(parcel, said, now) for parcel, said in heard])
        for parcel, said in heard:
            self._note(parcel, said, now)

    def _note(self, parcel: Parcel, said: Said, now: datetime) -> None:
        """Keep what the answer says beyond this delivery."""
        delivery, endpoint = parcel.delivery, parcel.endpoint
        if delivery.is_progress and said.is_success:
            self._sent[delivery.id] = delivery.event_id
            self._sent.move_to_end(delivery.id)
            if len(self._sent) > _SENT_MAX:
                self._sent.popitem(last=False)
        if endpoint.is_standing:
            num_failures = max(delivery.number, self._courier.num_failures(endpoint))
            self._judge(endpoint, said, num_failures=num_failures, now=now)

    def _judge(self, endpoint: Endpoint, said: Said, *, num_failures: int, now: datetime) -> None:
        """Write down that a standing endpoint fails, works again, or is given up."""
        status = self._directory.status(endpoint)
        is_failing = status["state"] == FAILING
        if said.is_success:
            if is_failing:
                self._directory.say(endpoint, HEALTHY, since=now)
        elif said.status == _GONE:
            self._directory.say(endpoint, DISABLED, since=now, why="it answered 410 Gone")
        elif not is_failing and num_failures >= _FAILING_AT:
            self._directory.say(endpoint, FAILING, since=now, why=brief(said))
        elif is_failing and now - (since := datetime.fromisoformat(status["since"])) >= self._disable_after:
            self._directory.say(endpoint, DISABLED, since=now, why=f"nothing but failures since {since:%F %T} UTC")


def _postponed(
    results: Sequence[tuple[Parcel, Result]], *, now: datetime, lease_s: float
) -> list[tuple[Delivery, datetime]]:
    """The deliveries that come again without an answer, and when: the slow ones in case that we end before they do."""
    found = []
    for parcel, result in results:
        if isinstance(result, Comeback):
            found.append((parcel.delivery, now + timedelta(seconds=result.after_s)))
        elif isinstance(result, Slow) and not parcel.delivery.is_progress:
            # News of progress has one attempt, and this was it.
            found.append((parcel.delivery, now + timedelta(seconds=lease_s)))
    return found
