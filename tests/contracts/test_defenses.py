"""Every registered defense under the inherited suite; a new file in ``trainables/defenses`` needs no edit here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from optuna.distributions import IntDistribution

from search_spaces.space import SPACES
from superft.testing import defense_checks, defense_subject
from superft.testing.defense_subject import Subject, small_settings
from superft.testing.defenses import CHECKS
from superft.testing.toy import NEEDS_ACCURACY
from tests.contracts.wrong import complaint
from trainables import trial
from trainables.data.images import Dataset
from trainables.defenses.base import DEFENSES, CleanData, Defense, NoData, PoisonedData, Repair, training_work
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters
from trainables.training.schedules import constant
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim

Check = Callable[[Subject], None]


@pytest.fixture(scope="module", params=DEFENSES.names())
def subject(request: pytest.FixtureRequest, toy: Dataset, toy_victim: Victim) -> Subject:
    victim = toy_victim
    if request.param in NEEDS_ACCURACY:
        victim = dataclasses.replace(toy_victim, model=request.getfixturevalue("learned"))
    return Subject(request.param, victim, toy)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_defense(subject: Subject, check: Check) -> None:
    check(subject)


def test_small_settings_shrink_lengths_and_leave_rates_alone() -> None:
    settings = small_settings("super_ft", 50)
    assert settings["iterations"] < 20
    assert not settings.keys() & {"lr_base", "lr_max1", "lr_max2", "momentum"}


@pytest.fixture
def registered(_as_before: None) -> Callable[[type[Defense]], None]:
    """Registers a defense as ``probe``, which is forgotten with the test."""

    def add(cls: type[Defense]) -> None:
        DEFENSES.register("probe")(cls if "__dataclass_fields__" in vars(cls) else dataclass(frozen=True)(cls))

    return add


def check_named(name: str) -> Check:
    return next(check for check in CHECKS if check.__name__ == name)


@dataclass(frozen=True)
class Darkest(Defense):
    """A tiny detector: drops the darkest share of the training set and trains anew."""

    owns: ClassVar[type[PoisonedData]] = PoisonedData

    share: float = 0.1
    steps: int = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share must be in (0, 1), got {self.share}")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")

    def score(self, assets: PoisonedData) -> torch.Tensor:
        return -assets.train.images.double().mean((1, 2, 3))

    def repair(self, model: Classifier, assets: PoisonedData, trainer: Trainer) -> Repair:
        scores = self.score(assets)
        order = scores.argsort(descending=True)
        dropped, kept = order[: self.dropped(len(order))], order[self.dropped(len(order)) :].sort().values
        fresh = trainer.fresh_model("probe")
        trainer.fit(fresh, assets.train.subset(kept), steps=self.steps, lr_at=constant(0.01), batch_size=32)
        return Repair(fresh, scores=scores, removed=dropped.sort().values)

    def dropped(self, n: int) -> int:
        return round(self.share * n)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.steps, 32, n_owned - self.dropped(n_owned))


def test_a_detector_inherits_the_suite(registered: Any, toy: Dataset, toy_victim: Victim) -> None:
    registered(Darkest)
    for check in CHECKS:
        check(Subject("probe", toy_victim, toy))


class ByPlace(Darkest):
    """Finds what stands first."""

    def score(self, assets: PoisonedData) -> torch.Tensor:
        return -torch.arange(len(assets.train)).double()


@dataclass(frozen=True)
class Tuner(Defense):
    """A sound defense to break."""

    owns: ClassVar[type[CleanData]] = CleanData

    steps: int = 2

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        trainer.fit(model, assets.train, steps=self.steps, lr_at=constant(0.01), batch_size=16)
        return Repair(model)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.steps, 16, n_owned)


class Uncounted(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        model(assets.train.images[:4].float())
        return super().repair(model, assets, trainer)


class Underestimated(Tuner):
    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.steps - 1, 16, n_owned)


@dataclass(frozen=True)
class Inert(Tuner):
    strength: float = 0.5


class Careless(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        assets.train.images.zero_()
        return super().repair(model, assets, trainer)


class Wandering(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        with torch.no_grad():
            model.classifier.bias.add_(torch.rand(()))
        return super().repair(model, assets, trainer)


@dataclass(frozen=True)
class Runaway(Tuner):
    lr: float = 0.01

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        with torch.no_grad():
            model.classifier.weight.mul_(self.lr**4)
        return Repair(model)


class LeavesDropoutOn(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        found = super().repair(model, assets, trainer)
        found.model.train()
        return found


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Uncounted, "counters_equal_what_hooks_counted"),
        (Underestimated, "plan_is_what_the_run_really_did"),
        (Inert, "every_setting_changes_the_run_or_is_refused"),
        (Careless, "victim_and_assets_are_left_as_they_were"),
        (Wandering, "same_seed_gives_the_same_weights"),
        (LeavesDropoutOn, "returned_model_is_the_one_that_is_measured"),
        (Runaway, "a_rate_beyond_all_bounds_diverges_by_name"),
        (ByPlace, "a_permuted_training_set_gives_permuted_findings"),
    ],
)
def test_a_broken_defense_is_caught(
    broken: type[Defense], check: str, registered: Any, toy: Dataset, toy_victim: Victim
) -> None:
    registered(broken)
    with pytest.raises(AssertionError):
        check_named(check)(Subject("probe", toy_victim, toy))


@pytest.mark.parametrize(
    ("check", "message"),
    [("forbidden_data_cannot_be_reached", "closure"), ("forbidden_data_is_never_read", "the length of test")],
)
def test_a_trainer_that_carries_the_data_set_is_caught(
    check: str, message: str, registered: Any, toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(spec: VictimSpec, data: Dataset, *arguments: Any, **settings: Any) -> Trainer:
        trainer = make_trainer(spec, data, *arguments, **settings)
        inner = trainer.new_model

        def new_model(generator: torch.Generator) -> Classifier:
            assert len(data.test)
            return inner(generator)

        trainer.new_model = new_model
        return trainer

    registered(Darkest)
    monkeypatch.setattr(defense_checks, "make_trainer", leaking)
    monkeypatch.setattr(defense_subject, "make_trainer", leaking)
    with pytest.raises(AssertionError, match=message):
        check_named(check)(Subject("probe", toy_victim, toy))


def test_findings_on_clean_data_that_are_not_told_are_caught(
    registered: Any, toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(Darkest)
    monkeypatch.setattr(trial, "detection_columns", lambda *_: {})
    with pytest.raises(AssertionError):
        check_named("false_alarms_on_clean_data_are_told")(Subject("probe", toy_victim, toy))


def test_data_free_defenses_own_nothing(toy: Dataset, toy_victim: Victim) -> None:
    for name in DEFENSES.names():
        if DEFENSES.get(name).owns is NoData:
            assert Subject(name, toy_victim, toy).assets() == NoData()


class NoDecorator(Tuner):
    """Its own field is no setting."""

    boost: float = 2.0


class BelowNoDecorator(NoDecorator):
    pass


class GivesNothing(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        return None  # type: ignore[return-value]


class GivesAModel(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        return model  # type: ignore[return-value]


class LeavesNaN(Tuner):
    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
        return Repair(model)


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (
            BelowNoDecorator,
            "every_field_is_a_setting",
            "NoDecorator.boost is no setting: put @dataclass(frozen=True) above",
        ),
        (GivesNothing, "returns_a_repair", "repair must return a Repair, got NoneType"),
        (GivesAModel, "returns_a_repair", "repair must return a Repair, got Classifier"),
        (LeavesNaN, "returns_a_repair", "returns weights that are not finite: classifier.weight"),
    ],
)
def test_what_a_stranger_got_wrong_is_named(
    broken: type[Defense], check: str, message: str, registered: Any, toy: Dataset, toy_victim: Victim
) -> None:
    registered(broken)
    assert message in complaint(check_named(check), Subject("probe", toy_victim, toy))


@dataclass(frozen=True)
class Strict(Tuner):
    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")


@pytest.mark.parametrize(
    ("space", "paper", "check", "message"),
    [
        (
            {"steps": (1, 5)},
            {"steps": 2, "lr": 0.1},
            "published_point_lies_in_the_search_space",
            "names no field: {'lr'}",
        ),
        ({"steps": (0, 5)}, {"steps": 2}, "every_point_of_the_search_space_builds_the_defense", "steps must be >= 1"),
    ],
)
def test_a_wrong_search_space_is_named(
    space: dict[str, tuple[int, int]],
    paper: dict[str, Any],
    check: str,
    message: str,
    registered: Any,
    toy: Dataset,
    toy_victim: Victim,
) -> None:
    registered(Strict)
    ranges = {name: IntDistribution(*ends) for name, ends in space.items()}
    SPACES.add("probe", type("Space", (), {"SPACE": ranges, "PAPER": paper}))
    assert message in complaint(check_named(check), Subject("probe", toy_victim, toy))
