"""Opt-in logging of a study to MLflow, Weights & Biases or TensorBoard: one run per study, from the driver.

What is logged follows from the ledger, so nothing is lost while a tool does not answer or its logging was not switched
on yet: the rows that it has not seen are sent later, by this run of the study or by the next.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from study.plan.jobs import Plan
from study.spec.schema import StudySpec
from study.spec.trackers import TRACKERS
from study.spec.yaml_io import SpecError
from study.tracking.follower import Follower
from study.tracking.marks import Home, Marks
from trainables.storage.remote import Place

FINISH_SECONDS = 20.0  # for what is left at the end; a stopped Ray job has a minute for all


def check_trackers(spec: StudySpec, directory: Place) -> None:
    """Refuse tools that are not installed, or could not log the study in ``directory`` (SpecError)."""
    for name in spec.tracking:
        tool = TRACKERS.get(name)
        if importlib.util.find_spec(tool.module) is None:
            raise SpecError(
                f"tracking: {name} is not installed; "
                f"pip install {f'superft[{tool.extra}]' if tool.extra else tool.module!r}, or leave it out of tracking"
            )
        tool.check(directory)


@contextlib.contextmanager
def tracking(
    plan: Callable[[], Plan],
    rows: Callable[[], Sequence[Mapping[str, Any]]],
    finished: Callable[[], bool],
    home: Home,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Let the tools named in the spec follow the study's ledger, each in a thread of its own, until the block ends.

    What a tool has not taken FINISH_SECONDS later is left for the next run of the study.

    Args:
        plan: gives the study's, see `Points`.
        rows: gives the rows of its ledger so far, in order.
        finished: whether the study is; asked when the block ends.
        home: the study's folder; which run it is in each tool is kept there in ``tracking.json``.
        say: takes one line for the user.
    """
    followers = _followers(plan, rows, home, say)
    for follower in followers:
        follower.start()
    try:
        yield
    finally:
        for follower in followers:
            follower.stop(finished())
        limit = time.monotonic() + FINISH_SECONDS
        for follower in followers:
            follower.join(max(0.0, limit - time.monotonic()))


def _followers(
    plan: Callable[[], Plan], rows: Callable[[], Sequence[Mapping[str, Any]]], home: Home, say: Callable[[str], None]
) -> list[Follower]:
    marks = Marks(home)
    return [
        Follower(name, TRACKERS.get(name).make(plan().spec, home), plan, rows, marks, say)
        for name in plan().spec.tracking
    ]
