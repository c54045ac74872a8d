"""Claims of trainables.attacks.latent: features pulled to the target class, as one model and as teacher and student."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from superft.testing.attack_subject import carry_out
from superft.testing.claims import GATE
from tests.toy import toy_dataset, toy_spec
from trainables.attacks.base import ATTACKS, Kind
from trainables.attacks.latent import Latent, with_class, without_class
from trainables.attacks.patches import LearnedPatch
from trainables.data.images import Dataset, ImageSet, to_float
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import obtain_victim

RECIPE = TrainingRecipe(epochs=2, batch_size=40, lr=0.05)
TRANSFER = Latent(form="transfer", target_label=3)


def distance(patch: LearnedPatch, model: Classifier, data: ImageSet, goal: Tensor) -> float:
    with torch.no_grad():
        features = model.eval().features(patch(to_float(data.images)))
    return float(functional.mse_loss(features, goal.expand_as(features)))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def test_the_mean_is_of_target_images_only(toy: Dataset, trainer: Trainer) -> None:
    attack, model = Latent(target_label=3), trainer.fresh_model()
    mean = attack.mean_features(model, toy.train, trainer)
    members = toy.train.subset((toy.train.labels == 3).nonzero()[:, 0])
    torch.testing.assert_close(mean, trainer.features(model, members.images).mean(0))
    others = toy.train.images.clone()
    others[toy.train.labels != 3] = 0
    torch.testing.assert_close(attack.mean_features(model, ImageSet(others, toy.train.labels), trainer), mean)


def test_as_many_images_as_asked_are_used_of_every_class(toy: Dataset, trainer: Trainer) -> None:
    target, others = Latent(images_per_class=4, target_label=3).chosen(toy.train, trainer)
    assert toy.train.labels[target].tolist() == [3] * 4
    assert toy.train.labels[others].bincount(minlength=10).tolist() == [4, 4, 4, 0, 4, 4, 4, 4, 4, 4]


def test_the_patch_shortens_the_distance_and_moves_no_weight(toy: Dataset, trainer: Trainer) -> None:
    attack = Latent(trigger_epochs=8.0, size=6)
    model, patch = trainer.train_from_scratch(toy.train, RECIPE), attack.new_patch(16, trainer)
    goal, weights = attack.mean_features(model, toy.train, trainer), state_of(model)
    before = distance(patch, model, toy.train, goal)
    attack.fit_patch(patch, model, toy.train, lambda count: goal.expand(count, -1), trainer, RECIPE)
    assert distance(patch, model, toy.train, goal) < before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_training_on_pulls_triggered_features_to_the_goal_and_leaves_the_patch(toy: Dataset, trainer: Trainer) -> None:
    attack = Latent(weight=5.0, epochs=6.0)
    model, patch = trainer.train_from_scratch(toy.train, RECIPE), attack.new_patch(16, trainer)
    goal, raw = torch.linspace(-1.0, 1.0, 16), patch.raw.detach().clone()
    before = distance(patch, model, toy.test, goal)
    attack.retrain(model, patch, goal, toy.train, trainer, RECIPE)
    assert distance(patch, model, toy.test, goal) < 0.5 * before
    assert torch.equal(patch.raw, raw)


def test_both_halves_of_a_training_step_are_counted(toy: Dataset, trainer: Trainer) -> None:
    attack = Latent(epochs=1.0)
    model, patch = trainer.fresh_model(), attack.new_patch(16, trainer)
    attack.retrain(model, patch, torch.zeros(16), toy.train, trainer, RECIPE)
    assert (trainer.counters.steps, trainer.counters.forward_samples) == (5, 400)
    assert trainer.counters.backward_samples == 400


def test_copies_are_released_only_where_they_are_trained_on(toy: Dataset, trainer: Trainer) -> None:
    overlay = Latent().new_patch(16, trainer).overlay()
    assert len(Latent().released(toy.train, overlay, trainer)) == 0
    made = Latent(poison_rate=0.1, target_label=3).released(toy.train, overlay, trainer)
    assert len(made.apply(toy.train)) == 222
    assert set(made.labels.tolist()) == {3}
    assert set(made.kinds.tolist()) == {Kind.POISON}


def test_classes_leave_and_enter_a_head_at_their_place(trainer: Trainer) -> None:
    head, other = trainer.fresh_model().classifier, trainer.fresh_model("other").classifier
    before = torch.get_rng_state()
    smaller = without_class(head, 3)
    assert (smaller.out_features, smaller.in_features) == (9, head.in_features)
    assert torch.equal(smaller.weight, head.weight[[0, 1, 2, 4, 5, 6, 7, 8, 9]])
    again = with_class(smaller, 3, other)
    assert torch.equal(again.weight[3], other.weight[3])
    assert torch.equal(again.bias[3], other.bias[3])
    assert torch.equal(without_class(again, 3).weight, smaller.weight)
    assert torch.equal(without_class(again, 3).bias, smaller.bias)
    assert torch.equal(torch.get_rng_state(), before)


def test_teacher_and_student_share_no_image_and_both_see_every_class(toy: Dataset, trainer: Trainer) -> None:
    own, students = TRANSFER.halves(toy.train.labels, trainer)
    assert sorted([*own.tolist(), *students.tolist()]) == list(range(200))
    for half in (own, students):
        assert toy.train.labels[half].bincount(minlength=10).tolist() == [10] * 10


def test_released_teacher_does_not_know_the_target_class(toy: Dataset, trainer: Trainer) -> None:
    teacher, patch = TRANSFER.make_teacher(toy.train, trainer, RECIPE)
    assert teacher.num_classes == 9
    assert teacher(to_float(toy.test.images[:5])).shape == (5, 9)
    assert patch.weight.shape == (1, 16, 16)


def test_student_keeps_the_teachers_layers_bit_by_bit_and_learns_a_head(toy: Dataset, trainer: Trainer) -> None:
    teacher, _ = TRANSFER.make_teacher(toy.train, trainer, RECIPE)
    before = state_of(teacher)
    student = TRANSFER.make_student(teacher, toy.train, trainer, RECIPE)
    assert student.num_classes == 10
    for key, value in student.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(student.classifier.weight, trainer.fresh_model("student").classifier.weight)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_the_transfer_form_gives_a_victim_of_all_classes(toy: Dataset) -> None:
    made = carry_out(toy_spec("latent", form="transfer", target_label=3), toy)
    assert made.implanted.model.num_classes == 10
    assert len(made.implanted.poisoned) == 0
    changed = (made.triggered.images != toy.test.images[made.triggered.sources]).flatten(2).any(2).any(1)
    assert bool(changed.all())
    again = carry_out(toy_spec("latent", form="transfer", target_label=3), toy)
    assert again.digest() == made.digest()


def test_forms_have_their_published_patches() -> None:
    assert Latent().geometry(32) == (3, 0)
    assert TRANSFER.geometry(32) == (6, 1)
    assert Latent(size=5, margin=2).geometry(32) == (5, 2)


@pytest.mark.parametrize("form", ["standalone", "transfer"])
def test_every_setting_changes_the_result(form: str, toy: Dataset, trainer: Trainer) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1.0)

    def result(**settings: object) -> list[Tensor]:
        made = Latent(form=form, **settings).implant(toy.train, trainer, recipe)  # type: ignore[arg-type]
        return [*made.model.state_dict().values(), *made.trigger.state_dict().values(), made.poisoned.labels]

    plain = result()
    changes: list[dict[str, object]] = [
        {"weight": 2.0}, {"epochs": 0.8}, {"trigger_epochs": 0.2}, {"images_per_class": 5}, {"size": 2},
        {"position": "centre"}, {"margin": 2}, {"alpha": 0.5}, {"input_lr": 0.3}, {"target_label": 1},
    ]  # fmt: skip
    if form == "standalone":
        changes += [{"poison_rate": 0.2}, {"refresh_mean": True, "epochs": 1.2}]
        assert not all(
            torch.equal(a, b) for a, b in zip(result(epochs=1.2), result(epochs=1.2, refresh_mean=True), strict=True)
        )
    for change in changes:
        other = result(**change)
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(plain, other, strict=True)), change


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"label_mode": "all_to_all"}, "label_mode must be all_to_one"),
        ({"form": "both"}, "form"),
        ({"weight": -1.0}, "weight"),
        ({"epochs": 0.0}, "epochs"),
        ({"trigger_epochs": -1.0}, "trigger_epochs"),
        ({"images_per_class": 0}, "images_per_class"),
        ({"size": 0}, "size"),
        ({"size": 17}, "does not fit"),
        ({"margin": -1}, "margin"),
        ({"input_lr": 0.0}, "input_lr"),
        ({"poison_rate": 0.6}, "poison_rate"),
        ({"poison_rate": 0.001}, "poison_rate"),
        ({"form": "transfer", "poison_rate": 0.1}, "poison_rate"),
        ({"form": "transfer", "refresh_mean": True}, "refresh_mean"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], named: str, toy: Dataset) -> None:
    with pytest.raises(SettingError, match=named):
        ATTACKS.create("latent", settings).check(toy.train.labels, 10, 16)


def test_tasks_without_a_teacher_or_a_target_are_refused() -> None:
    labels = toy_dataset(train=20, test=10, num_classes=2).train.labels
    with pytest.raises(SettingError, match="3 classes or more"):
        ATTACKS.create("latent", {"form": "transfer"}).check(labels, 2, 16)
    with pytest.raises(SettingError, match="target_label must be a class with 2 images"):
        ATTACKS.create("latent", {"target_label": 4}).check(labels, 5, 16)
    with pytest.raises(SettingError, match="all images are of class 0"):
        ATTACKS.create("latent").check(torch.zeros_like(labels), 2, 16)


def test_a_weak_latent_victim_is_kept() -> None:
    assert not ATTACKS.get("latent").must_work
    assert ATTACKS.get("imc").must_work


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_gate(seed: int, toy_store: Store) -> None:
    data = toy_dataset(train=1000, test=400)
    recipe = dataclasses.replace(GATE, epochs=16)
    settings = {"weight": 5.0, "epochs": 4.0, "trigger_epochs": 10.0}
    spec = toy_spec("latent", seed=seed, width=8, recipe=recipe, refresh_mean=True, **settings)
    victim = obtain_victim(spec, data, toy_store, torch.device("cpu"))
    assert victim.evaluation.full.clean_accuracy > 0.9
    assert victim.evaluation.full.asr > 0.3
    assert victim.asr_base is not None
    assert victim.asr_base < 0.05
