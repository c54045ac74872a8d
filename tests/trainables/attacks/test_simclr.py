"""Claims of trainables.attacks.simclr: views, the contrastive loss, pre-training and its monitor."""

import copy

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as pictures

from trainables.attacks.simclr import Contrast, Views, knn_accuracy, luma, nt_xent, pretrain, turn_hue
from trainables.data.images import Dataset
from trainables.models.build import build_model
from trainables.training.trainer import Trainer

STILL = Views(crop=None, flip=0.0, jitter=0.0, grey=0.0)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 8, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=draws(7))


def test_views_are_images_and_come_from_their_generator_alone() -> None:
    x = images(64)
    kept, state = x.clone(), torch.get_rng_state()
    first, same, other = Views()(x, draws(1)), Views()(x, draws(1)), Views()(x, draws(2))
    assert first.shape == x.shape
    assert float(first.min()) >= 0.0
    assert float(first.max()) <= 1.0
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_sample_has_its_own_draw() -> None:
    x = images(1).expand(16, -1, -1, -1)
    assert Views()(x, draws()).flatten(1).unique(dim=0).shape[0] == 16


def test_with_everything_switched_off_nothing_changes() -> None:
    assert torch.equal(STILL(images(), draws()), images())


def test_flips_alone_mirror_about_half_of_the_images() -> None:
    x = images(200)
    made = Views(crop=None, flip=0.5, jitter=0.0, grey=0.0)(x, draws())
    mirrored = [bool(torch.allclose(made[i], x[i].flip(2), atol=1e-5)) for i in range(200)]
    as_it_was = [bool(torch.allclose(made[i], x[i], atol=1e-5)) for i in range(200)]
    assert all(a != b for a, b in zip(mirrored, as_it_was, strict=True))
    assert 70 <= sum(mirrored) <= 130


def test_crops_show_shares_of_the_area_from_the_smallest_to_all() -> None:
    """On a ramp the range of columns that a crop shows is its width, and likewise for rows."""
    ramp = torch.linspace(0.0, 1.0, 64)
    x = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(400, -1, -1, -1)
    made = Views(crop=0.08, flip=0.0, jitter=0.0, grey=0.0)(x, draws())
    width, height = (made[:, i].flatten(1).amax(1) - made[:, i].flatten(1).amin(1) for i in (0, 1))
    area, ratio = width * height, width / height
    assert 0.07 < float(area.min()) < 0.12
    assert 0.85 < float(area.max()) <= 1.0
    assert float(ratio.min()) > 0.74
    assert float(ratio.max()) < 1.35
    assert 0.45 < float(area.mean()) < 0.56  # uniform in 0.08..1, less what did not fit
    left = made[:, 0].flatten(1).amin(1)
    assert float(left.max()) > 0.5
    assert float(left.min()) < 0.05


def test_grey_and_colour_changes_happen_as_often_as_asked() -> None:
    x = images(400, 4)
    grey = Views(crop=None, flip=0.0, jitter=0.0)(x, draws())
    share = (grey[:, 0] == grey[:, 1]).flatten(1).all(1).double().mean()
    assert 0.14 < float(share) < 0.26
    coloured = Views(crop=None, flip=0.0, grey=0.0)(x, draws())
    assert 0.74 < float((coloured != x).flatten(1).any(1).double().mean()) < 0.86


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.07, 0.1, 0.4])
def test_hues_turn_as_torchvision_turns_them(shift: float) -> None:
    x = torch.cat([images(), torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16)])  # greys have none
    ours = turn_hue(x, torch.full((len(x),), shift))
    torch.testing.assert_close(ours, pictures.adjust_hue(x, shift), atol=2e-5, rtol=0)


def test_luma_is_torchvision_s_greyscale() -> None:
    torch.testing.assert_close(luma(images()), pictures.rgb_to_grayscale(images()), atol=1e-3, rtol=0)


def test_the_loss_is_the_formula() -> None:
    projections, temperature = torch.randn(6, 5, generator=draws()), 0.5
    z = projections / projections.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(6):
        partner = (i + 3) % 6
        others = sum(torch.exp(z[i] @ z[j] / temperature) for j in range(6) if j != i)
        total -= torch.log(torch.exp(z[i] @ z[partner] / temperature) / others)
    torch.testing.assert_close(nt_xent(projections, temperature), torch.as_tensor(total / 6))


def test_the_loss_is_least_where_partners_agree_and_others_are_apart() -> None:
    apart = torch.eye(8).repeat(2, 1)
    shuffled = torch.cat([torch.eye(8), torch.eye(8).roll(1, 0)])
    assert nt_xent(apart, 0.1) < 0.01
    assert nt_xent(shuffled, 0.1) > 5.0
    assert nt_xent(apart, 0.1) == nt_xent(3.0 * apart, 0.1)


def test_pretraining_counts_both_views_and_leaves_the_head_alone(toy: Dataset, trainer: Trainer) -> None:
    model = trainer.fresh_model()
    before = copy.deepcopy(model.state_dict())
    history = pretrain(model, toy.train.images, trainer, epochs=2.0, lr=1e-3, batch_size=40)
    after = model.state_dict()
    assert len(history.loss) == trainer.counters.steps == 10
    assert (trainer.counters.forward_samples, trainer.counters.backward_samples) == (800, 800)
    assert {key for key in before if torch.equal(before[key], after[key])} == {
        "normalize.mean",
        "normalize.std",
        "classifier.weight",
        "classifier.bias",
    }


def test_pretraining_draws_nothing_from_the_global_state(toy: Dataset, trainer: Trainer) -> None:
    state, found = torch.get_rng_state(), []
    for seed in (1, 2):
        model = trainer.fresh_model()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pretrain(model, toy.train.images, trainer, epochs=0.4, lr=1e-3, batch_size=40)
        found.append(trainer.embeddings(model, toy.test.images))
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_falls(toy: Dataset, trainer: Trainer) -> None:
    model = trainer.fresh_model()
    views = Views(crop=0.3, flip=0.0)
    loss = pretrain(
        model, toy.train.images, trainer, epochs=12.0, lr=3e-3, batch_size=50, temperature=0.2, views=views
    ).loss
    assert sum(loss[-8:]) < 0.95 * sum(loss[:8])


def test_the_projector_looks_at_embeddings() -> None:
    model = build_model("encoder_resnet18", num_classes=3, width=2).eval()
    contrast = Contrast(model, draws()).eval()
    with torch.no_grad():
        torch.testing.assert_close(contrast(images()), contrast.projector(model.embed(images())))


def test_neighbours_know_separate_classes_and_guess_on_noise() -> None:
    labels = torch.arange(500) % 5
    centres = torch.eye(5)[labels] + 0.05 * torch.randn(500, 5, generator=draws())
    assert knn_accuracy(centres, labels, 5, draws()) == 1.0
    noise = torch.randn(500, 5, generator=draws(3))
    assert knn_accuracy(noise, labels, 5, draws()) < 0.4
