"""Claims of storage.progress."""

from trainables.storage.progress import EVERY, Progress


def test_progress_tells_done_total_and_time_left_and_not_too_often() -> None:
    now, said = [0.0], list[str]()
    progress = Progress("mine: decoded", "images", 1000, said.append, lambda: now[0])
    for _ in range(10):
        now[0] += EVERY / 2
        progress.add(100)
    assert said == [
        "mine: decoded 200 of 1,000 images, 40 s left",
        "mine: decoded 400 of 1,000 images, 30 s left",
        "mine: decoded 600 of 1,000 images, 20 s left",
        "mine: decoded 800 of 1,000 images, 10 s left",
    ]


def test_short_work_says_nothing() -> None:
    said = list[str]()
    Progress("mine: decoded", "images", 10, said.append, lambda: 0.0).add(10)
    assert said == []
