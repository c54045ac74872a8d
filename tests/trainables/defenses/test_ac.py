"""Activation clustering: clusters of whole classes, and the four rules that judge them."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import FastICA
from sklearn.metrics import silhouette_score
from torch import Tensor

from trainables.defenses.ac import ActivationClustering, silhouette, two_means
from trainables.defenses.base import DEFENSES
from trainables.defenses.retraining import Finding
from trainables.registry import SettingError


def planted(
    poison: int = 40, *, size: int = 200, classes: int = 4, shift: float = 8.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian classes far apart; ``poison`` samples of class 1 form a second group: features, labels, poison.

    The second group is drawn around class 3's mean (where poison comes from) moved a little towards class 1's.
    """
    generator = torch.Generator().manual_seed(0)
    means = shift * torch.nn.functional.one_hot(torch.arange(classes), 16).float()
    labels = torch.arange(classes).repeat_interleave(size)
    features = means[labels] + torch.randn(classes * size, 16, generator=generator)
    is_poison = torch.zeros(classes * size, dtype=torch.bool)
    is_poison[2 * size - poison : 2 * size] = True
    features[is_poison] += 0.8 * (means[3] - means[1])
    order = torch.randperm(len(labels), generator=generator)
    return features[order], labels[order], is_poison[order]


def find(features: Tensor, labels: Tensor, **settings: object) -> Finding:
    defense = DEFENSES.create("ac", settings)
    assert isinstance(defense, ActivationClustering)
    return defense.find({"stage4_pooled": features}, labels)


@pytest.mark.parametrize("decision", ["relative_size", "silhouette", "distance"])
@pytest.mark.parametrize("reducer", ["pca", "ica"])
def test_a_planted_group_is_found_whole_and_alone(decision: str, reducer: str) -> None:
    # Per mini-batch, as in public code, clusters would mix: neither rate could be exact.
    features, labels, poison = planted()
    # Noise alone splits a class near the middle, so a share of 0.3 tells the two apart.
    found = find(features, labels, decision=decision, reducer=reducer, size_threshold=0.3)
    assert torch.equal(found.removed, poison)
    assert found.flagged_classes == (1,)


def test_scores_rank_the_planted_group_first_within_its_class() -> None:
    features, labels, poison = planted()
    scores = find(features, labels).scores
    assert scores[poison].min() > scores[(labels == 1) & ~poison].max()
    assert scores.abs().max() <= 1.0


def test_smaller_takes_the_smaller_part_of_every_class_poisoned_or_not() -> None:
    features, labels, poison = planted()
    found = find(features, labels, decision="smaller")
    assert bool(found.removed[poison].all())
    assert found.flagged_classes == (0, 1, 2, 3)
    for label in range(4):
        assert 0 < int(found.removed[labels == label].sum()) <= 100


def test_a_class_that_is_mostly_poison_escapes_every_rule() -> None:
    features, labels, poison = planted(poison=120)
    for decision in ("relative_size", "silhouette", "distance"):
        # The class's own median lies in its poison by then, so the last rule is blind as well.
        assert not find(features, labels, decision=decision).removed[poison].any()
    wrong = find(features, labels, decision="smaller").removed
    assert not wrong[poison].any()
    assert bool(wrong[(labels == 1) & ~poison].all())


def test_nothing_is_flagged_where_nothing_was_planted() -> None:
    features, labels, _ = planted(poison=0)
    for decision in ("relative_size", "silhouette", "distance"):
        found = find(features, labels, decision=decision, size_threshold=0.3)
        assert not found.removed.any()
        assert found.flagged_classes == ()


def test_a_silhouette_above_its_threshold_does_not_excuse_a_large_share() -> None:
    # Both must hold, each by itself: `a > b & c > d` without brackets is another rule.
    features, labels, poison = planted()
    share = 40 / 200
    for size_threshold, silhouette_threshold in ((share, 0.1), (share + 0.01, 0.9)):
        found = find(
            features,
            labels,
            decision="silhouette",
            size_threshold=size_threshold,
            silhouette_threshold=silhouette_threshold,
        )
        assert not found.removed.any()
    both = find(features, labels, decision="silhouette", size_threshold=share + 0.01, silhouette_threshold=0.1)
    assert torch.equal(both.removed, poison)


def test_classes_are_flagged_by_their_label_though_others_are_missing() -> None:
    features, labels, _ = planted()
    assert find(features, 2 * labels + 3, size_threshold=0.3).flagged_classes == (5,)


@pytest.mark.parametrize(("other", "dropped"), [(10.0, [False] * 7 + [True] * 5), (30.0, [True] * 7 + [False] * 5)])
def test_a_cluster_far_from_home_is_dropped_the_smaller_one_first(other: float, dropped: list[bool]) -> None:
    # The median of class 1 is 5. Its larger cluster has its own at 1, beside class 0; its smaller one lies at 9.
    places = {0: [0.0] * 9, 1: [1.0] * 4 + [5.0] * 3 + [9.0] * 5, 2: [other] * 9}
    labels = torch.tensor([label for label, along in places.items() for _ in along])
    features = torch.tensor([[x, 0.0] for along in places.values() for x in along])
    found = find(features, labels, decision="distance").removed
    assert found[labels == 1].tolist() == dropped
    assert not found[labels != 1].any()


def test_the_silhouette_is_that_of_the_reduced_features() -> None:
    # In all 16 dimensions the noise of 15 hides the gap along one.
    features, labels, poison = planted()
    found = find(features, labels, decision="silhouette", nb_dims=1, silhouette_threshold=0.6)
    assert torch.equal(found.removed, poison)
    points = features[labels == 1].double()
    assert silhouette(points, poison[labels == 1]) < 0.6


def test_the_silhouette_must_be_above_its_threshold() -> None:
    features, labels, poison = planted()
    loose, strict = (find(features, labels, decision="silhouette", silhouette_threshold=t) for t in (0.1, 0.9))
    assert torch.equal(loose.removed, poison)
    assert not strict.removed.any()


def test_a_permuted_training_set_gives_permuted_findings() -> None:
    features, labels, _ = planted()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    for settings in ({"decision": "smaller"}, {"decision": "distance", "reducer": "ica", "nb_dims": 3}):
        one, other = find(features, labels, **settings), find(features[order], labels[order], **settings)
        assert torch.equal(other.removed, one.removed[order])
        torch.testing.assert_close(other.scores, one.scores[order])


def test_two_means_is_as_tight_as_many_random_starts() -> None:
    features, labels, _ = planted()
    for label in range(4):
        points = features[labels == label].double()
        small = two_means(points - points.mean(0))
        inertia = sum(float((part - part.mean(0)).square().sum()) for part in (points[small], points[~small]))
        best = KMeans(2, n_init=20, random_state=0).fit(points.numpy()).inertia_
        assert inertia <= best * 1.02
        centres = torch.stack([points[small].mean(0), points[~small].mean(0)])
        assert torch.equal(torch.cdist(points, centres).argmin(1) == 0, small)
        assert int(small.sum()) <= 100


def test_two_means_finds_the_gap_though_another_axis_is_wider() -> None:
    wide = torch.distributions.Normal(0.0, 1.15).icdf((torch.arange(100.0) + 0.5) / 100)
    points = torch.stack([wide.repeat(2), torch.tensor([-1.0, 1.0]).repeat_interleave(100)], 1).double()
    one = two_means(points)
    assert one[:100].all() != one[100:].all()
    assert int(one.sum()) == 100


def test_of_two_clusters_of_equal_size_the_tighter_one_is_called_the_smaller() -> None:
    points = torch.tensor([[0.0], [2.0], [10.0], [10.1]], dtype=torch.float64)
    for sign in (1.0, -1.0):
        assert two_means(sign * points).tolist() == [False, False, True, True]


def test_independent_components_give_the_clusters_of_fast_ica() -> None:
    # The rotation that ICA finds after whitening is invisible to 2-means: whitening alone must agree with the whole.
    features, labels, poison = planted()
    points = features[labels == 1].double()
    ours = two_means(ActivationClustering(reducer="ica", nb_dims=5).reduce(points))
    theirs = FastICA(5, whiten="unit-variance", random_state=0, max_iter=1000).fit_transform(points.numpy())
    clusters = KMeans(2, n_init=20, random_state=0).fit_predict(theirs)
    agreement = float((torch.from_numpy(clusters).bool() == ours).double().mean())
    assert max(agreement, 1.0 - agreement) == 1.0
    assert torch.equal(ours, poison[labels == 1])


def test_silhouette_agrees_with_scikit_learn() -> None:
    points = planted()[0][:150].double()
    small = torch.arange(150) < 30
    assert silhouette(points, small) == pytest.approx(silhouette_score(points.numpy(), small.numpy()))
    alone = torch.arange(150) < 1
    assert silhouette(points, alone) == pytest.approx(silhouette_score(points.numpy(), alone.numpy()))


def test_classes_too_small_or_without_spread_are_left_alone() -> None:
    features, labels, _ = planted()
    few = torch.cat([(labels == 0).nonzero()[:3, 0], (labels == 1).nonzero()[:7, 0], (labels == 2).nonzero()[:50, 0]])
    features = features.clone()
    features[labels == 2] = 1.0
    found = find(features[few], labels[few], decision="smaller", nb_dims=30)
    assert int(found.removed[:3].sum()) == 0
    assert 0 < int(found.removed[3:10].sum()) <= 3
    assert int(found.removed[10:].sum()) == 0
    assert found.scores.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [{"nb_dims": 0}, {"size_threshold": 0.6}, {"silhouette_threshold": 2.0}, {"epochs": -1}, {"lr": 0}],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"ac: {next(iter(settings))} must be"):
        DEFENSES.create("ac", settings)
