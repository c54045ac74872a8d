"""Detectors tuned before the trials: on what they would leave out alone, so that no setting of one costs a training.

The objective is Youden's J (1950), TPR - FPR of what is left out, mean over the cells of a search: it needs the poison
mask, which no defender has, so that the choice is an upper bound (``oracle``), as a search by the true ASR is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna

from search_spaces.space import fingerprint
from study.plan.jobs import Key, Search
from study.plan.slots import Node
from study.record.cost import epochs
from study.record.detectors import (
    DETECTOR_SETTINGS,
    DETECTORS_FILE,
    CellFinding,
    TunedDetector,
    read_detectors,
    write_detectors,
)
from study.record.folder import Folder
from study.record.remote_folder import RemoteFolder
from study.run.before_trials import stop_for
from study.run.on_tune import MAX_FAILURES, cause
from study.run.progress import Progress
from study.spec.plugins import as_plugins
from study.spec.samplers import make_sampler
from study.spec.schema import StudySpec
from trainables.job import Cell
from trainables.plugins.parcels import packed
from trainables.seeding import derive_seed

ROUND = 16  # settings that are judged in one task: the sampler learns from one round to the next


class DetectorSearch:
    """Proposes settings of one search's detector, in rounds, and chooses the best; knows nothing of Ray.

    Args:
        search: with a detector.
        cells: of it, those whose victim was made and holds a backdoor.
        seed: of the study.
        published: whether the published settings are judged first.
    """

    def __init__(self, search: Search, cells: Sequence[Cell], seed: int, published: bool) -> None:
        assert search.detector is not None
        self.search, self.space, self.cells, self.epochs = search, search.detector, tuple(cells), 0.0
        sampler = make_sampler("tpe", seed=derive_seed(seed, "detector", search.label), startup_trials=ROUND)
        self._study = optuna.create_study(sampler=sampler, direction="maximize")
        self._judged: dict[str, tuple[dict[str, Any], tuple[CellFinding, ...]]] = {}
        if published:
            self._study.enqueue_trial(self.space.paper_params())

    def propose(self, count: int) -> list[optuna.Trial]:
        """The next trials of its study, ``count`` or what remains of `DETECTOR_SETTINGS`."""
        left = DETECTOR_SETTINGS - len(self._study.get_trials(deepcopy=False))
        return [self._study.ask(dict(self.space.distributions)) for _ in range(min(count, left))]

    def settings(self, trial: optuna.Trial) -> dict[str, Any]:
        """The detector's settings of a trial."""
        return self.space.to_settings(trial.params)

    def tell(self, trials: Sequence[optuna.Trial], found: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """What was found under the settings of ``trials``: for each of the cells, columns for each trial."""
        for trial, columns in zip(trials, zip(*found, strict=True), strict=True):
            settings = self.settings(trial)
            on_cells = tuple(map(_finding, self.cells, columns))
            self._judged.setdefault(fingerprint(settings), (settings, on_cells))
            value = youden(on_cells)
            if value is None:  # nothing is poisoned
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, value)

    def result(self, error: str | None = None) -> TunedDetector:
        """The settings of the largest J, of equal ones the first; the published ones where none could be judged."""
        published = self.search.published_detector()
        values = {key: youden(cells) for key, (_, cells) in self._judged.items()}
        known = {key: value for key, value in values.items() if value is not None}
        if not known:
            why = error or "no cell has poisoned images to judge it by"
            return TunedDetector(self.search.label, published, published, 0, self.epochs, error=why)
        settings, cells = self._judged[max(known, key=lambda key: known[key])]
        beside = self._judged.get(fingerprint(published))
        return TunedDetector(
            self.search.label, settings, published, len(known), self.epochs, cells, beside[1] if beside else ()
        )


def tune_detectors(
    searches: Sequence[Search],
    spec: StudySpec,
    progress: Progress,
    store: str,
    home: Folder | RemoteFolder,
    absent: Collection[Key],
    broken: Collection[Any],
    nodes: Sequence[Node],
) -> dict[str, TunedDetector]:
    """Choose the detectors of some searches on a running Ray, and keep them in the study's folder; by search.

    A detector that cannot be judged stays as published: the trials say what is wrong with it.

    Args:
        searches: with a detector that is not tuned yet.
        store: of victims.
        absent, broken: victims without a backdoor, and those that could not be made, as the driver knows them.
        nodes: it runs on; with GPUs every task gets a whole one.
    """
    running = []
    for search in searches:
        cells = [cell for cell in search.cells if cell.whose not in absent and cell.made_from not in broken]
        if cells:  # else nothing is chosen: the victims may be made another time
            running.append(DetectorSearch(search, cells, spec.seeds[0], spec.search.published))
    if not running:
        return {}
    errors: dict[str, str] = {}
    for _ in range(-(-DETECTOR_SETTINGS // ROUND)):
        _judge_round([one for one in running if one.search.label not in errors], spec, store, nodes, errors)
    tuned = {one.search.label: one.result(errors.get(one.search.label)) for one in running}
    for found in tuned.values():
        progress.say(in_words(found))
    write_detectors(home.path, {**read_detectors(home.path), **tuned}.values())
    home.keep(DETECTORS_FILE)
    return tuned


def _judge_round(
    running: Sequence[DetectorSearch], spec: StudySpec, store: str, nodes: Sequence[Node], errors: dict[str, str]
) -> None:
    """Judge one round of settings of every detector, each on its cells, side by side; notes what failed."""
    import ray

    from trainables.tune import judge_detectors

    cpus, limit = spec.resources.cpus_per_trial, spec.resources.trial_seconds
    gpus = 1 if any(node.gpus for node in nodes) else 0
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_FAILURES)(judge_detectors)
    plugins = packed(as_plugins(spec.plugins))
    started = []
    for one in running:
        trials = one.propose(ROUND)
        proposed = [{**one.search.published_settings(), **one.settings(trial)} for trial in trials]
        seconds = None if limit is None else limit * len(trials)
        jobs = [task.remote(cell, proposed, store, cpus, seconds, plugins) for cell in one.cells]
        started.append((one, trials, jobs))
    for one, trials, jobs in started:
        try:
            seen = ray.get(jobs)
        except ray.exceptions.RayError as error:
            stop_for(error)
            errors[one.search.label] = cause(error)
            continue
        one.tell(trials, [item["found"] for item in seen])
        one.epochs += math.fsum(
            epochs(
                item["forward_samples"], item["backward_samples"], item["input_backward_samples"], item["train_size"]
            )
            for item in seen
        )


def youden(cells: Sequence[CellFinding]) -> float | None:
    """Mean of J over the cells that have poisoned images; None where none has."""
    values = [cell.youden for cell in cells if cell.youden is not None]
    return math.fsum(values) / len(values) if values else None


def in_words(found: TunedDetector) -> str:
    """One line on the choice."""
    if not found.tried:
        return f"WARNING: detector of {found.search} stays as published, it could not be tuned: {found.error}"
    chosen = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.settings.items()
    )
    beside = "" if not found.cells_published else f", as published {_rates(found.cells_published)}"
    return (
        f"detector of {found.search}, best of {found.tried} settings by the poison mask (oracle): "
        f"{_rates(found.cells)}{beside}; {chosen}; {found.epochs:.2f} E, no retraining"
    )


def _rates(cells: Sequence[CellFinding]) -> str:
    judged = [cell for cell in cells if cell.youden is not None]
    tpr, fpr = (math.fsum(getattr(cell, name) for cell in judged) / len(judged) for name in ("tpr", "fpr"))
    return f"TPR {tpr:.3f} and FPR {fpr:.3f}"


def _finding(cell: Cell, columns: Mapping[str, Any]) -> CellFinding:
    return CellFinding(
        cell.attack,
        cell.seed,
        cell.defense_seed,
        columns.get("detection_tpr"),
        columns.get("detection_fpr"),
        columns.get("detection_auroc_target"),
    )
