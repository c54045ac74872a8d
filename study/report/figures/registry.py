"""The report's figures by name: each is one file here or of a plug-in, and gets the tables of one attack."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from search_spaces.space import Space
from study.report.figures.style import as_png
from study.results.importance import Importance, importance
from trainables.plugins.errors import told
from trainables.registry import Registry, SettingError


@dataclass(frozen=True)
class AttackTables:
    """All that is known of one attack, on one data set and model, in one combination: a study's tables, cut to it.

    ``settings``, ``members``, ``searched``, ``history``, ``beside`` and ``costs`` are what ``settings.aggregate``,
    ``fronts.fronts``, ``settings.candidates``, ``fronts.hypervolume_over_trials``, ``equal_rules.parity`` and
    ``search_costs`` return; ``rows`` are the ledger's. ``shared`` are the members of the fronts over all attacks, where
    searches were over all of them. ``curves`` is what `record.curves.read_curves` returns; empty where none were kept.
    ``by_rule`` is what `fronts.fronts_by_rule` returns, of all attacks together; ``repeated`` what
    `repeats.repeated_searches` does; ``confirmed`` and ``curse`` what `confirmed.confirmed_settings` and
    `winners_curse` do. ``apart`` are the labels of defenses that the study sets apart in its figures, ``spaces`` the
    searched spaces, by the defense's label, of which some parameters belong to some settings alone.
    """

    settings: pd.DataFrame
    members: pd.DataFrame
    searched: pd.DataFrame
    history: pd.DataFrame
    beside: pd.DataFrame
    costs: pd.DataFrame
    rows: pd.DataFrame
    shared: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_rule: pd.DataFrame = field(default_factory=pd.DataFrame)
    repeated: pd.DataFrame = field(default_factory=pd.DataFrame)
    confirmed: pd.DataFrame = field(default_factory=pd.DataFrame)
    curse: pd.DataFrame = field(default_factory=pd.DataFrame)
    apart: tuple[str, ...] = ()
    spaces: Mapping[str, Space] = field(default_factory=dict)

    @cached_property
    def importances(self) -> dict[str, Importance]:
        """Importance of the parameters of each searched defense; none where nothing was searched."""
        if not len(self.history):
            return {}
        by_label = self.searched.groupby("defense_label", sort=True)
        return {str(label): importance(group, self.spaces.get(str(label))) for label, group in by_label}


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Args:
        png: for print; written to ``figures/NAME_ATTACK.png``.
        page: for the page, with Plotly; None: the PNG stands there too.
        title: over the figure, in the report.
        note: one sentence of text below it.
    """

    png: Figure | None = None
    page: Any = None
    title: str = ""
    note: str = ""

    def png_bytes(self) -> bytes | None:
        """The PNG as a file's content."""
        return None if self.png is None else as_png(self.png)


# (title of the attack's section, its tables) -> the figure, or None where there is nothing to draw.
Draw = Callable[[str, AttackTables], Drawing | None]


def _check(name: str, draw: Draw) -> None:
    """Refuse a name that makes no file name of its own, and what cannot be called (SettingError)."""
    if not re.fullmatch(r"[a-z][a-z0-9]*", name) or name == "trigger":
        raise SettingError(f"figure {name!r}: its name must be lower-case letters and digits, and not trigger")
    if not callable(draw):
        raise SettingError(f"figure {name!r}: must be a function of (title, tables), got {draw!r}")


FIGURES: Registry[Draw] = Registry("figure", "study.report.figures", _check)
register = FIGURES.register


def draw_all(title: str, tables: AttackTables, troubles: list[str]) -> dict[str, tuple[Drawing, bytes | None]]:
    """Every registered figure that has something to draw, with its PNG; one that raises is named in ``troubles``."""
    drawn: dict[str, tuple[Drawing, bytes | None]] = {}
    for name, draw in FIGURES.items():
        try:
            made = draw(title, tables)
            if made is not None and not isinstance(made, Drawing):
                raise SettingError(f"must give a Drawing or nothing, got {type(made).__name__}")
            if made is not None:
                drawn[name] = made, made.png_bytes()
        except Exception as error:  # noqa: BLE001 - whatever a figure raises, the report is written
            troubles.append(f"The figure {name} of {title} could not be drawn: {told(error)}")
    return drawn
