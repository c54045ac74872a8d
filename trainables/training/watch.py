"""Looking at a model while it is trained, without the method that trains it knowing of it.

Whoever watches is in no object that a method is given: it is a variable of the thread, so that an evaluator may hold
test images beside a defense that must never see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from trainables.models.classifier import Classifier


@dataclass(frozen=True)
class Moment:
    """The end of an optimiser step.

    Args:
        model: as the step left it; not to be changed, nor kept.
        stage: what is being trained, in the method's own word.
        step: of this stage, from 0.
        total: optimiser steps of the bench so far, this one included.
        batch: images per step.
        images: that the stage trains on.
    """

    model: Classifier
    stage: str
    step: int
    total: int
    batch: int
    images: int

    @property
    def ends_pass(self) -> bool:
        """Whether this step is the one that completes a pass over the stage's images."""
        return (self.step + 1) * self.batch // self.images > self.step * self.batch // self.images


Watcher = Callable[[Moment], None]
AfterStep = Callable[[int], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Watcher | None) -> Iterator[None]:
    """Call ``watcher`` after every optimiser step that a bench makes in the block; None: nobody watches."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def watched(
    model: Classifier, stage: str, before: int, batch: int, images: int, after_step: AfterStep | None
) -> AfterStep | None:
    """What to call after each step of a stage: the method's own ``after_step``, then whoever watches.

    Args:
        before: optimiser steps of the bench before this stage.
    """
    watcher = _WATCHER.get()
    if watcher is None or images == 0:
        return after_step

    def look(step: int) -> None:
        if after_step is not None:
            after_step(step)
        watcher(Moment(model, stage, step, before + step + 1, min(batch, images), images))

    return look
