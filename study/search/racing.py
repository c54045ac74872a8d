"""Racing: a setting that is scored on many cells is dropped once it is dominated beyond doubt.

A search over n cells (attacks, seeds, defense seeds) scores a setting by its mean ASR and mean clean accuracy over all
of them. Cells are measured one after the other, in an order drawn for each setting. After k of them two bounds say what
its means over all n may still come to:

- *ASR*, at least: the sum over the measured cells divided by n, for no cell has less than 0. That is certain, and near
  a front, where ASRs are near 0, it is sharp: one failed repair of six decides. There is no statistics in it: after a
  repair the ASR of a cell is near 0 or near 1, and no test of means holds on a few draws of such a variable.
- *Accuracy*, at most: two-way analysis of variance. With F fully measured settings of this search, the more accurate
  half of them (all of the first ten), an accuracy is setting + cell + deviation. The effects of cells are means over
  the F settings, so that a setting is compared with its rivals on the very cells that it was measured on (a paired
  comparison). The variance s2 of the deviations is pooled over the F settings and has f = (F - 1)(n - 1) degrees of
  freedom. For independent normal deviations of one variance sigma2, a setting's mean over n cells less its mean over
  k of them, both without the cells' effects, has variance sigma2 (1/k - 1/n)(1 + 1/F); so it exceeds t(1 - p, f) s
  sqrt((1/k - 1/n)(1 + 1/F)) with probability p. Nor can a missing cell exceed 1: the lesser of both bounds counts.

A setting is dropped if **one** fully measured rival has an ASR of at most the first bound + margin and an accuracy of
at least the second - margin, and is better than the bound in one of the two.

*Error rate.* Call a setting good if no rival dominates it up to the margin in the means over all cells. A good one is
dropped only where its accuracy bound failed: if both bounds hold, what they say of a rival is true of the means too. So
neither the number of rivals nor that of the objectives matters; what does is how many bounds are computed. Each look
after k cells gets a part of a setting's chance in proportion to the n - k cells that it may save, and a setting gets
alpha / (T - D): of T settings of the search, D are known not to be good, those that were dropped and those that were
measured and are dominated (Holm 1979: until the first error all D are not good indeed, so no good setting ever got more
than alpha over the number of good ones, and the sum over all of them is at most alpha). A search drops no good setting
at all with probability 1 - alpha at least, whatever the sampler does.

*What a front can lose.* A dropped setting is ahead of its rival by the margin at most, in one of the rates, and the
rival stays: it is fully measured, so nothing is dropped for the sake of something that is dropped. The hypervolume is
less by 2 margin at most, and with a margin of 0 by nothing.

*What is assumed.* Deviations of one variance among settings that may be good; damaged models have larger ones, hence
the half (of normal deviations, means tell nothing of the variance, so that choosing by them is no bias). And
deviations that do not depend on which cells come first: cells are drawn, and what counts is the beginning of the
drawn order, not what happens to end first (a repair that diverges ends early).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from study.results.finished import Place
from study.results.pareto import non_dominated_indices
from study.results.scores import Values
from trainables.seeding import derive_seed

Array = NDArray[np.float64]

# Settings of which deviations are pooled, at least: below, fewer degrees of freedom cost more than others' noise.
LEAST_POOLED = 10


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
        self.cells, self.settings = int(cells), int(count)
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
        self._alpha, self._margin, self._settings, self._seed = alpha, margin, settings, seed
        self._values: dict[str, Array] = {}
        self._dropped = set[str]()
        self._rivals: _Rivals | None = None

    def order(self, trial: str) -> list[Place]:
        """The cells of a setting in the order in which they are measured: drawn once for its id."""
        draw = np.random.default_rng(derive_seed(self._seed, "race", trial))
        return [self.places[column] for column in draw.permutation(len(self.places))]

    def add(self, trial: str, values: Mapping[Place, Values]) -> None:
        """A rival: a setting with values, ``(ASR, clean accuracy)``, on all of its cells."""
        self._values[trial] = np.array([values[place] for place in self.places])
        self._rivals = None

    def drop(self, trial: str) -> None:
        """A setting that is out of the race."""
        self._dropped.add(trial)

    def rival(self, trial: str, values: Mapping[Place, Values]) -> str | None:
        """The rival that dominates a setting beyond doubt; None if there is none.

        The answer follows from what is known of the rivals and of the setting, in whatever order it became known.

        Args:
            values: on the cells measured so far.
        """
        seen = [*itertools.takewhile(values.__contains__, self.order(trial))]
        done, cells = len(seen), len(self.places)
        if not 0 < done < cells or not self._values:
            return None
        if self._rivals is None:
            self._rivals = _Rivals(self._values, self._margin)
        candidates = max(1, self._settings - len(self._dropped) - self._rivals.beaten)
        chance = self._alpha / candidates * 2 * (cells - done) / (cells * (cells - 1))
        least = least_asr([values[place][0] for place in seen], cells)
        columns, accuracies = [self._column[place] for place in seen], [values[place][1] for place in seen]
        return self._rivals.ahead_of(least, self._rivals.bound.most(columns, accuracies, chance), self._margin)


class _Rivals:
    """The fully measured settings of a search."""

    def __init__(self, values: Mapping[str, Array], margin: float) -> None:
        names = sorted(values)  # so that sums do not depend on who came first
        known = np.stack([values[name] for name in names])
        means = known.mean(axis=1)
        accurate = np.argsort(-means[:, 1], kind="stable")[: max(LEAST_POOLED, (len(names) + 1) // 2)]
        self.bound = AccuracyBound(known[np.sort(accurate), :, 1])
        # Who is dominated, is by a member of the front.
        members = non_dominated_indices(means)
        self._names, self._front = [names[index] for index in members], means[members]
        self.beaten = int(self._ahead(means[:, :1], means[:, 1:], margin).any(axis=1).sum())

    def ahead_of(self, least: float, most: float, margin: float) -> str | None:
        """The one that is better than ASR ``least`` or accuracy ``most``, and in the other worse by the margin at most.

        Of several the one that is farthest ahead, since people look at it. None if there is none.
        """
        found = np.flatnonzero(self._ahead(least, most, margin))
        asr, accuracy = self._front.T
        ahead = (least - asr) + (accuracy - most)
        return self._names[max(found, key=lambda place: ahead[place])] if len(found) else None

    def _ahead(self, least: float | Array, most: float | Array, margin: float) -> NDArray[np.bool_]:
        """Which members of the front are ahead, see `ahead_of`; of several settings (n, 1), for each of them."""
        asr, accuracy = self._front.T
        near = (asr <= least + margin) & (accuracy >= most - margin)
        return np.asarray(near & ((asr < least) | (accuracy > most)))
