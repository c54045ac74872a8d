"""Racing: a setting that is scored on many cells is dropped once it is dominated beyond doubt.

A search over n cells (attacks, seeds, defense seeds) scores a setting by its mean ASR and mean clean accuracy over all
of them. Cells are measured one after the other, in an order drawn for each setting; after k of them two bounds say what
the means over all n can still come to, had one the patience:

- *ASR*, at least: the sum over the measured cells divided by n, for no cell has less than 0. That is certain, and near
  a front, where ASRs are near 0, it is sharp: one failed repair of six decides. No statistics here, since after a repair
  the ASR of a cell is near 0 or near 1, and no test for means holds on five draws of such a variable.
- *Accuracy*, at most: two-way analysis of variance. With the fully measured settings of this search, F of them, accuracy
  is setting + cell + deviation. The cells' effects are means over the F settings, so that a setting is compared with its
  rivals on the very cells it was measured on (a paired comparison), and s2, the variance of the deviations, is pooled
  over the F settings, with f = (F - 1)(n - 1) degrees of freedom. For independent normal deviations of one variance the
  mean over n cells less the mean over k of what the cells' effects leave has variance
  sigma2 (1/k - 1/n)(1 + 1/F), so it is at most  t(1 - p, f) s sqrt((1/k - 1/n)(1 + 1/F))  with probability 1 - p. The
  missing cells cannot exceed 1 either: the lesser of both bounds counts.

A setting is dropped if **one** fully measured rival has an ASR of at most the first bound + margin, an accuracy of at
least the second - margin, and is better than the bound in one of the two.

*Error rate.* Call a setting good if no rival dominates it up to the margin in the means over all cells. A good one is
dropped only where its accuracy bound failed: if both bounds hold, what they say of a rival is true of the means too. So
neither the number of rivals nor that of the objectives matters; what does is how often a bound is computed, n - 1 times
for each of T settings. With p = alpha / (T (n - 1)) (Bonferroni) a search drops no good setting at all with probability
1 - alpha at least, whatever the sampler does.

*What a front can lose.* A dropped setting lies at most the margin before its rival in either rate, and that rival stays
(it is fully measured, so nothing is dropped by something that is dropped). The hypervolume is therefore less by 2 margin
at most, and by nothing with a margin of 0.

*What is assumed.* Deviations of one variance. Ruined models have larger ones; they are in the pool while they are fully
measured, which widens the bound. And deviations that do not depend on which cells come first: cells are drawn, and what
counts is the beginning of the drawn order, not what happens to end first (a repair that diverges ends early).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from study.results.finished import Place
from study.results.scores import Values
from trainables.seeding import derive_seed

Array = NDArray[np.float64]


def least_asr(measured: Sequence[float], cells: int) -> float:
    """The least mean ASR over all ``cells`` that is still possible."""
    return math.fsum(measured) / cells


class AccuracyBound:
    """The most that a mean accuracy over all cells can come to, see above.

    Args:
        known: accuracies of the fully measured settings, (F, n).
    """

    def __init__(self, known: Array) -> None:
        count, cells = known.shape
        self.cells, self.settings = cells, count
        self.freedom = (count - 1) * (cells - 1)
        self.deviation = math.inf
        if self.freedom > 0:
            self.effects = known.mean(axis=0) - known.mean()
            rest = known - known.mean(axis=1, keepdims=True) - self.effects
            self.deviation = math.sqrt(float((rest**2).sum()) / self.freedom)

    def most(self, places: Sequence[int], measured: Sequence[float], chance: float) -> float:
        """Exceeded with the probability ``chance`` at most.

        Args:
            places: columns of ``known`` on which a setting was measured, one at least.
            measured: its accuracies there.
        """
        done = len(places)
        certain = (math.fsum(measured) + self.cells - done) / self.cells
        if not math.isfinite(self.deviation):
            return certain
        centre = float(np.mean(np.asarray(measured) - self.effects[list(places)]))
        spread = math.sqrt((1 / done - 1 / self.cells) * (1 + 1 / self.settings))
        return min(certain, centre + float(student.isf(chance, self.freedom)) * self.deviation * spread)


class Race:
    """The race of one search.

    Args:
        places: of the cells that count, those of victims without a backdoor left out; one at least.
        alpha: probability that the search drops any setting that no rival dominates, in (0, 1).
        margin: by so much in a rate a rival may be worse, a fraction in [0, 1).
        settings: of the search, >= 1.
        seed: of the study; decides the order of cells.
    """

    def __init__(self, places: Iterable[Place], *, alpha: float, margin: float, settings: int, seed: int) -> None:
        self.places = sorted(places)
        self._column = {place: column for column, place in enumerate(self.places)}
        self._margin, self._seed = margin, seed
        self._chance = alpha / (settings * max(1, len(self.places) - 1))
        self._known: dict[str, Array] = {}
        self._bound: AccuracyBound | None = None

    def order(self, trial: str) -> list[Place]:
        """The cells of a setting in the order in which they are measured: drawn once for its id."""
        draw = np.random.default_rng(derive_seed(self._seed, "race", trial))
        return [self.places[column] for column in draw.permutation(len(self.places))]

    def add(self, trial: str, values: Mapping[Place, Values]) -> None:
        """A rival: a setting with values, ``(ASR, clean accuracy)``, on all of its cells."""
        self._known[trial] = np.array([values[place] for place in self.places])
        self._bound = None

    def rival(self, trial: str, values: Mapping[Place, Values]) -> str | None:
        """The rival that dominates a setting beyond doubt; None if there is none.

        The answer follows from the rivals and the values alone, in whatever order they came.

        Args:
            values: on the cells measured so far.
        """
        seen: list[Place] = []
        for place in self.order(trial):
            if place not in values:
                break
            seen.append(place)
        if not seen or len(seen) == len(self.places) or not self._known:
            return None
        names = sorted(self._known)
        known = np.stack([self._known[name] for name in names])
        if self._bound is None:
            self._bound = AccuracyBound(known[:, :, 1])
        least = least_asr([values[place][0] for place in seen], len(self.places))
        columns, accuracies = [self._column[place] for place in seen], [values[place][1] for place in seen]
        most = self._bound.most(columns, accuracies, self._chance)
        asr, accuracy = known.mean(axis=1).T
        better = (asr < least) | (accuracy > most)
        found = np.flatnonzero(better & (asr <= least + self._margin) & (accuracy >= most - self._margin))
        # Of several, the one that is farthest ahead: people look at it.
        ahead = (least - asr) + (accuracy - most)
        return names[max(found, key=lambda place: (ahead[place], -place))] if len(found) else None
