"""Ledger rows of a made-up study, for tests of what is computed from them. Nothing here was measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from study.record.columns import SCHEMA

ATTACKS = ("badnets", "blended")
N_CLEAN, N_TRIGGERED, N_TRAIN = 540, 486, 1257


def make_row(trial: str = "badnets/super_ft/0000", **changes: Any) -> dict[str, Any]:
    """One complete row; ``asr`` and ``clean_accuracy`` given alone are copied to both halves."""
    attack, defense, _ = trial.split("/")
    row: dict[str, Any] = {
        "study": "made-up",
        "trial": trial,
        "attack": attack,
        "defense": changes.get("defense", defense),
        "defense_label": changes.get("defense", defense),
        "dataset": "digits",
        "model": "preact_resnet18",
        "seed": 0,
        "defense_seed": 0,
        "status": "ok",
        "asr": 0.1,
        "clean_accuracy": 0.95,
        "robust_accuracy": 0.85,
        "asr_before": 0.99,
        "clean_accuracy_before": 0.985,
        "robust_accuracy_before": 0.01,
        "steps": 1000,
        "forward_samples": 64_000,
        "backward_samples": 64_000,
        "wall_seconds": 21.5,
        "peak_memory_bytes": 512_000_000,
        "device": "cpu",
        "versions": "torch 2.9.0; ray 2.57.0; optuna 4.6.0",
        "error": None,
        "role": "baseline" if trial.endswith("/baseline") else "search",
        "search": None if trial.endswith("/baseline") else trial.rpartition("/")[0],
        "schema": SCHEMA,
        "collapsed": False,
        "n_clean": N_CLEAN,
        "n_triggered": N_TRIGGERED,
        "n_clean_report": N_CLEAN // 2,
        "n_triggered_report": N_TRIGGERED // 2,
        "asr_base": 0.002,
        "false_target_rate": 0.001,
        "asr_before_report": 0.99,
        "clean_accuracy_before_report": 0.985,
        "robust_accuracy_before_report": 0.01,
        "train_size": N_TRAIN,
        "seconds_setup": 0.4,
        "seconds_repair": 20.1,
        "seconds_evaluate": 1.0,
        "started": "2026-01-31T12:00:00Z",
        "flags": [],
        "published": False,
        **changes,
    }
    for metric in ("asr", "clean_accuracy", "robust_accuracy"):
        row.setdefault(f"{metric}_search", row[metric])
        row.setdefault(f"{metric}_report", row[metric])
    return row


def point(number: int, asr: float, clean_accuracy: float, **changes: Any) -> dict[str, Any]:
    """A searched trial at a given place."""
    trial = f"badnets/super_ft/{number:04d}"
    return make_row(trial, **{"asr": asr, "clean_accuracy": clean_accuracy, **changes})


def failed_row(trial: str, error: str = "RuntimeError: out of memory", **changes: Any) -> dict[str, Any]:
    """A trial that crashed: no metrics, but the cause."""
    metrics = {
        f"{m}{h}": None for m in ("asr", "clean_accuracy", "robust_accuracy") for h in ("", "_search", "_report")
    }
    return make_row(trial, **metrics, status="failed", error=error, **changes)


def made_up_study(
    attacks: tuple[str, ...] = ATTACKS,
    defenses: tuple[str, ...] = ("super_ft",),
    trials: int = 40,
    seeds: tuple[int, ...] = (0,),
    seed: int = 0,
    per: str = "attack",
) -> list[dict[str, Any]]:
    """Rows of ``none``, ``ft``, ``scratch`` and of ``trials`` settings per attack and defense (0: published)."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for a, attack in enumerate(attacks):
        for s in seeds:
            common: dict[str, Any] = {"attack": attack, "seed": s}
            none = _measured(rng, 0.995, 0.985, common)
            rows.append(make_row(f"{attack}/none/baseline", **none, steps=0, forward_samples=0, backward_samples=0))
            rows.append(
                make_row(f"{attack}/ft/baseline", **_measured(rng, 0.985 - 0.1 * a, 0.99, common), **{"param.lr": 3e-4})
            )
            scratch = _measured(rng, 0.004, 0.965, common)
            rows.append(make_row(f"{attack}/scratch/baseline", **scratch, **{"param.lr": 0.1}, published=True))
    for d, defense in enumerate(defenses):
        for number in range(trials):
            owners = [attacks] if per == "all" else [(attack,) for attack in attacks]
            for owner in owners:
                settings = _settings(rng, first=number == 0)
                name = "all" if per == "all" else owner[0]
                for attack in owner:
                    for s in seeds:
                        trial = f"{name}/{defense}/{number:04d}"
                        rows.append(_searched(rng, trial, settings, attack, s, attacks.index(attack) + d))
    return rows


def _settings(rng: np.random.Generator, first: bool) -> dict[str, float | int]:
    if first:
        return {"param.lr_base": 3e-4, "param.lr_max1": 0.1, "param.lr_max2": 1e-3, "param.iterations": 500}
    log = rng.uniform
    return {
        "param.lr_base": float(10 ** log(-5, -2)),
        "param.lr_max1": float(10 ** log(-2, 0.3)),
        "param.lr_max2": float(10 ** log(-4, -1)),
        "param.iterations": int(10 ** log(1.7, 3.0)),
    }


def _searched(
    rng: np.random.Generator, trial: str, settings: dict[str, float | int], attack: str, seed: int, hardness: int
) -> dict[str, Any]:
    common: dict[str, Any] = {
        **settings,
        "attack": attack,
        "seed": seed,
        "steps": 2 * int(settings["param.iterations"]),
    }
    common["forward_samples"] = common["backward_samples"] = 64 * common["steps"]
    common["wall_seconds"] = 0.022 * common["steps"] + 1.5
    common["published"] = trial.endswith("/0000")
    chance = rng.random()
    if chance < 0.02:
        return failed_row(trial, **common)
    push = math.log10(settings["param.lr_max1"]) + 0.9 * math.log10(settings["param.iterations"] / 300)
    if chance < 0.04 or (settings["param.lr_max1"] > 1.6 and chance < 0.4):
        worst = {"asr": 1.0, "clean_accuracy": 0.0, "robust_accuracy": 0.0}
        return make_row(
            trial, **common, **worst, status="diverged", error="loss became NaN at step 143", flags=["diverged"]
        )
    asr = 1 / (1 + math.exp(6 * (push + 0.9 - 0.25 * hardness + rng.normal(0, 0.1))))
    cost = 0.004 + 0.03 / (1 + math.exp(-5 * (push - 0.1))) + 0.01 * max(0.0, math.log10(settings["param.lr_max2"]) + 2)
    return make_row(trial, **_measured(rng, asr, 0.996 - cost - abs(rng.normal(0, 0.003)), common))


def _measured(rng: np.random.Generator, asr: float, accuracy: float, common: dict[str, Any]) -> dict[str, Any]:
    """Counts of a finite test set around true rates, on both halves."""
    values: dict[str, Any] = dict(common)
    for metric, rate, n in (("asr", asr, N_TRIGGERED), ("clean_accuracy", accuracy, N_CLEAN)):
        halves = [int(rng.binomial(n // 2, min(max(rate, 0.0), 1.0))) for _ in range(2)]
        values |= {
            f"{metric}_search": halves[0] / (n // 2),
            f"{metric}_report": halves[1] / (n // 2),
            metric: sum(halves) / n,
        }
    for half in ("", "_search", "_report"):
        values[f"robust_accuracy{half}"] = (1 - values[f"asr{half}"]) * values[f"clean_accuracy{half}"]
    return values
