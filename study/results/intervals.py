"""How far a mean over runs may be off: by which attackers were drawn, and by how few test images there were.

Runs of several attackers (seeds of the attack) differ by more than their test images tell, and all of them are measured
on the same images. So an interval has two parts, and neither counts an image twice:

- *Attackers*: Student's interval from the values with one attacker left out at a time (jackknife; for a mean it is the
  usual t interval over the attackers' means). Defenders belong to their attacker. Of one attacker nothing is known of
  the spread, and `Estimate.attackers` says so.
- *Test images*: Wilson's interval of the rate on the images of one run, or for what is no rate the same by drawing.

The two are joined end by end as independent parts of one error (Zou and Donner 2008, "Construction of confidence limits
about effect measures: a general approach", Statistics in Medicine 27). What no interval can tell is an attacker unlike
all that were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from study.results.rows import ALL_ATTACKS, GROUP, true_status, without_beside
from study.results.scores import NOT_IMPLANTED
from study.spec.over_attacks import MEAN, OverAttacks, parse_rule
from trainables.evaluation.metrics import wilson

Array = NDArray[np.float64]
# Values of something for D pairs of (ASR, accuracy) of P points each, (D, P) and (D, P) -> (D,).
Statistic = Callable[[Array, Array], Array]

DRAWS = 2000
DRAWS_SEED = 2022  # of the intervals alone: the same ledger gives the same page
LEVEL = 95.0
ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, of 95 % unless it was asked for at another level.

    Args:
        value: of all runs together.
        low, high: equal to the value where nothing is known of the number of test images.
        attackers: how many stand behind it. Of one the interval knows of test images alone.
    """

    value: float
    low: float
    high: float
    attackers: int = 1

    def in_words(self, digits: int, unit: float = 1.0) -> str:
        """``0.30 [0.10, 0.50]``, in parts of ``unit``; of one attacker the value alone, for it tells of no others."""
        value, low, high = (f"{part / unit:.{digits}f}" for part in (self.value, self.low, self.high))
        return value if self.attackers < 2 else f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Counted:
    """What P points were measured as in C cells.

    Args:
        asr, accuracy: rates, (P, C).
        n_triggered, n_clean: test images behind them, (C,); 0 where it is not known.
        seeds: of the attacker, (C,).
        attacks: of each cell, (C,); needed by a ``rule`` that takes some attacks alone.
    """

    asr: Array
    accuracy: Array
    n_triggered: Array
    n_clean: Array
    seeds: NDArray[np.int64]
    attacks: NDArray[np.object_] | None = None
    rule: OverAttacks = MEAN


def reach(without_one: Sequence[float], level: float = LEVEL) -> float:
    """Half the width of Student's interval, from the values with each one of the units left out; NaN below two."""
    n = len(without_one)
    if n < 2:  # nothing is known of the spread
        return math.nan
    return float(student(n, level) * ((n - 1) * float(np.var(without_one))) ** 0.5)


def student(n: Any, level: float = LEVEL) -> Any:
    """Quantile of Student's t of an interval over ``n`` units (a number or an array), n >= 2."""
    return stdtrit(n - 1, 0.5 + level / 200)


def mean_interval(values: Array) -> tuple[Array, Array, Array]:
    """Mean over the first axis, of rates or areas, with Student's 95 % interval, cut to [0, 1]; of one all of it."""
    mean = values.mean(axis=0)
    if len(values) < 2:  # nothing is known of the spread
        return mean, np.zeros_like(mean), np.ones_like(mean)
    far = student(len(values)) * values.std(axis=0, ddof=1) / len(values) ** 0.5
    return mean, np.maximum(0.0, mean - far), np.minimum(1.0, mean + far)


def jackknife(value: float, without_one: Sequence[float]) -> Estimate:
    """A difference of rates with its interval over units alone; of one unit it is all that can be, [-1, 1]."""
    far = reach(without_one)
    far = 2.0 if math.isnan(far) else far
    return Estimate(value, max(-1.0, value - far), min(1.0, value + far), len(without_one))


def joined(value: float, images: tuple[float, float], far: float, least: float, most: float) -> tuple[float, float]:
    """Ends of the interval of a value that may be off by test images and by attackers (``far``; NaN: of one alone)."""
    far = 0.0 if math.isnan(far) else far
    low, high = value - math.hypot(far, value - images[0]), value + math.hypot(far, images[1] - value)
    return max(least, low), min(most, high)


def interval(rate: Any, n: Any, far: Any = math.nan) -> tuple[float, float] | None:
    """95 % interval of a mean rate.

    Args:
        rate: in [0, 1].
        n: test images of one run; all runs share them.
        far: `reach` of the attackers; NaN of one.

    Returns:
        None if rate or n is unknown.
    """
    if pd.isna(rate) or pd.isna(n) or n < 1:
        return None
    value = float(rate)
    return joined(value, wilson(round(value * int(n)), int(n)), math.nan if pd.isna(far) else float(far), 0.0, 1.0)


def estimate(
    counted: Counted,
    statistic: Statistic,
    *,
    least: float = 0.0,
    most: float = 1.0,
    shared_luck: bool = True,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Estimate:
    """A number that is made from the mean rates of points, with its interval.

    Args:
        counted: what the points were measured as.
        statistic: the number.
        least, most: what it can be.
        shared_luck: see `drawn_rates`.
        level: in percent.
        draws: of the part that test images have.
    """
    everything = np.ones(len(counted.seeds), dtype=bool)

    def of(asr: Array, accuracy: Array, kept: NDArray[np.bool_]) -> Array:
        return statistic(_together(asr, counted, kept, True), _together(accuracy, counted, kept, False))

    def measured(kept: NDArray[np.bool_]) -> float:
        return float(of(counted.asr[..., None], counted.accuracy[..., None], kept)[0])

    value, attackers = measured(everything), np.unique(counted.seeds)
    far = reach([measured(counted.seeds != one) for one in attackers] if len(attackers) > 1 else [], level)
    images = (value, value)
    if (counted.n_triggered > 0).all() and (counted.n_clean > 0).all():
        of_draws = of(*drawn_rates(counted, draws, shared_luck=shared_luck), everything)
        ends = np.percentile(of_draws, [(100 - level) / 2, (100 + level) / 2])
        # The value itself bounds both sides, as it does in a Wilson interval at 0 of n.
        images = (min(value, float(ends[0])), max(value, float(ends[1])))
    return Estimate(value, *joined(value, images, far, least, most), len(attackers))


def difference(counted: Counted, rate: Literal["asr", "accuracy"], level: float = LEVEL) -> Estimate:
    """A rate of the first point less that of the second, which had the same attackers, with its interval."""

    def less(asr: Array, accuracy: Array) -> Array:
        values = asr if rate == "asr" else accuracy
        return np.asarray(values[:, 0] - values[:, 1])

    return estimate(counted, less, least=-1.0, most=1.0, shared_luck=False, level=level)


def drawn_rates(
    counted: Counted, draws: int = DRAWS, seed: int = DRAWS_SEED, *, shared_luck: bool = True
) -> tuple[Array, Array]:
    """Plausible (ASR, accuracy) of the points given how many test images there were, each (P, C, draws).

    A rate is drawn for each count k of n from Beta(k + 1/2, n - k + 1/2) (Jeffreys): binomial counts would call 0 of
    226 certain. Clean and triggered images have luck of their own. All cells are measured on the same images, so each
    takes the same quantile of its own distribution: many runs are no more certain than one.

    How far two points err on the same images, counts do not tell. So the wide side is taken, which depends on what is
    asked:

    - Of an area, ``shared_luck``: all points take the same quantile, too. Independent draws would call many points more
      certain than one, and lucky maxima would push the area up.
    - Of the difference between two points, not: each takes a quantile of its own, as if they erred on other images. A
      shared one would cancel, and call a difference of a point certain on 500 images.
    """
    rng = np.random.default_rng(seed)

    def rates(values: Array, counts: Array) -> Array:
        hits = np.rint(values * counts)
        ends = hits[..., None] + 0.5, (counts - hits)[..., None] + 0.5
        ordered = np.sort(rng.beta(*ends, (*values.shape, draws)), axis=2)
        own = (1 if shared_luck else len(values), 1)
        luck = rng.permuted(np.broadcast_to(np.arange(draws), (*own, draws)), axis=2)
        return np.asarray(np.take_along_axis(ordered, np.broadcast_to(luck, ordered.shape), axis=2))

    return rates(counted.asr, counted.n_triggered), rates(counted.accuracy, counted.n_clean)


def counted_settings(rows: pd.DataFrame, settings: pd.DataFrame) -> Counted | None:
    """What searched settings of one search were measured as on the report half; None where something is not known.

    Args:
        rows: of the ledger.
        settings: rows of ``settings.aggregate`` of one GROUP, in whose order the points come.
    """
    first = settings.iloc[0]
    own = without_beside(rows)
    own = own[own["trial"].isin(settings["trial"]) & own["role"].fillna("search").eq("search")]
    for key in GROUP:
        if not (key == "attack" and first[key] == ALL_ATTACKS):
            own = own[own[key] == first[key]]
    own = own[true_status(own) != NOT_IMPLANTED]
    counts = ["n_triggered_report", "n_clean_report"]
    values = ["asr_report", "clean_accuracy_report", *counts]
    if not len(own) or own[values].isna().any(axis=None):
        return None
    cell = ["seed", "defense_seed", "attack"]
    wide = own.astype(dict.fromkeys(values, "float64")).pivot(index="trial", columns=cell, values=values)
    wide = wide.loc[settings["trial"]]
    if wide.isna().any(axis=None):
        return None
    n_triggered, n_clean = (wide[name].iloc[0].to_numpy(dtype=float) for name in counts)
    asr, accuracy = (wide[name].to_numpy(dtype=float) for name in ("asr_report", "clean_accuracy_report"))
    of_cell = wide["asr_report"].columns
    seeds = of_cell.get_level_values("seed").to_numpy(dtype=np.int64)
    attacks = of_cell.get_level_values("attack").to_numpy(dtype=object)
    return Counted(asr, accuracy, n_triggered, n_clean, seeds, attacks, parse_rule(str(first["aggregate"])))


def _together(rates: Array, counted: Counted, kept: NDArray[np.bool_], high_is_worst: bool) -> Array:
    """Cells taken together, (D, P), of rates (P, C, D): their mean, or attacks by the rule."""
    if counted.rule == MEAN or counted.attacks is None:
        return np.asarray(rates[:, kept].mean(axis=1).T)
    attacks = counted.attacks[kept]
    means = [rates[:, kept][:, attacks == attack].mean(axis=1).T for attack in np.unique(attacks)]
    ordered = np.sort(np.stack(means), axis=0)
    ordered = ordered[::-1] if high_is_worst else ordered
    return np.asarray(np.einsum("kdp,k->dp", ordered, counted.rule.shares(np.arange(len(means)), len(means))))
