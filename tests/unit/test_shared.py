"""One answer for everybody who asks within a short time."""

import threading
import time

from engine.contract.errors import Unavailable
from functions.dispatch.launchers.shared import Shared
from tests.servers import wait_until


def test_an_answer_is_asked_for_once_while_it_is_young() -> None:
    asked: list[int] = []
    shared = Shared(lambda: asked.append(1) or len(asked))

    assert [shared.get(max_age_s=60)[1] for _ in range(3)] == [1, 1, 1]
    assert shared.get(max_age_s=0)[1] == 2


def test_the_time_of_an_answer_is_that_of_its_question() -> None:
    before = time.monotonic()
    answered: list[float] = []
    shared = Shared(lambda: answered.append(time.monotonic()))

    assert before <= shared.get(max_age_s=60)[0] <= answered[0]


def test_those_who_wait_for_an_answer_share_its_failure_and_the_next_asks_again() -> None:
    """Each would have waited for a time-out of its own, one after the other."""
    asked: list[int] = []
    may_fail = threading.Event()
    failures: list[Unavailable] = []

    def fetch() -> int:
        asked.append(1)
        may_fail.wait(5)
        if len(asked) == 1:
            raise Unavailable("no answer", retry_after_s=1)
        return len(asked)

    num_looks_at_the_clock = 0

    def clock() -> float:
        nonlocal num_looks_at_the_clock
        num_looks_at_the_clock += 1
        return time.monotonic()

    shared = Shared(fetch, clock=clock)

    def ask() -> None:
        try:
            shared.get(max_age_s=60)
        except Unavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    # Each of the four as it comes, and the first as it asks.
    wait_until(lambda: num_looks_at_the_clock == 5)
    may_fail.set()
    for thread in threads:
        thread.join(5)

    assert (len(failures), len(asked)) == (4, 1)
    assert shared.get(max_age_s=60)[1] == 2
