"""Claims of I-BAU: its gradient is the implicit hypergradient, and the perturbation is one, bounded and in pixels."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.ibau import PAPER, SPACE
from tests.trainables.defenses.batches import shuffled
from trainables.data.images import Dataset
from trainables.defenses.base import CleanData
from trainables.defenses.ibau import ImplicitUnlearning, implicit_loss, inner_loss
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters, autocast
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SHORT: dict[str, Any] = {"steps": 4, "round_steps": 2, "inner_steps": 2, "batch_size": 16, "fixed_point_iterations": 3}


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


def same(one: Classifier, other: Classifier) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())


class Quadratic:
    """inner(d) = d.A d / 2 - d.B w, so that the best d is A^-1 B w; outer(d) = |d - t|^2 / 2 + w.C w / 2."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        self.b = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        self.c = torch.tensor([[1.0, 0.2], [0.2, 3.0]], dtype=torch.float64)
        self.t = torch.tensor([0.3, -0.7], dtype=torch.float64)
        self.w = torch.tensor([0.8, -0.4], dtype=torch.float64, requires_grad=True)

    def outer(self, d: Tensor) -> Tensor:
        return 0.5 * (d - self.t).square().sum() + 0.5 * self.w @ self.c @ self.w

    def inner(self, d: Tensor) -> Tensor:
        return 0.5 * d @ self.a @ d - d @ self.b @ self.w

    def best(self, w: Tensor) -> Tensor:
        return torch.linalg.solve(self.a, self.b @ w.detach())

    def value(self, w: Tensor) -> float:
        """Outer loss at the best d of these weights: what the hypergradient is the gradient of."""
        d = self.best(w)
        return float(0.5 * (d - self.t).square().sum() + 0.5 * w @ self.c @ w)

    def gradient(self, iterations: int, step: float = 0.3) -> Tensor:
        loss = implicit_loss(self.outer, self.inner, self.best(self.w), iterations=iterations, step=step)
        return torch.autograd.grad(loss, self.w)[0]


def finite_differences(value: Callable[[Tensor], float], at: Tensor, h: float = 1e-5) -> Tensor:
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        ahead, behind = at.detach().clone(), at.detach().clone()
        ahead[i] += h
        behind[i] -= h
        found[i] = (value(ahead) - value(behind)) / (2 * h)
    return found


def test_hypergradient_is_the_slope_of_the_solved_problem() -> None:
    problem = Quadratic()
    expected = finite_differences(problem.value, problem.w)
    closed = problem.c @ problem.w + problem.b.T @ torch.linalg.solve(problem.a, problem.best(problem.w) - problem.t)
    torch.testing.assert_close(closed.detach(), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(problem.gradient(iterations=200), expected, rtol=1e-6, atol=1e-8)
    errors = [float((problem.gradient(k) - expected).norm()) for k in (0, 1, 5, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[3]


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_each_iteration_adds_one_term_of_the_series(iterations: int) -> None:
    # v_K = sum_{k<K} (I - step A)^k d outer/dd, and (dPhi/dw)^T v = step B^T v.
    problem, step = Quadratic(), 0.3
    pull = problem.best(problem.w) - problem.t
    shrink = torch.eye(2, dtype=torch.float64) - step * problem.a
    v = sum((torch.linalg.matrix_power(shrink, k) @ pull for k in range(iterations)), torch.zeros_like(pull))
    expected = problem.c @ problem.w.detach() + step * problem.b.T @ v
    torch.testing.assert_close(problem.gradient(iterations, step), expected)


def test_without_iterations_it_is_the_gradient_of_adversarial_training() -> None:
    problem = Quadratic()
    torch.testing.assert_close(problem.gradient(iterations=0), problem.c @ problem.w.detach())


def test_value_is_the_outer_loss_alone() -> None:
    problem = Quadratic()
    d = torch.tensor([0.1, 0.2], dtype=torch.float64)
    expected = problem.outer(d)
    for iterations in (0, 1, 4):
        torch.testing.assert_close(
            implicit_loss(problem.outer, problem.inner, d, iterations=iterations, step=0.3), expected
        )


def test_hypergradient_of_a_network_agrees_with_finite_differences() -> None:
    """One ascent step from 0 is a differentiable function of the weights: with K = 1 the slope is that of doing it."""
    generator = torch.Generator().manual_seed(0)
    model = build_model("preact_resnet18", num_classes=3, width=1, image_size=8, generator=generator).double().eval()
    images = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels, step = torch.tensor([0, 1, 2, 0]), 0.1
    zero = torch.zeros(1, 3, 8, 8, dtype=torch.float64)

    def outer(d: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(images + d), labels)

    def inner(d: Tensor) -> Tensor:
        return inner_loss(model, images, labels, d)

    def unrolled(bias: Tensor) -> float:
        """The outer loss, linear in where one step from 0 leads (its slope taken at 0, as in the method)."""
        with torch.no_grad():
            model.classifier.weight[0].copy_(bias)
        d = zero.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(inner(d), d)
        return float((outer(zero) + ((zero - step * slope) * pull).sum()).detach())

    d = zero.clone().requires_grad_(True)
    (pull,) = torch.autograd.grad(outer(d), d)
    row = model.classifier.weight[0].detach().clone()
    loss = implicit_loss(outer, inner, zero, iterations=1, step=step)
    (found,) = torch.autograd.grad(loss, model.classifier.weight)
    expected = finite_differences(unrolled, row)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-9)
    plain = torch.autograd.grad(outer(zero), model.classifier.weight)[0][0]
    assert not torch.allclose(plain, found[0], rtol=1e-3)


def perturbation(defense: ImplicitUnlearning, victim: Victim, toy: Dataset, trainer: Trainer) -> Tensor:
    return defense.find_perturbation(victim.model, clean(toy).train, trainer, round_=0)


def test_one_perturbation_for_all_images_raises_the_loss_and_keeps_its_bound(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    model, images = toy_victim.model, clean(toy).train.images.float() / 255
    before = copy.deepcopy(model)
    delta = perturbation(
        ImplicitUnlearning(norm_bound=1.0, inner_lr=200.0, inner_steps=8, batch_size=8), toy_victim, toy, trainer
    )
    assert delta.shape == (1, 3, 16, 16)
    assert float(delta.norm()) == pytest.approx(1.0, rel=1e-4)
    predicted = model(images).argmax(1)
    loss = [float(nn.functional.cross_entropy(model(images + d), predicted).detach()) for d in (0.0 * delta, delta)]
    assert loss[1] > loss[0] + 0.05
    assert same(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ascent_in_pixels_takes_the_steps_of_one_on_normalised_images(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    data, model = clean(toy).train, toy_victim.model
    defense = ImplicitUnlearning(inner_lr=8.0, inner_steps=1, batch_size=16, augment=False)
    batch = shuffled(data, trainer, "perturbation", 0).subset(torch.arange(16))
    normalised = model.normalize(batch.images.float() / 255)
    zero = torch.zeros(1, 3, 16, 16, requires_grad=True)

    def logits(d: Tensor) -> Tensor:
        maps = normalised + d
        for stage in model.stages:
            maps = stage(maps)
        found: Tensor = model.classifier(model.neck(maps))
        return found

    loss = -nn.functional.cross_entropy(logits(zero), logits(zero).argmax(1).detach())
    (slope,) = torch.autograd.grad(loss, zero)  # the decay has no slope at 0
    found = defense.find_perturbation(model, data, trainer, round_=0)
    torch.testing.assert_close(found / model.normalize.std, -8.0 * slope, rtol=1e-3, atol=1e-6)


def test_perturbation_makes_small_minus_the_loss_of_the_predictions_and_a_thousandth_of_its_square() -> None:
    images, delta = torch.rand(4, 3, 1, 1), torch.tensor([3.0, -4.0, 0.0]).reshape(1, 3, 1, 1)
    predicted = torch.tensor([0, 1, 2, 0])
    found = inner_loss(nn.Flatten(), images, predicted, delta)
    wanted = 0.025 - nn.functional.cross_entropy((images + delta).flatten(1), predicted)
    torch.testing.assert_close(found, wanted)


def test_fixed_point_step_is_a_tenth_on_normalised_images(toy: Dataset, toy_victim: Victim) -> None:
    model, data = copy.deepcopy(toy_victim.model).requires_grad_(True), clean(toy).train
    images, labels, delta = data.images.float() / 255, data.labels, torch.full((1, 3, 16, 16), 0.05)
    predicted = model(images).argmax(1)

    def slope(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, model.classifier.weight)[0]

    def with_step(step: float | Tensor) -> Tensor:
        return slope(
            implicit_loss(
                lambda d: nn.functional.cross_entropy(model(images + d), labels),
                lambda d: inner_loss(model, images, predicted, d),
                delta,
                iterations=2,
                step=step,
            )
        )

    defense = ImplicitUnlearning(fixed_point_iterations=2, patch_portion=1.0)
    found = slope(defense.unlearning_loss(model, images, labels, delta, Counters()))
    plain, wanted = with_step(0.0), with_step(0.1 * model.normalize.std.square())
    assert float((wanted - plain).norm()) > 0
    assert float((found - wanted).norm()) < 0.01 * float((wanted - plain).norm())


def test_weights_take_steps_of_adam(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    defense = ImplicitUnlearning(steps=1, inner_steps=1, lr=1e-3)
    found = defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model
    before = dict(toy_victim.model.named_parameters())
    moves = torch.cat([(after - before[name]).detach().abs().flatten() for name, after in found.named_parameters()])
    # Its first step is as long for every weight, whatever the gradient.
    assert [float(moves.median()), float(moves.max())] == pytest.approx([1e-3, 1e-3], rel=0.01)


def test_without_steps_nothing_changes(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = ImplicitUnlearning(steps=0).repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model
    assert same(found, toy_victim.model)
    assert trainer.counters == Counters() == ImplicitUnlearning(steps=0).plan(64)


def test_running_statistics_stay_and_weights_move(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = ImplicitUnlearning(**SHORT).repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model
    before = toy_victim.model.state_dict()
    parameters = {name for name, _ in found.named_parameters()}
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key not in parameters), key


def test_share_of_the_batch_that_is_patched() -> None:
    class Seen(Classifier):
        def __init__(self) -> None:
            super().__init__([nn.Identity()], nn.Flatten(), nn.Linear(1, 1), (0.0,), (1.0,))

        def forward(self, images: Tensor) -> Tensor:
            shifted.append(int((images.mean((1, 2, 3)) > 0.5).sum()))
            return images.mean((2, 3))

    for portion, expected in ((0.01, 2), (0.5, 128), (1.0, 256), (1e-6, 1)):
        shifted = list[int]()
        ImplicitUnlearning(patch_portion=portion, fixed_point_iterations=0).unlearning_loss(
            Seen(), torch.zeros(256, 3, 2, 2), torch.zeros(256, dtype=torch.int64), torch.ones(1, 3, 2, 2), Counters()
        )
        assert shifted == [expected]


def test_all_of_it_runs_in_float32_also_under_bfloat16(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    trainer.precision = "bfloat16"
    model, kinds = copy.deepcopy(toy_victim.model), set[torch.dtype]()
    handle = model.stages[2].register_forward_hook(lambda _m, _i, output: kinds.add(output.dtype))
    with autocast(trainer.device, "bfloat16"):  # the hook sees what autocast would do
        model(torch.rand(2, 3, 16, 16))
    assert kinds == {torch.bfloat16}
    kinds.clear()
    ImplicitUnlearning(**SHORT).repair(model, clean(toy), trainer)
    handle.remove()
    assert kinds == {torch.float32}


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_every_pass_is_counted(iterations: int, toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    settings = {"steps": 5, "round_steps": 3, "inner_steps": 2, "batch_size": 16}
    defense = ImplicitUnlearning(**settings, fixed_point_iterations=iterations)  # type: ignore[arg-type]
    defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer)
    samples, sought = 5 * 16, 2 * 2 * 16  # the second round is shorter, its search is not
    assert trainer.counters == defense.plan(64)
    assert trainer.counters == Counters(
        steps=5,
        forward_samples=2 * sought + samples * (1 + (2 if iterations else 0)),
        backward_samples=samples * (1 + iterations),
        input_backward_samples=sought + samples * (2 if iterations else 0),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps must be >= 0, got -1"),
        ({"round_steps": 0}, "round_steps must be >= 1"),
        ({"inner_steps": 0}, "inner_steps must be >= 1"),
        ({"fixed_point_iterations": -1}, "fixed_point_iterations must be >= 0"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"inner_lr": -1.0}, "inner_lr must be > 0"),
        ({"norm_bound": 0.0}, "norm_bound must be > 0 or none, got 0.0"),
        ({"patch_portion": 0.0}, r"patch_portion must be in \(0, 1\], got 0.0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitUnlearning(**settings)


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = ImplicitUnlearning()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())


def test_published_length_is_that_of_the_authors_code() -> None:
    # 5 rounds over 5,000 images in batches of 100, each of one pass for the perturbation and one for the weights.
    default = ImplicitUnlearning()
    assert (default.steps, default.round_steps, default.inner_steps) == (250, 50, 50)
    assert (default.lr, default.batch_size, default.inner_lr) == (1e-3, 100, 10.0)
    assert {"inner_lr", "inner_steps"} <= SPACE.keys()
