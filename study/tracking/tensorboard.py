"""TensorBoard scalars in the study's folder, written by tensorboardX, which Ray Tune brings."""

from __future__ import annotations

import time
from collections.abc import Sequence

from study.spec.schema import StudySpec
from study.spec.trackers import register
from study.tracking.files import front_table
from study.tracking.marks import Home
from study.tracking.points import Point


@register("tensorboard", "event files in the study's folder", module="tensorboardX")  # Ray Tune brings it
class TensorBoard:
    """Event files in ``DIR/tensorboard``; a continued study adds one. See `follower.Tracker`.

    It keeps no files: spec and front are texts, the report lies beside the folder.
    """

    place = "tensorboard"

    def __init__(self, spec: StudySpec, home: Home) -> None:
        self._spec, self._home = spec, home

    def open(self, run: str | None) -> str:
        from tensorboardX import SummaryWriter

        # Files are named by the second: one that went on within it would write over what was there.
        self._writer = SummaryWriter(str(self._home.path / self.place), filename_suffix=f".{time.time_ns()}")
        self._writer.add_text("study.yaml", "\n".join(f"    {line}" for line in self._spec.to_yaml().splitlines()))
        return self.place

    def link(self) -> str:
        return f"tensorboard --logdir {self._home.called}/{self.place}"

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(f"{point.group}/{name}", value, point.step, walltime=point.seconds)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        table = front_table(self._home.path)
        rows = table.astype(str).to_numpy().tolist()
        lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *rows]
        self._writer.add_text("front", "\n".join(" | ".join(cells) for cells in lines))
        self._writer.close()
