"""What every defense must hold, whatever it does: the same result for a seed, honest counters, nothing forbidden seen.

Every check is a plain function of a `Subject` and fails by ``AssertionError``; one that has nothing to say about a
defense (permutations of a training set it never sees) returns. Those about single settings are in `defense_settings`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from superft.testing.defense_settings import one_setting_changed
from superft.testing.defense_subject import CLEAN_FRACTION, CPU, Subject, same
from trainables.attacks.base import PoisonedSamples
from trainables.data.images import Dataset, ImageSet
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, Assets, CleanData, NoData, PoisonedData, Repair
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.training.loop import DivergedError
from trainables.training.predict import predict
from trainables.trial import run_trial
from trainables.victims.make import make_trainer
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim


def declares_what_it_owns(subject: Subject) -> None:
    """``owns`` decides what the defense is handed: the model alone, a clean set, or the poisoned training set."""
    owns = getattr(DEFENSES.get(subject.name), "owns", None)
    assert owns in (NoData, CleanData, PoisonedData), (
        f"defense.{subject.name}: owns must be NoData, CleanData or PoisonedData, got {owns!r}"
    )


def returns_a_repair(subject: Subject) -> None:
    """`repair` gives a `Repair` with a finite model in eval mode of the victim's form, not a bare model or nothing."""
    found = subject.first.repair
    whose = f"defense.{subject.name}: repair"
    assert isinstance(found, Repair), f"{whose} must return a Repair, got {type(found).__name__}"
    assert isinstance(found.model, Classifier), f"{whose} must return a Classifier, got {type(found.model).__name__}"
    for name, tensor in found.model.state_dict().items():
        assert bool(tensor.isfinite().all()), f"{whose} returns weights that are not finite: {name}"


def same_seed_gives_the_same_weights(subject: Subject) -> None:
    """Also with the global generator somewhere else, and with hooks on the models."""
    again, first = subject.again, subject.first
    assert not again.drew_globally, "the defense draws from the global generator"
    assert same(again.run.state, first.state)
    assert again.run.repair.flagged_classes == first.repair.flagged_classes
    for one, other in (
        (again.run.repair.removed, first.repair.removed),
        (again.run.repair.scores, first.repair.scores),
    ):
        assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))


def counters_equal_what_hooks_counted(subject: Subject) -> None:
    counters, seen = subject.again.run.trainer.counters, subject.again.seen
    assert counters.forward_samples == seen["forward"]
    assert counters.backward_samples + counters.input_backward_samples == seen["backward"]


def plan_is_what_the_run_really_did(subject: Subject) -> None:
    for candidate in one_setting_changed(subject):
        try:
            run, _ = subject.run(candidate)
        except DivergedError:
            # It ended before its plan. Whether a changed setting does so on a toy task hangs on the processor's
            # rounding; the small settings themselves must not.
            assert candidate != subject.defense
            continue
        validation = len(run.assets.validation) if isinstance(run.assets, CleanData) else 0
        planned = candidate.plan(subject.n_owned, validation)
        if candidate.plan_is_exact:
            assert run.trainer.counters == planned, candidate
        else:  # it may stop early
            for item in dataclasses.fields(planned):
                assert getattr(run.trainer.counters, item.name) <= getattr(planned, item.name), candidate


def returned_model_is_the_one_that_is_measured(subject: Subject) -> None:
    told = subject.told
    assert told.returned is told.measured
    assert not any(module.training for module in told.measured.modules())
    again = evaluate(told.measured, subject.data.test, subject.victim.triggered, precision="float32").full
    assert (told.result.metrics["asr"], told.result.metrics["clean_accuracy"]) == (again.asr, again.clean_accuracy)


def model_predicts_the_same_after_a_reload(subject: Subject) -> None:
    model = subject.first.repair.model
    reloaded = subject.first.trainer.new_model(torch.Generator())
    reloaded.load_state_dict(load(save({key: t.contiguous() for key, t in model.state_dict().items()})))
    for images in (subject.data.test.images, subject.victim.triggered.images):
        assert torch.equal(
            predict(reloaded.eval(), images, precision="float32"), predict(model, images, precision="float32")
        )


def victim_and_assets_are_left_as_they_were(subject: Subject) -> None:
    again = subject.again
    assert again.run.repair.model is not subject.victim.model
    assert same(dict(subject.victim.model.state_dict()), again.victim_before)
    for now, then in zip(image_sets(again.run.assets), image_sets(again.handed_over), strict=True):
        assert torch.equal(now.images, then.images)
        assert torch.equal(now.labels, then.labels)


def image_sets(assets: Assets) -> list[ImageSet]:
    return [getattr(assets, item.name) for item in dataclasses.fields(assets)]


class Sentinel:
    """In place of what a defender must not see: any use of it is an error."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "what", what)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return type(self)
        raise AssertionError(f"the defense reads {object.__getattribute__(self, 'what')}.{name}")

    def __len__(self) -> int:
        raise AssertionError(f"the defense asks for the length of {object.__getattribute__(self, 'what')}")


def forbidden_data_is_never_read(subject: Subject) -> None:
    """The bench is made from a test set and an attack that are sentinels, and the defense works all the same.

    Trigger and poison mask are given to nobody here; that no way leads to them either is the next check's claim.
    """
    assets = subject.assets()
    data = dataclasses.replace(subject.data, test=Sentinel("test"))  # type: ignore[arg-type]
    spec = copy.copy(subject.victim.spec)
    for what in ("attack", "attack_settings"):
        object.__setattr__(spec, what, Sentinel(what))
    trainer = make_trainer(spec, data, CPU, seed=0)
    run = subject.defense.repair(copy.deepcopy(subject.victim.model), assets, trainer)
    assert same(dict(run.model.state_dict()), subject.first.state)


def forbidden_data_cannot_be_reached(subject: Subject) -> None:
    """Follow every reference from what a defense receives: none leads to test data, trigger, labels or settings."""
    trainer = make_trainer(subject.victim.spec, subject.data, CPU, seed=0)
    victim, data = subject.victim, subject.data
    forbidden = {
        id(data): "the data set",
        id(data.test): "the test set",
        id(data.train): "the attacker's clean training set",
        id(victim): "the victim",
        id(victim.spec): "the attack's settings",
        id(victim.trigger): "the trigger",
        id(victim.poisoned): "the poison mask",
        id(victim.triggered): "the triggered test set",
        id(victim.attacker_indices): "the attacker's indices",
    }
    storages = {
        tensor.untyped_storage().data_ptr(): name
        for name, tensor in (
            ("test images", data.test.images),
            ("test labels", data.test.labels),
            ("clean training images", data.train.images),
            ("triggered images", victim.triggered.images),
            ("poisoned indices", victim.poisoned.indices),
        )
    }
    received = (subject.defense, copy.deepcopy(victim.model), subject.assets(), trainer)
    for thing, path in reachable(received):
        assert id(thing) not in forbidden, f"{path} is {forbidden[id(thing)]}"
        assert not isinstance(thing, VictimSpec | Victim | Dataset | PoisonedSamples), f"{path} is a {type(thing)}"
        if isinstance(thing, Tensor):
            assert thing.untyped_storage().data_ptr() not in storages, f"{path} shares memory with what is forbidden"


def reachable(root: object) -> Iterator[tuple[object, str]]:
    """Everything that can be reached through attributes, containers, closures, defaults and bound arguments."""
    seen, queue = set[int](), [(root, "received")]
    while queue:
        thing, path = queue.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType | str | bytes | int | float):
            continue
        seen.add(id(thing))
        yield thing, path
        if isinstance(thing, Mapping):
            queue += [(value, f"{path}[{key!r}]") for key, value in thing.items()]
        elif isinstance(thing, list | tuple | set | frozenset):
            queue += [(value, f"{path}[{i}]") for i, value in enumerate(thing)]
        if isinstance(thing, types.FunctionType):
            queue += [(cell.cell_contents, f"{path} closure") for cell in thing.__closure__ or ()]
            queue += [(thing.__defaults__, f"{path} defaults"), (thing.__kwdefaults__, f"{path} defaults")]
        if isinstance(thing, functools.partial):
            queue += [((thing.func, thing.args, thing.keywords), f"{path} partial")]
        if isinstance(thing, types.MethodType):
            queue += [((thing.__self__, thing.__func__), f"{path} method")]
        if not isinstance(thing, Tensor):
            queue += [(value, f"{path}.{name}") for name, value in getattr(thing, "__dict__", {}).items()]


def a_permuted_training_set_gives_permuted_findings(subject: Subject) -> None:
    """Detectors: what is found belongs to the sample, not to its place."""
    assets = subject.assets()
    if not isinstance(assets, PoisonedData):
        return
    found = subject.first.repair
    n = len(assets.train)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    permuted, _ = subject.run(assets=PoisonedData(assets.train.subset(order)))
    assert permuted.repair.flagged_classes == found.flagged_classes
    if found.scores is not None:
        assert permuted.repair.scores is not None
        torch.testing.assert_close(permuted.repair.scores, found.scores[order], rtol=1e-3, atol=1e-4)
    if found.removed is not None:
        assert permuted.repair.removed is not None
        assert set(order[permuted.repair.removed].tolist()) == set(found.removed.tolist())


def findings_are_about_the_training_set(subject: Subject) -> None:
    found, n = subject.first.repair, subject.n_owned
    if found.scores is not None:
        assert found.scores.shape == (n,)
        assert bool(found.scores.isfinite().all())
    if found.removed is not None:
        assert found.removed.unique().numel() == len(found.removed)
        assert not len(found.removed) or (int(found.removed.min()) >= 0 and int(found.removed.max()) < n)
    if found.flagged_classes is not None:
        assert set(found.flagged_classes) <= set(range(subject.data.num_classes))
    assert found.status in ("ok", "abstained")


def false_alarms_on_clean_data_are_told(subject: Subject) -> None:
    """Where nothing was poisoned the row tells the accuracy before and after, and calls all findings false alarms."""
    spec = dataclasses.replace(subject.victim.spec, attack="clean", attack_settings={})
    control = dataclasses.replace(subject.victim, spec=spec, poisoned=PoisonedSamples.none(subject.data.train))
    cell = Cell(DataSource("toy"), spec, subject.name, CLEAN_FRACTION)
    row = run_trial(cell, subject.settings, dataset=subject.data, victim=control, device=CPU).row()
    assert row["clean_accuracy"] is not None
    assert row["clean_accuracy_before"] is not None
    if subject.first.repair.removed is not None:
        assert row.get("detection_fpr") == row.get("detection_removed") is not None
        assert row.get("detection_tpr") is None
    if subject.first.repair.flagged_classes is not None:
        assert row.get("false_classes") == len(row.get("flagged_classes", ()))
        assert row.get("target_flagged") is None


def a_rate_beyond_all_bounds_diverges_by_name(subject: Subject) -> None:
    """Or is survived with finite weights: NaN is never handed back."""
    for item in dataclasses.fields(subject.defense):
        if "lr" not in item.name.split("_"):
            continue
        try:
            run, _ = subject.run(subject.create(**{item.name: 1e12}))
        except (SettingError, DivergedError):
            continue
        for name, tensor in run.state.items():
            assert bool(tensor.isfinite().all()), f"{item.name}=1e12 leaves {name} not finite"


def repaired_row_is_json(subject: Subject) -> None:
    row = subject.told.result.row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
