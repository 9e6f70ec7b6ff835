"""A lane: what one endpoint bears at this moment. Pure: whoever calls says what time it is, in seconds.

It keeps an endpoint that is slow, busy or broken from costing others anything: a delivery that cannot be sent now is
told when to come again, and nobody waits for it.
"""

import random
from dataclasses import dataclass, field

# This many failures in a row open the breaker; then one attempt at a time finds out whether the endpoint is back.
_FAILURES_TO_OPEN = 10
_OPEN_FIRST_S = 5.0
_OPEN_MAX_S = 600.0
# How fast an endpoint is that nobody has heard of, and how much one answer says about the next.
_LATENCY_S = 0.1
_WEIGHT = 0.1


@dataclass(kw_only=True, slots=True)
class Lane:
    """State of one endpoint in this process; forgotten when it ends, and found out again."""

    concurrency: int
    rate_per_minute: int = 0
    time_scale: float = 1.0
    num_active: int = 0
    num_slow: int = 0
    """Those of the active that nobody waits for any more."""
    num_failures: int = 0
    """In a row."""
    _opens: int = 0
    _closed_until: float = 0.0
    _is_probing: bool = False
    _next_slot: float = 0.0
    _horizon: float = 0.0
    _latency_s: float = field(default=_LATENCY_S)

    def wait_s(self, now: float) -> float:
        """How long no attempt may begin because the breaker is open; 0 if one may now."""
        if self.num_failures < _FAILURES_TO_OPEN:
            return 0.0
        if now < self._closed_until:
            return (self._closed_until - now) * random.uniform(1.0, 1.5)
        # Half open: the one that is under way speaks for all.
        return self._open_s() if self._is_probing else 0.0

    def slot_s(self, now: float, *, patience_s: float) -> float:
        """How long an attempt waits for its turn at the endpoint's rate; the turn is taken if that is bearable."""
        if not self.rate_per_minute:
            return 0.0
        wait_s = max(0.0, self._next_slot - now)
        if wait_s <= patience_s:
            self._next_slot = max(self._next_slot, now) + 60.0 / self.rate_per_minute
        else:
            # Whoever is sent away comes at a time of its own.
            self._horizon = max(self._horizon, now + wait_s) + 60.0 / self.rate_per_minute
            wait_s = self._horizon - now
        return wait_s

    @property
    def is_stuck(self) -> bool:
        """Whether every place is taken by an attempt that nobody waits for any more."""
        return self.num_slow >= self.concurrency

    def patience_s(self, num: int, *, most_s: float) -> float:
        """How long a batch with `num` deliveries for this endpoint is to wait for it.

        Long enough for one that makes its usual progress; less for one that holds half of its places without a word.
        """
        least_s = most_s / 4
        if self.num_slow * 2 >= self.concurrency:
            return least_s
        usual_s = self._latency_s * (1 + (num + self.num_active) / self.concurrency)
        return min(max(3 * usual_s, least_s), most_s)

    def queue_s(self, now: float) -> float:
        """When one more that finds no place is to come again: behind all that were told before it."""
        self._horizon = max(self._horizon, now) + self._latency_s / self.concurrency
        return self._horizon - now + self._latency_s * random.uniform(0.5, 1.5)

    def begin(self) -> None:
        """An attempt begins."""
        self.num_active += 1
        self._is_probing = self.num_failures >= _FAILURES_TO_OPEN

    def end(self, now: float, *, is_success: bool, took_s: float) -> None:
        """An attempt has its answer."""
        self.num_active -= 1
        self._is_probing = False
        self._latency_s += _WEIGHT * (took_s - self._latency_s)
        if is_success:
            self.num_failures = self._opens = 0
            return
        self.num_failures += 1
        if self.num_failures >= _FAILURES_TO_OPEN and now >= self._closed_until:
            self._opens += 1
            self._closed_until = now + self._open_s()

    def _open_s(self) -> float:
        return min(_OPEN_FIRST_S * 2.0 ** max(0, self._opens - 1), _OPEN_MAX_S) * self.time_scale
