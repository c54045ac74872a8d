"""A study on disk as an object: its trials, fronts, picks, pictures and tables."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.remote_folder import open_folder
from study.record.words import percent
from study.report.figures.front_marks import front_picture
from study.report.figures.front_page import front_plotly
from study.results.fronts import fronts, marked
from study.results.in_words import settings_text
from study.results.rows import ALL_ATTACKS, GROUP, is_shared
from study.results.settings import aggregate_all
from study.run.one_trial import run_single
from study.spec.load import load_spec, make_spec
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, merge_assignments
from trainables.registry import nearest
from trainables.storage.remote import Place, as_place

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Study:
    """A study as it was when it was loaded; load it again to see what has come since.

    Args:
        place: its folder or URI, as people call it.
        spec: the resolved spec.
        trials: one row per trial, the columns of ``trials.csv`` (see the page on result files), numbers as numbers.
    """

    place: str
    spec: StudySpec
    trials: pd.DataFrame

    @property
    def attacks(self) -> list[str]:
        """Those that have rows, and ``all`` where settings were scored over several attacks at once."""
        own = sorted(self.trials["attack"].unique())
        return own + ([ALL_ATTACKS] if is_shared(self.trials) else [])

    def settings(self, attack: str | None = None) -> pd.DataFrame:
        """One row per setting: means over its cells (attacks, seeds) on both halves of the test set.

        Raises:
            SpecError: no trial of that attack.
        """
        table = aggregate_all(self.trials)
        return table if attack is None else self._of(table, attack)

    def front(self, attack: str | None = None) -> pd.DataFrame:
        """The settings of each search that no other beats in both ASR and clean accuracy, as in ``front.csv``.

        They are chosen on the search half of the test set; the values to quote are those of the report half.

        Raises:
            SpecError: no trial of that attack.
        """
        table = fronts(self.trials)
        return table if attack is None else self._of(table, attack)

    def picks(self, attack: str | None = None) -> pd.DataFrame:
        """Members of the fronts that a user would choose, one row per pick.

        ``pick``: ``drop_0.5``, ``drop_1``, ``drop_2``, ``drop_5`` (least ASR among the settings that give up at most so
        many points of clean accuracy), ``max_der``, ``knee``.
        """
        front = self.front(attack)
        records = []
        for _, member in front.iterrows():
            names = [name for name in str(member["picks"]).split(";") if name]
            for name in [*names, *(["knee"] if member["is_knee"] else [])]:
                records.append({"pick": name, **member.to_dict()})
        return pd.DataFrame(records, columns=["pick", *front.columns]).sort_values(
            ["combination", "dataset", "model", "attack", "defense_label", "pick"], ignore_index=True
        )

    def plot(self, attack: str | None = None, combination: str | None = None) -> go.Figure:
        """The picture of the report: every setting, the fronts and the baselines, interactive.

        Args:
            attack: which one; may be left out where there is only one.
            combination: which one of a sweep, by its name in the column ``combination``.

        Raises:
            SpecError: no trial of that attack or combination, or several to choose from.
        """
        if attack is None:
            if len(self.attacks) != 1:
                raise SpecError(f"plot: name one of the attacks: {', '.join(self.attacks) or 'there is no trial yet'}")
            (attack,) = self.attacks
        known = sorted(self.trials["combination"].unique())
        if combination is None and len(known) == 1:
            (combination,) = known
        if combination not in known:
            wanted = "" if combination is None else f"no trial of combination {combination!r}; "
            raise SpecError(f"plot: {wanted}name one of the combinations: {', '.join(known)}")
        own = self.trials[self.trials["combination"] == combination]
        return front_plotly(front_picture(attack, self._of(aggregate_all(own), attack), self._of(fronts(own), attack)))

    def table(self, attack: str | None = None) -> pd.DataFrame:
        """Baselines, published points and picks of each attack in a few columns, on the report half, as fractions."""
        chosen = self.picks(attack)
        keys = [*GROUP, "trial"]  # a setting that was scored over all attacks has one trial, and is no pick of each
        settings = self.settings(attack)
        drop_1 = pd.MultiIndex.from_frame(chosen.loc[chosen["pick"] == "drop_1", keys])
        picked = pd.MultiIndex.from_frame(settings[keys]).isin(drop_1) & (settings["role"] == "search")
        settings = settings.assign(picked=picked)
        keep = settings["role"].isin(["baseline", "control"]) | settings["published"] | picked
        records = [
            {
                "combination": row["combination"],
                "attack": row["attack"],
                "defense": row["defense_label"],
                "point": _point(row),
                "asr": row["asr_report"],
                "clean_accuracy": row["clean_accuracy_report"],
                "robust_accuracy": row["robust_accuracy_report"],
                "status": "collapsed" if row["collapsed"] and row["status"] == "ok" else row["status"],
                "cells": row["cells"],
                "models": row["models"],
                "settings": settings_text(row),
            }
            for _, row in settings[keep].iterrows()
        ]
        names = [
            "attack",
            "defense",
            "point",
            "asr",
            "clean_accuracy",
            "robust_accuracy",
            "status",
            "cells",
            "models",
            "settings",
        ]
        if settings["combination"].any():
            names.insert(0, "combination")
        return pd.DataFrame(records, columns=names)

    def to_latex(self, attack: str | None = None) -> str:
        """`table` for a paper: a booktabs table with rates in percent (needs ``\\usepackage{booktabs}``)."""
        table = self.table(attack).drop(columns=["settings", "cells", "models"])
        for name in ("asr", "clean_accuracy", "robust_accuracy"):
            table[name] = ["--" if pd.isna(value) else f"{100 * value:.1f}" for value in table[name]]
        headings = {"asr": "ASR", "clean_accuracy": "clean acc.", "robust_accuracy": "robust acc."}
        return table.rename(columns=headings).to_latex(
            index=False, escape=True, column_format="l" * (table.shape[1] - 4) + "rrrl"
        )

    def __repr__(self) -> str:
        return f"<study {self.spec.name} in {self.place}: {len(self.trials)} trials>"

    def _repr_html_(self) -> str:
        """What a notebook shows: how far it is, and the table."""
        title = f"<b>{html.escape(self.spec.name)}</b> in {html.escape(self.place)}: {len(self.trials)} trials"
        if self.trials.empty:
            return f"<p>{title}. No trial has finished yet; load it again later.</p>"
        counts = ", ".join(f"{count} {status}" for status, count in self.trials["status"].value_counts().items())
        table = self.table()
        for name in ("asr", "clean_accuracy", "robust_accuracy"):
            table[name] = [percent(value) for value in table[name]]
        return f"<p>{title} ({html.escape(counts)}); values of the report half</p>{table.to_html(index=False)}"

    def _of(self, table: pd.DataFrame, attack: str) -> pd.DataFrame:
        if attack not in self.attacks:
            raise SpecError(f"no trial of attack {attack!r} in {self.place}: {nearest(attack, self.attacks)}")
        return table[table["attack"] == attack].reset_index(drop=True)


def load_study(place: str | Path) -> Study:
    """See `superft.load`."""
    with open_folder(_place(place)) as folder:
        folder.fetch(rows_only=True)
        spec = stored_spec(folder.path)
        return Study(folder.called, spec, marked(Ledger.read(folder.path / LEDGER_FILE).to_frame()))


def run_and_load(
    spec: str | Path | Mapping[str, Any], out: str | Path | None, changes: Mapping[str, Any], address: str | None
) -> Study:
    """See `superft.run`."""
    from study.run.engine import run_study  # Ray and Optuna, which reading needs neither of

    assignments = list(_assignments(changes))
    if isinstance(spec, Mapping):
        resolved = make_spec(merge_assignments(dict(spec), assignments))
    else:
        resolved = load_spec(str(spec), assignments)
    place = _place(out) if out is not None else Path("runs") / resolved.name
    if run_study(resolved, place, address=address).state == "interrupted":
        raise KeyboardInterrupt(f"the study in {place} was stopped; the same call continues it")
    return load_study(place)


def one_trial(
    attack: str,
    defense: str,
    dataset: str,
    model: str | None,
    seed: int,
    changes: Mapping[str, Any],
    store: str | Path | None,
    device: str | None,
) -> dict[str, Any]:
    """See `superft.trial`."""
    return run_single(
        attack=attack,
        defense=defense,
        dataset=dataset,
        model=model,
        seed=seed,
        assignments=list(_assignments(changes)),
        store=None if store is None else _place(store),
        device=device,
    )


def _place(place: str | Path) -> Place:
    return as_place(str(place))


def _assignments(changes: Mapping[str, Any]) -> Iterator[str]:
    """``KEY=VALUE`` as on the command line, the value as JSON, which YAML reads."""
    for key, value in changes.items():
        try:
            yield f"{key}={json.dumps(value)}"
        except TypeError as error:
            raise SpecError(f"{key}: {value!r} is no value of a spec ({error})") from error


def _point(row: pd.Series[Any]) -> str:
    if row["role"] != "search":
        return str(row["role"])
    words = ["published"] * bool(row["published"]) + ["pick, at most 1 point lost"] * bool(row["picked"])
    return "; ".join(words)
