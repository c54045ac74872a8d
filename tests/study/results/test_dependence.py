"""Partial dependence finds what was put in, and says how far it can be trusted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.record.columns import to_frame
from study.report.figures.dependence import dependence_png
from study.results.dependence import FEWEST, pair_dependence, partial_means
from study.results.settings import candidates
from tests.study.rows import point


def searched(n: int = 120) -> pd.DataFrame:
    """ASR falls with the logarithm of the rate, accuracy rises with the share; the kind changes nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n):
        rate, share = float(10 ** rng.uniform(-3, 0)), float(rng.uniform(0.2, 1.0))
        settings = {"param.rate": rate, "param.share": share, "param.kind": str(rng.choice(["a", "b"]))}
        rows.append(point(number, -np.log10(rate) / 3, 0.9 + 0.1 * share, **settings))
    return candidates(to_frame(rows))


def test_partial_means_are_means_over_the_other_columns() -> None:
    x = np.array([[0.0, 1.0], [0.0, 3.0]])
    found = partial_means(lambda rows: np.column_stack([rows.sum(axis=1), rows[:, 1]]), x, (0,), [(10.0,), (20.0,)])
    assert found.tolist() == [[12.0, 2.0], [22.0, 2.0]]


def test_the_rates_move_along_the_parameter_that_moves_them_and_not_along_the_other() -> None:
    found = pair_dependence(searched(), ["kind", "rate", "share"])
    assert found is not None
    assert found.names == ("rate", "share"), "a choice has no axis"
    assert found.logs == (True, False)
    asr, accuracy = found.rates["asr"], found.rates["clean_accuracy"]
    assert np.ptp(asr, axis=0).min() > 0.7
    assert np.ptp(asr, axis=1).max() < 0.15
    assert np.ptp(accuracy, axis=1).min() > 0.05
    assert np.ptp(accuracy, axis=0).max() < 0.02
    assert found.error["asr"] < 0.05
    assert found.values[0][0] == pytest.approx(found.measured[:, 0].min())


def test_nothing_is_drawn_of_too_few_settings_or_of_one_parameter() -> None:
    assert pair_dependence(searched(FEWEST - 1), ["rate", "share"]) is None
    assert pair_dependence(searched(FEWEST), ["rate"]) is None
    assert pair_dependence(searched(FEWEST), ["kind", "rate"]) is None


def test_each_search_has_a_row_of_two_panels_and_its_error_stands_there() -> None:
    found = pair_dependence(searched(40), ["rate", "share"])
    assert found is not None
    figure = dependence_png("badnets", {"super_ft": found, "ft": found})
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    error = f"(± {100 * found.error['asr']:.1f})"
    assert titles[0] == f"super_ft: ASR {error}"
    assert [title.partition(" (")[0] for title in titles] == [
        *("super_ft: ASR", "super_ft: clean accuracy", "ft: ASR", "ft: clean accuracy")
    ]
    assert {axis.get_xscale() for axis in figure.axes if axis.get_title()} == {"log"}
