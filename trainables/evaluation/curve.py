"""ASR and clean accuracy along a repair, measured beside it by the evaluator.

The defense neither holds nor is handed anything of this (`training.watch`), and measuring draws no random number, so
that a repair comes out the same with a curve and without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from trainables.evaluation.metrics import Evaluation
from trainables.models.classifier import Classifier
from trainables.training.loop import DivergedError
from trainables.training.watch import Moment

Every = Literal["epoch"] | int  # a pass over the images that a stage trains on, or so many optimiser steps
MEASURES = ("asr", "clean_accuracy", "robust_accuracy")
WORST = {"asr": 1.0, "clean_accuracy": 0.0, "robust_accuracy": 0.0}

Point = dict[str, Any]


class Curve:
    """Measures a model at step 0 and then every so often.

    A point is JSON-able: ``step`` (optimiser steps of the repair so far), ``passes`` (over the images that it trained
    on), ``stage`` (the defense's word for what it is training), ``kept`` (whether this very model was handed back; not
    so for a teacher), the three rates on the full test set and on the report half, ``diverged`` where the model's
    outputs were not finite: then the rates are the worst.

    Args:
        every: when to measure.
        measure: gives the rates of a model (DivergedError where its outputs are not finite).
        ready: called before each measurement, outside its time (a device may still be at work).
    """

    def __init__(
        self, every: Every, measure: Callable[[Classifier], Evaluation], ready: Callable[[], None] = lambda: None
    ) -> None:
        if every != "epoch" and every < 1:
            raise ValueError(f"every must be epoch or a number of steps >= 1, got {every!r}")
        self.every, self.seconds = every, 0.0
        self._measure, self._ready = measure, ready
        self._points: list[tuple[Classifier | None, Point]] = []
        self._passes = self._passes_before = 0.0

    def begin(self, model: Classifier) -> None:
        """Step 0: the model as the defense gets it."""
        self._add(model, "start", 0)

    def look(self, moment: Moment) -> None:
        """After a step: measure, if it is time; see `training.watch.watching`."""
        if moment.step == 0:
            self._passes_before = self._passes
        self._passes = self._passes_before + (moment.step + 1) * moment.batch / moment.images
        due = moment.ends_pass if self.every == "epoch" else moment.total % self.every == 0
        if due:
            self._add(moment.model, moment.stage, moment.total)

    def end(self, model: Classifier | None, steps: int, evaluation: Evaluation | None) -> list[Point]:
        """The whole curve; its last point is the evaluation of the repaired model (None: it diverged)."""
        points = [
            {**point, "kept": point["step"] == 0 or watched is model}
            for watched, point in self._points
            if point["step"] == 0 or not (watched is model and point["step"] == steps)
        ]
        if steps or model is None or evaluation is None:
            points.append(self._point("end", steps, evaluation) | {"kept": True})
        return points

    def _add(self, model: Classifier, stage: str, step: int) -> None:
        self._ready()
        started = time.perf_counter()
        try:
            evaluation = self._measure(model)
        except DivergedError:
            evaluation = None
        self._points.append((model, self._point(stage, step, evaluation)))
        self.seconds += time.perf_counter() - started

    def _point(self, stage: str, step: int, evaluation: Evaluation | None) -> Point:
        point: Point = {"step": step, "passes": round(self._passes, 6), "stage": stage}
        for suffix, part in (("", "full"), ("_report", "report")):
            for name in MEASURES:
                rate = WORST[name] if evaluation is None else getattr(getattr(evaluation, part), name)
                point[name + suffix] = rate
        return point if evaluation is not None else point | {"diverged": True}
