"""Stop: what asks a run to end before its time: SIGTERM (drain) and a cancel in the log.

In the step loop both are only noted, and all ranks leave together between two steps; anywhere else SIGTERM ends what is
being done at once, as nothing is lost by it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

# 128 + SIGTERM, as a shell would say it.
EXIT_CODE = 128 + signal.SIGTERM


class Why(IntEnum):
    """Why a run ends early; of several ranks' reasons the highest counts."""

    NOT = 0
    DRAIN = 1
    """Another run will go on with the job."""
    CANCEL = 2
    """Nobody wants the video any more."""


class Stopped(BaseException):
    """The run ends early, and in order. No Exception: libraries must not take it for a failure of their own."""

    def __init__(self, why: Why) -> None:
        self.why = why
        super().__init__(why.name)


class Stop:
    """What this process was asked for so far."""

    def __init__(self, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self._is_cancelled = is_cancelled
        self._is_drained = False
        self._may_raise = True

    def listen(self) -> None:
        """Take SIGTERM from now on. For the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def why(self) -> Why:
        """What was asked for; costs microseconds."""
        if self._is_cancelled():
            return Why.CANCEL
        return Why.DRAIN if self._is_drained else Why.NOT

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it SIGTERM is noted for `why`, and raises nothing before the end."""
        self._may_raise = False
        try:
            yield
        finally:
            self._may_raise = True
        if self._is_drained:
            raise Stopped(Why.DRAIN)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        # The second signal of a pair, such as torchrun's after that of a process group, must not end the ending.
        is_first, self._is_drained = not self._is_drained, True
        if is_first and self._may_raise:
            raise Stopped(Why.DRAIN)
