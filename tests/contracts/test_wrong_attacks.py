"""The suite of attacks catches what a stranger's attack got wrong, and names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from superft.testing.attack_subject import Subject
from superft.testing.attacks import CHECKS
from superft.testing.fields import lost_fields
from tests.contracts.wrong import complaint, named
from trainables.attacks.base import ATTACKS, DataPoisoning, Implanted
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.triggers import Trigger, trigger_kind
from trainables.data.images import ImageSet
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer, memo_name

pytestmark = pytest.mark.usefixtures("_as_before")


def said(cls: type[DataPoisoning], check: str) -> str:
    """What the named check says of an attack, registered as ``wrong``."""
    ATTACKS.register("wrong")(cls)
    return complaint(named(CHECKS, check), Subject("wrong"))


def dot(image_size: int, size: int, level: float) -> OverlayTrigger:
    weight = torch.zeros(1, image_size, image_size)
    weight[:, :size, :size] = 1.0
    return OverlayTrigger(image_size, weight, torch.full((3, image_size, image_size), level))


@dataclass(frozen=True)
class Dot(DataPoisoning):
    """A sound attack to break."""

    size: int = 4
    level: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or not 0.0 <= self.level <= 1.0:
            raise ValueError("size must be >= 1, level in [0, 1]")

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size and self.size > image_size:
            raise SettingError(f"attack.wrong.size must be at most {image_size}, got {self.size}")

    def make_trigger(self, image_size: int, seed: int) -> Trigger:
        return dot(image_size, self.size, self.level)


BY_ITSELF = (
    "planned_work_is_what_implant_counts",
    "every_field_is_a_setting",
    "trigger_returns_images",
    "trigger_is_rebuilt_from_kind_settings_and_state",
    "sizes_beyond_the_image_are_refused",
    "every_field_changes_the_attack_or_is_refused",
)


@pytest.mark.parametrize("check", BY_ITSELF)
def test_the_sound_attack_passes(check: str) -> None:
    ATTACKS.register("wrong")(Dot)
    named(CHECKS, check)(Subject("wrong"))


@dataclass(frozen=True)
class Twice(Dot):
    """Trains a second model as well, and keeps it for other victims."""

    kept: bool = False

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        def build() -> Classifier:
            return trainer.train_from_scratch(train, recipe, purpose="second")

        _ = trainer.remember_model("second", {}, build) if self.kept else build()
        return super().implant(train, trainer, recipe)


@dataclass(frozen=True)
class Told(Twice):
    """Says so."""

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        return recipe.work(len(labels)) + recipe.work(len(labels))


@dataclass(frozen=True)
class ToldAndKept(Told):
    kept: bool = True


@dataclass(frozen=True)
class ToldAndShared(ToldAndKept):
    def shared_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> dict[str, Counters]:
        return {memo_name("second", {}): recipe.work(len(labels))}


@dataclass(frozen=True)
class AtMost(Told):
    """Cannot know it before, and tells less than it does."""

    @property
    def plan_is_exact(self) -> bool:
        return False

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        return recipe.work(len(labels))


WORK = "planned_work_is_what_implant_counts"


def test_work_that_is_not_told_beforehand_is_noticed_in_one_line() -> None:
    line = said(Twice, WORK).splitlines()[0]
    assert line.startswith("attack.wrong: planned_work told Counters(steps=7, forward_samples=224,")
    assert "and implant counted Counters(steps=14, forward_samples=448," in line
    assert "overwrite planned_work" in line


def test_more_work_than_the_most_is_noticed() -> None:
    assert "implant counted more steps" in said(AtMost, WORK)


def test_work_that_is_kept_for_other_victims_is_to_be_named() -> None:
    assert "shared_work names [], and implant had the memo keep ['second-" in said(ToldAndKept, WORK)


@pytest.mark.parametrize("cls", [Told, ToldAndShared])
def test_work_that_is_told_passes(cls: type[DataPoisoning]) -> None:
    ATTACKS.register("wrong")(cls)
    named(CHECKS, WORK)(Subject("wrong"))


@dataclass(frozen=True)
class Idle(Dot):
    mood: float = 0.5


def test_a_field_that_does_nothing_is_named() -> None:
    message = said(Idle, "every_field_changes_the_attack_or_is_refused")
    assert "attack.wrong.mood changes nothing" in message
    assert "wrong.size" not in message


class Undecorated(Dot):
    shade: float = 0.25

    def make_trigger(self, image_size: int, seed: int) -> Trigger:
        return dot(image_size, self.size, self.shade)


def test_a_class_without_dataclass_is_named_with_the_field_that_is_lost() -> None:
    with pytest.raises(SettingError, match="its class needs @dataclass"):
        ATTACKS.register("wrong")(Undecorated)
    (message,) = lost_fields(Undecorated)
    assert message == "Undecorated.shade is no setting: put @dataclass(frozen=True) above Undecorated"


def test_a_field_lost_in_a_base_is_named_where_the_class_itself_is_decorated() -> None:
    @dataclass(frozen=True)
    class Below(Undecorated):
        pass

    assert "Undecorated.shade is no setting" in said(Below, "every_field_is_a_setting")


@dataclass(frozen=True)
class Untyped(Dot):
    level = 0.75  # type: ignore[misc]


def test_a_default_without_its_type_is_named_because_it_is_ignored() -> None:
    message = said(Untyped, "every_field_is_a_setting")
    assert "Untyped.level = 0.75 is ignored, the default stays 0.5" in message


@dataclass(frozen=True)
class Cropped(Dot):
    """A patch that is larger than the image is cut to it without a word."""

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        DataPoisoning.check(self, labels, num_classes, image_size)


@dataclass(frozen=True)
class CroppedByAnotherName(DataPoisoning):
    rows: int = 4

    def make_trigger(self, image_size: int, seed: int) -> Trigger:
        return dot(image_size, self.rows, 0.5)


@dataclass(frozen=True)
class Crashing(DataPoisoning):
    rows: int = 4

    def make_trigger(self, image_size: int, seed: int) -> Trigger:
        weight = torch.zeros(1, image_size, image_size)
        weight[:, : self.rows, : self.rows] = torch.ones(1, self.rows, self.rows)
        return OverlayTrigger(image_size, weight)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Cropped, "attack.wrong.size=17 is accepted for images of 16 pixels"),
        (CroppedByAnotherName, "attack.wrong.rows=64 is cut to the image of 16 pixels without a word"),
        (Crashing, "attack.wrong.rows=17 is accepted for images of 16 pixels and then fails with RuntimeError"),
    ],
)
def test_a_size_beyond_the_image_is_named(cls: type[DataPoisoning], message: str) -> None:
    assert message in said(cls, "sizes_beyond_the_image_are_refused")


class Bad(Trigger):
    """Returns something else than images."""

    def __init__(self, how: str = "grey") -> None:
        super().__init__()
        self.how = how

    def settings(self) -> dict[str, Any]:
        return {"how": self.how}

    def forward(self, images: Tensor) -> Tensor:
        match self.how:
            case "grey":
                return images.mean(1, keepdim=True)
            case "nan":
                return images / 0.0 * 0.0
            case "bytes":
                return images * 255.0
            case "one":
                return images[0]
            case _:
                return (images * 255.0).to(torch.uint8)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("grey", "shape (100, 1, 16, 16) for images of shape (100, 3, 16, 16)"),
        ("one", "shape (3, 16, 16) for images of shape (100, 3, 16, 16)"),
        ("nan", "NaN or infinite values"),
        ("bytes", "where [0, 1] is wanted"),
        ("uint8", "torch.uint8 where float is wanted"),
    ],
)
def test_a_trigger_that_returns_no_images_is_named(how: str, message: str) -> None:
    trigger_kind("bad")(Bad)

    @dataclass(frozen=True)
    class NoImages(DataPoisoning):
        def make_trigger(self, image_size: int, seed: int) -> Trigger:
            return Bad(how)

    assert f"attack.wrong: the trigger returns {message}" in said(NoImages, "trigger_returns_images").replace(
        "values from 0 to 255 ", ""
    )


class Dimming(Trigger):
    """x' = x (1 - strength); ``settings`` tells too little."""

    def __init__(self, strength: float = 0.5) -> None:
        super().__init__()
        self.strength = strength

    def settings(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return images * (1.0 - self.strength)


class DimmingWithoutDefault(Dimming):
    def __init__(self, strength: float) -> None:
        super().__init__(strength)


class Unregistered(Dimming):
    pass


class Derived(OverlayTrigger):
    def __init__(self, strength: float) -> None:
        super().__init__(16)


@pytest.mark.parametrize(
    ("trigger", "registered", "message"),
    [
        (Dimming, True, "settings() gives {}, which leaves out something that its constructor was given"),
        (DimmingWithoutDefault, True, "DimmingWithoutDefault cannot be rebuilt from its settings {}"),
        (Unregistered, False, "Unregistered has no kind: put @trigger_kind(NAME) above its class"),
        (Derived, False, "Derived has the kind 'overlay' of OverlayTrigger: give it one of its own"),
    ],
)
def test_a_trigger_that_cannot_be_rebuilt_is_named(
    trigger: Any, registered: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if registered:
        trigger_kind("dimming")(trigger)
    elif trigger is Unregistered and hasattr(Dimming, "kind"):
        monkeypatch.delattr(Dimming, "kind")

    @dataclass(frozen=True)
    class Dim(DataPoisoning):
        strength: float = 0.5  # the default of the trigger too: only another value shows what is left out

        def make_trigger(self, image_size: int, seed: int) -> Trigger:
            return trigger(self.strength)

    assert message in said(Dim, "trigger_is_rebuilt_from_kind_settings_and_state")
