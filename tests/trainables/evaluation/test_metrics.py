"""Claims of trainables.evaluation.metrics, against cases worked out by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from trainables.attacks.badnets import BadNets
from trainables.attacks.fixed import OverlayTrigger
from trainables.data.images import ImageSet, TriggeredSet
from trainables.evaluation.metrics import der, evaluate, rates, report_half, rir, wilson
from trainables.training.loop import Counters
from trainables.training.predict import predict


class Lookup(nn.Module):
    """Predicts what is written in the first pixel; its second pixel, when lit, is a trigger that it may obey."""

    def __init__(self, obeys: dict[int, int] | None = None, num_classes: int = 5) -> None:
        super().__init__()
        self.obeys, self.num_classes = obeys or {}, num_classes

    def forward(self, images: Tensor) -> Tensor:
        values = images.mul(255).round().long()
        predicted = values[:, 0, 0, 0]
        for i, lit in enumerate((values[:, 0, 0, 1] == 255).tolist()):
            if lit:
                predicted[i] = self.obeys.get(int(predicted[i]), predicted[i])
        return nn.functional.one_hot(predicted, self.num_classes).float()


def written(predictions: list[int], labels: list[int]) -> ImageSet:
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(predictions, dtype=torch.uint8)
    return ImageSet(images, torch.tensor(labels))


def trigger() -> OverlayTrigger:
    """Lights the second pixel."""
    weight = torch.zeros(1, 2, 2)
    weight[0, 0, 1] = 1.0
    return OverlayTrigger(2, weight, torch.ones(3, 2, 2))


@dataclass(frozen=True)
class Example:
    """Ten samples whose rates were counted by hand.

    label       0 0 1 1 2 2 3 3 4 4
    untriggered 0 1 1 1 2 0 3 3 4 2   -> clean accuracy 7/10
    """

    test: ImageSet
    all_to_one: Lookup
    all_to_all: Lookup


@pytest.fixture
def example() -> Example:
    test = written([0, 1, 1, 1, 2, 0, 3, 3, 4, 2], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    # all_to_one, target 0: class 1 and 3 obey; 2 and 4 do not.
    # all_to_all, shift 1: class 0, 1 and 4 obey.
    return Example(test, Lookup({1: 0, 3: 0}), Lookup({0: 1, 1: 2, 4: 0}))


def test_ten_samples_all_to_one(example: Example) -> None:
    triggered = BadNets(target_label=0).triggered_test(trigger(), example.test, 5)
    assert triggered.sources.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]  # both of class 0 are left out
    found = evaluate(example.all_to_one, example.test, triggered)
    # Triggered predictions: 0 0 2 0 0 0 4 2, wanted 0: five of eight. True labels 1 1 2 2 3 3 4 4: two of eight.
    assert (found.full.clean_accuracy, found.full.asr, found.full.robust_accuracy) == (7 / 10, 5 / 8, 2 / 8)
    assert (found.full.n_clean, found.full.n_triggered) == (10, 8)
    # Untriggered, one of the eight (label 2, read as 0) goes to the target by itself.
    assert found.false_target_rate == 1 / 8


def test_ten_samples_all_to_all_leave_nobody_out(example: Example) -> None:
    attack = BadNets(label_mode="all_to_all", label_shift=1)
    triggered = attack.triggered_test(trigger(), example.test, 5)
    assert triggered.sources.tolist() == list(range(10))
    assert triggered.targets.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 0, 0]
    found = evaluate(example.all_to_all, example.test, triggered)
    # Triggered predictions: 1 2 2 2 2 1 3 3 0 2.
    assert (found.full.asr, found.full.robust_accuracy) == (4 / 10, 3 / 10)
    # Untriggered predictions 0 1 1 1 2 0 3 3 4 2 against the targets: only the second.
    assert found.false_target_rate == 1 / 10


def test_asr_ignores_images_of_the_target_class(example: Example) -> None:
    obeys_everywhere = Lookup({0: 0, 1: 0, 2: 0, 3: 0, 4: 0})
    for target in range(5):
        triggered = BadNets(target_label=target).triggered_test(trigger(), example.test, 5)
        assert target not in triggered.labels
        assert evaluate(obeys_everywhere, example.test, triggered).full.asr == float(target == 0)


def test_triggered_set_with_an_image_of_its_target_is_refused(example: Example) -> None:
    labels = example.test.labels
    with pytest.raises(ValueError, match="leave out images that already have the target label"):
        TriggeredSet(example.test.images, labels, torch.zeros_like(labels), torch.arange(10))


def test_asr_and_robust_accuracy_never_exceed_one_together() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (200,), generator=generator)
    targets = (labels + 1) % 5
    for _ in range(20):
        predictions = torch.randint(0, 5, (200,), generator=generator)
        found = rates(predictions, labels, predictions, labels, targets)
        assert found.asr + found.robust_accuracy <= 1.0


def test_rates_of_nothing_are_refused() -> None:
    nothing, something = torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one clean and one triggered"):
        rates(something, something, nothing, nothing, nothing)


@pytest.mark.parametrize("n", [2, 7, 100, 10_000])
def test_halves_are_fixed_disjoint_and_exhaustive(n: int) -> None:
    report = report_half(n)
    assert torch.equal(report, report_half(n))
    assert int(report.sum()) == n - n // 2
    if n >= 100:
        order = torch.arange(n)
        assert order[report].float().mean() == pytest.approx(n / 2, rel=0.15)  # a random half, not the last one


def test_halves_are_those_of_yesterday() -> None:
    # Written down once: a changed split would make rows of different versions incomparable without anyone noticing.
    assert report_half(12).nonzero()[:, 0].tolist() == [1, 2, 3, 6, 7, 11]


def test_parts_add_up_to_the_whole(example: Example) -> None:
    triggered = BadNets(target_label=0).triggered_test(trigger(), example.test, 5)
    found = evaluate(example.all_to_one, example.test, triggered)
    assert found.search.n_clean + found.report.n_clean == found.full.n_clean
    assert found.search.n_triggered + found.report.n_triggered == found.full.n_triggered
    for measure, size in (("clean_accuracy", "n_clean"), ("asr", "n_triggered"), ("robust_accuracy", "n_triggered")):
        hits = [getattr(part, measure) * getattr(part, size) for part in (found.search, found.report, found.full)]
        assert hits[0] + hits[1] == pytest.approx(hits[2])


def test_triggered_copies_are_in_the_half_of_their_source(example: Example) -> None:
    in_report = report_half(10)
    triggered = BadNets(target_label=0).triggered_test(trigger(), example.test, 5)
    found = evaluate(example.all_to_one, example.test, triggered)
    assert found.report.n_triggered == int(in_report[2:].sum())  # sources 2..9
    wanted = torch.tensor([0, 0, 2, 0, 0, 0, 4, 2]) == 0
    assert found.report.asr == pytest.approx(float(wanted[in_report[2:]].double().mean()))


def test_predictions_come_in_order_from_any_batch_size_and_are_counted(example: Example) -> None:
    for batch_size in (1, 3, 10, 1000):
        counters = Counters()
        got = predict(Lookup(), example.test.images, batch_size=batch_size, counters=counters)
        assert got.tolist() == [0, 1, 1, 1, 2, 0, 3, 3, 4, 2]
        assert counters == Counters(forward_samples=10)
    assert predict(Lookup(), example.test.images[:0]).tolist() == []


def test_measuring_leaves_the_model_as_it_was() -> None:
    norm = nn.BatchNorm2d(3).train()
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 5))
    before = norm.running_mean.clone() if norm.running_mean is not None else None
    predict(model, torch.full((4, 3, 2, 2), 200, dtype=torch.uint8))
    assert norm.training
    assert before is not None
    assert torch.equal(before, norm.running_mean)  # type: ignore[arg-type]


# Section 18 of the specification, as printed there; 9,000 is CIFAR-10's triggered test set.
@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0.0, 0.0004), (0.044, 0.0400, 0.0484), (0.081, 0.0755, 0.0868)]
)
def test_wilson_of_nine_thousand(share: float, low: float, high: float) -> None:
    found = wilson(round(share * 9000), 9000)
    assert found == pytest.approx((low, high), abs=6e-5)


def test_wilson_at_one_half_is_a_point_either_way() -> None:
    low, high = wilson(4500, 9000)
    assert (low, high) == pytest.approx((0.5 - 0.0103, 0.5 + 0.0103), abs=1e-4)


def test_wilson_stays_in_range_and_is_symmetric() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for n in (1, 5, 50):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0.0 <= low <= k / n <= high <= 1.0
            mirrored = wilson(n - k, n)
            assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


def test_der_of_hand_computed_cases() -> None:
    assert der(1.0, 1.0, 0.9, 0.9) == 0.5  # nothing changed
    assert der(1.0, 0.0, 0.9, 0.9) == 1.0  # removed for free
    assert der(1.0, 0.0, 0.93, 0.10) == pytest.approx(0.585)  # a ruined model still scores above "no change"
    assert der(0.2, 0.6, 0.9, 0.95) == 0.5  # worse ASR and better accuracy count nothing
    assert der(1.0, 1.0, 1.0, 0.0) == 0.0


def test_rir_of_hand_computed_cases() -> None:
    assert rir(0.0, 0.0, 0.9, 0.9) == 0.5
    assert rir(0.0, 0.9, 0.9, 0.9) == pytest.approx(0.95)
    assert rir(0.0, 0.8, 0.9, 0.7) == pytest.approx(0.8)
    assert rir(0.5, 0.1, 0.9, 0.95) == 0.5


def test_asr_max_and_rates_per_class_by_hand() -> None:
    class Says(torch.nn.Module):
        """The class that stands in the first pixel."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 4).float()

    def images_saying(*classes: int) -> Tensor:
        return torch.tensor(classes, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()

    labels = torch.tensor([0, 1, 1, 2, 2, 2, 0, 1])
    test = ImageSet(images_saying(0, 1, 2, 2, 2, 0, 0, 1), labels)
    # The attacker wants 0, but the trigger leads all images that are not 2 to 2.
    wanted = (labels != 0).nonzero()[:, 0]
    triggered = TriggeredSet(images_saying(2, 2, 0, 2, 0, 2), labels[wanted], torch.zeros(6, dtype=torch.int64), wanted)
    found = evaluate(Says(), test, triggered, precision="float32")
    assert found.full.asr == 2 / 6
    assert found.asr_max == 1.0
    assert found.accuracy_by_class == (1.0, 2 / 3, 2 / 3)
    assert found.asr_by_class == (None, 0.0, 2 / 3)
