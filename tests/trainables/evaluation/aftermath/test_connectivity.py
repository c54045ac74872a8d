"""The straight way back to the backdoored weights: its ends, its middle, and what is said of it."""

import copy
from typing import Any

import pytest
import torch

from trainables.data.images import Dataset
from trainables.evaluation.aftermath.connectivity import INTERPOLATED, REFRESHED, interpolated, summary, walk
from trainables.evaluation.aftermath.settings import Connectivity
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.training.loop import refresh_statistics
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


def given(toy: Dataset, victim: Victim, trainer: Trainer) -> dict[str, Any]:
    return {"train": toy.train, "test": toy.test, "triggered": victim.triggered, "trainer": trainer, "seed": 0}


def other_model(trainer: Trainer) -> Classifier:
    return trainer.fresh_model("elsewhere").eval()


def test_a_model_that_was_not_repaired_goes_nowhere(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = walk(Connectivity(points=5), toy_victim.model, toy_victim.model, **given(toy, toy_victim, trainer))
    assert [one["statistics"] for one in found] == [INTERPOLATED, REFRESHED]
    for one in found:
        assert one["share"] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert len(set(one["asr"])) == len(set(one["clean_accuracy"])) == 1
        assert one["share_half"] == 0.0
        assert one["barrier"] == pytest.approx(1 - one["asr"][0], abs=1e-5)
    assert found[0]["asr"][0] == pytest.approx(toy_victim.evaluation.report.asr, abs=1e-5)


def test_both_models_stay_as_they_are_and_every_image_is_counted(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    repaired, victim = other_model(trainer), copy.deepcopy(toy_victim.model)
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (repaired, victim)]
    found = walk(Connectivity(points=3), repaired, victim, **given(toy, toy_victim, trainer))
    for model, then in zip((repaired, victim), before, strict=True):
        assert all(torch.equal(tensor, then[name]) for name, tensor in model.state_dict().items())
    assert found[0]["asr"][-1] == pytest.approx(toy_victim.evaluation.report.asr, abs=1e-5)
    half = toy_victim.evaluation.report
    measured = half.n_clean + half.n_triggered
    assert trainer.counters.forward_samples == 3 * (2 * measured + len(toy.train))
    assert trainer.counters.backward_samples == 0


def test_weights_and_statistics_lie_in_between(toy_victim: Victim, trainer: Trainer) -> None:
    one, other = dict(other_model(trainer).state_dict()), dict(toy_victim.model.state_dict())
    for share in (0.0, 0.25, 1.0):
        for name, tensor in interpolated(one, other, share).items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, (1 - share) * one[name] + share * other[name])
    ends = interpolated(one, other, 0.0), interpolated(one, other, 1.0)
    floats = [name for name, tensor in one.items() if tensor.is_floating_point()]
    assert all(torch.equal(ends[0][name], one[name]) and torch.equal(ends[1][name], other[name]) for name in floats)


def test_refreshed_statistics_are_those_of_clean_images(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    """At the victim's end: what the victim itself shows once its statistics are renewed on the same images."""
    found = walk(Connectivity(points=2), other_model(trainer), toy_victim.model, **given(toy, toy_victim, trainer))
    renewed = copy.deepcopy(toy_victim.model)
    refresh_statistics(renewed, toy.train.images, counters=trainer.counters)
    (still, _) = walk(Connectivity(points=2), renewed, renewed, **given(toy, toy_victim, trainer))
    # The order of the images is another, so a mean may differ in its last digits: by one image, at most.
    assert found[1]["clean_accuracy"][-1] == pytest.approx(still["clean_accuracy"][0], abs=1.5 / 50)


def test_a_model_without_batch_normalisation_is_walked_once(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    model = build_model("convnext_tiny", num_classes=10, mean=toy.mean, std=toy.std, image_size=16)
    found = walk(Connectivity(points=2), model.eval(), model, **given(toy, toy_victim, trainer))
    assert [one["statistics"] for one in found] == [INTERPOLATED]


def test_summary_by_hand() -> None:
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    told = summary(shares, [0.0, 0.1, 0.4, 0.6, 1.0], [0.9, 0.5, 0.7, 0.8, 0.9])
    assert told["share_half"] == 0.75
    # 1 - ASR: 1, 0.9, 0.6, 0.4, 0: trapezoids of 0.95, 0.75, 0.5, 0.2, a quarter wide each.
    assert told["barrier"] == pytest.approx(0.6)
    assert told["accuracy_lowest"] == 0.5
    # A way on which the backdoor never left.
    assert summary([0.0, 1.0], [1.0, 1.0], [0.9, 0.9]) == {"share_half": 0.0, "barrier": 0.0, "accuracy_lowest": 0.9}
