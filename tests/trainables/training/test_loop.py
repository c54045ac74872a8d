"""Claims of trainables.training.loop: exact steps and counts, what stays frozen, when a run has diverged."""

import copy
import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.toy import toy_dataset
from trainables.data.images import Dataset, FeatureSet, ImageSet
from trainables.defenses.ft import in_scope
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.training import schedules
from trainables.training.loop import (
    Augmentation,
    Counters,
    DivergedError,
    Optimizer,
    Schedule,
    autocast,
    batches,
    evaluating,
    fit,
)
from trainables.training.recipes import RECIPES, TrainingRecipe
from trainables.training.trainer import Trainer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_model(seed: int = 0) -> Classifier:
    return build_model("preact_resnet18", num_classes=10, width=2, image_size=16, generator=generator(seed))


def constant(lr: float = 0.05) -> Schedule:
    return schedules.constant(lr)


class Linear(nn.Module):
    """logits = images summed over pixels, times a weight: gradients can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.sum((2, 3)) @ self.weight.T


def linear_task() -> ImageSet:
    return ImageSet(torch.full((4, 3, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))


def fixed_pull(model: nn.Module, _images: Tensor, _labels: Tensor) -> Tensor:
    """A loss whose gradient is one everywhere, whatever the weights."""
    return sum((p.sum() for p in model.parameters()), torch.zeros(()))


def test_exactly_the_asked_steps_are_made_and_counted(toy: Dataset) -> None:
    counters, made = Counters(), list[int]()
    history = fit(
        small_model(), toy.train, steps=7, lr_at=constant(), generator=generator(), batch_size=32,
        counters=counters, after_step=made.append,
    )  # fmt: skip
    assert made == list(range(7))
    assert counters == Counters(steps=7, forward_samples=7 * 32, backward_samples=7 * 32)
    assert len(history.lr) == len(history.loss) == 7


def test_batch_is_cut_to_the_set(toy: Dataset) -> None:
    counters = Counters()
    few = toy.train.subset(torch.arange(20))
    fit(small_model(), few, steps=3, lr_at=constant(), generator=generator(), batch_size=256, counters=counters)
    assert counters.forward_samples == 60


def test_no_steps_change_nothing(toy: Dataset) -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    history = fit(model, toy.train, steps=0, lr_at=constant(), generator=generator())
    assert history.loss == []
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_rate_of_each_step_is_assigned_before_it(toy: Dataset) -> None:
    rates = [0.0, 0.0, 0.1]
    weights = list[Tensor]()
    model = small_model()
    start = model.classifier.weight.detach().clone()
    history = fit(
        model, toy.train, steps=3, lr_at=rates.__getitem__, generator=generator(), batch_size=32,
        after_step=lambda _step: weights.append(model.classifier.weight.detach().clone()),
    )  # fmt: skip
    assert history.lr == rates
    assert torch.equal(weights[1], start)
    assert not torch.equal(weights[2], start)


def test_one_step_of_sgd_is_what_the_formula_says() -> None:
    model = Linear()
    updater = Optimizer("sgd", momentum=0.0, weight_decay=0.0)
    task = linear_task().subset(torch.tensor([0]))
    fit(model, task, steps=1, lr_at=constant(0.5), generator=generator(), optimizer=updater)
    # Logits 0, softmax 1/2: the gradient is (p - onehot) x, and each channel of a white 2x2 image sums to 4.
    torch.testing.assert_close(model.weight.data, 0.5 * 4 * torch.tensor([[0.5] * 3, [-0.5] * 3]))


def test_displacement_is_the_mass_of_the_rates_for_fixed_gradients() -> None:
    def moved(rates: list[float], momentum: float) -> float:
        model = Linear()
        fit(
            model,
            linear_task(),
            steps=len(rates),
            lr_at=rates.__getitem__,
            generator=generator(),
            optimizer=Optimizer("sgd", momentum, weight_decay=0.0),
            loss=fixed_pull,
        )
        return -float(model.weight.detach()[0, 0])

    assert moved([0.1, 0.2, 0.3], 0.0) == pytest.approx(0.6)
    # With momentum a step's push goes on for some 1 / (1 - m) steps; the schedule fades in and out over many more.
    schedule = schedules.CyclicSchedule(0.0, (schedules.Phase(0.1, 1),), period=400)
    rates = [schedule(step) for step in range(400)] + [0.0] * 200
    mass = schedules.lr_mass(schedule, 0, 400, constant(0.9))
    assert moved(rates, 0.9) == pytest.approx(mass, rel=0.06)
    assert moved([2 * rate for rate in rates], 0.9) == pytest.approx(2 * moved(rates, 0.9), rel=1e-4)


def test_momentum_follows_its_schedule() -> None:
    def path(momentum_at: list[float]) -> list[float]:
        model, seen = Linear(), list[float]()
        fit(model, linear_task(), steps=3, lr_at=constant(1.0), generator=generator(), loss=fixed_pull,
            optimizer=Optimizer("sgd", 0.9, 0.0), momentum_at=momentum_at.__getitem__,
            after_step=lambda _step: seen.append(-float(model.weight.detach()[0, 0])))  # fmt: skip
        return seen

    assert path([0.9, 0.5, 0.25]) == pytest.approx([1.0, 1.0 + 1.5, 2.5 + 1.375])
    assert path([0.9, 0.0, 0.0]) == pytest.approx([1.0, 2.0, 3.0])


def test_weight_decay_shrinks_the_weights() -> None:
    model = Linear()
    nn.init.ones_(model.weight)
    zero = lambda model, _images, _labels: model.weight.sum() * 0.0  # noqa: E731
    fit(model, linear_task(), steps=1, lr_at=constant(0.5), generator=generator(),
        optimizer=Optimizer("sgd", 0.0, 0.1), loss=zero)  # fmt: skip
    torch.testing.assert_close(model.weight.data, torch.full((2, 3), 1.0 - 0.5 * 0.1))


def test_gradients_are_clipped_to_the_norm() -> None:
    model = Linear()
    fit(model, linear_task(), steps=1, lr_at=constant(1.0), generator=generator(), loss=fixed_pull,
        optimizer=Optimizer("sgd", 0.0, 0.0), grad_clip=0.3)  # fmt: skip
    assert float(model.weight.data.norm()) == pytest.approx(0.3, rel=1e-4)


def double_the_weights(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.mul_(2.0)


def test_perturbed_step_takes_its_gradient_there_and_starts_here() -> None:
    model = Linear()
    nn.init.ones_(model.weight)
    half_square = lambda model, _images, _labels: 0.5 * model.weight.square().sum()  # noqa: E731
    counters = Counters()
    history = fit(model, linear_task(), steps=1, lr_at=constant(0.25), generator=generator(), loss=half_square,
                  optimizer=Optimizer("sgd", 0.0, 0.0), perturb=double_the_weights, counters=counters)  # fmt: skip
    torch.testing.assert_close(model.weight.data, torch.full((2, 3), 1.0 - 0.25 * 2.0))
    assert history.loss == [pytest.approx(3.0)]
    assert counters == Counters(steps=1, forward_samples=8, backward_samples=8)


def add_one(parameters: Sequence[nn.Parameter]) -> None:
    """Loses the last bits of a small weight: subtracting the one again would not bring them back."""
    for parameter in parameters:
        parameter.add_(1.0)


def test_weights_are_restored_exactly_and_statistics_advance_once_in_a_perturbed_step(toy: Dataset) -> None:
    plain, perturbed = small_model(), small_model()
    for model, perturb in ((plain, None), (perturbed, add_one)):
        fit(model, toy.train, steps=1, lr_at=constant(0.0), generator=generator(), batch_size=32, perturb=perturb)
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in perturbed.state_dict().items())
    assert all(module.track_running_stats for module in perturbed.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("scope", ["all", "last_block+classifier"])
def test_a_move_of_nothing_is_plain_training(scope: str, precision: str, toy: Dataset) -> None:
    plain, perturbed = small_model(), small_model()
    for model, perturb in ((plain, None), (perturbed, lambda _parameters: None)):
        fit(model, toy.train, steps=3, lr_at=constant(), generator=generator(), batch_size=32, perturb=perturb,
            precision=precision, trainable=in_scope(model, scope))  # fmt: skip
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in perturbed.state_dict().items())


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.05), ("nesterov", 0.05), ("adam", 0.01), ("adamw", 0.01)])
def test_every_optimiser_learns(name: str, lr: float, toy: Dataset) -> None:
    model = small_model()
    history = fit(model, toy.train, steps=40, lr_at=constant(lr), generator=generator(), batch_size=32,
                  optimizer=Optimizer(name))  # type: ignore[arg-type]  # fmt: skip
    assert sum(history.loss[-5:]) < 0.9 * sum(history.loss[:5])


def test_unknown_or_impossible_optimisers_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer must be one of sgd, nesterov, adam, adamw, got 'sgdd'"):
        Optimizer("sgdd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="momentum"):
        Optimizer(momentum=1.0)
    with pytest.raises(ValueError, match="weight_decay"):
        Optimizer(weight_decay=-1e-4)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (7, 7), (12, 5)])
def test_batches_are_full_and_use_every_sample_equally_often(n: int, size: int) -> None:
    data = FeatureSet(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n))
    seen = [
        labels for _, labels in batches(data, steps=n, batch_size=size, augmentation=None, generator=generator())
    ]  # n batches of s samples are s whole passes
    assert {len(batch) for batch in seen} == {size}
    assert torch.cat(seen).bincount().tolist() == [size] * n
    assert torch.cat(seen)[:n].unique().numel() == n  # a pass is over before the next begins


def test_inputs_and_labels_stay_together() -> None:
    data = FeatureSet(torch.arange(9, dtype=torch.float32)[:, None], torch.arange(9))
    for inputs, labels in batches(data, steps=5, batch_size=4, augmentation=None, generator=generator()):
        assert torch.equal(inputs[:, 0], labels.float())


def test_augmentation_changes_the_images_and_not_their_order(toy: Dataset) -> None:
    def first(augmentation: Augmentation | None) -> tuple[Tensor, Tensor]:
        return next(batches(toy.train, steps=1, batch_size=16, augmentation=augmentation, generator=generator()))

    (plain, labels), (moved, same_labels) = first(None), first(Augmentation(2, flip=True))
    assert torch.equal(labels, same_labels)
    assert not torch.equal(plain, moved)
    assert torch.equal(first(Augmentation(0))[0], plain)


def test_training_on_nothing_is_refused(toy: Dataset) -> None:
    with pytest.raises(ValueError, match="empty set"):
        fit(small_model(), toy.train.subset(torch.zeros(0, dtype=torch.int64)), steps=1, lr_at=constant(),
            generator=generator())  # fmt: skip


def states(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


@pytest.mark.parametrize("scope", ["classifier", "last_block+classifier"])
def test_frozen_parts_stay_bit_identical_running_statistics_included(scope: str, toy: Dataset) -> None:
    model = small_model()
    trained = {id(p) for p in in_scope(model, scope)}
    names = {name.rpartition(".")[0] for name, p in model.named_parameters() if id(p) in trained}
    before = states(model)
    fit(model, toy.train, steps=5, lr_at=constant(), generator=generator(), batch_size=32,
        trainable=in_scope(model, scope))  # fmt: skip
    changed = {name.rpartition(".")[0] for name, tensor in model.state_dict().items()
               if not torch.equal(tensor, before[name])}  # fmt: skip
    assert changed == names


def test_bn_only_moves_batch_normalisation_alone(toy: Dataset) -> None:
    model = small_model()
    before = states(model)
    fit(model, toy.train, steps=5, lr_at=constant(), generator=generator(), batch_size=32,
        trainable=in_scope(model, "bn_only"))  # fmt: skip
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.BatchNorm2d)
        for key, tensor in module.named_parameters(prefix=name, recurse=False):
            assert torch.equal(tensor, before[key]) != is_norm, key


def test_bn_mode_eval_freezes_running_statistics_and_still_trains_the_weights(toy: Dataset) -> None:
    model = small_model()
    before = states(model)
    fit(model, toy.train, steps=5, lr_at=constant(), generator=generator(), batch_size=32, bn_mode="eval")
    for key, tensor in model.state_dict().items():
        statistic = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        constant_of_data = key.startswith("normalize")
        assert torch.equal(tensor, before[key]) == (statistic or constant_of_data), key


def test_model_is_left_in_eval_mode_and_as_trainable_as_it_was(toy: Dataset) -> None:
    model = small_model()
    model.stages[0].requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    fit(model, toy.train, steps=2, lr_at=constant(), generator=generator(), trainable=in_scope(model, "classifier"))
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())


def test_evaluating_puts_every_module_back_into_its_own_mode() -> None:
    model = small_model().train()
    model.stages[1].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("steps", [1, 49, 120])
def test_loss_that_is_not_finite_ends_the_run(steps: int, toy: Dataset) -> None:
    bad_from = steps - 1

    def loss(model: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
        calls.append(0)
        logits: Tensor = model(images)
        return logits.sum() * (float("nan") if len(calls) > bad_from else 0.0)

    calls = list[int]()
    with pytest.raises(DivergedError, match="not finite"):
        fit(small_model(), toy.train, steps=steps, lr_at=constant(), generator=generator(), batch_size=4, loss=loss)


def test_diverged_run_ends_early(toy: Dataset) -> None:
    counters = Counters()
    with pytest.raises(DivergedError):
        fit(small_model(), toy.train, steps=10_000, lr_at=constant(1e8), generator=generator(), batch_size=8,
            counters=counters)  # fmt: skip
    assert counters.steps <= 200


def test_goal_ends_the_training_after_the_step_that_reached_it(toy: Dataset) -> None:
    counters, seen = Counters(), list[int]()
    history = fit(small_model(), toy.train, steps=9, lr_at=constant(), generator=generator(), batch_size=16,
                  counters=counters, after_step=seen.append, until=lambda step: step == 2)  # fmt: skip
    assert seen == [0, 1, 2]
    assert counters == Counters(steps=3, forward_samples=48, backward_samples=48)
    assert len(history.loss) == len(history.lr) == 3


def test_goal_is_asked_after_every_step_the_last_one_included(toy: Dataset) -> None:
    asked = list[int]()
    fit(small_model(), toy.train, steps=3, lr_at=constant(), generator=generator(), batch_size=16,
        until=lambda step: bool(asked.append(step)))  # fmt: skip
    assert asked == [0, 1, 2]


def test_weights_ruined_by_the_last_step_count_as_diverged() -> None:
    # The loss of that step was taken before it and is fine.
    model = Linear()
    with pytest.raises(DivergedError, match="weights"):
        fit(model, linear_task().subset(torch.tensor([0])), steps=1, lr_at=constant(float("inf")),
            generator=generator(), optimizer=Optimizer("sgd", 0.0, 0.0))  # fmt: skip


def test_bfloat16_is_used_on_request_and_refused_by_a_wrong_name(toy: Dataset) -> None:
    kinds = list[torch.dtype]()

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(model, Classifier)
        features = model.features(images)
        kinds.append(features.dtype)
        logits = model.logits(features)
        assert logits.dtype == torch.float32  # always: bfloat16 would let classes tie
        return nn.functional.cross_entropy(logits, labels)

    for precision in ("bfloat16", "float32"):
        fit(small_model(), toy.train, steps=1, lr_at=constant(), generator=generator(), batch_size=8, loss=loss,
            precision=precision)  # fmt: skip
    assert kinds == [torch.bfloat16, torch.float32]
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        autocast(torch.device("cpu"), "half")


def test_both_betas_of_adam_are_used() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    for name in ("adam", "adamw"):
        updater = Optimizer(name, momentum=0.5, beta2=0.9).build([parameter])  # type: ignore[arg-type]
        assert updater.param_groups[0]["betas"] == (0.5, 0.9)
    with pytest.raises(ValueError, match="beta2"):
        Optimizer("adam", beta2=1.0)


def test_training_does_not_touch_the_images(toy: Dataset) -> None:
    before = toy.train.images.clone()
    fit(small_model(), toy.train, steps=2, lr_at=constant(), generator=generator(), augmentation=Augmentation(2, True))
    assert torch.equal(toy.train.images, before)


def test_transform_replaces_the_batch_that_is_trained_on() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def halve(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images / 2, 1 - labels

    def watch(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append((images, labels))
        return fixed_pull(model, images, labels)

    settings = {"steps": 3, "lr_at": constant(), "batch_size": 4, "loss": watch}
    fit(Linear(), linear_task(), generator=generator(), transform=halve, **settings)  # type: ignore[arg-type]
    halved = seen.copy()
    seen.clear()
    fit(Linear(), linear_task(), generator=generator(), **settings)  # type: ignore[arg-type]
    for (images, labels), (plain, plain_labels) in zip(halved, seen, strict=True):
        assert torch.equal(images, plain / 2)
        assert torch.equal(labels, 1 - plain_labels)


def test_a_second_model_of_a_bench_has_its_own_weights_and_batches(toy: Dataset, trainer: Trainer) -> None:
    recipe = TrainingRecipe(epochs=0.2, batch_size=32, lr=0.05)
    own, again = (trainer.train_from_scratch(toy.train, recipe) for _ in range(2))
    second = trainer.train_from_scratch(toy.train, recipe, purpose="surrogate")
    first = trainer.fresh_model().classifier.weight
    assert torch.equal(own.classifier.weight, again.classifier.weight)
    assert not torch.equal(first, trainer.fresh_model("surrogate").classifier.weight)
    assert not torch.equal(own.classifier.weight, second.classifier.weight)


def test_scratch_training_follows_its_recipe(toy: Dataset, trainer: Trainer) -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=64, lr=0.01)
    trainer.train_from_scratch(toy.train, recipe)
    assert trainer.counters.steps == recipe.steps(200) == 2 * 4


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_reach_their_peak_and_never_leave_the_positive_numbers(name: str) -> None:
    recipe = RECIPES[name]
    rates = [recipe.lr_at(1000)(step) for step in range(recipe.steps(1000))]
    assert max(rates) == pytest.approx(recipe.lr)
    assert min(rates) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be > 0, got 0"),
        ({"batch_size": 1}, "batch_size must be >= 2"),
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"schedule": "step"}, "schedule must be cosine, constant or one_cycle, got 'step'"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of"),
        ({"momentum": 1.5}, "momentum must be in"),
    ],
)
def test_impossible_recipes_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingRecipe(**{"epochs": 1, "batch_size": 8, "lr": 0.1, **settings})  # type: ignore[arg-type]


PROGRAM = """
import hashlib, json, sys, torch
torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[1])); torch.rand(3)  # whatever the global generator did must not matter
from tests.trainables.training.test_loop import digest_of_a_short_training
print(json.dumps(digest_of_a_short_training()))
"""


def digest_of_a_short_training() -> list[float]:
    model = small_model()
    data = toy_dataset(train=64).train
    fit(
        model, data, steps=6, lr_at=constant(), generator=generator(), batch_size=16, augmentation=Augmentation(2, True)
    )
    return [float(tensor.double().sum()) for tensor in model.state_dict().values()]


def test_same_seed_same_weights_in_a_new_process() -> None:
    here = digest_of_a_short_training()
    ran = subprocess.run([sys.executable, "-c", PROGRAM, "77"], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(ran.stdout) == here
