"""The runs of finished studies as claims need them: what each was run under, and what it measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from study.claims.paper import AS_VICTIM, CONDITIONS, PASSES, Conditions, Span
from study.record.columns import to_frame
from study.record.curves import KEY
from study.record.ledger import row_key
from study.results.outcomes import NO_BACKDOOR, outcome_of
from study.results.scores import WORST
from study.spec.schema import StudySpec
from study.spec.sweep import combinations
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.evaluation.conditions import why_collapsed
from trainables.training.recipes import RECIPES, TrainingRecipe

Row = Mapping[str, Any]

AS_PUBLISHED = "as published"
RATE = "poison_rate"
ROUNDING = 1e-6


@dataclass(frozen=True)
class Point:
    """The model on the way: after so many passes over the clean set; ``outcome`` and ``values`` as of a `Run`."""

    passes: float
    outcome: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One trial: conditions, settings and results.

    Args:
        study: its name.
        attack, method, label: registered attack and defense, and the defense's name in the study.
        conditions: by the names of CONDITIONS; None where a row does not tell.
        settings: all of the defense.
        victim_lr: peak rate of the victim's own training.
        seed, defense_seed: of the attacker and of the defender.
        outcome: as `study.results.outcomes`.
        values: ASR, clean accuracy, ASR before the repair; of failed trials none, of a collapsed model the worst.
        n_triggered, n_clean: test images behind them.
        identity: equal for the same repair of the same victim, whatever study it is in.
        curve: the points along the repair at which the very model was measured that was handed back in the end.
    """

    study: str
    attack: str
    method: str
    label: str
    conditions: Mapping[str, Any]
    settings: Mapping[str, Any]
    victim_lr: float
    seed: int
    defense_seed: int
    outcome: str
    values: Mapping[str, float]
    n_triggered: float
    n_clean: float
    victim: str
    identity: tuple[Any, ...]
    curve: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A condition, or a setting, in which a run is not what the paper ran; ``text`` names both sides."""

    condition: str
    text: str


def read_runs(
    spec: StudySpec,
    rows: Sequence[Row],
    stand_ins: Mapping[str, str] | None = None,
    curves: pd.DataFrame | None = None,
) -> list[Run]:
    """The runs of one study; those on clean models left out.

    Args:
        spec: of the study.
        rows: of its ledger.
        stand_ins: data set of a row -> data set of the paper that the user says it is.
        curves: along these repairs, of `study.record.curves.read_curves`; None: there are none.
    """
    if not rows:
        return []
    outcomes = list(outcome_of(to_frame(rows)))
    specs = {one.name: one.spec for one in combinations(spec)}
    points = _points(curves)
    return [
        _run(specs[row.get("combination") or ""], row, outcome, stand_ins or {}, points.get(row_key(row), []))
        for row, outcome in zip(rows, outcomes, strict=True)
        if row.get("role") != "control"
    ]


def distinct(runs: Iterable[Run]) -> list[Run]:
    """Each repair of a victim once, with its curve if one has it: studies that share victims may have run the same."""
    found: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        held = found.pop(run.identity, run)
        found[run.identity] = run if run.curve and not held.curve else held
    return list(found.values())


def as_looked_at(run: Run, conditions: Conditions) -> Run:
    """The run at the point of its repair that the conditions look at, see `Span`: on its curve, else at its end."""
    wanted = conditions.get(PASSES)
    if not isinstance(wanted, Span) or (near := wanted.near) is None or run.outcome == NO_BACKDOOR:
        return run
    if (ours := run.conditions[PASSES]) is not None and wanted.holds(ours):
        return run
    there = [point for point in run.curve if wanted.holds(point.passes)]
    if not there:
        return run
    point = min(there, key=lambda one: abs(one.passes - near))
    return dataclasses.replace(
        run,
        conditions={**run.conditions, PASSES: point.passes},
        outcome=point.outcome,
        values={**run.values, **point.values},
    )


def differences(run: Run, conditions: Conditions) -> tuple[Difference, ...]:
    """The conditions that a run does not keep, in the order of CONDITIONS."""
    found = []
    for name in CONDITIONS:
        wanted = conditions.get(name)
        ours = run.conditions.get(name)
        if wanted is None or (name == RATE and ours is None):  # an attack that poisons no data
            continue
        if isinstance(wanted, Span):
            kept = ours is not None and wanted.holds(ours)
            more = "" if wanted.near is None else ", and no point of a curve there"
        else:
            kept, more = any(_same(ours, one) for one in wanted), ""
        if not kept:
            found.append(difference(name, ours, wanted, more))
    return tuple(found)


def setting_differences(run: Run, stated: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The stated settings that the run's defense has not."""
    return tuple(
        difference(key, run.settings.get(key), tuple(_stated_in_words(run, one) for one in choices(wanted)))
        for key, wanted in stated.items()
        if not any(has_setting(run, key, one) for one in choices(wanted))
    )


def choices(wanted: Any) -> tuple[Any, ...]:
    """The values that a claim allows for a setting, each of which will do."""
    return tuple(wanted) if isinstance(wanted, list) else (wanted,)


def has_setting(run: Run, key: str, wanted: Any) -> bool:
    """Whether the run's defense has this value of a setting, which may be that of the victim's own training."""
    return _same(run.settings.get(key), run.victim_lr if wanted == AS_VICTIM else wanted)


def _stated_in_words(run: Run, wanted: Any) -> str:
    return f"{in_words(run.victim_lr)} (the victims')" if wanted == AS_VICTIM else in_words(wanted)


def difference(name: str, ours: Any, wanted: tuple[Any, ...] | Span, more: str = "") -> Difference:
    """``width 8, not 64``: our value of a condition, and the values that the paper has."""
    theirs = f"{wanted.low:g} to {wanted.high:g}" if isinstance(wanted, Span) else " or ".join(map(in_words, wanted))
    return Difference(name, f"{CONDITIONS.get(name, name)} {in_words(ours)}, not {theirs}{more}".strip())


def in_words(value: Any) -> str:
    """A value as it stands in a sentence."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _same(ours: Any, wanted: Any) -> bool:
    if isinstance(ours, int | float) and isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return abs(ours - wanted) <= ROUNDING * max(abs(ours), abs(wanted))
    return bool(ours == wanted)


def _run(
    spec: StudySpec, row: Row, outcome: str, stand_ins: Mapping[str, str], points: Iterable[Mapping[str, Any]]
) -> Run:
    settings = _with_later(str(row["defense"]), json.loads(row.get("resolved_settings") or "{}"))
    attack = str(row["attack"])
    recipe, victim_lr = _recipe(spec)
    conditions = {
        **{name: row.get(name) for name in CONDITIONS},
        # Rows of earlier versions do not tell: there was none.
        **{name: row.get(name) or 0.0 for name in ("label_noise", "residual_poison")},
        "dataset": stand_ins.get(row["dataset"], row["dataset"]),
        "training_images": row.get("train_size"),
        "recipe": recipe,
        "attack_settings": _attack_settings(attack, spec.attack.get(attack, {})),
        PASSES: _passes(row),
    }
    measured = outcome != "failed"
    values = {name: row[name] for name in ("asr", "clean_accuracy", "asr_before") if measured and _is_there(row, name)}
    if outcome == "collapsed":  # its ASR is low by accident
        values |= dict(zip(("asr", "clean_accuracy"), WORST, strict=True))
    victim = row.get("victim") or f"{row['study']}/{attack}/{row['seed']}"
    defense_seed = row.get("defense_seed") or 0
    spoilt = (conditions["label_noise"], conditions["residual_poison"])
    held = (row.get("clean_fraction"), row.get("clean_source"), row.get("scenario"), *spoilt)
    return Run(
        study=str(row["study"]),
        attack=attack,
        method=str(row["defense"]),
        label=str(row.get("defense_label") or row["defense"]),
        conditions=conditions,
        settings=settings,
        victim_lr=victim_lr,
        seed=row["seed"],
        defense_seed=defense_seed,
        outcome=outcome,
        values=values,
        n_triggered=row.get("n_triggered") or 0,
        n_clean=row.get("n_clean") or 0,
        victim=victim,
        identity=(victim, row["defense"], json.dumps(settings, sort_keys=True), defense_seed, *held),
        curve=tuple(_point(row, point) for point in points),
    )


def _points(curves: pd.DataFrame | None) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The points of each row's curve; those of models that were not handed back, such as a teacher, left out."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    if curves is not None:
        for point in curves[curves["kept"].isin([True])].to_dict("records"):
            found.setdefault(tuple(point[name] for name in KEY), []).append(
                {str(name): value for name, value in point.items()}
            )
    return found


def _point(row: Row, point: Mapping[str, Any]) -> Point:
    """A point of a curve, judged as a row is: a model that collapsed by then is the worst there is.

    A curve tells no more of a collapse than the accuracy. What the largest class alone would give is not in the row:
    the share of a class where all are equally large is the least that it can be.
    """
    classes = len(json.loads(row.get("accuracy_by_class") or "[]"))
    ruined = why_collapsed(point["clean_accuracy"], 1 / classes if classes else 0.0, None, None) is not None
    values = WORST if ruined else (point["asr"], point["clean_accuracy"])
    names = ("asr", "clean_accuracy")
    return Point(point["passes"], "collapsed" if ruined else "ok", dict(zip(names, values, strict=True)))


def _with_later(defense: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a row has them, with those that its version did not know: their defaults change nothing."""
    if not settings or defense not in DEFENSES.names():
        return settings
    return {**dataclasses.asdict(DEFENSES.create(defense)), **settings}


def _is_there(row: Row, name: str) -> bool:
    return isinstance(row.get(name), int | float)


def _recipe(spec: StudySpec) -> tuple[str, float]:
    """How the victims were trained, in words, and its rate."""
    name = spec.victim.recipe
    assert name is not None  # of one combination, and so complete
    recipe: TrainingRecipe = RECIPES[name]
    given = {key: getattr(spec.victim, key) for key in ("epochs", "batch_size", "lr", "weight_decay")}
    changed = {key: value for key, value in given.items() if value is not None and value != getattr(recipe, key)}
    words = " and ".join(f"{key} {in_words(value)}" for key, value in changed.items())
    return f"{name} with {words}" if words else name, changed.get("lr", recipe.lr)


def _attack_settings(attack: str, given: Mapping[str, Any]) -> str:
    """In what an attack is not as published, in words; its poison rate is a condition of its own."""
    published = ATTACKS.create(attack)
    changed = {key: value for key, value in sorted(given.items()) if getattr(published, key, None) != value}
    return ", ".join(f"{key} {in_words(value)}" for key, value in changed.items() if key != RATE) or AS_PUBLISHED


def _passes(row: Row) -> float | None:
    """How often the repair went through the defender's images; None where the row does not tell."""
    steps, batch, n, share = (row.get(name) for name in ("steps", "batch", "train_size", "clean_fraction"))
    if steps is None or not batch or not n or not share:
        return None
    return float(steps * batch / (n * share))
