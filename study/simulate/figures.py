"""Pictures of simulated searches, for print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from study.report.figures.dependence import RATE_NAMES, mesh
from study.report.figures.style import (
    FONT,
    GREY,
    SMALL_FONT,
    TEXT_WIDTH,
    canvas,
    for_print,
    legend_columns,
    percent_tick,
    searched_style,
)
from study.simulate.dependence import Dependence
from study.simulate.table import Table

BOX_NAMES = {"hypervolume": "hypervolume", "corner": "hypervolume of the corner"}


def curves_png(result: Mapping[str, Any]) -> Figure:
    """Hypervolume of both boxes over trials and over E, means with 95 % bands; the grid's as a dashed line."""
    names = list(result["samplers"])
    figure = canvas(TEXT_WIDTH, 4.6)
    axes = figure.subplots(2, 2, sharey="row")
    for line, (box, box_name) in enumerate(BOX_NAMES.items()):
        for column, (over, label) in enumerate((("trials", "finished settings"), ("epochs", "E spent per model"))):
            axis = axes[line][column]
            for place, name in enumerate(names):
                colour, _ = searched_style(place)
                curve = result["samplers"][name][box][f"over_{over}"]
                x = result["epochs"] if over == "epochs" else list(range(1, len(curve["mean"]) + 1))
                # Before the first setting has ended there is nothing, and a line at 0 would flatten all others.
                begin = next((place for place, mean in enumerate(curve["mean"]) if mean), 0)
                x, (mean, low, high) = x[begin:], (curve[key][begin:] for key in ("mean", "low", "high"))
                axis.plot(x, mean, color=colour, linewidth=1.1, label=name, drawstyle="steps-post")
                axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, step="post")
            if result.get("grid"):
                targets = result["grid"]["targets"][box].values()
                axis.axhline(sum(targets) / len(targets), color=GREY, linestyle="dashed", linewidth=0.8, label="grid")
            axis.set(xlabel=label, ylabel=box_name if column == 0 else "")
            axis.ticklabel_format(axis="y", useOffset=False)
            for_print(axis)
    _legend(figure, axes[0][0])
    what = "mean over searches and seeds, 95 % band of the mean"
    figure.suptitle(f"Simulated searches of {result['defense']}: {what}", fontsize=FONT, fontweight="bold")
    return figure


def attainment_png(result: Mapping[str, Any]) -> Figure:
    """What half of the searches attain (line), and what three and what one of four do (shaded), a panel per search."""
    searches = list(result["attainment"])
    wide = min(3, len(searches))
    rows = -(-len(searches) // wide)
    figure = canvas(TEXT_WIDTH, 0.7 + 2.2 * rows)
    axes = figure.subplots(rows, wide, squeeze=False)
    for axis in axes.flat[len(searches) :]:
        axis.set_visible(False)
    for axis, search in zip(axes.flat, searches, strict=False):
        surfaces = result["attainment"][search]
        for place, (name, levels) in enumerate(surfaces["samplers"].items()):
            colour, _ = searched_style(place)
            low, middle, high = (_numbers(levels[level]) for level in ("0.75", "0.5", "0.25"))
            axis.plot(surfaces["asr"], middle, color=colour, linewidth=1.1, label=name, drawstyle="steps-post")
            axis.fill_between(surfaces["asr"], low, high, color=colour, alpha=0.18, linewidth=0, step="post")
        axis.set(xlabel="ASR at most", ylabel="clean accuracy", title=search)
        axis.xaxis.set_major_formatter(percent_tick)
        axis.yaxis.set_major_formatter(percent_tick)
        for_print(axis)
    _legend(figure, axes[0][0])
    what = "50 % of searches (line), 25 to 75 % (shaded)"
    figure.suptitle(f"Attainment of {result['defense']}: {what}", fontsize=FONT, fontweight="bold")
    return figure


def dependence_png(defense: str, found: Dependence, table: Table) -> Figure:
    """ASR and clean accuracy over two parameters, a line per attack; dots are the settings that were measured."""
    attacks = list(found.rates)
    figure = canvas(TEXT_WIDTH, 0.5 + 2.1 * len(attacks))
    axes = figure.subplots(len(attacks), 2, squeeze=False)
    for line, attack in enumerate(attacks):
        measured = table.means(attack)
        for axis, (rate, name) in zip(axes[line], RATE_NAMES, strict=True):
            dots = (measured[found.names[0]], measured[found.names[1]])
            logs = [getattr(table.space[parameter], "log", False) for parameter in found.names]
            about = f"{attack}: {name}"
            mesh(figure, axis, found.values, found.rates[attack][rate], dots, names=found.names, logs=logs, title=about)
    what = "means over the other parameters (surrogate); dots: measured settings"
    figure.suptitle(f"{defense} over {' and '.join(found.names)}: {what}", fontsize=FONT, fontweight="bold")
    return figure


def _legend(figure: Figure, axis: Any) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=legend_columns(names, TEXT_WIDTH),
        fontsize=SMALL_FONT,
        frameon=False,
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
