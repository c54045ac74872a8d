"""What any setting would come to on an attack, learned from a table: forests of extremely randomised trees.

Random forests are the surrogates of tabulated hyper-parameter benchmarks since Eggensperger et al. 2015 (AAAI,
"Efficient benchmarking of hyperparameter optimizers via surrogates"): they follow cliffs (a rate at which training
diverges), and never predict a rate outside of those that were measured. Extremely randomised trees (Geurts et al. 2006)
cut at random places, which leaves smaller steps between neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from search_spaces.space import fingerprint
from study.simulate.table import Table
from study.spec.yaml_io import SpecError
from trainables.seeding import derive_seed

TREES, FOLDS, NEIGHBOURS = 100, 5, 20
RATES, COSTS = ("asr", "clean_accuracy"), ("epochs", "seconds")


@dataclass(frozen=True)
class Answer:
    """What a setting comes to: ``asr`` and ``clean_accuracy`` as a search is told them, E and seconds."""

    asr: float
    clean_accuracy: float
    epochs: float
    seconds: float


class Surrogate:
    """One attack of a table.

    Args:
        table: where to learn from.
        attack: which of its attacks.

    Attributes:
        settings: how many it learned from.
        before: clean accuracy before a repair, search half, the mean over the cells.
        errors: by `RATES` and `COSTS`, what 5-fold cross-validation says: ``mae``, the mean absolute error (of costs
            relative to the value), and ``r2``, the share of the variance that is explained.
        noise: for each setting with several cells what these deviate from its mean, (cells, 2) in `RATES`.
    """

    def __init__(self, table: Table, attack: str) -> None:
        rows = table.means(attack)
        x = np.asarray(table.encoded(rows), dtype=np.float32)
        self.attack, self.settings = attack, len(rows)
        self.before = float(rows["accuracy_before"].mean())
        self.errors: dict[str, dict[str, float]] = {}
        self._forests: dict[tuple[str, ...], tuple[ExtraTreesRegressor, NDArray[np.float64], NDArray[np.float64]]] = {}
        for names in (RATES, COSTS):
            y = rows[list(names)].to_numpy(dtype=float)
            y = np.log(np.maximum(y, 1e-6)) if names is COSTS else y
            # On one scale, since a tree's cuts serve all of its outputs.
            centre, scale = y.mean(axis=0), np.maximum(y.std(axis=0), 1e-9)
            forest = ExtraTreesRegressor(TREES, random_state=0)
            folds = KFold(FOLDS, shuffle=True, random_state=0)
            held_out = cross_val_predict(forest, x, (y - centre) / scale, cv=folds) * scale + centre
            self._forests[names] = (forest.fit(x, (y - centre) / scale), centre, scale)
            for place, name in enumerate(names):
                miss = np.abs(held_out[:, place] - y[:, place])
                miss = np.expm1(miss) if names is COSTS else miss
                constant = np.ptp(y[:, place]) < 1e-12
                r2 = 1.0 if constant else float(r2_score(y[:, place], held_out[:, place]))
                self.errors[name] = {"mae": float(miss.mean()), "r2": r2}
        places, self.noise = _deviations(table, attack)
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(self.noise)))
        self._near = near.fit(x[places]) if self.noise else None

    def answer(self, x: NDArray[np.float64]) -> Answer:
        """Without noise, for one setting (1, coordinates) in the unit cube."""
        (asr, accuracy), (epochs, seconds) = self._predict(RATES, x), np.exp(self._predict(COSTS, x))
        return Answer(min(1.0, max(0.0, asr)), min(1.0, max(0.0, accuracy)), float(epochs), float(seconds))

    def rates(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """`RATES` of many settings without noise, (settings, coordinates) -> (settings, 2)."""
        forest, centre, scale = self._forests[RATES]
        return np.asarray(forest.predict(np.asarray(x, dtype=np.float32)) * scale + centre, dtype=np.float64)

    def noisy(self, true: Answer, x: NDArray[np.float64], seed: int, params: Mapping[str, Any]) -> Answer:
        """The same with what one cell of a similar measured setting deviated from that setting's mean.

        Both rates come from the same cell. The draw depends on the seed and the setting, not on when it is asked: all
        samplers meet the same luck.
        """
        assert self._near is not None
        draw = np.random.default_rng(derive_seed(seed, "noise", self.attack, fingerprint(params)))
        near = self._near.kneighbors(np.asarray(x, dtype=np.float32), return_distance=False)[0]
        cells = self.noise[int(draw.choice(near))]
        by_asr, by_accuracy = cells[int(draw.integers(len(cells)))]
        asr, accuracy = true.asr + by_asr, true.clean_accuracy + by_accuracy
        return Answer(min(1.0, max(0.0, asr)), min(1.0, max(0.0, accuracy)), true.epochs, true.seconds)

    def _predict(self, names: tuple[str, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
        forest, centre, scale = self._forests[names]
        point = np.asarray(x, dtype=np.float32)
        # What forest.predict does, without the threads that it starts each time: they take 20 times as long as the
        # trees for a single setting.
        values = np.mean([tree.tree_.predict(point)[0, :, 0] for tree in forest.estimators_], axis=0)
        return np.asarray(values * scale + centre, dtype=np.float64)


def fit(table: Table, noise: bool) -> dict[str, Surrogate]:
    """A surrogate for each attack.

    Raises:
        SpecError: noise is wanted, and no setting was measured twice on an attack.
    """
    found = {attack: Surrogate(table, attack) for attack in table.attacks}
    for attack, one in found.items():
        if noise and not one.noise:
            raise SpecError(
                f"--noise: no setting was measured under two seeds on {attack}, so the table does not tell how far two "
                "measurements differ; leave it out, or measure with another of defense_seeds"
            )
    return found


def _deviations(table: Table, attack: str) -> tuple[list[int], list[NDArray[np.float64]]]:
    """Settings with several cells, by their place in `Table.means`, and what the cells deviate from their mean.

    Widened by sqrt(n / (n - 1)): n cells lie closer to their own mean than to the true one.
    """
    rows = table.frame[table.frame["attack"] == attack]
    places, found = list[int](), list[NDArray[np.float64]]()
    for place, (_, cells) in enumerate(rows.groupby("setting", sort=False)):
        values = cells[list(RATES)].to_numpy(dtype=float)
        if len(values) > 1:
            places.append(place)
            found.append((values - values.mean(axis=0)) * np.sqrt(len(values) / (len(values) - 1)))
    return places, found
