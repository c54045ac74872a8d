"""Every registered attack under the inherited suite; a new file in ``trainables/attacks`` needs no edit here."""

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superft.testing.attack_settings import every_field_changes_the_attack_or_is_refused
from superft.testing.attack_subject import Subject
from superft.testing.attacks import CHECKS, LEARNED
from trainables.attacks.base import ATTACKS

Check = Callable[[Subject], None]


# These need a victim that has learned its task, which is most of the suite's time. By default it is made for the
# simplest attack and for those whose training sees other images than the stored, quantised ones; else the test is slow.
LEARNED_BY_DEFAULT = ("badnets", "inputaware", "wanet")
# Other values of fields of free text, by field.
OTHERS = {"position": ["top_left"], "pattern": ["procedural"]}
# What is too little to be seen on 200 images, or as many as the default.
OTHERS_OF: dict[str, dict[str, list[Any]]] = {"adap_blend": {"poison_rate": [0.1]}, "grond": {"poison_rate": [0.1]}}


# Fields are tried one by one: quick where nothing has to be trained for that, minutes where an encoder is.
QUICK = ("adap_blend", "badnets", "blended", "clean", "sig", "wanet")


def marks(name: str, check: Check) -> tuple[pytest.MarkDecorator, ...]:
    costly = check is every_field_changes_the_attack_or_is_refused and name not in QUICK
    return (pytest.mark.slow,) if costly or (check in LEARNED and name not in LEARNED_BY_DEFAULT) else ()


@functools.cache
def subject_of(name: str) -> Subject:
    """One for all tests of an attack: what has been carried out for one is not carried out for the next."""
    return Subject(name, others={**OTHERS, **OTHERS_OF.get(name, {})})


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, marks=marks(name, check), id=f"{name}-{check.__name__}")
        for name in ATTACKS.names()
        for check in CHECKS
    ],
)
def test_attack(name: str, check: Check) -> None:
    check(subject_of(name))


REBUILD = """
import json, sys
import torch
torch.set_num_threads(1)
if len(sys.argv) > 2:
    import trainables.attacks
    trainables.attacks.__path__.append(sys.argv[2])
from superft.testing.attack_subject import carry_out
from superft.testing.toy import toy_dataset, toy_spec
print(json.dumps({name: carry_out(toy_spec(name), toy_dataset()).digest() for name in json.loads(sys.argv[1])}))
"""


def digests_of_a_new_process(names: list[str], *extra_folder: str) -> dict[str, str]:
    """Of attacks rebuilt in a fresh interpreter that is given only their names."""
    command = [sys.executable, "-c", REBUILD, json.dumps(names), *extra_folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout)
    return found


def test_a_new_process_given_only_the_configuration_rebuilds_every_attack() -> None:
    names = ATTACKS.names()
    here = {name: subject_of(name).made.digest() for name in names}
    assert digests_of_a_new_process(names) == here


# A complete attack, as its author would write it: this string is the one new file.
DOT = '''
"""A grey dot in the top-left corner."""

from dataclasses import dataclass

import torch

from trainables.attacks.base import DataPoisoning, register
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.triggers import Trigger, trigger_kind
from trainables.registry import SettingError


@register("dot")
@dataclass(frozen=True)
class Dot(DataPoisoning):
    """One block of pixels."""

    size: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size}")

    def check(self, labels, num_classes, image_size):
        super().check(labels, num_classes, image_size)
        if image_size and self.size > image_size:
            raise SettingError(f"attack.dot.size must be at most {image_size}, got {self.size}")

    def make_trigger(self, image_size: int, seed: int) -> OverlayTrigger:
        weight = torch.zeros(1, image_size, image_size)
        weight[:, : self.size, : self.size] = 1.0
        return OverlayTrigger(image_size, weight, torch.full((3, image_size, image_size), 0.5))
'''


def drop_in(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str) -> None:
    """Put a file beside the attacks, as far as the registry can tell, for the length of one test."""
    (folder / f"{name}.py").write_text(source)
    package = importlib.import_module("trainables.attacks")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    for registered in ("_things", "_modules"):
        monkeypatch.setattr(ATTACKS, registered, dict(getattr(ATTACKS, registered)))
    monkeypatch.setattr(ATTACKS, "_loaded", False)
    monkeypatch.delitem(sys.modules, f"trainables.attacks.{name}", raising=False)


@pytest.fixture
def cleanup() -> object:
    """Modules that a test has dropped in are forgotten with it."""
    known = set(sys.modules)
    yield None
    for name in set(sys.modules) - known:
        if name.startswith("trainables.attacks."):
            del sys.modules[name]


@pytest.mark.usefixtures("cleanup")
def test_an_attack_added_as_one_file_inherits_the_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "dot" not in ATTACKS.names()
    drop_in(monkeypatch, tmp_path, "dot", DOT)
    assert "dot" in ATTACKS.names()
    subject = Subject("dot")
    for check in CHECKS:
        if check not in LEARNED:  # a victim that has learned is badnets' above, and a strange attack's in tests/docs
            check(subject)
    assert digests_of_a_new_process(["dot"], str(tmp_path)) == {"dot": subject.made.digest()}


# Each mutant breaks one promise; the suite must notice by the check that names it.
MUTANTS = {
    "writes_into_its_input": (
        "inputs_are_not_modified",
        """
    def poison(self, train, num_classes, seed):
        poisoned = super().poison(train, num_classes, seed)
        train.images[0] ^= 1
        return poisoned
""",
    ),
    "global_randomness": (
        "global_random_state_does_not_matter",
        """
    def choose(self, labels, num_classes, seed):
        return torch.randperm(len(labels))[: self.count(len(labels))].sort().values
""",
    ),
    "miscount": (
        "selection_is_what_was_planned",
        """
    def choose(self, labels, num_classes, seed):
        return super().choose(labels, num_classes, seed)[1:]
""",
    ),
    "relabels_clean_labels": (
        "clean_label_poison_changes_no_label",
        """
    def poison(self, train, num_classes, seed):
        poisoned = super().poison(train, num_classes, seed)
        return type(poisoned)(poisoned.indices, poisoned.images, (poisoned.labels + 1) % 10, poisoned.kinds)
""",
    ),
    "keeps_target_class": (
        "stored_test_set_holds_exactly_the_images_whose_label_would_change",
        """
    def triggered_test(self, trigger, test, num_classes):
        found = super().triggered_test(trigger, test, num_classes)
        return type(found)(found.images[1:], found.labels[1:], found.targets[1:], found.sources[1:])
""",
    ),
    "does_nothing": (
        "triggered_images_are_images",
        """
    def make_trigger(self, image_size, seed):
        return OverlayTrigger(image_size)
""",
    ),
    "one_size": (
        "any_image_size_and_number_of_classes_works",
        """
    def make_trigger(self, image_size, seed):
        return OverlayTrigger(16, torch.ones(1, 16, 16) / 2)
""",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.usefixtures("cleanup")
def test_a_broken_attack_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, body = MUTANTS[mutant]
    drop_in(monkeypatch, tmp_path, "dot", DOT + body)
    subject = Subject("dot")
    check = next(check for check in CHECKS if check.__name__ == name)
    with pytest.raises((AssertionError, RuntimeError)):
        check(subject)
