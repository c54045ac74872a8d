"""Spectral signatures: what is removed, from which features, by which score."""

import pytest
import torch
from torch import Tensor

from trainables.defenses.base import DEFENSES
from trainables.defenses.retraining import Finding
from trainables.defenses.spectral import SpectralSignatures, spectral_scores
from trainables.registry import SettingError


def planted(
    shift: float = 6.0, *, poison: int = 20, size: int = 200, classes: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Features with the last ``poison`` samples of class 0 moved along one direction: features, labels, poison."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(classes * size, 12, generator=generator)
    labels = torch.arange(classes).repeat_interleave(size)
    is_poison = torch.zeros(classes * size, dtype=torch.bool)
    is_poison[size - poison : size] = True
    direction = torch.nn.functional.normalize(torch.ones(12), dim=0)
    features[is_poison] += shift * direction
    return features + 10.0 * torch.randn(classes, 12, generator=generator)[labels], labels, is_poison


def find(features: Tensor, labels: Tensor, **settings: object) -> Finding:
    defense = DEFENSES.create("spectral", settings)
    assert isinstance(defense, SpectralSignatures)
    return defense.find({"stage4_pooled": features, "stage3_pooled": features[:, :4]}, labels)


def test_a_planted_shift_is_found() -> None:
    features, labels, poison = planted()
    removed = find(features, labels).removed
    assert float(removed[poison].double().mean()) >= 0.95


def test_scores_are_squared_projections_on_the_top_singular_vector() -> None:
    points = planted()[0][:200].double()
    centred = points - points.mean(0)
    _, _, right = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(spectral_scores(points), (centred @ right[0]).square())
    torch.testing.assert_close(spectral_scores(points), (centred @ -right[0]).square())


def test_adding_a_constant_vector_to_each_class_changes_nothing() -> None:
    # Public code projects the uncentred features: a constant as large as this would decide everything there.
    features, labels, _ = planted()
    constant = 100.0 * torch.arange(12.0) * (labels[:, None] - 1)
    one, other = find(features.double(), labels), find(features.double() + constant, labels)
    torch.testing.assert_close(one.scores, other.scores)
    assert torch.equal(one.removed, other.removed)


@pytest.mark.parametrize(
    ("fraction", "removed"), [(0.0, 0), (0.004, 0), (0.005, 1), (0.15, 30), (0.29, 58), (0.5, 100)]
)
def test_exactly_the_floor_of_the_share_goes_from_every_class(fraction: float, removed: int) -> None:
    features, labels, _ = planted()
    found = find(features, labels, remove_fraction=fraction).removed
    assert [int(found[labels == label].sum()) for label in range(3)] == [removed] * 3


def test_a_share_of_the_whole_set_is_cut_at_half_of_a_class() -> None:
    defense = SpectralSignatures(remove_fraction=0.1, reference="set")
    assert defense.count(class_size=500, set_size=2000) == 200
    assert defense.count(class_size=300, set_size=2000) == 150
    assert defense.count(class_size=1, set_size=2000) == 0


def test_classes_of_different_size_lose_the_same_share() -> None:
    features, labels, _ = planted()
    few = torch.cat([torch.arange(210), torch.arange(400, 450)])
    found = find(features[few], labels[few], remove_fraction=0.1).removed
    assert [int(found[labels[few] == label].sum()) for label in range(3)] == [20, 1, 5]


def test_what_is_removed_has_the_highest_scores_of_its_class() -> None:
    features, labels, _ = planted()
    found = find(features, labels)
    for label in range(3):
        mine = labels == label
        assert found.scores[mine & found.removed].min() >= found.scores[mine & ~found.removed].max()


def test_the_feature_layer_is_the_one_that_was_asked_for() -> None:
    features, labels, _ = planted()
    late, early = (find(features, labels, feature_layer=layer).scores for layer in ("stage4_pooled", "stage3_pooled"))
    assert not torch.allclose(late, early)


@pytest.mark.parametrize(
    "settings", [{"remove_fraction": 0.6}, {"remove_fraction": -0.1}, {"epochs": 0}, {"lr": 0}, {"batch_size": 1}]
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"spectral: {next(iter(settings))} must be"):
        DEFENSES.create("spectral", settings)
