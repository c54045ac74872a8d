"""Table of report.html on the detectors that were tuned before the trials: chosen and as published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from study.record.detectors import CellFinding, TunedDetector
from study.record.words import percent
from study.report.html import Table, number, plain
from study.results.rows import ALL_ATTACKS

CAPTION_TUNED = """<p class="note"><b>Tuned before the trials</b>: each setting was judged by what it would leave out,
without retraining; the best has the largest TPR − FPR, mean over the cells of the search. <b>E</b> is what the features
of all its cells took; its trials found them ready. The choice is <b>oracle</b>: only the poison mask tells TPR from
FPR, and no defender has it. The first trial of the search is the published point all the same.</p>"""


def tuned_table(tuned: Iterable[TunedDetector], attack: str) -> Table:
    """The detectors of searches with cells of an attack, their rates on those cells; cells are texts."""
    rows: Table = []
    for one in tuned:
        if not one.tried and {attack, ALL_ATTACKS}.intersection(one.search.split("/")):
            rows.append({"search": one.search, "detector": f"as published; not tuned: {one.error}"})
        for knowledge, name, settings, cells in (
            ("oracle", f"best of {one.tried}", one.settings, one.cells),
            ("blind", "as published", one.published, one.cells_published),
        ):
            own = [cell for cell in cells if cell.attack == attack]
            if own:
                rows.append(
                    {
                        "search": one.search,
                        "detector": name,
                        "TPR": percent(_mean(own, "tpr")),
                        "FPR": percent(_mean(own, "fpr")),
                        "AUROC within the target class": number(_mean(own, "auroc_target"), 3),
                        "E": number(one.epochs, 2) if knowledge == "oracle" else "",
                        "knowledge": knowledge,
                        "setting": ", ".join(f"{key} {plain(value)}" for key, value in settings.items()),
                    }
                )
    return rows


def _mean(cells: Sequence[CellFinding], name: str) -> float:
    values = [value for cell in cells if (value := getattr(cell, name)) is not None]
    return math.fsum(values) / len(values) if values else math.nan
