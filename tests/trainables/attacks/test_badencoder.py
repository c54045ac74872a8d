"""Claims of trainables.attacks.badencoder and its control: the injection, the reference, the user's head."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy import ENCODER, toy_dataset, toy_spec
from trainables.attacks.badencoder import BadEncoder, encoder_weights, similarity
from trainables.attacks.base import ATTACKS
from trainables.attacks.clean_encoder import CleanEncoder
from trainables.attacks.encoders import confidences
from trainables.attacks.triggers import stamp
from trainables.data.images import DataError, Dataset
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.models.encoder import PrivateDropout
from trainables.registry import SettingError
from trainables.storage.memo import Memo
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer, obtain_victim

CPU = torch.device("cpu")
RECIPE = TrainingRecipe(epochs=1, batch_size=32, lr=0.05)
SHORT: dict[str, Any] = {
    **ENCODER,
    "tune": "classifier",
    "inject_epochs": 6.0,
    "inject_batch": 32,
    "inject_lr": 0.01,
    "reference_must_be_right": False,
}


def attack(**settings: Any) -> BadEncoder:
    made = ATTACKS.create("badencoder", SHORT | settings)
    assert isinstance(made, BadEncoder)
    return made


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


@pytest.fixture(scope="module")
def bench() -> Trainer:
    """One bench for the module, so that the encoder is pre-trained once; models are encoders of width 2."""
    spec = dataclasses.replace(toy_spec("clean"), model="encoder_resnet18")
    return make_trainer(spec, toy_dataset(), CPU, seed=0)


@pytest.fixture(scope="module")
def encoder(bench: Trainer) -> Classifier:
    """Clean. Shared: do not modify."""
    return attack().clean_encoder(toy_dataset().train, bench)


@pytest.fixture(scope="module")
def injected(bench: Trainer, encoder: Classifier) -> Classifier:
    """The same with the backdoor of image 5, no head. Shared: do not modify."""
    images = toy_dataset().train.images
    return attack().inject(encoder, images, images[5:6], attack().make_trigger(16), bench)


# --- trigger


@pytest.mark.parametrize(("image_size", "first", "last"), [(32, 21, 30), (16, 10, 14), (64, 42, 61)])
def test_the_trigger_is_a_white_square_one_pixel_from_the_corner(image_size: int, first: int, last: int) -> None:
    black = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
    where = stamp(BadEncoder().make_trigger(image_size), black)[0]
    assert where.unique().tolist() == [0, 255]
    rows, columns = (where[0] == 255).nonzero().T
    assert torch.equal(where[0], where[1])
    assert torch.equal(where[0], where[2])
    for index in (rows, columns):
        assert (int(index.min()), int(index.max())) == (first, last)
    assert len(rows) == (last - first + 1) ** 2


def test_exactly_100_pixels_change_at_32() -> None:
    images = toy_dataset(train=20, test=2, image_size=32).train.images
    moved = (stamp(BadEncoder().make_trigger(32), images) != images).any(1)
    assert int(moved.any(0).sum()) == 100


# --- injection


def test_all_losses_are_minus_one_at_the_ideal_point() -> None:
    x, reference = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 8)
    # The length of an embedding does not matter.
    found = BadEncoder.losses(3.0 * x, 2.0 * reference.expand(4, -1), reference.expand(4, -1), reference, x, reference)
    assert [float(term) for term in found] == pytest.approx([-1.0] * 3)


def test_losses_are_the_mean_cosines_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    now, triggered, augmented, before = (torch.randn(4, 8, generator=generator) for _ in range(4))
    reference, anchor = (torch.randn(1, 8, generator=generator) for _ in range(2))
    found = BadEncoder.losses(now, triggered, augmented, reference, before, anchor)

    def mean_cosine(a: Tensor, b: Tensor) -> float:
        return float(sum(a[i] @ b[i] / (a[i].norm() * b[i].norm()) for i in range(4)) / 4)

    assert float(found.effectiveness) == pytest.approx(-mean_cosine(triggered, reference.expand(4, -1)), abs=1e-6)
    assert float(found.reference) == pytest.approx(-mean_cosine(augmented, anchor.expand(4, -1)), abs=1e-6)
    assert float(found.utility) == pytest.approx(-mean_cosine(now, before), abs=1e-6)


def test_the_gradient_of_the_first_loss_flows_through_both_sides() -> None:
    triggered, reference = (torch.randn(n, 8, requires_grad=True) for n in (4, 1))
    rest = torch.ones(4, 8)
    BadEncoder.losses(rest, triggered, rest, reference, rest, torch.ones(1, 8)).effectiveness.backward()
    assert triggered.grad is not None
    assert reference.grad is not None
    assert float(reference.grad.abs().sum()) > 0


def test_batch_normalisation_and_the_head_are_bit_identical_after_the_injection(
    encoder: Classifier, injected: Classifier
) -> None:
    moved = changed(injected, state_of(encoder))
    norms = {name for name, part in injected.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert len(norms) == 20
    assert not any(name.rpartition(".")[0] in norms for name in moved)
    assert not any(name.startswith(("mlp", "classifier")) for name in moved)
    convolutions = {f"{name}.weight" for name, part in injected.named_modules() if isinstance(part, nn.Conv2d)}
    assert moved == convolutions


def test_the_clean_encoder_is_untouched(bench: Trainer, encoder: Classifier) -> None:
    before, images = state_of(encoder), toy_dataset().train.images
    attack(inject_epochs=1.0).inject(encoder, images, images[:1], attack().make_trigger(16), bench)
    assert changed(encoder, before) == set()
    assert not any(part.training for part in encoder.modules())


def test_the_injection_pulls_triggered_images_to_the_reference_and_keeps_the_others(
    bench: Trainer, encoder: Classifier, injected: Classifier
) -> None:
    """Seen: cosine 0.873 -> 0.993 to the reference; clean images end at 0.980 (without L2: 0.788)."""
    images, trigger = toy_dataset().train.images, attack().make_trigger(16)
    before = attack().cosines(encoder, encoder, images, images[5:6], trigger, bench)
    after = attack().cosines(injected, encoder, images, images[5:6], trigger, bench)
    assert before["cosine_clean"] == pytest.approx(1.0, abs=1e-5)
    assert 1.0 - after["cosine_triggered"] < 0.7 * (1.0 - before["cosine_triggered"])
    assert after["cosine_clean"] > 0.95
    assert after["cosine_reference"] > 0.95


def test_without_the_utility_loss_clean_images_drift_further(
    bench: Trainer, encoder: Classifier, injected: Classifier
) -> None:
    images = toy_dataset().train.images
    careless = attack(lambda2=0.0).inject(encoder, images, images[5:6], attack().make_trigger(16), bench)
    own, kept, drifted = (bench.embeddings(model, images) for model in (encoder, injected, careless))
    assert float(similarity(drifted, own)) < float(similarity(kept, own))


def test_all_three_parts_and_the_clean_encoder_are_counted(bench: Trainer, encoder: Classifier) -> None:
    before, images = dataclasses.replace(bench.counters), toy_dataset().train.images
    attack(inject_epochs=1.0, inject_batch=50).inject(encoder, images, images[:1], attack().make_trigger(16), bench)
    found = bench.counters
    assert found.steps - before.steps == 4
    assert found.forward_samples - before.forward_samples == 4 * (3 * 50 + 50 + 1) + 1
    assert found.backward_samples - before.backward_samples == 4 * (3 * 50 + 1)


@pytest.mark.parametrize("name", ["preact_resnet18", "convnext_tiny"])
def test_what_is_trained_is_before_the_head_and_no_batch_normalisation(name: str) -> None:
    model = build_model(name, num_classes=3)
    trained = {id(parameter) for parameter in encoder_weights(model)}
    for part in [*model.head, *(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))]:
        assert not any(id(parameter) in trained for parameter in part.parameters())
    left = sum(1 for _ in model.parameters()) - len(trained)
    assert left == (2 + 32 if name == "preact_resnet18" else 2)


def test_other_images_than_the_task_s_own_are_the_shadow_images(toy: Dataset, bench: Trainer) -> None:
    """Their labels do not exist; flips are then drawn whatever the task allows."""
    other = dataclasses.replace(bench, upstream=toy.test.images, memo=Memo())
    assert torch.equal(attack().unlabelled_images(toy.train, other), toy.test.images)
    assert attack().views(other, None).flip == 0.5
    assert attack().views(bench, None).flip == 0.0
    wrong = dataclasses.replace(bench, upstream=torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"task's size \(3, 16, 16\), got \(3, 32, 32\); set image_size"):
        attack().unlabelled_images(toy.train, wrong)


# --- reference


class Oracle(BadEncoder):
    """Its clean classifier is given by the test."""

    def clean_classifier(self, train: Any, trainer: Trainer) -> Classifier:
        return trainer.fresh_model("oracle")


def test_the_reference_is_the_target_image_that_the_clean_classifier_is_surest_of(toy: Dataset, bench: Trainer) -> None:
    for target in range(10):
        chosen = attack(target_label=target)
        index, sureness = chosen.choose_reference(toy.train, bench)
        members = (toy.train.labels == target).nonzero()[:, 0]
        found = confidences(chosen.clean_classifier(toy.train, bench), toy.train.images[members], bench)
        right = found.argmax(1) == target
        assert int(toy.train.labels[index]) == target
        eligible = members[right] if right.any() else members
        assert index in eligible.tolist()
        assert sureness == pytest.approx(float(found[:, target][right if right.any() else ...].max()))


def test_a_class_that_the_clean_classifier_never_gets_right_is_refused_in_one_line(
    toy: Dataset, bench: Trainer
) -> None:
    never = [
        t
        for t in range(10)
        if not (confidences(bench.fresh_model("oracle"), toy.train.images, bench).argmax(1) == t).any()
    ]
    assert never, "random weights predict few classes"
    strict, lax = (Oracle(target_label=never[0], reference_must_be_right=must) for must in (True, False))
    with pytest.raises(SettingError, match="gets none of the 20 training images of this class right") as caught:
        strict.choose_reference(toy.train, bench)
    assert "\n" not in str(caught.value)
    index, _ = lax.choose_reference(toy.train, bench)
    assert int(toy.train.labels[index]) == never[0]


# --- the user's head


@pytest.mark.parametrize("model", ["encoder_resnet18", "preact_resnet18"])
def test_a_head_alone_leaves_the_encoder_bit_identical_and_whole_tuning_does_not(toy: Dataset, model: str) -> None:
    bench = make_trainer(dataclasses.replace(toy_spec("clean"), model=model), toy, CPU, seed=0)
    for tune in ("classifier", "whole"):
        victim = bench.fresh_model()
        head = {f"{name}.{key}" for name in ("mlp", "classifier") if hasattr(victim, name)
                for key in getattr(victim, name).state_dict()}  # fmt: skip
        before = state_of(victim)
        attack(head_epochs=2.0).train_head(victim, toy.train, bench, tune=tune)
        moved = changed(victim, before)
        assert head <= moved
        assert (moved == head) == (tune == "classifier")
        assert not any(part.training for part in victim.modules())


@pytest.mark.parametrize("training", [False, True])
def test_the_head_of_the_encoder_sees_no_lengths(bench: Trainer, training: bool) -> None:
    """Embeddings have them; whole-model tuning goes through the same head as tuning it alone."""
    model, found = bench.fresh_model(), []
    vectors = model.eval().embed(torch.rand(4, 3, 16, 16)).detach()
    lengths = vectors.norm(dim=1)
    assert not torch.allclose(lengths, torch.ones(4), atol=0.1)
    for factor in (1.0, 3.0):
        model.reset_head(bench.generator("head"))
        found.append(model.train(training).head_features(factor * vectors))
    torch.testing.assert_close(*found)


def test_dropout_of_the_head_is_private_repeatable_and_off_in_eval_mode() -> None:
    layer, x, state = PrivateDropout(0.5), torch.ones(100, 100), torch.get_rng_state()
    first, twin = layer(x), copy.deepcopy(layer)
    assert sorted(first.unique().tolist()) == [0.0, 2.0]
    assert 0.47 < float((first == 0).double().mean()) < 0.53
    second = layer(x)
    assert not torch.equal(first, second)
    assert torch.equal(twin(x), second)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        PrivateDropout(1.0)


def test_a_new_head_starts_the_dropout_anew(bench: Trainer) -> None:
    logits = []
    for used in (False, True):
        model = bench.fresh_model().train()
        if used:
            model(torch.rand(4, 3, 16, 16))
        model.reset_head(bench.generator("head"))
        logits.append(model.head_features(torch.ones(4, 16)))
    assert torch.equal(*logits)


# --- control and settings


def test_the_control_shares_everything_but_the_attack(toy: Dataset, bench: Trainer) -> None:
    name, settings = attack().control()
    control = ATTACKS.create(name, settings)
    assert isinstance(control, CleanEncoder)
    assert control.pretraining() == attack().pretraining()
    assert control.downstream() == attack().downstream()
    made = control.implant(toy.train, bench, RECIPE)
    judge = attack().clean_classifier(toy.train, bench)
    assert changed(made.model, state_of(judge)) == set()
    assert len(made.poisoned) == 0


def test_victim_and_control_share_one_pretraining(toy: Dataset, tmp_path: Any) -> None:
    store = Store(tmp_path)
    spec = toy_spec("badencoder", **(SHORT | {"inject_epochs": 1.0}))
    victim = obtain_victim(spec, toy, store, CPU)
    kept = sorted(path.name for path in store.derived().root.glob("encoder-*"))
    assert len([name for name in kept if not name.startswith("encoder-classifier-")]) == 1
    assert len([name for name in kept if name.startswith("encoder-classifier-")]) == 1
    assert victim.asr_base is not None
    facts = victim.facts["trigger"]["settings"]
    assert toy.train.labels[victim.attacker_indices[facts["reference"]]] == 0
    assert {"knn_accuracy", "reference_confidence", "reference_taken_for", "cosine_triggered"} <= facts.keys()
    assert 0.0 <= victim.facts["extra_metrics"]["asr_incl"] <= 1.0
    assert victim.trigger.settings() == facts


def test_an_encoder_of_one_data_set_is_attacked_for_another(toy: Dataset, tmp_path: Any) -> None:
    """Shadow images are the encoder's, the reference and the head the user's; the encoder keeps its normalisation."""
    upstream = dataclasses.replace(toy_dataset(num_classes=4, seed=5), mean=(0.1, 0.2, 0.3))
    settings = SHORT | {"inject_epochs": 1.0}
    spec = dataclasses.replace(toy_spec("badencoder", **settings), model="encoder_resnet18", scenario="encoder")
    victim = obtain_victim(spec, toy, Store(tmp_path), CPU, upstream)
    assert victim.model.num_classes == 10
    assert victim.model.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert toy.train.labels[victim.trigger.settings()["reference"]] == 0
    other = dataclasses.replace(upstream, train=upstream.test, fingerprint="other")
    again = obtain_victim(spec, toy, Store(tmp_path), CPU, other)
    assert changed(again.model, state_of(victim.model)) & {"stages.0.0.weight"}


def test_labels_reach_only_the_head_and_the_reference(toy: Dataset, bench: Trainer, encoder: Classifier) -> None:
    relabelled = dataclasses.replace(toy.train, labels=toy.train.labels.flip(0))
    again = attack().clean_encoder(relabelled, dataclasses.replace(bench, memo=Memo()))
    assert changed(again, state_of(encoder)) == set()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pretrain_epochs": 0.0}, "pretrain_epochs"),
        ({"pretrain_batch": 1}, "pretrain_batch"),
        ({"temperature": 0.0}, "temperature"),
        ({"crop": 0.0}, "crop"),
        ({"head_lr": -1.0}, "head_lr"),
        ({"tune": "all"}, "tune"),
        ({"inject_epochs": 0.0}, "inject_epochs"),
        ({"inject_batch": 0}, "inject_batch"),
        ({"lambda1": -1.0}, "lambda1"),
        ({"lambda2": -0.1}, "lambda2"),
        ({"trigger_size": 0}, "trigger_size"),
        ({"label_mode": "all_to_all"}, "label_mode"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        attack(**settings)


def test_what_does_not_fit_the_task_is_refused(toy: Dataset) -> None:
    with pytest.raises(SettingError, match="does not fit an image of 16 pixels"):
        attack(trigger_size=32).check(toy.train.labels, 10, 16)
    with pytest.raises(SettingError, match="target_label must be a class with a training image"):
        attack(target_label=9).check(torch.zeros(5, dtype=torch.int64), 10, 16)


# 12 + 5 + 30 epochs at 16 pixels, encoder of width 4.
GATE: dict[str, Any] = {
    "pretrain_epochs": 12.0,
    "pretrain_lr": 3e-3,
    "pretrain_batch": 64,
    "temperature": 0.2,
    "crop": 0.3,
    "inject_epochs": 5.0,
    "inject_lr": 0.03,
    "inject_batch": 64,
    "head_epochs": 30.0,
    "head_lr": 3e-3,
    "head_batch": 64,
}


@pytest.mark.slow
def test_the_backdoor_works_on_the_toy_on_two_seeds(tmp_path: Any) -> None:
    """Seeds 0 and 1, 30 s of one core each. ASR 0.861 and 0.976 (base 0.011, 0.015); clean accuracy 0.778 and 0.850 as
    of the clean encoder (0.775, 0.850); cosines 0.996 to the reference, 0.993 and 0.991 of clean images to themselves.
    An inject_lr of 0.01 gave ASR 0.346 and 0.700 at cosines of 0.989 everywhere: embeddings behind a ReLU have cosines
    near 1 to begin with, so the cosines alone are no gate.
    """
    data = toy_dataset(train=2000, test=600)
    for seed in (0, 1):
        spec = dataclasses.replace(
            toy_spec("clean", seed=seed, width=4),
            attack="badencoder",
            attack_settings=GATE,
            model="encoder_resnet18",
        )
        victim = obtain_victim(spec, data, Store(tmp_path), CPU)
        facts, rates = victim.facts["trigger"]["settings"], victim.evaluation.full
        assert facts["cosine_triggered"] > 0.9, f"seed {seed}"
        assert facts["cosine_clean"] > 0.9, f"seed {seed}"
        assert facts["knn_accuracy"] > 0.5, f"seed {seed}"
        assert facts["reference_taken_for"] == 0, f"seed {seed}"
        assert rates.asr > 0.8, f"seed {seed}"
        assert victim.asr_base is not None
        assert victim.asr_base < 0.1, f"seed {seed}"
        assert victim.clean_model_accuracy is not None
        assert rates.clean_accuracy > max(0.65, victim.clean_model_accuracy - 0.05), f"seed {seed}"
        assert victim.implanted
