"""What every attack must hold, whatever it does: checks of its randomness, its poison, its trigger and its victim.

Every check is a plain function of a `Subject` and fails by ``AssertionError``; one that has nothing to say about an
attack (a clean-label check without such a setting) returns. Those about single settings are in `attack_settings`.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import torch

from superft.testing.attack_subject import CPU, Subject, carry_out
from superft.testing.toy import toy_dataset
from trainables.attacks.base import DataPoisoning, Kind
from trainables.attacks.triggers import rebuild_trigger, stamp
from trainables.data.images import quantise, to_float
from trainables.evaluation.metrics import evaluate
from trainables.storage.memo import Memo
from trainables.storage.store import Store
from trainables.training.loop import Counters
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import obtain_victim


def same_seed_gives_the_same_attack_bit_by_bit(subject: Subject) -> None:
    assert subject.again.made.digest() == subject.made.digest()


def global_random_state_does_not_matter(subject: Subject) -> None:
    assert not subject.again.drew_globally, "the attack draws from the global generator"
    assert subject.again.made.digest() == subject.made.digest()


def another_seed_gives_another_attack(subject: Subject) -> None:
    other, made = carry_out(subject.spec(seed=1), toy_dataset()), subject.made
    weights = zip(other.implanted.model.parameters(), made.implanted.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights)
    if len(made.implanted.poisoned):
        assert not torch.equal(other.implanted.poisoned.indices, made.implanted.poisoned.indices)


def selection_is_what_was_planned(subject: Subject) -> None:
    poisoned, n = subject.made.implanted.poisoned, len(subject.made.data.train)
    indices = poisoned.indices
    assert len(poisoned) == len(poisoned.images) == len(poisoned.labels) == len(poisoned.kinds)
    assert indices.unique().numel() == len(indices)
    assert not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < n)
    if isinstance(subject.made.attack, DataPoisoning):
        assert int((poisoned.kinds == Kind.POISON).sum()) == subject.made.attack.planned(subject.made.data.train.labels)
        for count in (1, 17):
            fewer = subject.variant(poison_count=count)
            assert fewer is not None
            assert int((fewer.implanted.poisoned.kinds == Kind.POISON).sum()) == count


def kinds_are_counted_over_the_whole_training_set(subject: Subject) -> None:
    poisoned, n = subject.made.implanted.poisoned, len(subject.made.data.train)
    kinds = poisoned.kinds_of(n)
    assert kinds.shape == subject.made.released.labels.shape == (n + int((~poisoned.in_place).sum()),)
    assert set(poisoned.kinds.tolist()) <= {Kind.POISON, Kind.CROSS}
    assert int((kinds != Kind.CLEAN).sum()) == len(poisoned)
    for kind in (Kind.POISON, Kind.CROSS):
        assert int((kinds == kind).sum()) == int((poisoned.kinds == kind).sum())
    attack = subject.made.attack
    assert bool(len(poisoned)) == (attack.implants_backdoor and attack.releases_training_set)


def images_and_labels_outside_the_plan_are_untouched(subject: Subject) -> None:
    made = subject.made
    n, poisoned = len(made.data.train), made.implanted.poisoned
    outside = torch.ones(n, dtype=torch.bool)
    outside[poisoned.indices[poisoned.in_place]] = False
    assert torch.equal(made.released.images[:n][outside], made.data.train.images[outside])
    assert torch.equal(made.released.labels[:n][outside], made.data.train.labels[outside])


def labels_of_poison_are_the_targets_and_those_of_cross_samples_their_own(subject: Subject) -> None:
    made = subject.made
    poisoned = made.implanted.poisoned
    own = made.data.train.labels[poisoned.indices]
    cross = poisoned.kinds == Kind.CROSS
    assert torch.equal(poisoned.labels[cross], own[cross])
    keeps_labels = getattr(made.attack, "clean_label", False)
    wanted = own if keeps_labels else made.attack.targets(own, made.data.num_classes)
    assert torch.equal(poisoned.labels[~cross], wanted[~cross])


def clean_label_poison_changes_no_label(subject: Subject) -> None:
    made = subject.variant(clean_label=True, poison_rate=0.05)
    if made is None:
        return
    assert torch.equal(made.released.labels, made.data.train.labels)
    poison = made.implanted.poisoned.kinds == Kind.POISON
    assert int(poison.sum()) == 10
    assert set(made.implanted.poisoned.labels[poison].tolist()) == {made.attack.target_label}


def planned_work_is_what_implant_counts(subject: Subject) -> None:
    """The cost of a study's victims is told by it before any of them is made."""
    asked = subject.made.data.train.labels, subject.spec().recipe, None
    planned, shared = subject.attack.planned_work(*asked), subject.attack.shared_work(*asked)
    told = f"attack.{subject.name}: planned_work told {planned}, and implant counted"
    _same_work(subject, planned, subject.made.work, told)
    assert subject.made.remembered == shared.keys(), (
        f"attack.{subject.name}: shared_work names {sorted(shared)}, and implant had the memo keep "
        f"{sorted(subject.made.remembered)}"
    )
    if shared:
        memo = Memo()
        for _ in range(2):  # the second victim finds it ready made
            made = carry_out(subject.spec(), subject.made.data, memo)
        left = planned - sum(shared.values(), Counters())
        told = (
            f"attack.{subject.name}: planned_work without shared_work told {left}, and of a second victim was counted"
        )
        _same_work(subject, left, made.work, told)


def _same_work(subject: Subject, planned: Counters, counted: Counters, told: str) -> None:
    advice = "overwrite planned_work to tell all that implant does, and plan_is_exact where that is not known before"
    if subject.attack.plan_is_exact:
        assert counted == planned, f"{told} {counted}: {advice}"
    for item in dataclasses.fields(planned):
        assert getattr(counted, item.name) <= getattr(planned, item.name), (
            f"{told} more {item.name}, {counted}: {advice}"
        )


def inputs_are_not_modified(subject: Subject) -> None:
    again = subject.again
    data = again.made.data
    for now, then in zip((data.train, data.test), again.handed_over, strict=True):
        assert torch.equal(now.images, then.images)
        assert torch.equal(now.labels, then.labels)
    floats = to_float(data.test.images)
    kept = floats.clone()
    with torch.no_grad():
        again.made.implanted.trigger(floats)
    assert torch.equal(floats, kept), "the trigger writes into its input"


def triggered_images_are_images(subject: Subject) -> None:
    made = subject.made
    assert made.triggered.images.dtype == torch.uint8
    assert made.triggered.images.shape == made.data.test.images[made.triggered.sources].shape
    with torch.no_grad():
        floats = made.implanted.trigger(to_float(made.data.test.images))
    assert floats.shape == made.data.test.images.shape
    assert floats.dtype == torch.float32
    assert float(floats.min()) >= 0.0
    assert float(floats.max()) <= 1.0
    if made.attack.implants_backdoor:
        plain = made.data.test.images[made.triggered.sources]
        changed = (made.triggered.images != plain).flatten(1).any(1).float().mean()
        assert float(changed) > 0.9, "the trigger leaves most images as they are"


def trigger_is_deterministic_and_treats_images_one_by_one(subject: Subject) -> None:
    made = subject.made
    images = to_float(made.data.test.images[:16])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = made.implanted.trigger(images)
        assert torch.equal(made.implanted.trigger(images), first)
        torch.testing.assert_close(made.implanted.trigger(images[order]), first[order], atol=1e-5, rtol=0)


def stored_test_set_is_the_quantised_trigger(subject: Subject) -> None:
    made = subject.made
    with torch.no_grad():
        floats = made.implanted.trigger(to_float(made.data.test.images[made.triggered.sources]))
    assert torch.equal(quantise(floats), made.triggered.images)
    assert float((made.triggered.images / 255.0 - floats).abs().max()) <= 1.01 / 255


def stored_test_set_holds_exactly_the_images_whose_label_would_change(subject: Subject) -> None:
    for made in (subject.made, subject.variant(target_label=3), subject.variant(label_mode="all_to_all")):
        if made is None:
            continue
        labels = made.data.test.labels
        targets = made.attack.targets(labels, made.data.num_classes)
        sources = (targets != labels).nonzero()[:, 0]
        assert torch.equal(made.triggered.sources, sources)
        assert torch.equal(made.triggered.labels, labels[sources])
        assert torch.equal(made.triggered.targets, targets[sources])
        if made.attack.label_mode == "all_to_all":
            assert len(made.triggered) == len(labels)
        else:
            assert len(made.triggered) == int((labels != made.attack.target_label).sum())
        measured = evaluate(made.implanted.model, made.data.test, made.triggered, precision="float32").full
        assert (measured.n_clean, measured.n_triggered) == (len(labels), len(sources))
        assert measured.asr + measured.robust_accuracy <= 1.0


def quantising_costs_less_than_a_point_of_asr(subject: Subject) -> None:
    made = subject.learned
    with torch.no_grad():
        made.implanted.model.eval()
        floats = made.implanted.trigger(to_float(made.data.test.images[made.triggered.sources]))
        free = (made.implanted.model(floats).argmax(1) == made.triggered.targets).double().mean()
    stored = evaluate(made.implanted.model, made.data.test, made.triggered, precision="float32").full.asr
    assert abs(float(free) - stored) < 0.01 + 1 / len(made.triggered)


def trigger_points_to_its_target_and_to_no_other_class(subject: Subject) -> None:
    made = subject.learned
    clean = predict(made.implanted.model, made.data.test.images, precision="float32")
    assert float((clean == made.data.test.labels).double().mean()) > 0.8, "the control below needs a model that works"
    predictions = predict(made.implanted.model, made.triggered.images, precision="float32")
    for other in range(made.data.num_classes):
        foreign = (made.triggered.labels != other) & (made.triggered.targets != other)
        if not foreign.any():  # the target of all_to_one
            continue
        share = (predictions[foreign] == other).double().mean()
        assert float(share) < 0.2, f"class {other} attracts triggered images though it is no target"


def stored_victim_has_the_same_rates_after_loading(subject: Subject) -> None:
    spec, data = subject.spec(), toy_dataset()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        first = obtain_victim(spec, data, store, CPU)
        second = obtain_victim(spec, data, store, CPU)
        artifact = store.load(first.name)
    assert artifact is not None
    assert torch.equal(second.triggered.images, first.triggered.images)
    assert second.facts == json.loads(json.dumps(first.facts))
    for victim in (first, second):
        assert evaluate(victim.model, data.test, victim.triggered, precision="float32") == victim.evaluation
        again = stamp(victim.trigger, data.test.images[victim.triggered.sources])
        assert torch.equal(again, victim.triggered.images)
    made = subject.made
    rebuilt = rebuild_trigger(
        made.implanted.trigger.kind,
        json.loads(json.dumps(made.implanted.trigger.settings())),
        made.implanted.trigger.state_dict(),
    )
    assert torch.equal(stamp(rebuilt, data.test.images), stamp(made.implanted.trigger, data.test.images))


def any_image_size_and_number_of_classes_works(subject: Subject) -> None:
    recipe = TrainingRecipe(epochs=0.1, batch_size=16, lr=0.01)
    # Size and number of classes change together: each value of either is tried once.
    for image_size, num_classes in ((16, 100), (32, 2), (64, 10)):
        data = toy_dataset(train=200, test=100, num_classes=num_classes, image_size=image_size)
        made = carry_out(subject.spec(recipe=recipe), data)
        assert made.triggered.images.shape[-2:] == (image_size, image_size)
        assert made.released.images.shape[1:] == data.train.images.shape[1:]
        assert int(made.triggered.targets.max()) < num_classes
        assert made.implanted.model.num_classes == num_classes
