"""The plan in words, before work starts: what a study does, what it costs in E, its slots, how long it takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.plan.costs import Work, aftermath_left, curves_cost, trial_cost, victims_cost, work_left
from study.plan.data import Data, all_of, data_of, one_of
from study.plan.gpu_shares import Kind, Measurement, choose_shares, kinds, read_measurements, still_valid
from study.plan.jobs import CONFIRM, Plan
from study.plan.keeping import kept_lines
from study.plan.slots import Node, count_slots, counted, describe_nodes, describe_share, slots_on, wanted_gpus
from study.plan.targets import targets_in_words
from study.record.detectors import DETECTOR_SETTINGS
from study.record.words import duration, finishing_time
from study.spec.schema import StudySpec
from study.spec.sweep import combinations
from trainables.data.images import Dataset
from trainables.data.sources.folders import FOLDER
from trainables.evaluation.aftermath.reinjection import without_poisoned_data
from trainables.evaluation.aftermath.settings import PARTS
from trainables.job import Cell
from trainables.machine.device_meter import CONTEXT_BYTES


def plan_lines(
    plan: Plan,
    data: Data,
    upstream: Data | None = None,
    left: Mapping[str, int] | None = None,
    missing: Sequence[Cell] | None = None,
    done: int = 0,
) -> list[str]:
    """Victims, trials and their cost in E (one epoch of training on the whole training set).

    Args:
        plan: of the study.
        data, upstream: the user's and, where the scenario has one, the attacker's.
        left: trials left by label; None: all of them.
        missing: victims that the store does not hold; None: not known.
        done: trials that have a row.
    """
    spec, work = plan.spec, work_left(plan, data, left)
    baselines = [item for item in work if item.role not in ("search", CONFIRM)]
    searches, confirmed = ([item for item in work if item.role == role] for role in ("search", CONFIRM))
    trials, victims = sum(item.trials for item in work), plan.victims() if missing is None else missing
    training = victims_cost(victims, data, upstream)
    lines = [f"study {spec.name}: {_images_in_words(spec.dataset, one_of(data))}, {_model_in_words(spec)}"]
    if spec.sweep:
        lines = [f"study {spec.name}: {_sweep_in_words(spec)}"]
        lines += [f"data:      {_images_in_words(one.name, one)}" for one in all_of(data)]
        if "model" not in spec.sweep and "width" not in spec.sweep:
            lines.append(f"model:     {_model_in_words(combinations(spec)[0].spec)}")
    mirrored = [*all_of(data), *(() if upstream is None or upstream is data else all_of(upstream))]
    lines += [_flip_line(one) for one in mirrored if one.name.startswith(FOLDER)]
    if targets := _targets(spec, data, upstream):
        lines.append(f"attacks:   {'; '.join(targets)}")
    if done:
        lines.append(f"done:      {done} trials; what follows is what is left")
    if missing is None:
        said = f"{len(victims)} (clean controls included), {training:.1f} E unless the store has them"
    else:
        said = f"{len(victims)} of {len(plan.victims())} are missing (clean controls included), {training:.1f} E"
    lines.append(f"victims:   {said}")
    if detectors := [one for one in plan.untuned() if left is None or left.get(one.label)]:
        passes = sum(len(one.cells) for one in detectors)
        lines.append(
            f"detectors: of {len(detectors)} of the searches are tuned before the trials: {DETECTOR_SETTINGS} settings "
            f"of each by what they leave out, without retraining; the features cost {passes / 3:.1f} E, which the "
            "trials then find ready; oracle: by the poison mask"
        )
    points, measuring = curves_cost(plan, data, left)
    if points:
        lines.append(
            f"curves:    {points} measurements along the repairs, {measuring:.1f} E beside those of the trials"
        )
    unit = "1 E is one epoch on all "
    unit += f"{len(one_of(data).train)} images" if len(all_of(data)) == 1 else "training images of the data set"
    confirming = []
    if confirmed:
        confirming.append(
            f"confirmed: at most {sum(item.trials for item in confirmed)} trials, {_epochs(confirmed):.1f} E: what a "
            f"search chooses is run on {spec.search.confirm} fresh seeds, as if it chose all that it tries"
        )
    after = aftermath_lines(plan, data, left)
    return [
        *lines,
        f"baselines: {sum(item.trials for item in baselines)} trials, {_epochs(baselines):.1f} E",
        _searches_line(plan, searches),
        *_racing_lines(spec, searches),
        *confirming,
        f"total:     {trials} trials, {training + _epochs(work) + measuring:.1f} E; {unit}",
        *kept_lines(plan, data, left),
        *after,
    ]


def _searches_line(plan: Plan, searches: Sequence[Work]) -> str:
    """How many searches are left, and what they cost; ``searches`` is the work left of them."""
    if not searches:
        return "searches:  none"
    asked = plan.spec.search
    each = f"{asked.trials} settings" if asked.budget_epochs is None else f"{asked.budget_epochs:g} E"
    times = f", each search made {asked.repeats} times" if asked.repeats > 1 else ""
    left = {item.label for item in searches}
    published = all(one.is_published(one.priced_settings()) for one in plan.searches if one.label in left)
    like = "the published one" if published else "the one nearest to the published"
    return (
        f"searches:  {len(searches)} of {each} each ({asked.sampler}{times}), {sum(one.trials for one in searches)} "
        f"trials, {_epochs(searches):.1f} E if a setting costs what {like} does"
    )


def _racing_lines(spec: StudySpec, searches: Sequence[Work]) -> list[str]:
    """That the numbers of a search with a race are the most there can be."""
    if (racing := spec.search.racing) is None or not searches:
        return []
    return [
        f"racing:    at most so many: settings that are dominated beyond doubt (alpha {racing.alpha:g}, margin "
        f"{racing.margin:g}) are dropped before all of their trials have run"
    ]


def _images_in_words(name: str, dataset: Dataset) -> str:
    return (
        f"{name} ({len(dataset.train)} training and {len(dataset.test)} test images of {dataset.image_size} pixels, "
        f"{dataset.num_classes} classes)"
    )


def _model_in_words(spec: StudySpec) -> str:
    return f"{spec.model}{f' of width {spec.width}' if spec.width else ''}"


def _sweep_in_words(spec: StudySpec) -> str:
    """What is swept: ``6 combinations of dataset (digits, cifar10) and clean_fraction (0.1, 0.2, 1)``."""
    keys = [f"{key} ({', '.join(map(str, values))})" for key, values in spec.sweep.items()]
    return f"{len(combinations(spec))} combinations of {' and '.join(keys)}"


def _targets(spec: StudySpec, data: Data, upstream: Data | None) -> list[str]:
    """What each attack wants; each answer once, where the combinations of a sweep differ in it."""
    said: dict[str, None] = {}
    for part in combinations(spec):
        own, theirs = part.spec.source(part.spec.dataset), part.spec.scenario.upstream
        attackers = None if theirs is None or upstream is None else data_of(upstream, part.spec.source(theirs))
        said |= dict.fromkeys(targets_in_words(part.spec, data_of(data, own), attackers))
    return list(said)


def aftermath_lines(plan: Plan, data: Data, left: Mapping[str, int] | None = None) -> list[str]:
    """What is asked of the repaired models, and its cost, which is no part of what a repair or a search costs."""
    asked = plan.spec.aftermath.resolved()
    if asked is None:
        return []
    work = aftermath_left(plan, data, left)
    parts = [name for name in PARTS if getattr(asked, name) is not None]
    shadows = f", and {work.shadow_epochs:.1f} E for shadow models" if work.shadow_epochs else ""
    asks = f"{' and '.join(parts)} of {work.trials} repaired models"
    lines = [f"aftermath: {asks}, {work.epochs:.1f} E{shadows}; charged to no search"]
    if asked.reinjection is not None or asked.retuning is not None:
        attacks = {cell.attack: cell.victim.make_attack() for cell in plan.cells}
        lines += [f"           {said}" for attack in attacks.values() if (said := without_poisoned_data(attack))]
    return lines


def _flip_line(data: Dataset) -> str:
    """Whether a folder is mirrored, which nobody but its owner can decide."""
    if data.flip:
        return f"mirrored:  {data.name}: half of the images in training; flip: false where left and right matter"
    return f"mirrored:  {data.name}: no image, as flip: false says"


def _epochs(work: Iterable[Work]) -> float:
    return math.fsum(item.epochs for item in work)


@dataclass(frozen=True)
class Forecast:
    """How the remaining trials will run on some nodes.

    Args:
        plan, data: of the study.
        nodes: they run on.
        remaining: trials left of each search and baseline, by its label.
        kinds: of trials.
        measured: what is known of them on these nodes.
        shares: GPUs of the trials of each label; None: some kind has to be measured first.
    """

    plan: Plan
    data: Data
    nodes: Sequence[Node]
    remaining: Mapping[str, int]
    kinds: Sequence[Kind]
    measured: Mapping[str, Measurement]
    shares: Mapping[str, float] | None

    @property
    def cpus(self) -> int:
        """CPUs that every trial gets."""
        return self.plan.spec.resources.cpus_per_trial

    @property
    def victim_gpus(self) -> float:
        """Of each victim's training: a whole card where nothing is known yet, since all of its trials need it."""
        asked = self.plan.spec.resources.gpus_per_trial
        return (
            1.0
            if asked == "auto" and any(node.gpus for node in self.nodes)
            else max((self.shares or {"": 0.0}).values())
        )

    @property
    def outside_bytes(self) -> int:
        """What a process takes of a card beside its tensors."""
        return max((item.outside_bytes for item in self.measured.values()), default=CONTEXT_BYTES)

    def left(self, kind: Kind) -> int:
        """Trials of a kind still to come."""
        return sum(self.remaining.get(label, 0) for label in kind.labels)

    def missing(self) -> list[Kind]:
        """Kinds to be measured."""
        return [kind for kind in self.kinds if self.left(kind) and kind.name not in self.measured]

    def with_measured(self, measured: Mapping[str, Measurement]) -> Forecast:
        """The same with what was measured now; kinds that could not be measured get a whole card."""
        everything = {**self.measured, **measured}
        shares = choose_shares(self.kinds, everything, self.remaining, self.nodes, self.cpus)
        return dataclasses.replace(self, measured=everything, shares=shares)

    def slot_lines(self) -> list[str]:
        """How many trials run side by side, for every share of a card in use, and what is known of the kinds."""
        left = f"slots:     {sum(self.remaining.values())} trials on"
        if self.shares is None:
            return [
                f"{left} {describe_nodes(self.nodes)}; how many share a GPU is measured after the victims, by a "
                f"trial of each of {len(self.missing())} kinds"
            ]
        lines = []
        for gpus in sorted({self.shares[label] for label, count in self.remaining.items() if count}) or [0.0]:
            each = f"{self.cpus} CPU" + (f" and {describe_share(gpus)} GPU" if gpus else "")
            where = describe_nodes(self.nodes, self._slots_of(gpus))
            lines.append(f"{left} {counted(count_slots(self.nodes, self.cpus, gpus), 'slot')} of {each} ({where})")
            left = "           or"
        for kind in self.kinds:
            if kind.name in self.measured:
                gpus, item = self.shares[kind.labels[0]], self.measured[kind.name]
                lines.append(f"kind:      {kind.name}: {describe_share(gpus)} GPU ({item.describe()})")
        return lines

    def time_line(self, rows: Iterable[Mapping[str, Any]] = ()) -> str:
        """How long the remaining trials take, and until when."""
        seconds = self.expected_seconds(rows)
        if seconds is None:
            return "time:      unknown before some trials have ended"
        return f"time:      about {duration(seconds)} for the trials, until {finishing_time(seconds)}"

    def hours_line(self, epoch_seconds: float, victims_epochs: float, victims: int, trials_epochs: float) -> str:
        """How long victims and trials take by their E alone, if every card is at work all the time.

        Args:
            epoch_seconds: of 1 E on a card (without any: in one slot) that works on nothing else.
            victims_epochs, victims: E of those that are missing, and how many they are: each has a card to itself.
            trials_epochs: E of the trials that are left.
        """
        cards = sum(node.gpus for node in self.nodes)
        places, noun = (cards, "GPU") if cards else (count_slots(self.nodes, self.cpus, 0.0), "slot")
        training, repairing = victims_epochs * epoch_seconds, trials_epochs * epoch_seconds
        wall = training / max(1, min(places, victims)) + repairing / places
        parts = f"victims {training / 3600:.1f}, trials {repairing / 3600:.1f}"
        return (
            f"hours:     {(training + repairing) / 3600:.1f} of one {noun} at {epoch_seconds:g} s for 1 E ({parts}); "
            f"at best {duration(wall)} on {counted(places, noun)}"
        )

    def expected_seconds(self, rows: Iterable[Mapping[str, Any]]) -> float | None:
        """Likewise in seconds; None: some kind was never timed in this study.

        Args:
            rows: of the study's ledger; they say more than a measurement, for those trials had neighbours.
        """
        timed: dict[str, list[float]] = {}
        for row in rows:
            if row["status"] != "failed":
                taken = row["wall_seconds"] + (row.get("seconds_aftermath") or 0.0)
                timed.setdefault(row["search"] or row["trial"], []).append(taken)
        work = functools.cache(self._work)
        each = {label: math.fsum(seconds) / len(seconds) for label, seconds in timed.items()}
        total = longest = 0.0
        for kind in self.kinds:
            if not self.left(kind):
                continue
            if self.shares is None:
                return None
            gpus = self.shares[kind.labels[0]]
            slots = max(1, count_slots(self.nodes, self.cpus, gpus))
            for label in (one for one in kind.labels if self.remaining.get(one)):
                seconds = each[label] if label in each else self._by_work(kind, label, each, work, gpus)
                if seconds is None:
                    return None
                total += self.remaining[label] * seconds / slots
                longest = max(longest, seconds)
        return max(total, longest)

    def _by_work(
        self, kind: Kind, label: str, each: Mapping[str, float], work: Callable[[str], float], gpus: float
    ) -> float | None:
        """Seconds of a trial under a label none of whose trials has ended, from others of its kind by their work in E.

        Args:
            each: seconds of a trial under other labels.
            work: E of a trial under any label.
        """
        if known := [one for one in kind.labels if one in each]:
            epochs = math.fsum(map(work, known))
            seconds = math.fsum(each[one] for one in known)
            return seconds * work(label) / epochs if epochs else seconds / len(known)
        if kind.name not in self.measured:
            return None
        return self.measured[kind.name].seconds_beside(round(1 / gpus) - 1 if 0 < gpus < 1 else 0, work(label))

    def _work(self, label: str) -> float:
        """E of a trial under this label; of a search as `Search.priced_settings`."""
        for search in self.plan.searches:
            if label in (search.label, search.confirm_label):
                return trial_cost(search.cells[0], search.priced_settings(), self.data)
        job = next(job for job in self.plan.baselines if job.label == label)
        return trial_cost(job.cell, job.settings, self.data)

    def _slots_of(self, gpus: float) -> Callable[[Node], int]:
        return lambda node: slots_on(node, self.cpus, gpus)


def look_ahead(
    plan: Plan, data: Data, directory: Path, nodes: Sequence[Node], remaining: Mapping[str, int]
) -> Forecast:
    """What can be said before anything is measured now.

    Args:
        directory: of the study, where earlier measurements are.
        nodes: the trials run on.
        remaining: trials left, by label.

    Raises:
        SpecError: the nodes do not have what the spec asks for.
    """
    gpus, cpus = wanted_gpus(plan.spec.resources, nodes), plan.spec.resources.cpus_per_trial
    pixels = data.image_size if isinstance(data, Dataset) else {key: one.image_size for key, one in data.items()}
    found = kinds(plan, pixels)
    ahead = Forecast(plan, data, nodes, remaining, found, still_valid(read_measurements(directory), nodes), None)
    if gpus is None and not ahead.missing():
        return ahead.with_measured({})
    if gpus is None and sum(remaining.values()) <= count_slots(nodes, cpus, 1.0):
        gpus = 1.0  # not worth a measurement: everybody gets a card at once
    return ahead if gpus is None else dataclasses.replace(ahead, shares=dict.fromkeys(plan.jobs_by_label(), gpus))
