"""Claims of trainables.foreign.progress: how far it is, and how long it may take, while work goes on."""

from __future__ import annotations

import threading

from trainables.foreign.progress import duration, told
from trainables.training.loop import Counters


def test_lines_say_how_far_it_is_while_the_block_lasts() -> None:
    counters, lines, enough = Counters(forward_samples=100), list[str](), threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("repair: 25%"):  # one may be said before the work below is counted
            enough.set()

    with told(counters, Counters(forward_samples=200), say, every=0.01):
        counters.forward_samples += 50
        assert enough.wait(60)
    assert lines[-1].startswith("repair: 25%")  # of its own work, not of what was counted before
    assert " left" in lines[-1]
    said = len(lines)
    assert not any(thread.name == "progress" for thread in threading.enumerate())
    assert len(lines) == said


def test_nothing_is_said_to_nobody() -> None:
    before = threading.active_count()
    with told(Counters(), Counters(), None):
        assert threading.active_count() == before


def test_durations_are_in_the_unit_that_people_use() -> None:
    assert [duration(seconds) for seconds in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
