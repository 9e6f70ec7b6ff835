"""Deliveries: which letter is next, and what its answer means. Pure; nothing here knows NATS or HTTP.

The source keeps one Hand of letters per consumer; the Rota says whose turn it is, the Gate whether anybody's. An Answer
comes in, `judge` turns it into an outcome. notify reads Retry-After with the same rule.
"""

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from engine.contract.events import Event
from engine.contract.streams import Consumer

# A route that is not ready yet (404), a sink that is busy with this very event (408, 409, 425): not the event's fault.
_MAY_WORK_LATER = frozenset({404, 408, 409, 425})
_PAUSE_S = 1.0
# A sink at capacity is asked again at least once a minute, whatever it says: places may become free earlier.
_PAUSE_MAX_S = 60.0
# "Retry-After: 0" must not become a loop that does nothing but ask.
_PAUSE_MIN_S = 0.1
_WAIT_MAX_S = 3600.0
# While a POST is under way, letters gather this long for the next one: a batch costs little more than a letter.
LINGER_S = 0.01
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 600.0
# A NATS header is one line; this much says what went wrong.
_WHY_MAX_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """A message in hand that holds a valid event."""

    consumer: Consumer
    sequence: int
    tries: int
    """How often JetStream has delivered it, this time included."""
    event: Event
    body: bytes
    """The event as it stands in the log: structured mode."""
    message: Any
    """What the bus needs to acknowledge it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a sink said; status 0 if it said nothing."""

    status: int
    retry_after: str | None = None
    text: str = ""
    """The first bytes of the body, or why there is no answer."""

    @property
    def brief(self) -> str:
        """What a log may hold of it: never the body."""
        return f"status={self.status}" if self.status else f"status=0 error={self.text.split(maxsplit=1)[0]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The sink has the event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paused:
    """The sink wants nothing for a while; the letter keeps its place."""

    after_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """This letter alone is to be tried again later."""

    after_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Dead:
    """No further try; `why` is one printable ASCII line."""

    why: str


def judge(answer: Answer, *, tries: int, max_tries: int) -> Accepted | Paused | Waits | Dead:
    """What becomes of a letter after this answer to its `tries`-th delivery."""
    if 200 <= answer.status < 300:
        return Accepted()
    asked_s = retry_after_s(answer.retry_after, max_s=_WAIT_MAX_S)
    if answer.status == 429:
        return Paused(after_s=min(max(_PAUSE_S if asked_s is None else asked_s, _PAUSE_MIN_S), _PAUSE_MAX_S))
    what = f"HTTP {answer.status}: {answer.text}" if answer.status else f"no answer: {answer.text}"
    if 0 < answer.status < 500 and answer.status not in _MAY_WORK_LATER:
        return Dead(why=one_line(what))
    if tries >= max_tries:
        return Dead(why=one_line(f"{tries} tries, the last one: {what}"))
    return Waits(after_s=backoff_s(tries) if asked_s is None else asked_s)


def retry_after_s(value: str | None, *, max_s: float) -> float | None:
    """The seconds in a Retry-After header, a number or an HTTP date; None without a readable one."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            date = parsedate_to_datetime(value or "")
        except ValueError:
            return None
        # "-0000" dates come without a zone; they mean UTC.
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else min(max(seconds, 0.0), max_s)


def backoff_s(tries: int) -> float:
    """The wait after the `tries`-th failure: doubling, with jitter, so that letters that failed together part."""
    return min(_BACKOFF_FIRST_S * 2.0 ** min(tries - 1, 30), _BACKOFF_MAX_S) * random.uniform(0.5, 1.0)


def one_line(text: str) -> str:
    """`text` as a header may hold it: printable ASCII, one line, 300 characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.encode("ascii", "replace").decode().split())[:_WHY_MAX_CHARACTERS]


def dead_letter(
    headers: Mapping[str, str], body: bytes, facts: Mapping[str, str], *, max_bytes: int
) -> tuple[dict[str, str], bytes]:
    """What is stored of a message that is given up: `facts`, its headers but JetStream's own, its body.

    One that the facts would make too large for the server is stored without headers and body.
    """
    kept = {**{name: value for name, value in headers.items() if not name.startswith("Nats-")}, **facts}
    # NATS/1.0, a line per header and an empty line, as the server counts them.
    size = 12 + sum(len(f"{name}: {value}\r\n".encode()) for name, value in kept.items()) + len(body)
    if size <= max_bytes:
        return kept, body
    return {**facts, "Cinevent-Dead-Omitted": f"the body of {len(body)} bytes"}, b""


class Hand:
    """The messages of one consumer that the source holds: at most one per slot."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.held: dict[int, Any] = {}
        """Messages by stream sequence: those to be posted and those on their way."""
        self.credit = 0
        """The Rota's."""
        self.num_posts = 0
        """POSTs on their way."""
        self._ready: list[tuple[int, Letter]] = []
        self._since = 0.0
        """When the first letter of the next POST was there."""

    @property
    def num_free(self) -> int:
        """Slots without a message."""
        return self.consumer.slots - len(self.held)

    def is_ready(self, now: float = math.inf) -> bool:
        """Whether it is time for a POST: at once if none is under way, else with a full batch or after a moment."""
        if not self._ready or self.num_posts >= self.consumer.posts:
            return False
        is_full = len(self._ready) >= self.consumer.batch
        return is_full or not self.num_posts or now >= self._since + LINGER_S

    def hold(self, sequence: int, message: Any) -> None:
        """Fill a slot."""
        assert self.num_free > 0, self.consumer.name
        self.held[sequence] = message

    def offer(self, letter: Letter, *, now: float = 0.0) -> None:
        """Line up a held letter, by stream sequence: one that comes back is ahead of all that came later."""
        if not self._ready:
            self._since = now
        heapq.heappush(self._ready, (letter.sequence, letter))

    def take(self, most: int = 1) -> list[Letter]:
        """The first letters in line."""
        return [heapq.heappop(self._ready)[1] for _ in range(min(most, len(self._ready)))]

    def release(self, sequence: int) -> None:
        """Empty a slot."""
        del self.held[sequence]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Letters taken from their hand for one POST, and the hands that stood in line with it."""

    hand: Hand
    letters: Sequence[Letter]
    among: Sequence[Hand]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rota:
    """Smooth weighted round robin over hands; a consumer's weight is its slots."""

    hands: Sequence[Hand]

    def next(self, now: float = math.inf) -> Turn | None:
        """Take the letters whose turn it is; None if no hand has one."""
        ready = [hand for hand in self.hands if hand.is_ready(now)]
        if not ready:
            return None
        for hand in ready:
            hand.credit += hand.consumer.slots
        chosen = max(ready, key=lambda hand: hand.credit)
        chosen.credit -= sum(hand.consumer.slots for hand in ready)
        return Turn(hand=chosen, letters=chosen.take(chosen.consumer.batch), among=ready)

    @property
    def has_more(self) -> bool:
        """Whether a hand will have a turn once its letters have gathered."""
        return any(hand.is_ready() for hand in self.hands)

    def undo(self, turn: Turn) -> None:
        """Put refused letters back in their place. Only accepted ones count: the shares hold at capacity too."""
        for hand in turn.among:
            hand.credit -= hand.consumer.slots
        turn.hand.credit += sum(hand.consumer.slots for hand in turn.among)
        for letter in turn.letters:
            turn.hand.offer(letter)


@dataclass(kw_only=True, slots=True)
class Gate:
    """Shut by a 429 for all letters; after the pause one POST goes ahead, and its answer lets the rest follow."""

    _shut: bool = False
    _until: float = 0.0
    _ahead: Turn | None = field(default=None)

    def wait_s(self, now: float) -> float:
        """How long no letter may go: 0 if one may now, infinite while the one ahead is on its way."""
        if not self._shut:
            return 0.0
        return math.inf if self._ahead else max(0.0, self._until - now)

    def go(self, turn: Turn) -> None:
        """A POST goes."""
        self._ahead = turn if self._shut else None

    def shut(self, until: float) -> None:
        """A letter was refused."""
        # Letters that went together are refused together, each with its own pause: the longest counts.
        self._shut, self._until, self._ahead = True, max(self._until, until), None

    def passed(self, turn: Turn) -> None:
        """A POST was answered otherwise; late answers from before the pause do not count."""
        if turn is self._ahead:
            self._shut, self._ahead = False, None
