"""Finished ledgers as one table: searched parameters in, what was measured out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from study.record.cost import row_epochs
from study.record.files import write_atomically
from study.record.folder import LEDGER_FILE, SPEC_FILE, spec_of_stranger, stored_spec
from study.record.ledger import Ledger
from study.results.scores import MEASURED, accuracy_before, counting, told_of, without_backdoor
from study.spec.resolved import ResolvedSearch
from study.spec.schema import StudySpec, differences
from study.spec.yaml_io import SpecError

# Settings per attack below which a surrogate would be guesswork: half a dozen parameters, some ten points to each.
NEEDED = 50
CELL = ("attack", "seed", "defense_seed")
VALUES = ("asr", "clean_accuracy", "accuracy_before", "epochs", "seconds")
# Of these keys pooled studies may differ: they say which settings were tried on what, not what a setting comes to.
MAY_DIFFER = (
    *("name", "attacks", "baselines", "defenses", "seeds", "defense_seeds", "search", "tracking", "plugins"),
    "set_apart",
)
CSV_FILE, JSON_FILE = "table.csv", "table.json"


@dataclass(frozen=True)
class Table:
    """What was measured of one defense's settings.

    Args:
        spec: of the study that the rows come from, of the first where there are several.
        label: of the defense in it.
        frame: a row for each setting on each cell: ``setting`` (a number), the searched parameters, `CELL` and
            `VALUES`. ASR and accuracies are of the search half, fractions; of a diverged or collapsed model the worst.
        samplers: that chose the settings.
    """

    spec: StudySpec
    label: str
    frame: pd.DataFrame
    samplers: tuple[str, ...]

    @cached_property
    def search(self) -> ResolvedSearch:
        """Space and fixed settings of the defense."""
        return search_of(self.spec, self.label)

    @property
    def space(self) -> Mapping[str, BaseDistribution]:
        """What was searched."""
        return self.search.space.distributions

    @property
    def attacks(self) -> list[str]:
        """In the order of the rows."""
        return [str(name) for name in self.frame["attack"].unique()]

    def means(self, attack: str) -> pd.DataFrame:
        """One row for each setting on an attack: means over its cells."""
        rows = self.frame[self.frame["attack"] == attack]
        kept = rows.groupby("setting", sort=False)
        return pd.concat([kept[list(self.space)].first(), kept[list(VALUES)].mean()], axis=1).reset_index(drop=True)

    def encoded(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Parameters in the unit cube, (rows, coordinates), see `encode`."""
        columns = [encode(item, rows[name].tolist()) for name, item in self.space.items()]
        return np.concatenate(columns, axis=1)

    def encoded_params(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """One setting's parameters in the unit cube, (1, coordinates)."""
        return np.concatenate([encode(item, [params[name]]) for name, item in self.space.items()], axis=1)


def encode(item: BaseDistribution, values: Sequence[Any]) -> NDArray[np.float64]:
    """Values of one parameter in [0, 1], on its own scale: (values, 1), or one coordinate for each choice."""
    if isinstance(item, CategoricalDistribution):
        return np.array([[float(value == choice) for choice in item.choices] for value in values])
    low, high = float(item.low), float(item.high)  # type: ignore[attr-defined]
    numbers = np.asarray(values, dtype=float).reshape(-1, 1)
    if item.log:  # type: ignore[attr-defined]
        numbers, low, high = np.log(numbers), float(np.log(low)), float(np.log(high))
    return (numbers - low) / (high - low) if high > low else np.zeros_like(numbers)


def search_of(spec: StudySpec, label: str) -> ResolvedSearch:
    """The search of a defense in a spec."""
    return next(search for search in spec.resolve().searches if search.label == label)


def read_table(places: Sequence[Path], label: str | None = None) -> Table:
    """One table of all of these.

    Args:
        places: study folders, ``trials.jsonl`` files beside their ``study.yaml``, or ``table.json`` files.
        label: of the defense; may be left out where one alone was searched.

    Raises:
        SpecError: nothing there, another defense, other conditions, another space, or too few settings.
    """
    tables = [_read(place, label) for place in places]
    first = tables[0]
    for place, other in zip(places[1:], tables[1:], strict=True):
        _check_same(places[0], first, place, other)
    frames, offset = [], 0
    for table in tables:
        frames.append(table.frame.assign(setting=table.frame["setting"] + offset))
        offset += int(table.frame["setting"].max()) + 1
    samplers = tuple(sorted({name for table in tables for name in table.samplers}))
    pooled = Table(first.spec, first.label, pd.concat(frames, ignore_index=True), samplers)
    called = ", ".join(map(str, places))
    for attack in pooled.attacks:
        count = pooled.frame.loc[pooled.frame["attack"] == attack, "setting"].nunique()
        if count < NEEDED:
            raise SpecError(
                f"{called}: {count} measured settings of {pooled.label} on {attack}; a table needs at least {NEEDED}"
            )
    return pooled


def _read(place: Path, label: str | None) -> Table:
    if place.is_dir():
        return _of_study(place, label)
    if not place.is_file():
        raise SpecError(f"{place}: no such file or folder; name a study folder, its {LEDGER_FILE}, or a {JSON_FILE}")
    return _of_export(place, label) if place.suffix == ".json" else _of_study(place.parent, label, place)


def _of_study(directory: Path, label: str | None, ledger: Path | None = None) -> Table:
    if not (directory / SPEC_FILE).is_file():
        raise SpecError(f"{directory} holds no {SPEC_FILE}, which says what was searched; name a study folder")
    spec = stored_spec(directory)
    if spec.sweep:
        swept = ", ".join(spec.sweep)
        raise SpecError(
            f"{directory} sweeps {swept}: its searches are of different tasks; run one combination by itself"
        )
    if len(spec.defenses) != 1 and label is None:
        named = f"searches {', '.join(spec.defenses)}; choose one with --defense" if spec.defenses else "has no search"
        raise SpecError(f"{directory} {named}")
    label = label or spec.defenses[0]
    if label not in spec.defenses:
        raise SpecError(f"{directory} does not search {label!r}, but {', '.join(spec.defenses) or 'nothing'}")
    _check_unconditional(spec, label, directory)
    rows = Ledger.read(ledger or directory / LEDGER_FILE).rows()
    search, absent = search_of(spec, label), without_backdoor(rows)
    numbers: dict[str, int] = {}
    records = []
    for row in counting(rows, absent):
        if row.get("role") != "search" or row["defense_label"] != label or row["status"] not in MEASURED:
            continue
        settings = {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
        params = search.space.to_params(settings)
        asr, accuracy = told_of(row)
        records.append(
            {
                "setting": numbers.setdefault(row["trial"], len(numbers)),
                **{name: params[name] for name in search.space.distributions},
                **{name: row.get(name, 0) for name in CELL},
                "asr": asr,
                "clean_accuracy": accuracy,
                "accuracy_before": accuracy_before(row),
                "epochs": row.get("charged_epochs") or row_epochs(row),
                "seconds": row["wall_seconds"],
            }
        )
    if not records:
        raise SpecError(f"{directory}: 0 measured settings of {label}; a table needs at least {NEEDED}")
    frame = pd.DataFrame(records)
    if frame["accuracy_before"].isna().any():
        raise SpecError(f"{directory}: rows without clean_accuracy_before; there is nothing to compare accuracies with")
    return Table(spec, label, frame, (spec.search.sampler,))


def _of_export(path: Path, label: str | None) -> Table:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        spec, own = spec_of_stranger(about["study"], path), str(about["defense"])
        frame = pd.read_csv(path.with_name(Path(about["rows"]).name))
        samplers = tuple(about["samplers"])
        _check_unconditional(spec, own, path)
        missing = {"setting", *search_of(spec, own).space.distributions, *CELL, *VALUES} - set(frame.columns)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{path} is no table of superft simulate: {type(error).__name__}: {error}") from error
    if missing:
        raise SpecError(f"{path.with_name(about['rows'])} has no column {sorted(missing)[0]}")
    for name, item in search_of(spec, own).space.distributions.items():
        if isinstance(item, CategoricalDistribution):
            frame[name] = pd.Series([_choice(value, item.choices) for value in frame[name]], dtype=object)
    if label not in (None, own):
        raise SpecError(f"{path} is of {own}, not of {label!r}")
    return Table(spec, own, frame, samplers)


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    """The choice that a CSV file made a text or another number of, None of none."""
    if pd.isna(value):
        return None
    return next((one for one in choices if one is not None and (one == value or str(one) == str(value))), None)


def _check_unconditional(spec: StudySpec, label: str, place: Path) -> None:
    """Refuse a space of which some settings lack parameters: a forest over all of them would have to make them up."""
    if search_of(spec, label).space.conditions:
        raise SpecError(
            f"{place}: search.space.{label}: {spec.search.space[label]} has parameters that only some settings have; "
            "superft simulate has no surrogate for those, give it a study of another space"
        )


def _check_same(first: Path, one: Table, second: Path, other: Table) -> None:
    """Refuse tables whose values cannot be compared."""
    where = f"{first} and {second} cannot be one table"
    for line in differences(other.spec, one.spec):
        key = line.partition(":")[0]
        if key.partition(".")[0] not in MAY_DIFFER and not key.startswith("defense."):
            raise SpecError(f"{where}: {key} differs; simulate them apart")
    if one.search.defense != other.search.defense:
        raise SpecError(f"{where}: {one.search.defense} and {other.search.defense}; choose one with --defense")
    if dict(one.search.fixed) != dict(other.search.fixed):
        raise SpecError(f"{where}: other settings of {one.label} are fixed; simulate them apart")
    for name in sorted({*one.space, *other.space}):
        if one.space.get(name) != other.space.get(name):
            ranges = f"{one.space.get(name, 'not searched')}, {other.space.get(name, 'not searched')}"
            raise SpecError(f"{where}, they are of two spaces: {name} ({ranges}); simulate them apart")


def export(table: Table, directory: Path) -> None:
    """Write the table as plain CSV, and what its columns are as JSON, for other programs and for `read_table`."""
    directory.mkdir(parents=True, exist_ok=True)
    about = {
        "what": "Settings of a backdoor defense and what they come to; a row of the CSV is a setting on a cell.",
        "rows": CSV_FILE,
        "defense": table.label,
        "objectives": {"asr": "minimize", "clean_accuracy": "maximize"},
        "columns": {
            "setting": "number of the setting; rows that share it differ in their cell alone",
            "attack": "name of the attack",
            "seed": "of the attacker: another victim",
            "defense_seed": "of the defender: other clean images, another order",
            "asr": "attack success rate after the repair, search half of the test set, fraction",
            "clean_accuracy": "accuracy on clean images after the repair, search half, fraction",
            "accuracy_before": "the same before the repair",
            "epochs": "cost in E: one E is a training epoch on the attacker's whole training set",
            "seconds": "time of the trial on the machine that ran it",
        },
        "space": {name: _described(item) for name, item in table.space.items()},
        "fixed": dict(table.search.fixed),
        "published": table.search.space.paper_params(),
        "samplers": list(table.samplers),
        # Where one machine keeps its victims and data is nobody else's business.
        "study": {**table.spec.model_dump(mode="json"), "store": None, "data_root": None},
    }
    write_atomically(directory / JSON_FILE, (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(directory / CSV_FILE, table.frame.to_csv(index=False).encode())


def _described(item: BaseDistribution) -> dict[str, Any]:
    if isinstance(item, CategoricalDistribution):
        return {"type": "choice", "choices": list(item.choices)}
    kind = "integer" if type(item).__name__.startswith("Int") else "real"
    low, high, log = (getattr(item, name) for name in ("low", "high", "log"))
    return {"type": kind, "low": low, "high": high, "scale": "log" if log else "linear"}
