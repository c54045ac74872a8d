"""Claims of NAD: what attention is, that every chosen stage is really distilled, and that only the student moves."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.nad import PAPER, SPACE
from tests.toy import toy_dataset
from trainables.data.images import DataError, Dataset
from trainables.defenses.base import CleanData
from trainables.defenses.ft import FineTuning
from trainables.defenses.nad import (
    NeuralAttentionDistillation,
    attention,
    attention_distance,
    refuse_single_positions,
    stage_outputs,
)
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SHORT: dict[str, Any] = {"steps": 4, "teacher_steps": 4, "batch_size": 16}


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


def same(one: Classifier, other: Classifier) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_model(seed: int, image_size: int = 16, name: str = "preact_resnet18") -> Classifier:
    width = 2 if name == "preact_resnet18" else None
    generator = torch.Generator().manual_seed(seed)
    return build_model(name, num_classes=10, width=width, image_size=image_size, generator=generator)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_attention_is_a_map_of_unit_length_that_ignores_the_scale_of_the_features(p: int) -> None:
    found = attention(maps(3, 5, 4, 4), p)
    assert found.shape == (3, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(attention(7.0 * maps(3, 5, 4, 4), p), found, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attention(-maps(3, 5, 4, 4), p), found)


def test_attention_of_a_known_map() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[-1.0, 1.0]]]])  # channels (1, 2) and (-1, 1) over two positions
    expected = torch.tensor([[2.0, 5.0]]) / 29**0.5
    torch.testing.assert_close(attention(features, 2), expected, rtol=1e-5, atol=0)


def test_attention_of_bfloat16_maps_is_summed_in_float32() -> None:
    # 256 channels of 1.0 and one of 0.5: their squares sum to 256.25, which bfloat16 would round to 256.
    features = torch.ones(1, 257, 1, 2, dtype=torch.bfloat16)
    features[0, -1, 0, 0] = 0.5
    found = attention(features, 2)
    assert found.dtype == torch.float32
    assert float(found[0, 1] / found[0, 0]) == pytest.approx(257 / 256.25, rel=1e-5)


def test_dead_maps_have_no_attention_and_a_finite_gradient() -> None:
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    found = attention(dead, 2)
    assert torch.equal(found.detach(), torch.zeros(2, 4))
    found.sum().backward()
    assert dead.grad is not None
    assert bool(dead.grad.isfinite().all())


def test_distance_is_zero_between_equal_networks_and_weighs_the_stages_as_published() -> None:
    # Maps as PreAct-ResNet18 has them on 32 pixels: there the term is the published mean over positions.
    one = [maps(2, 3, 16, 16), maps(2, 4, 8, 8), maps(2, 5, 4, 4)]
    assert float(attention_distance(one, one, 2)) == 0.0
    for place, weight in enumerate((0.5, 1.0, 1.0)):
        other = list(one)
        other[place] = maps(*one[place].shape, seed=1)
        alone = nn.functional.mse_loss(attention(one[place], 2), attention(other[place], 2))
        assert float(attention_distance(one, other, 2)) == pytest.approx(weight * float(alone))


def test_beta_means_the_same_on_images_of_any_size() -> None:
    # All attention on one position, and all of it on another: as far apart as maps can be, on 16 pixels as on 32.
    def far_apart(side: int) -> float:
        def lit(place: int) -> Tensor:
            found = torch.zeros(1, 1, side * side)
            found[..., place] = 1.0
            return found.view(1, 1, side, side)

        here, there = [[lit(place)] for place in (0, side * side - 1)]
        return float(attention_distance(here, there, 2))

    assert far_apart(4) == pytest.approx(2 / 16, rel=1e-4), "the last stage on 32 pixels"
    assert far_apart(2) == pytest.approx(far_apart(4), rel=1e-4), (
        "on 16: as a mean over positions it was four times that"
    )


def test_maps_are_those_of_the_last_three_stages_before_the_pool_and_of_one_pass() -> None:
    model = small_model(0).train()
    before = {key: int(t) for key, t in model.state_dict().items() if key.endswith("num_batches_tracked")}
    with stage_outputs(model) as seen:
        model(torch.rand(3, 3, 16, 16))
        assert [tuple(found.shape) for found in seen] == [(3, 4, 8, 8), (3, 8, 4, 4), (3, 16, 2, 2)]
    after = {key: int(t) for key, t in model.state_dict().items() if key.endswith("num_batches_tracked")}
    assert all(after[key] == count + 1 for key, count in before.items())
    assert not any(stage._forward_hooks for stage in model.stages)


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18", "vgg19_bn"])
def test_every_distilled_stage_gets_a_gradient_of_its_own(name: str) -> None:
    # Of post-pool maps the attention is 1 everywhere, so their term and its gradient are 0: this would catch it.
    student, teacher = small_model(0, 32, name), small_model(1, 32, name)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with stage_outputs(student) as seen, stage_outputs(teacher) as shown:
        student(images)
        with torch.no_grad():
            teacher(images)
        assert len(seen) == 3
        for place in range(3):
            term = attention_distance([seen[place]], [shown[place]], 2)
            (gradient,) = torch.autograd.grad(term, seen[place], retain_graph=True)
            assert float(term.detach()) > 1e-4
            assert float(gradient.abs().max()) > 0


def test_without_distillation_the_student_is_plain_fine_tuning(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    def run(beta: float) -> Classifier:
        defense = NeuralAttentionDistillation(beta=beta, **SHORT)
        return defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model

    plain = FineTuning(lr=0.01, steps=4, schedule="constant", batch_size=16)
    fine_tuned = plain.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model
    assert same(run(0.0), fine_tuned)
    assert not same(run(1000.0), fine_tuned)


def test_without_steps_nothing_is_done(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = NeuralAttentionDistillation(steps=0).repair(copy.deepcopy(toy_victim.model), clean(toy), trainer)
    assert same(found.model, toy_victim.model)
    assert trainer.counters == Counters() == NeuralAttentionDistillation(steps=0).plan(64)


def test_teacher_stays_as_it_is_and_the_student_comes_to_attend_like_it(toy: Dataset, trainer: Trainer) -> None:
    # float32 and no crops, so that what is compared afterwards is what was trained on.
    teacher, data = small_model(1), clean(toy).train
    kept = copy.deepcopy(teacher)
    images = data.images.float() / 255

    def distance(student: Classifier) -> float:
        with torch.no_grad(), stage_outputs(student) as seen, stage_outputs(kept) as shown:
            student.eval()(images)
            kept.eval()(images)
            return float(attention_distance(seen, shown, 2))

    def distilled(beta: float) -> float:
        student = small_model(0)
        defense = NeuralAttentionDistillation(beta=beta, steps=40, lr=0.02, batch_size=16, augment=False)
        defense.distill(student, teacher, data, trainer)
        return distance(student)

    assert distilled(1000.0) < 0.8 * distilled(0.0)
    assert same(teacher, kept)
    assert not any(module.training for module in teacher.modules())


def test_teacher_is_counted(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    defense = NeuralAttentionDistillation(teacher_steps=2, steps=4, batch_size=12)
    defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer)
    # 2 steps of the teacher, 4 of the student, each of which shows its batch to the teacher too.
    assert (
        trainer.counters == Counters(steps=6, forward_samples=(2 + 8) * 12, backward_samples=6 * 12) == defense.plan(64)
    )


def test_maps_of_one_position_are_refused_before_any_work(trainer: Trainer) -> None:
    tiny = toy_dataset(train=20, image_size=8)
    model = small_model(0, 8)
    before = copy.deepcopy(model)
    assets = CleanData(tiny.train, tiny.train)
    with pytest.raises(DataError, match="more than one position, got 1x1 from stage 5 of 5 at 8 pixels"):
        NeuralAttentionDistillation(steps=1).repair(model, assets, trainer)
    assert same(model, before)
    assert trainer.counters == Counters()
    refuse_single_positions(small_model(0), 16)  # 2x2 is enough


def test_step_schedule_divides_by_ten_after_every_fifth_of_the_run() -> None:
    rate = NeuralAttentionDistillation(lr=0.1, schedule="step").lr_at(100)  # the paper: every two of ten epochs
    assert [rate(step) for step in (0, 19, 20, 40, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 1e-5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta must be >= 0, got -1"),
        ({"p": 0}, "p must be >= 1, got 0"),
        ({"teacher_steps": -1}, "teacher_steps must be >= 0"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"schedule": "swing"}, "schedule must be constant, cosine or step, got 'swing'"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"momentum": 1.0}, "momentum must be in"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralAttentionDistillation(**settings)


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = NeuralAttentionDistillation()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())
