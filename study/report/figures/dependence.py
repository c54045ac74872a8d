"""Figure: ASR and clean accuracy over the two parameters that mattered most, means over all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import FONT, SMALL_FONT, TEXT_WIDTH, canvas, for_print, percent_tick
from study.results.dependence import FEWEST, PairDependence, pair_dependence
from study.results.importance import Importance

MOST_ROWS = 6  # searches, each of which has a row
FEW_DECADES = 300  # greatest by least, up to which a logarithmic axis has room for numbers between the powers of ten
RATE_NAMES = (("asr", "ASR"), ("clean_accuracy", "clean accuracy"))


def mesh(
    figure: Figure,
    axis: Any,
    values: Sequence[Sequence[float] | NDArray[np.float64]],
    rates: NDArray[np.float64],
    measured: Sequence[Any],
    *,
    names: Sequence[str],
    logs: Sequence[bool],
    title: str,
) -> None:
    """One panel: a rate over two parameters in colours with a bar, measured settings as dots.

    Args:
        values: of both parameters, ascending.
        rates: (values of the first, values of the second), fractions.
        measured: values of the settings, of the first and of the second parameter.
    """
    drawn = axis.pcolormesh(*values, rates.T, cmap="cividis", shading="gouraud")
    axis.plot(*measured, ".", color="white", markersize=1, alpha=0.5)
    for is_log, side in zip(logs, ("x", "y"), strict=True):
        if is_log:
            axis.set(**{f"{side}scale": "log"})
            scale = getattr(axis, f"{side}axis")
            low, high = getattr(axis, f"get_{side}lim")()
            subs = (1.0, 2.0, 5.0) if high < FEW_DECADES * low else (1.0,)  # else the numbers would overlap
            scale.set_major_locator(LogLocator(subs=subs))
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            scale.set_minor_formatter(NullFormatter())
    axis.set(xlabel=names[0], ylabel=names[1], title=title)
    for_print(axis)
    axis.grid(visible=False)
    bar = figure.colorbar(drawn, ax=axis)
    bar.ax.yaxis.set_major_formatter(percent_tick)
    bar.ax.tick_params(labelsize=SMALL_FONT)


def dependence_png(title: str, found: dict[str, PairDependence]) -> Figure:
    """A row for each search, ASR beside clean accuracy."""
    figure = canvas(TEXT_WIDTH, 0.5 + 2.1 * len(found))
    axes = figure.subplots(len(found), 2, squeeze=False)
    for line, (label, one) in zip(axes, found.items(), strict=True):
        for axis, (rate, name) in zip(line, RATE_NAMES, strict=True):
            about = f"{label}: {name} (± {100 * one.error[rate]:.1f})"
            measured = (one.measured[:, 0], one.measured[:, 1])
            mesh(figure, axis, one.values, one.rates[rate], measured, names=one.names, logs=one.logs, title=about)
    figure.suptitle(title, fontsize=FONT, fontweight="bold")
    return figure


@register("dependence")
def on_two_parameters(title: str, tables: AttackTables) -> Drawing | None:
    """ASR and clean accuracy over the two parameters that mattered most."""
    found: dict[str, PairDependence] = {}
    for label, one in tables.importances.items():
        group = tables.searched[tables.searched["defense_label"] == label]
        pair = pair_dependence(group, _ranked(one), tables.spaces.get(label)) if len(found) < MOST_ROWS else None
        if pair is not None:
            found[label] = pair
    if not found:
        return None
    png = dependence_png(f"Dependence on two parameters: {title}", found)
    note = (
        "Report half, means over the other parameters, from a forest of extremely randomised trees (partial "
        f"dependence). ±: its mean error in points on settings that it did not learn from; dots: measured settings. "
        f"Searches with fewer than {FEWEST} settings, and all but the first {MOST_ROWS}, are left out."
    )
    return Drawing(png=png, title="What do the two parameters that matter most do?", note=note)


def _ranked(one: Importance) -> list[str]:
    """Parameters by what they explain of both rates together."""
    rates = [one.shares[rate] for rate, _ in RATE_NAMES if rate in one.shares]
    names = sorted({name for shares in rates for name in shares})
    return sorted(names, key=lambda name: -sum(shares.get(name, 0.0) for shares in rates))
