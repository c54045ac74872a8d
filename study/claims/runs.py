"""The runs of finished studies as claims need them: what each was run under, and what it measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.claims.paper import AS_VICTIM, CONDITIONS, Conditions, Span
from study.record.columns import to_frame
from study.results.outcomes import outcome_of
from study.results.scores import WORST
from study.spec.schema import StudySpec
from study.spec.sweep import combinations
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.training.recipes import RECIPES, TrainingRecipe

Row = Mapping[str, Any]

AS_PUBLISHED = "as published"
RATE = "poison_rate"
ROUNDING = 1e-6


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


@dataclass(frozen=True)
class Difference:
    """A condition, or a setting, in which a run is not what the paper ran; ``text`` names both sides."""

    condition: str
    text: str


def read_runs(spec: StudySpec, rows: Sequence[Row], stand_ins: Mapping[str, str] | None = None) -> list[Run]:
    """The runs of one study; those on clean models left out.

    Args:
        spec: of the study.
        rows: of its ledger.
        stand_ins: data set of a row -> data set of the paper that the user says it is.
    """
    if not rows:
        return []
    outcomes = list(outcome_of(to_frame(rows)))
    specs = {one.name: one.spec for one in combinations(spec)}
    return [
        _run(specs[row.get("combination") or ""], row, outcome, stand_ins or {})
        for row, outcome in zip(rows, outcomes, strict=True)
        if row.get("role") != "control"
    ]


def distinct(runs: Iterable[Run]) -> list[Run]:
    """Each repair of a victim once: studies that share victims may have run the same one."""
    return list({run.identity: run for run in reversed(list(runs))}.values())[::-1]


def differences(run: Run, conditions: Conditions) -> tuple[Difference, ...]:
    """The conditions that a run does not keep, in the order of CONDITIONS."""
    found = []
    for name in CONDITIONS:
        wanted = conditions.get(name)
        ours = run.conditions.get(name)
        if wanted is None or (name == RATE and ours is None):  # an attack that poisons no data
            continue
        kept = wanted.low <= ours <= wanted.high if isinstance(wanted, Span) and ours is not None else False
        if not kept and not (isinstance(wanted, tuple) and any(_same(ours, one) for one in wanted)):
            found.append(difference(name, ours, wanted))
    return tuple(found)


def setting_differences(run: Run, stated: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The stated settings that the run's defense has not."""
    found = []
    for key, wanted in stated.items():
        value = run.victim_lr if wanted == AS_VICTIM else wanted
        if not _same(run.settings.get(key), value):
            found.append(difference(key, run.settings.get(key), (value,), " (the victims')" if value != wanted else ""))
    return tuple(found)


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


def _run(spec: StudySpec, row: Row, outcome: str, stand_ins: Mapping[str, str]) -> Run:
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
        "passes": _passes(row),
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
    )


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
