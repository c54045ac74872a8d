"""What every defense must hold, whatever it does: the inherited suite.

A new file in ``trainables/defenses`` is under it without an edit here: the checks run on every name of the registry, at
settings that `small_settings` shrinks until the work planned by the defense itself is small. What only its author can
know belongs into its own test file: ``assert_identity`` for settings of zero strength, and a toy end-to-end direction.

Every check is a plain function of a `Subject` and fails by ``AssertionError``; one that has nothing to say about a
defense (permutations of a training set it never sees) returns.
"""

import copy
import dataclasses
import functools
import importlib.util
import json
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest import mock

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from trainables import trial
from trainables.attacks.base import PoisonedSamples
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, Assets, CleanData, Defense, PoisonedData, Repair
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.training.loop import DivergedError
from trainables.training.predict import predict
from trainables.training.trainer import Trainer
from trainables.trial import assets_for, run_trial
from trainables.victims import Victim, VictimSpec, make_trainer

CPU = torch.device("cpu")
# What a run may cost, see `cost`: less than a tenth of a second at width 2 and 16 pixels.
BUDGET = 1200
CLEAN_FRACTION = 0.3
# A setting has this many runs to show what it does. In one alone a threshold may fall between the same two masks by
# chance, and where it falls is a matter of rounding, which is not that of every CPU.
SEEDS = range(4)


def cost(defense: Defense, n: int) -> int:
    """Planned samples, with a step's own overhead as that of 25 tiny images."""
    plan = defense.plan(n, n)
    return plan.forward_samples + plan.backward_samples + plan.input_backward_samples + 25 * plan.steps


def author_settings(name: str) -> dict[str, Any]:
    """Settings at which a few steps show what the fields of a defense do: SMALL of its own test file, if it has one.

    Most need none. Masks that start at 1 and are pruned below 0.9 would not move enough at published rates.
    """
    return dict(_of_its_tests(name, "SMALL", {}))


def needs_accuracy(name: str) -> bool:
    """Whether a defense acts on how often a model is right: NEEDS_ACCURACY of its own test file.

    The suite's usual victim has learned its trigger and nothing else, so that no tolerance would ever be exceeded.
    """
    return bool(_of_its_tests(name, "NEEDS_ACCURACY", False))


def _of_its_tests(name: str, attribute: str, default: Any) -> Any:
    module = f"tests.trainables.test_{name}"
    return getattr(importlib.import_module(module), attribute, default) if importlib.util.find_spec(module) else default


def small_settings(name: str, n: int, **given: Any) -> dict[str, Any]:
    """The defaults of a defense with its numbers halved, one by one, until its own plan is within the budget.

    Only halvings that the defense accepts and that shrink its plan (without emptying it) are taken, so rates and
    thresholds stay as they are. ``given`` settings are kept.
    """
    settings: dict[str, Any] = {**author_settings(name), **given}

    def work(candidate: Mapping[str, Any]) -> int:
        return cost(DEFENSES.create(name, candidate), n)

    def halvings(small_counts: bool) -> Iterator[tuple[int, str, dict[str, Any]]]:
        for key, value in dataclasses.asdict(DEFENSES.create(name, settings)).items():
            if key in given or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, int) and (value < 8) != small_counts:
                continue
            try:
                smaller = {**settings, key: type(value)(value / 2)}
                planned = work(smaller)
            except SettingError:
                continue
            if 0 < planned < now:
                yield planned, key, smaller

    while (now := work(settings)) > BUDGET:
        # Small counts (phases, stages) are modes rather than lengths: they come last.
        options = list(halvings(False)) or list(halvings(True))
        assert options, f"{name}: no setting makes its planned work smaller than {now} samples"
        settings = min(options, key=lambda option: option[:2])[2]
    return settings


@dataclass(frozen=True)
class Run:
    """One repair with everything that went in and came out."""

    repair: Repair
    assets: Assets
    trainer: Trainer

    @property
    def state(self) -> dict[str, Tensor]:
        return dict(self.repair.model.state_dict())


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are bit-identical."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@dataclass
class Subject:
    """A registered defense at small settings, against one shared victim.

    Args:
        name: of the defense.
        victim: any; what it has learned does not matter here.
        data: the task it was made on.
    """

    name: str
    victim: Victim
    data: Dataset
    outcomes: dict[str, str | None] = field(default_factory=dict, repr=False)

    @cached_property
    def defense(self) -> Defense:
        return self.create()

    @cached_property
    def settings(self) -> dict[str, Any]:
        return small_settings(self.name, self.n_owned)

    @cached_property
    def n_owned(self) -> int:
        owns = DEFENSES.get(self.name).owns
        if owns is CleanData:
            return len(self.victim.clean_split(self.data, CLEAN_FRACTION, "overlap").train)
        return len(self.data.train) if owns is PoisonedData else 0

    def create(self, **settings: Any) -> Defense:
        return DEFENSES.create(self.name, {**self.settings, **settings})

    def assets(self) -> Assets:
        cell = Cell(DataSource("toy"), self.victim.spec, self.name, CLEAN_FRACTION)
        return assets_for(self.defense, cell, self.data, self.victim, CPU)

    def run(
        self, defense: Defense | None = None, *, seed: int = 0, assets: Assets | None = None, observe: bool = False
    ) -> tuple[Run, dict[str, int]]:
        """Repair a copy of the victim; with ``observe``, count samples through hooks on every model that is used."""
        trainer = make_trainer(self.victim.spec, self.data, CPU, seed=seed)
        model, seen = copy.deepcopy(self.victim.model), {"forward": 0, "backward": 0}
        if observe:
            instrument(model, seen)
            fresh = trainer.new_model
            trainer.new_model = lambda generator: instrument(fresh(generator), seen)
        assets = self.assets() if assets is None else assets
        return Run((defense or self.defense).repair(model, assets, trainer), assets, trainer), seen

    @cached_property
    def first(self) -> Run:
        return self.run()[0]


def instrument(model: Classifier, seen: dict[str, int]) -> Classifier:
    """Count, in ``seen``, the samples that go forward through the body of ``model`` and whose gradients come back."""

    def passed(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(returned)

    def returned(gradient: Tensor) -> None:
        seen["backward"] += len(gradient)

    # On the neck: every way through the model passes it, also one that asks for the features alone.
    model.neck.register_forward_hook(passed)
    return model


def same_seed_gives_the_same_weights(subject: Subject) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4321)
        before = torch.get_rng_state()
        again = subject.run()[0]
        assert torch.equal(torch.get_rng_state(), before), "the defense draws from the global generator"
    assert same(again.state, subject.first.state)
    assert again.repair.flagged_classes == subject.first.repair.flagged_classes
    for one, other in (
        (again.repair.removed, subject.first.repair.removed),
        (again.repair.scores, subject.first.repair.scores),
    ):
        assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))


def counters_equal_what_hooks_counted(subject: Subject) -> None:
    run, seen = subject.run(observe=True)
    counters = run.trainer.counters
    assert counters.forward_samples == seen["forward"]
    assert counters.backward_samples + counters.input_backward_samples == seen["backward"]


def plan_is_what_the_run_really_did(subject: Subject) -> None:
    for candidate in one_setting_changed(subject):
        run, _ = subject.run(candidate)
        validation = len(run.assets.validation) if isinstance(run.assets, CleanData) else 0
        planned = candidate.plan(subject.n_owned, validation)
        if candidate.plan_is_exact:
            assert run.trainer.counters == planned, candidate
        else:  # it may stop early
            for item in dataclasses.fields(planned):
                assert getattr(run.trainer.counters, item.name) <= getattr(planned, item.name), candidate


def returned_model_is_the_one_that_is_measured(subject: Subject) -> None:
    returned, measured = list[nn.Module](), list[nn.Module]()
    cls = type(subject.defense)
    original_repair = cls.repair

    def repair(self: Defense, *arguments: Any) -> Repair:
        result = original_repair(self, *arguments)
        returned.append(result.model)
        return result

    def spy(model: nn.Module, *arguments: Any, **settings: Any) -> Any:
        measured.append(model)
        return evaluate(model, *arguments, **settings)

    with mock.patch.object(cls, "repair", repair), mock.patch.object(trial, "evaluate", spy):
        cell = Cell(DataSource("toy"), subject.victim.spec, subject.name, CLEAN_FRACTION)
        result = run_trial(cell, subject.settings, dataset=subject.data, victim=subject.victim, device=CPU)
    assert returned[0] is measured[0]
    assert not any(module.training for module in measured[0].modules())
    again = evaluate(measured[0], subject.data.test, subject.victim.triggered, precision="float32").full
    assert (result.metrics["asr"], result.metrics["clean_accuracy"]) == (again.asr, again.clean_accuracy)


def model_predicts_the_same_after_a_reload(subject: Subject) -> None:
    model = subject.first.repair.model
    reloaded = subject.first.trainer.new_model(torch.Generator())
    reloaded.load_state_dict(load(save({key: t.contiguous() for key, t in model.state_dict().items()})))
    for images in (subject.data.test.images, subject.victim.triggered.images):
        assert torch.equal(
            predict(reloaded.eval(), images, precision="float32"), predict(model, images, precision="float32")
        )


def victim_and_assets_are_left_as_they_were(subject: Subject) -> None:
    before = copy.deepcopy(subject.victim.model.state_dict())
    assets = subject.assets()
    kept = copy.deepcopy(assets)
    run, _ = subject.run(assets=assets)
    assert run.repair.model is not subject.victim.model
    assert same(dict(subject.victim.model.state_dict()), before)
    for now, then in zip(image_sets(assets), image_sets(kept), strict=True):
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


def every_setting_changes_the_run_or_is_refused(subject: Subject) -> None:
    """A field that nothing depends on would be searched in vain.

    Tried at the small settings, beside those that the defense declares in `matters_with`, and with small batches: the
    toy set is smaller than a usual batch, which hides what counts in epochs.
    """
    declared = type(subject.defense).matters_with
    names = [item.name for item in dataclasses.fields(subject.defense)]
    assert declared.keys() <= set(names)
    for name in names:
        contexts = (
            [declared[name]] if name in declared else [{}, *([{"batch_size": 8}] if "batch_size" in names else [])]
        )
        assert any(
            _matters(subject, name, context, seed) for seed in SEEDS for context in contexts if name not in context
        ), f"defense.{subject.name}.{name} changes nothing beside {contexts}; declare in matters_with what it needs"


def _matters(subject: Subject, name: str, context: Mapping[str, Any], seed: int) -> bool:
    """Whether some other value of field ``name`` gives another outcome, all else being equal."""
    base = _beside(subject, context)
    kept = getattr(DEFENSES.create(subject.name, base), name)
    for value in alternatives(DEFENSES.create(subject.name, base), name):
        first, second = _outcome(subject, base, seed), _outcome(subject, {**base, name: value}, seed)
        if (
            second is None
        ):  # refused, or too much work; in the latter case a base that is small with the new value may do
            try:
                small = _beside(subject, {**context, name: value})
            except SettingError:
                continue
            first, second = _outcome(subject, {**small, name: kept}, seed), _outcome(subject, small, seed)
        if first is not None and second is not None and first != second:
            return True
    return False


def _beside(subject: Subject, context: Mapping[str, Any]) -> dict[str, Any]:
    """Small settings beside those of ``context``; what is large by itself (four epochs) stays as large as it is."""
    try:
        return small_settings(subject.name, subject.n_owned, **context)
    except AssertionError:
        DEFENSES.create(subject.name, {**subject.settings, **context})
        return {**subject.settings, **context}


def _outcome(subject: Subject, settings: Mapping[str, Any], seed: int) -> str | None:
    """Something that differs when runs differ; None where the settings are refused or cost too much to look."""
    key = repr((seed, sorted(settings.items())))
    if key not in subject.outcomes:
        subject.outcomes[key] = None
        try:
            defense = DEFENSES.create(subject.name, settings)
            if cost(defense, subject.n_owned) <= 4 * BUDGET:
                run, _ = subject.run(defense, seed=seed)
                state = save({name: tensor.contiguous() for name, tensor in run.state.items()})
                found = run.repair
                subject.outcomes[key] = repr(
                    (hash(state), found.status, found.removed, found.scores, found.flagged_classes)
                )
        except (SettingError, DataError, DivergedError):
            pass
    return subject.outcomes[key]


def alternatives(defense: Defense, name: str) -> list[Any]:
    """Other values for a field, by its type; the defense may refuse some of them."""
    value, hint = getattr(defense, name), get_type_hints(type(defense))[name]
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    found: list[Any] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            found += list(get_args(kind))
        elif kind is bool:
            found += [True, False]
        elif kind is int:
            found += [1, 2, 3] if value is None else [max(1, value // 2), 3, value + 1]
        elif kind is float:
            found += [0.05, 0.5] if not value else [value / 2, value * 2, value * 0.9, 0.0]
    return [other for other in dict.fromkeys(found) if other != value]


def one_setting_changed(subject: Subject) -> Iterator[Defense]:
    """The small settings, and each with one categorical or boolean field at every other value."""
    yield subject.defense
    for item in dataclasses.fields(subject.defense):
        for value in alternatives(subject.defense, item.name):
            if isinstance(value, bool | str):
                try:
                    candidate = subject.create(**{item.name: value})
                except SettingError:
                    continue
                if cost(candidate, subject.n_owned) <= 4 * BUDGET:
                    yield candidate


def impossible_settings_are_refused_by_name(subject: Subject) -> None:
    for item in dataclasses.fields(subject.defense):
        hint = get_type_hints(type(subject.defense))[item.name]
        for value in (object(), "no such value", float("nan")):
            if isinstance(value, str) and (hint is str or str in get_args(hint)):
                continue
            try:
                DEFENSES.create(subject.name, {item.name: value})
            except SettingError as error:
                message = str(error)
            else:
                message = ""
            assert f"{subject.name}.{item.name}" in message, f"{item.name}={value!r} is not refused by name"
            assert "\n" not in message


def repaired_row_is_json(subject: Subject) -> None:
    cell = Cell(DataSource("toy"), subject.victim.spec, subject.name, CLEAN_FRACTION)
    result = run_trial(cell, subject.settings, dataset=subject.data, victim=subject.victim, device=CPU)
    row = result.row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row


CHECKS: tuple[Callable[[Subject], None], ...] = (
    same_seed_gives_the_same_weights,
    counters_equal_what_hooks_counted,
    plan_is_what_the_run_really_did,
    returned_model_is_the_one_that_is_measured,
    model_predicts_the_same_after_a_reload,
    victim_and_assets_are_left_as_they_were,
    forbidden_data_is_never_read,
    forbidden_data_cannot_be_reached,
    a_permuted_training_set_gives_permuted_findings,
    findings_are_about_the_training_set,
    false_alarms_on_clean_data_are_told,
    a_rate_beyond_all_bounds_diverges_by_name,
    every_setting_changes_the_run_or_is_refused,
    impossible_settings_are_refused_by_name,
    repaired_row_is_json,
)


def assert_identity(subject: Subject, **settings: Any) -> None:
    """Zero strength: at these settings the victim comes back bit-identical and nothing was trained."""
    run, _ = subject.run(subject.create(**settings))
    assert same(run.state, dict(subject.victim.model.state_dict()))
    assert run.trainer.counters.backward_samples == 0
