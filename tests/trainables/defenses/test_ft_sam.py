"""Claims of FT-SAM: the length of the move, exact restoring, fine-tuning at rho 0, the schedules it offers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from search_spaces.ft_sam import PAPER, SPACE
from trainables.data.images import Dataset
from trainables.defenses.base import CleanData
from trainables.defenses.ft import FineTuning
from trainables.defenses.ft_sam import FineTuningSAM
from trainables.training.loop import Counters
from trainables.training.sharpness import climb
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


def repaired(defense: FineTuning | FineTuningSAM, victim: Victim, toy: Dataset, trainer: Trainer) -> dict[str, Tensor]:
    model = copy.deepcopy(victim.model)
    return dict(defense.repair(model, clean(toy), trainer).model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def parameters_with_gradients() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(4, 3, generator=generator)), nn.Parameter(torch.randn(5, generator=generator))]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return found


@pytest.mark.parametrize("rho", [0.05, 2.0])
@pytest.mark.parametrize("adaptive", [False, True])
def test_move_has_length_rho_over_all_parameters_together(rho: float, adaptive: bool) -> None:
    parameters = parameters_with_gradients()
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        climb(parameters, rho=rho, adaptive=adaptive)
    moves = [now.detach() - then for now, then in zip(parameters, before, strict=True)]
    if adaptive:
        moves = [move / then.abs() for move, then in zip(moves, before, strict=True)]
    assert float(torch.cat([move.flatten() for move in moves]).norm()) == pytest.approx(rho, rel=1e-4)


def test_move_is_uphill_and_in_proportion_to_the_weights_where_adaptive() -> None:
    plain, adaptive = nn.Parameter(torch.tensor([1.0, 3.0])), nn.Parameter(torch.tensor([1.0, 3.0]))
    for parameter, is_adaptive in ((plain, False), (adaptive, True)):
        parameter.grad = torch.tensor([1.0, -1.0])
        with torch.no_grad():
            climb([parameter], rho=1.0, adaptive=is_adaptive)
    torch.testing.assert_close(plain.detach(), torch.tensor([1.0, 3.0]) + torch.tensor([1.0, -1.0]) / 2**0.5)
    # w^2 g / || |w| g || = (1, -9) / sqrt(10).
    torch.testing.assert_close(adaptive.detach(), torch.tensor([1.0, 3.0]) + torch.tensor([1.0, -9.0]) / 10**0.5)


def test_move_without_a_gradient_stays_finite() -> None:
    flat, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    flat.grad = torch.zeros(3)
    with torch.no_grad():
        climb([flat, frozen], rho=2.0, adaptive=True)
        climb([frozen], rho=2.0, adaptive=True)
    assert torch.equal(flat.detach(), torch.ones(3))
    assert torch.equal(frozen.detach(), torch.ones(3))


@pytest.mark.parametrize("adaptive", [False, True])
def test_without_a_move_it_is_fine_tuning_bit_by_bit(
    adaptive: bool, toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    settings = {"steps": 6, "batch_size": 16, "lr": 0.02}
    plain = repaired(FineTuning(**settings), toy_victim, toy, trainer)  # type: ignore[arg-type]
    sam = FineTuningSAM(rho=0.0, adaptive=adaptive, smoothing=0.0, **settings)  # type: ignore[arg-type]
    assert same(repaired(sam, toy_victim, toy, trainer), plain)
    moved = FineTuningSAM(rho=0.5, adaptive=adaptive, smoothing=0.0, **settings)  # type: ignore[arg-type]
    assert not same(repaired(moved, toy_victim, toy, trainer), plain)


def test_without_steps_nothing_changes(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    assert same(repaired(FineTuningSAM(steps=0), toy_victim, toy, trainer), dict(toy_victim.model.state_dict()))
    assert trainer.counters == Counters()


def test_statistics_advance_once_per_step_and_from_the_unmoved_weights(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    # A single step: the first pass sees the victim's weights whatever rho, so the statistics must not depend on it.
    settings = {"steps": 1, "smoothing": 0.0}
    still = repaired(FineTuningSAM(rho=0.0, **settings), toy_victim, toy, trainer)  # type: ignore[arg-type]
    moved = repaired(FineTuningSAM(rho=5.0, **settings), toy_victim, toy, trainer)  # type: ignore[arg-type]
    buffers = [key for key in still if key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert buffers
    assert all(torch.equal(still[key], moved[key]) for key in buffers)
    assert not same(still, moved)
    before = toy_victim.model.state_dict()
    assert all(int(moved[k] - before[k]) == 1 for k in buffers if k.endswith("num_batches_tracked"))


def test_each_step_counts_two_passes(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    defense = FineTuningSAM(steps=4, batch_size=12)
    repaired(defense, toy_victim, toy, trainer)
    assert trainer.counters == Counters(steps=4, forward_samples=96, backward_samples=96) == defense.plan(64)


def test_cosine_spans_the_run_and_swing_repeats_every_200_steps() -> None:
    cosine = FineTuningSAM(lr=0.01, steps=400).lr_at()
    assert [cosine(0), cosine(200)] == [pytest.approx(0.01), pytest.approx(0.005)]
    assert all(cosine(step + 1) < cosine(step) for step in range(399))
    swing = FineTuningSAM(lr=0.01, schedule="swing").lr_at()
    assert [swing(0), swing(100), swing(200), swing(300)] == pytest.approx([0.01, 0.0, 0.01, 0.0])
    assert FineTuningSAM(lr=0.01, schedule="constant").lr_at()(777) == 0.01


def test_smoothed_loss_never_vanishes() -> None:
    sure = torch.eye(4)[None].repeat(2, 1, 1).flatten(0, 1) * 50.0
    labels = torch.arange(4).repeat(2)
    hard = FineTuningSAM(smoothing=0.0).loss(nn.Identity(), sure, labels)
    soft = FineTuningSAM(smoothing=0.1).loss(nn.Identity(), sure, labels)
    assert float(hard) < 1e-6
    assert float(soft) == pytest.approx(0.1 * 50.0 * 3 / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -1.0}, "rho must be >= 0, got -1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"schedule": "step"}, "schedule must be cosine, constant or swing, got 'step'"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"momentum": 1.0}, "momentum must be in"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuningSAM(**settings)  # type: ignore[arg-type]


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = FineTuningSAM()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())
