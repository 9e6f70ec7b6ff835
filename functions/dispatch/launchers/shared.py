"""Shared: one answer for everybody who asks within a short time. A thousand looks at a thousand jobs cost one list."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from engine.contract.errors import CineventError

T = TypeVar("T")


class Shared(Generic[T]):
    """What `fetch` gave last, while it is young enough. For any thread."""

    def __init__(self, fetch: Callable[[], T], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._value: tuple[float, T] | None = None
        self._failure: tuple[float, CineventError] | None = None

    def get(self, *, max_age_s: float) -> tuple[float, T]:
        """The answer, and the monotonic time at which it was asked for; fetched anew if it is older than that.

        Whoever comes meanwhile waits for the same answer. Raises what `fetch` raises, for all who waited for it.
        """
        came_at = self._clock()
        with self._lock:
            if self._failure and self._failure[0] >= came_at:
                raise self._failure[1]
            if self._value is None or self._clock() - self._value[0] > max_age_s:
                self._value = (self._clock(), self._fetched())
            return self._value

    def _fetched(self) -> T:
        try:
            return self._fetch()
        except CineventError as error:
            self._failure = (self._clock(), error)
            raise
