"""The attacker's class by its name: in a spec a label may be the name of a class; here it becomes its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study.spec.schema import StudySpec
from trainables.attacks.base import ATTACKS
from trainables.data.images import Dataset
from trainables.registry import SettingError, nearest

KEY = "target_label"


def with_label_numbers(spec: StudySpec, dataset: Dataset, upstream: Dataset | None = None) -> StudySpec:
    """The spec with the number of every class that ``attack.NAME.target_label`` gives by its name.

    A number is always a label: of a folder of images whose classes are called 1, 2 and 10, label 2 is class "10".

    Raises:
        SettingError: the attacker's data set has no class of that name.
    """
    changed: dict[str, dict[str, Any]] = {}
    for name, settings in spec.attack.items():
        if isinstance(wanted := settings.get(KEY), str):
            classes = _classes(spec, dataset, upstream)
            if wanted not in classes:
                hint = nearest(wanted, classes)
                raise SettingError(f"attack.{name}.{KEY}: the data set has no class {wanted!r}: {hint}")
            changed[name] = {**settings, KEY: classes.index(wanted)}
    return spec.model_copy(update={"attack": {**spec.attack, **changed}}) if changed else spec


def with_any_label(spec: StudySpec) -> StudySpec:
    """The spec with label 0 for every class given by its name: no label changes what a study costs."""
    named = {name: {**given, KEY: 0} for name, given in spec.attack.items() if isinstance(given.get(KEY), str)}
    return spec.model_copy(update={"attack": {**spec.attack, **named}}) if named else spec


def targets_in_words(spec: StudySpec, dataset: Dataset, upstream: Dataset | None = None) -> list[str]:
    """What each attack of a study that plants a backdoor wants: ``badnets -> airplane (label 0)``."""
    classes = _classes(spec, dataset, upstream)
    return [
        f"{attack.name} -> {_wanted(ATTACKS.create(attack.name, attack.settings), classes)}"
        for attack in spec.resolve().attacks
        if attack.has_control
    ]


def _wanted(attack: Any, classes: Sequence[str]) -> str:
    if attack.label_mode != "all_to_one":
        return f"every class to the one {attack.label_shift} further"
    label = attack.target_label
    name = classes[label] if label < len(classes) else str(label)
    return f"label {label}" if name == str(label) else f"{name} (label {label})"


def _classes(spec: StudySpec, dataset: Dataset, upstream: Dataset | None) -> tuple[str, ...]:
    """The classes that an attacker's label counts: of his own task, where he attacks a model that has a head for it."""
    return upstream.classes if spec.scenario.type == "new-head" and upstream is not None else dataset.classes
