"""Shared: one answer for everybody who asks within a short time. A thousand looks at a thousand jobs cost one list."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """What `fetch` gave last, while it is young enough. For any thread."""

    def __init__(self, fetch: Callable[[], T]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._value: tuple[float, T] | None = None

    def get(self, *, max_age_s: float) -> tuple[float, T]:
        """The answer, and the monotonic time at which it was asked for; fetched anew if it is older than that.

        Whoever comes meanwhile waits for the same answer. Raises what `fetch` raises, and keeps nothing then.
        """
        with self._lock:
            if self._value is None or time.monotonic() - self._value[0] > max_age_s:
                asked_at = time.monotonic()
                self._value = (asked_at, self._fetch())
            return self._value
