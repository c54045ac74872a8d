"""Every rule: what it is given, what it hands back; and what each decides, on attempts that are made up."""

import ast
import copy
from pathlib import Path

import pytest
import torch

import trainables.choice
from tests.toy import toy_spec
from trainables.choice.base import CANDIDATES, FT_PEAK, PUBLISHED, RULES, Attempt, Candidate, Suspect, super_ft
from trainables.choice.highest_peak import HighestPeak
from trainables.choice.planted import Planted, Score
from trainables.choice.range_test import RangeTest
from trainables.choice.validation import Validation
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.defenses.base import DEFENSES, CleanData, Repair
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.training.loop import Counters
from trainables.training.movement import Movement
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer

CPU = torch.device("cpu")
SMALL = (super_ft(2, 0.1), super_ft(3, 0.03))
BLIND = ("published", "short_ramp", "ft_peak", "validation", "highest_peak", "range_test", "planted")


@pytest.fixture
def suspect(toy: Dataset, learned: Classifier) -> Suspect:
    images = CleanData(toy.train.subset(torch.arange(48)), toy.train.subset(torch.arange(48, 68)))
    return Suspect(copy.deepcopy(learned), images, make_trainer(toy_spec("clean"), toy, CPU, seed=3))


def made_up(suspect: Suspect, candidate: Candidate, right: int, share: float = 0.5, rise: float = 0.5) -> Attempt:
    """Enter an attempt as if it had been made; of 20 validation images."""
    seen = Movement(rise, 1.0, share, 1.0)
    attempt = Attempt(candidate, Repair(suspect.model), right, 20, seen, Counters(steps=1, forward_samples=10))
    suspect._tried[candidate] = attempt
    return attempt


def test_the_rules_that_there_are() -> None:
    assert set(BLIND) <= set(RULES.names())
    assert all(RULES.get(name).knows == "blind" for name in BLIND)


@pytest.mark.parametrize("name", BLIND)
def test_a_rule_leaves_model_and_images_alone_and_draws_nothing_from_the_global_stream(
    name: str, suspect: Suspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.choice.planting.MOST_STEPS", 10)
    state, images = copy.deepcopy(suspect.model.state_dict()), copy.deepcopy(suspect.images)
    settings = {"range_test": {"steps": 5}}.get(name, {})
    before = torch.get_rng_state()
    choice = RULES.create(name, settings).choose(suspect, SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[key]) for key, tensor in suspect.model.state_dict().items())
    assert torch.equal(suspect.images.train.images, images.train.images)
    assert suspect.trainer.counters == Counters()
    assert choice.rule == name
    assert choice.reasons
    if choice.candidate is not None:
        DEFENSES.create(choice.candidate.defense, choice.candidate.settings)


def test_what_was_tried_is_what_is_handed_over(suspect: Suspect) -> None:
    attempt = suspect.attempt(SMALL[0])
    defense = DEFENSES.create("super_ft", SMALL[0].settings)
    again = defense.repair(copy.deepcopy(suspect.model), suspect.images, suspect.bench())
    assert attempt.model is not None
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, attempt.model.state_dict()[name])
    assert attempt.work.steps == 4
    assert attempt.work.forward_samples == 4 * 12 + 20  # a quarter of the images per step, and a look at the 20


def test_fixed_rules_choose_at_no_cost(suspect: Suspect) -> None:
    for name, candidate in (("published", PUBLISHED), ("short_ramp", super_ft(120, 0.1)), ("ft_peak", FT_PEAK)):
        choice = RULES.create(name).choose(suspect)
        assert choice.candidate == candidate
        assert choice.work == Counters()


def test_validation_ignores_what_did_not_move_and_charges_all_that_it_tried(suspect: Suspect) -> None:
    still, far, best = super_ft(500, 0.01), super_ft(60, 0.1), super_ft(120, 0.1)
    made_up(suspect, still, 20, share=0.01)
    made_up(suspect, far, 17)
    made_up(suspect, best, 18)
    choice = Validation().choose(suspect, (still, far, best))
    assert choice.candidate == best
    assert choice.work.forward_samples == 20 + 3 * 10
    refused = Validation(displacement_share=0.9).choose(suspect, (still, far, best))
    assert refused.candidate is None
    assert "no candidate moved the weights by 0.9" in refused.reasons[0]


def test_the_highest_peak_that_validation_allows(suspect: Suspect) -> None:
    before = round(20 * suspect.before()[0])
    low, middle, high = super_ft(60, 0.03), super_ft(60, 0.1), super_ft(60, 0.3)
    made_up(suspect, low, before)
    made_up(suspect, middle, before - 1)
    made_up(suspect, high, before - 3)
    assert HighestPeak().choose(suspect, (low, middle, high)).candidate == middle
    assert HighestPeak(drop=0.5).choose(suspect, (low, middle, high)).candidate == high


def test_the_range_test_finds_where_a_loss_climbs() -> None:
    rule = RangeTest(steps=5, low=1e-4, high=1.0, smoothing=0.0)
    assert [rule.rate(step) for step in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert rule.ceiling([0.4, 0.2, 0.1, 0.39, 0.5]) == pytest.approx(1.0)  # 0.39 is below four times the least, 0.1
    assert rule.ceiling([0.4, 0.2, float("nan")]) == pytest.approx(1e-2)
    assert rule.ceiling([0.4, 0.3, 0.3, 0.3, 0.3]) is None


def scored(candidate: Candidate, *obeyed: int, right: int = 38, rise: float = 0.5) -> Score:
    return Score(candidate, obeyed, (100,) * len(obeyed), right, 40, rise)


def test_near_best_goes_by_the_trigger_that_held_best() -> None:
    one, other, weak = (scored(super_ft(60, 0.1), 0, 4), scored(super_ft(120, 0.1), 1, 2), scored(PUBLISHED, 0, 60))
    assert Planted().near_best([one, other, weak]) == [one, other]
    assert Planted(margin=0.0).near_best([one, other, weak]) == [other]
    assert Planted().near_best([weak]) == []


def test_the_shortest_near_best_candidate_is_always_tried() -> None:
    long = [scored(super_ft(length, 0.1), 0, 0, right=39) for length in (200, 300, 400, 500)]
    short = scored(super_ft(25, 0.1), 0, 0, right=30)
    assert Planted(finalists=2).near_best([*long, short])[:3][-1] == short


def test_a_candidate_must_do_to_the_model_what_it_did_to_the_copies(suspect: Suspect) -> None:
    rule, score = Planted(), scored(PUBLISHED, 0, 0, rise=0.6)
    assert rule.fails(score, made_up(suspect, PUBLISHED, 19, rise=0.5)) is None
    assert "it hardly moved" in (rule.fails(score, made_up(suspect, PUBLISHED, 20, share=0.01, rise=0.001)) or "")
    assert "the loss rose by 0.100 only" in (rule.fails(score, made_up(suspect, PUBLISHED, 20, rise=0.1)) or "")
    assert "below that of the copies" in (rule.fails(score, made_up(suspect, PUBLISHED, 10)) or "")


def test_choosing_needs_validation_images(suspect: Suspect, trainer: Trainer) -> None:
    nothing = ImageSet(suspect.images.train.images[:0], suspect.images.train.labels[:0])
    with pytest.raises(DataError, match="needs validation images"):
        Suspect(suspect.model, CleanData(suspect.images.train, nothing), trainer)


def test_unknown_kinds_of_triggers_are_refused() -> None:
    with pytest.raises(SettingError, match=r"rule\.planted.*kinds.*patch, noise, waves, run"):
        RULES.create("planted", {"kinds": "patch,smoke"})


def test_the_published_point_is_a_candidate_and_none_stands_twice() -> None:
    assert PUBLISHED in CANDIDATES
    assert len(set(CANDIDATES)) == len(CANDIDATES) == len({one.label for one in CANDIDATES})


def test_no_rule_can_reach_an_attack_a_victim_or_a_data_set() -> None:
    """The leak rule as an arrow: what plants triggers may know none of those under study."""
    for path in Path(trainables.choice.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                taken = {f"{node.module}.{name.name}" for name in node.names}
                assert not any(name.startswith("trainables.attacks") for name in taken), path
                assert not taken & {"trainables.data.images.Dataset", "trainables.data.images.TriggeredSet"}, path
                assert not any(name.startswith(("trainables.data.load", "trainables.victims")) for name in taken), path
                assert "trainables.evaluation.metrics.evaluate" not in taken, path
