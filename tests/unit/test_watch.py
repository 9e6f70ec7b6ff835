"""What `cinevent watch` says of an event."""

import pytest

from functions.watch import bar, words
from tests.make import an_event


@pytest.mark.parametrize(("name", "line"), [("launched", "launched"), ("waiting", "waiting: 0/4 nodes are available")])
def test_an_event_is_a_line(name: str, line: str) -> None:
    assert words(an_event(name)) == line


def test_progress_is_a_bar_with_its_step_and_the_time_left() -> None:
    line = bar(dict(an_event("progress").data))

    assert line.startswith("denoising")
    assert line.endswith("]  40 %  step 3/8  ETA 5 s")
