"""Claims of the small vision transformer, beside those of every model: places, attention, second derivatives."""

from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.models.build import build_model
from trainables.models.vit import Block, places
from trainables.storage.store import Store
from trainables.training.recipes import RECIPES
from trainables.victims.spec import VictimSpec
from trainables.workbench import Workbench


def test_every_place_is_another_and_none_outshines_the_rest() -> None:
    found = places(32, 8, 8)
    assert found.shape == (32, 8, 8)
    vectors = found.flatten(1).T
    apart = torch.cdist(vectors, vectors) + torch.eye(64) * 1e3
    assert float(apart.min()) > 0.1
    # sin^2 + cos^2 for each of 8 frequencies, of row and column.
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((64,), 4.0))


def test_a_place_does_not_depend_on_the_size_of_the_image() -> None:
    torch.testing.assert_close(places(16, 4, 4), places(16, 8, 8)[:, :4, :4])


def test_attention_is_torchs_own() -> None:
    block, generator = Block(16), torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 16, generator=generator)
    query, key, value = block.query_key_value(tokens).chunk(3, dim=-1)
    heads = [part.unflatten(2, (4, 4)).transpose(1, 2) for part in (query, key, value)]
    mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attend(tokens), block.out(mixed))


def test_without_places_it_would_not_matter_where_a_patch_lies() -> None:
    """Attention alone treats positions as a set; the places are what tells a corner trigger from one in the middle."""
    model = build_model("vit_small", num_classes=3, width=4, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    shuffled = images.unflatten(3, (4, 4)).flip(3).flatten(3)  # columns of patches in reverse order
    with torch.no_grad():
        maps, other = (model.stages[0].project(model.normalize(part)) for part in (images, shuffled))  # type: ignore[operator,union-attr]
        for stage in list(model.stages)[1:]:
            maps, other = stage(maps), stage(other)
        torch.testing.assert_close(model.neck(maps), model.neck(other), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(model(images), model(shuffled), rtol=1e-2, atol=1e-2)


def test_it_has_second_derivatives() -> None:
    model = build_model("vit_small", num_classes=3, width=4, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1]))
    (first,) = torch.autograd.grad(loss, images, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), images)
    assert bool(second.isfinite().all())
    assert float(second.abs().max()) > 0


@pytest.mark.parametrize("width", [1, 3])
def test_any_width_divides_into_heads(width: int) -> None:
    model = build_model("vit_small", num_classes=3, width=width).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 18, 18)).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_digits_and_takes_a_backdoor(seed: int, tmp_path: Path) -> None:
    """Clean accuracy 0.90, 0.91, 0.91 and ASR 0.95, 0.98, 0.88 (0.01, 0.01, 0.00 of a clean model), in 30 epochs.

    In as many epochs of recipe ``quick`` (SGD at 0.01) it gets to 0.78 and counts as not implanted.
    """
    victim = VictimSpec(attack="badnets", model="vit_small", recipe=RECIPES["adamw"], width=8, seed=seed)
    bench = Workbench(Store(tmp_path), torch.device("cpu"))
    row = bench.run(Cell(DataSource("digits", image_size=16), victim, "none", clean_fraction=0.1), {}).row()
    assert row["clean_accuracy"] > 0.85
    assert row["asr"] > 0.8
    assert row["asr_base"] < 0.1
    assert row["status"] == "ok"
