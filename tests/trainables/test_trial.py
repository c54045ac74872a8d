"""Claims of trainables.trial: a trial is one flat row, whatever happens in it."""

import copy
import dataclasses
import importlib.metadata
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from superft.testing.defense_checks import reachable
from tests.toy import toy_dataset, toy_spec
from trainables import workbench
from trainables.attacks import base
from trainables.attacks.base import ATTACKS, PoisonedSamples
from trainables.attacks.triggers import Trigger
from trainables.columns import CELL_COLUMNS, CONDITION_COLUMNS, RESULT_COLUMNS, STATUS
from trainables.data.images import DataError, Dataset, TriggeredSet
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, CleanData, Defense, NoData, PoisonedData, Repair
from trainables.evaluation.metrics import der, evaluate
from trainables.job import Cell
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.plugins.modules import PluginError
from trainables.registry import SettingError
from trainables.seeding import derive_seed, generator_for
from trainables.storage.memo import Memo
from trainables.storage.store import Store
from trainables.training.loop import Counters, DivergedError
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.trial import assets_for, defender_seed, run_trial
from trainables.trial_result import MEASURES, TrialResult
from trainables.victims.make import obtain_victim
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"iterations": 3, "batch_size": 8}
RATES = [measure + part for measure in MEASURES for part in ("", "_search", "_report")]


def cell_of(victim: Victim, defense: str, **settings: Any) -> Cell:
    return Cell(DataSource("toy"), victim.spec, defense, **{"clean_fraction": 0.3, **settings})


def run(victim: Victim, toy: Dataset, defense: str, cell: dict[str, Any] | None = None, **settings: Any) -> TrialResult:
    return run_trial(cell_of(victim, defense, **(cell or {})), settings, dataset=toy, victim=victim, device=CPU)


@pytest.fixture
def working(toy_victim: Victim) -> Victim:
    """The toy victim, taken for implanted."""
    return with_rates(toy_victim, asr=0.9, clean_accuracy=0.9)


def with_rates(victim: Victim, **rates: Any) -> Victim:
    full = dataclasses.replace(victim.evaluation.full, **rates)
    evaluation = dataclasses.replace(victim.evaluation, full=full, predicted_classes=10)
    return dataclasses.replace(victim, evaluation=evaluation, clean_model_accuracy=0.9, asr_base=0.1)


@pytest.fixture
def probe() -> Iterator[Any]:
    """Registers a defense as ``probe`` for the length of one test."""

    def add(cls: type[Defense]) -> None:
        DEFENSES.register("probe")(dataclasses.dataclass(frozen=True)(cls))

    yield add
    DEFENSES.remove("probe")


class Plain(Defense):
    owns: ClassVar[Any] = NoData

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return Counters()

    def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
        return Repair(model)


def test_row_is_flat_json_with_the_columns_of_the_ledger(working: Victim, toy: Dataset) -> None:
    row = run(working, toy, "super_ft", **SHORT).row(study="s", trial="badnets/super_ft/0000", role="search")
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    known = {column.name: column for column in (*CELL_COLUMNS, *CONDITION_COLUMNS, STATUS, *RESULT_COLUMNS)}
    settings, notes = ({name for name in row if name.startswith(family)} for family in ("param.", "note."))
    assert settings == {f"param.{name}" for name in SHORT}
    assert row.keys() - settings - notes == known.keys() | {"study", "trial", "role"}
    types = {"text": str, "count": int, "number": float, "flag": bool, "list": list, "json": str}
    for name, column in known.items():
        assert row[name] is None or type(row[name]) is types[column.kind], name
    assert all(not isinstance(value, dict) for value in row.values())
    assert (row["attack"], row["defense"], row["dataset"], row["seed"]) == ("badnets", "super_ft", "toy", 0)
    assert row["status"] == "ok"
    conditions = ("scenario", "clean_fraction", "clean_source", "poison_rate", "width", "image_size", "precision")
    assert [row[name] for name in conditions] == ["standalone", 0.3, "overlap", 0.1, 2, 16, "float32"]
    assert row["threads"] == torch.get_num_threads()
    assert row["code"].startswith(importlib.metadata.version("superft"))
    before, after = (row["asr_before"], row["clean_accuracy_before"]), (row["asr"], row["clean_accuracy"])
    assert row["der"] == der(before[0], after[0], before[1], after[1])
    assert not row["collapsed"]
    assert all(0.0 <= row[rate] <= 1.0 for rate in RATES)
    assert (row["train_size"], row["n_clean"], row["n_clean_report"]) == (200, 100, 50)
    assert json.loads(row["resolved_settings"])["lr_max1"] == 0.1


def test_counters_of_the_row_are_the_repairs_alone(working: Victim, toy: Dataset) -> None:
    result = run(working, toy, "super_ft", **SHORT)
    assert (result.steps, result.forward_samples, result.backward_samples) == (6, 6 * 8, 6 * 8)
    assert result.row()["batch"] == 8
    assert result.eval_forward_samples == 100 + len(working.triggered)


def test_seconds_add_up(working: Victim, toy: Dataset) -> None:
    result = run(working, toy, "super_ft", **SHORT)
    parts = result.seconds_setup + result.seconds_repair + result.seconds_evaluate
    assert min(result.seconds_setup, result.seconds_repair, result.seconds_evaluate) >= 0
    assert parts <= result.wall_seconds
    assert result.peak_memory_bytes > 0


def test_no_defense_measures_what_the_victim_was_measured_to_be(toy_victim: Victim, toy: Dataset) -> None:
    result = run(toy_victim, toy, "none")
    for measure in MEASURES:
        assert result.metrics[measure] == result.metrics[f"{measure}_before"]
        assert result.metrics[f"{measure}_report"] == getattr(toy_victim.evaluation.report, measure)
    assert result.metrics["asr_base"] == toy_victim.asr_base


def test_trial_leaves_the_victim_as_it_was(toy_victim: Victim, toy: Dataset) -> None:
    before = copy.deepcopy(toy_victim.model.state_dict())
    run(toy_victim, toy, "super_ft", **SHORT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy_victim.model.state_dict().items())


def test_same_trial_twice_has_the_same_rates(toy_victim: Victim, toy: Dataset) -> None:
    assert run(toy_victim, toy, "super_ft", **SHORT).metrics == run(toy_victim, toy, "super_ft", **SHORT).metrics


def test_diverged_trial_is_the_worst_point_and_never_nan(working: Victim, toy: Dataset) -> None:
    result = run(working, toy, "super_ft", iterations=40, lr_max1=1e12, batch_size=16)
    assert result.status == "diverged"
    assert result.error is not None
    assert "not finite" in result.error
    row = result.row()
    for part in ("", "_search", "_report"):
        assert (row[f"asr{part}"], row[f"clean_accuracy{part}"], row[f"robust_accuracy{part}"]) == (1.0, 0.0, 0.0)
    assert row["asr_before"] == 0.9
    assert row["steps"] > 0
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in row.values())
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("rates", "status"),
    [
        ({"asr": 0.9, "clean_accuracy": 0.9}, "ok"),
        ({"asr": 0.7, "clean_accuracy": 0.9}, "backdoor_not_implanted"),
        ({"asr": 0.9, "clean_accuracy": 0.8}, "backdoor_not_implanted"),
    ],
)
def test_status_tells_when_there_was_no_backdoor_to_remove(
    rates: dict[str, float], status: str, toy_victim: Victim, toy: Dataset, probe: Any
) -> None:
    probe(type("Idle", (Plain,), {}))
    result = run(with_rates(toy_victim, **rates), toy, "probe")
    assert result.status == status
    assert result.metrics["asr"] is not None  # measured all the same
    assert (result.error is None) == (status == "ok")


def test_a_row_says_which_condition_failed_whatever_became_of_the_model(
    toy_victim: Victim, toy: Dataset, probe: Any
) -> None:
    class Diverges(Plain):
        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            raise DivergedError("loss became NaN at step 3")

    probe(Diverges)
    result = run(with_rates(toy_victim, asr=0.7, clean_accuracy=0.9), toy, "probe")
    assert result.status == "backdoor_not_implanted"
    assert result.error == "ASR 0.700 is below 0.8; loss became NaN at step 3"


def test_a_victim_that_measures_otherwise_than_stored_is_refused(toy_victim: Victim, toy: Dataset) -> None:
    assert run(toy_victim, toy, "none").status == "backdoor_not_implanted"  # a toy; but measured as it was stored
    with pytest.raises(DataError, match=r"is not what was stored \(clean_accuracy 0\.9900 -> .*, asr 0\.1000 -> "):
        run(with_rates(toy_victim, asr=0.1, clean_accuracy=0.99), toy, "none")


def test_a_trigger_that_stamps_otherwise_than_stored_is_refused(toy_victim: Victim, toy: Dataset) -> None:
    moved = toy_victim.triggered.images.clone()
    moved[0, 0, 0, 0] ^= 1  # one grey level of one pixel, on the machine that made it
    edited = dataclasses.replace(toy_victim, triggered=dataclasses.replace(toy_victim.triggered, images=moved))
    edited = dataclasses.replace(
        edited, evaluation=evaluate(edited.model, toy.test, edited.triggered, precision="float32")
    )
    with pytest.raises(DataError, match=r"is not what was stored \(other triggered images\)"):
        run(edited, toy, "none")


def test_elsewhere_single_images_may_move(toy_victim: Victim, toy: Dataset) -> None:
    """Other threads or another processor add in another order: an image at the border falls on the other side."""
    stored = toy_victim.evaluation.full.clean_accuracy
    near = with_rates(toy_victim, clean_accuracy=stored - 2 / toy_victim.evaluation.full.n_clean)
    with pytest.raises(DataError):
        run(near, toy, "none")
    elsewhere = dataclasses.replace(near, facts={**near.facts, "device": "cpu of another kind x8"})
    assert run(elsewhere, toy, "none").metrics["clean_accuracy"] == stored


def small_head() -> Classifier:
    return build_model("preact_resnet18", num_classes=3, width=2)


def bent(value: float, what: str) -> Any:
    """A repair that puts ``value`` into one weight, or into all of the head: then only the outputs are not finite."""

    def repair(self: Any, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
        with torch.no_grad():
            if what == "weight":
                model.classifier.weight[0, 0] = value
            else:
                model.classifier.weight.fill_(value)
                model.classifier.bias.fill_(value)
        return Repair(model)

    return repair


@pytest.mark.parametrize(
    ("value", "what", "error"),
    [
        (math.nan, "weight", "the repaired model's classifier.weight is not finite"),
        (math.inf, "weight", "the repaired model's classifier.weight is not finite"),
        (3e38, "outputs", "the model's outputs are not finite"),
    ],
)
def test_a_repaired_model_of_nan_has_diverged(
    value: float, what: str, error: str, working: Victim, toy: Dataset, probe: Any
) -> None:
    """argmax makes class 0 of NaN, which is the target: the trial once counted as ok with ASR 1."""
    probe(type("Bends", (Plain,), {"repair": bent(value, what)}))
    result = run(working, toy, "probe")
    assert (result.status, result.error) == ("diverged", error)
    assert (result.metrics["asr"], result.metrics["clean_accuracy"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda model: None, "defense probe: repair must return a Repair, got NoneType"),
        (lambda model: model, "defense probe: repair must return a Repair, got Classifier"),
        (lambda model: Repair(model.state_dict()), "whose model is a Classifier, got OrderedDict"),
        (lambda model: Repair(model, status="fine"), "must say status ok or abstained, got 'fine'"),
        (
            lambda model: Repair(build_model("preact_resnet18", num_classes=3, width=2)),
            "must return a model for 10 classes, got one for 3",
        ),
    ],
)
def test_what_is_no_repair_is_refused_in_one_line(
    made: Any, message: str, working: Victim, toy: Dataset, probe: Any
) -> None:
    probe(type("Wrong", (Plain,), {"repair": lambda self, model, assets, trainer: made(model)}))
    with pytest.raises(PluginError, match=message):
        run(working, toy, "probe")


def test_a_class_that_cannot_be_a_defense_is_refused_when_it_registers(probe: Any) -> None:
    with pytest.raises(SettingError, match="'probe': its class must say what such a defender owns"):
        probe(type("Lost", (Plain,), {"owns": None}))
    with pytest.raises(SettingError, match="'probe': its class does not define plan, repair"):
        probe(type("Empty", (Defense,), {"owns": NoData}))
    with pytest.raises(SettingError, match=r"'probe': its class needs @dataclass\(frozen=True\)"):
        DEFENSES.register("probe")(type("Bare", (Plain,), {}))


def test_abstention_is_kept_as_such(working: Victim, toy: Dataset, probe: Any) -> None:
    class Abstains(Plain):
        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            return Repair(model, status="abstained", notes={"anomaly": 1.5})

    probe(Abstains)
    result = run(working, toy, "probe")
    assert result.status == "abstained"
    assert result.row()["note.anomaly"] == 1.5


def test_constant_predictor_is_flagged_as_collapsed(working: Victim, toy: Dataset, probe: Any) -> None:
    class Ruins(Plain):
        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            with torch.no_grad():
                model.classifier.weight.zero_()
                model.classifier.bias.copy_(torch.arange(10.0))
            return Repair(model)

    probe(Ruins)
    result = run(working, toy, "probe")
    assert result.collapsed
    assert result.metrics["asr"] == 0.0  # by accident, hence the flag


def test_crash_of_a_defense_is_not_swallowed(working: Victim, toy: Dataset, probe: Any) -> None:
    class Crashes(Plain):
        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            raise RuntimeError("out of luck")

    probe(Crashes)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(working, toy, "probe")


def test_wrong_settings_are_refused_before_any_work(working: Victim, toy: Dataset) -> None:
    with pytest.raises(SettingError, match=r"defense\.super_ft\.lr_max1 must be a number, got 'big'"):
        run(working, toy, "super_ft", lr_max1="big")
    with pytest.raises(DataError, match="clean_source must be one of"):
        run(working, toy, "ft", {"clean_source": "anywhere"}, steps=1)
    with pytest.raises(DataError, match=r"clean_fraction 0\.001 leaves 10 of 10 classes"):
        run(working, toy, "ft", {"clean_fraction": 0.001}, steps=1)


def seen_by(owned: Any, probe: Any) -> list[Any]:
    """The assets that a defense with ``owns = owned`` is handed, filled by the next trial."""
    received = list[Any]()

    class Looks(Plain):
        owns: ClassVar[Any] = owned

        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            received.append(assets)
            return Repair(model)

    probe(Looks)
    return received


def test_clean_data_are_clean_and_split(toy_victim: Victim, toy: Dataset, probe: Any) -> None:
    received = seen_by(CleanData, probe)
    run(toy_victim, toy, "probe")
    split = toy_victim.clean_split(toy, 0.3, "overlap")
    (assets,) = received
    assert torch.equal(assets.train.images, toy.train.images[split.train])
    assert torch.equal(assets.train.labels, toy.train.labels[split.train])
    assert torch.equal(assets.validation.images, toy.train.images[split.validation])
    assert len(assets.train) + len(assets.validation) == 60


def test_a_defense_seed_changes_the_images_held_and_the_draws_of_the_repair(
    toy_victim: Victim, toy: Dataset, probe: Any
) -> None:
    received = seen_by(CleanData, probe)
    for own in (0, 1, 1):
        run(toy_victim, toy, "probe", {"defense_seed": own})
    first, second, again = received
    assert torch.equal(second.train.images, again.train.images)
    assert not torch.equal(first.train.images, second.train.images)
    cells = [cell_of(toy_victim, "ft", defense_seed=own) for own in (0, 1, 1)]
    assert defender_seed(cells[0]) != defender_seed(cells[1]) == defender_seed(cells[2])
    assert defender_seed(cells[0]) == derive_seed(toy_victim.spec.seed, "defense"), "as rows of earlier versions drew"
    assert cells[0].victim == cells[1].victim, "the victim is the same"
    assert cells[1].columns()["defense_seed"] == 1


def test_unpoisoned_source_hands_over_no_touched_image(toy_victim: Victim, toy: Dataset, probe: Any) -> None:
    received = seen_by(CleanData, probe)
    run(toy_victim, toy, "probe", {"clean_source": "unpoisoned"})
    (assets,) = received
    touched = toy.train.images[toy_victim.poisoned.indices].flatten(1)
    handed = torch.cat([assets.train.images, assets.validation.images]).flatten(1)
    assert not (handed[:, None] == touched[None]).all(2).any()


def test_heldout_source_needs_a_victim_that_reserved_it(toy_victim: Victim, toy: Dataset) -> None:
    with pytest.raises(DataError, match="needs a victim with a reserved_fraction"):
        run(toy_victim, toy, "ft", {"clean_source": "heldout"}, steps=1)


def test_poisoned_data_are_the_released_set_with_nothing_marked(toy_victim: Victim, toy: Dataset, probe: Any) -> None:
    received = seen_by(PoisonedData, probe)
    run(toy_victim, toy, "probe")
    (assets,) = received
    released = toy_victim.poisoned_training_set(toy)
    assert torch.equal(assets.train.images, released.images)
    assert torch.equal(assets.train.labels, released.labels)
    assert [field.name for field in dataclasses.fields(assets)] == ["train"]


def test_data_free_defenders_get_nothing(toy_victim: Victim, toy: Dataset) -> None:
    assets = assets_for(DEFENSES.create("none"), cell_of(toy_victim, "none"), toy, toy_victim, CPU)
    assert dataclasses.fields(assets) == ()


def test_defense_never_receives_triggered_test_images(toy_victim: Victim, toy: Dataset, probe: Any) -> None:
    for owned in (CleanData, PoisonedData):
        received = seen_by(owned, probe)
        run(toy_victim, toy, "probe")
        DEFENSES.remove("probe")
        test = torch.cat([toy.test.images, toy_victim.triggered.images]).flatten(1)
        handed = torch.cat([getattr(received[0], item.name).images for item in dataclasses.fields(received[0])])
        assert not (handed.flatten(1)[:, None] == test[None]).all(2).any()


def test_nothing_that_a_trial_hands_over_leads_to_what_is_forbidden(
    toy_victim: Victim, toy: Dataset, tmp_path: Path, probe: Any
) -> None:
    """The inherited suite follows a bare trainer; here it is the trial's own, with its memo."""
    received = list[Any]()

    class Looks(Plain):
        owns: ClassVar[Any] = PoisonedData

        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            received.extend((self, model, assets, trainer))
            trainer.remember("features", {}, lambda: {"mean": assets.train.images.float().mean()})
            return Repair(model)

    probe(Looks)
    cell = cell_of(toy_victim, "probe")
    run_trial(cell, {}, dataset=toy, victim=toy_victim, device=CPU, memo=Memo(Store(tmp_path)))
    secret = (toy, toy.test, toy.train, toy_victim, toy_victim.trigger, toy_victim.poisoned, toy_victim.triggered)
    forbidden = (Victim, VictimSpec, Dataset, Cell, Trigger, PoisonedSamples, TriggeredSet)
    for thing, path in reachable(tuple(received)):
        assert not isinstance(thing, forbidden), f"{path} is a {type(thing).__name__}"
        assert not any(thing is one for one in secret), path


def test_a_defender_cannot_draw_the_attackers_numbers_again(toy_victim: Victim, toy: Dataset, probe: Any) -> None:
    drawn = list[torch.Tensor]()

    class DrawsAgain(Plain):
        owns: ClassVar[Any] = PoisonedData

        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            drawn.append(torch.randperm(len(assets.train), generator=trainer.generator("poison-index")))
            return Repair(model)

    probe(DrawsAgain)
    run(toy_victim, toy, "probe")
    poisoned = toy_victim.poisoned.indices
    attackers = torch.randperm(len(toy.train), generator=generator_for(toy_victim.spec.seed, "poison-index"))
    assert torch.equal(attackers[: len(poisoned)].sort().values, poisoned)
    assert not torch.equal(drawn[0][: len(poisoned)].sort().values, poisoned)


def test_workbench_loads_data_and_victims_once(toy_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = list[str]()

    def load(name: str, **_settings: Any) -> Dataset:
        loads.append(name)
        return toy_dataset()

    monkeypatch.setattr("trainables.data.load.load_dataset", load)
    workbench._load.cache_clear()
    try:
        bench = Workbench(toy_store, CPU)
        cell = Cell(DataSource("toy"), toy_spec("badnets"), "none", 0.3)
        first, second = bench.run(cell, {}), bench.run(cell, {})
        assert loads == ["toy"]
        assert bench.victim(cell) is bench.victim(cell)
        assert first.metrics == second.metrics
        assert first.wall_seconds >= first.seconds_setup
    finally:
        workbench._load.cache_clear()


def test_workbench_keeps_only_so_many_victims(toy: Dataset, toy_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(toy_store, CPU, keep=1)
    monkeypatch.setattr(bench, "dataset", lambda _data: toy)
    for attack in ("badnets", "blended", "badnets"):
        bench.victim(Cell(DataSource("toy"), toy_spec(attack), "none", 0.3))
    assert len(bench._victims) == 1


def test_control_can_be_repaired_like_any_victim(toy: Dataset, toy_store: Store) -> None:
    assert not ATTACKS.get("clean").implants_backdoor
    victim = obtain_victim(toy_spec("clean"), toy, toy_store, CPU)
    result = run(victim, toy, "super_ft", **SHORT)
    assert result.status == "ok"
    assert result.metrics["asr_base"] is None


def test_divergence_of_the_attack_itself_is_raised(toy: Dataset, tmp_path: Any) -> None:
    wild = TrainingRecipe(epochs=20, batch_size=16, lr=1e12, schedule="constant")
    with pytest.raises(DivergedError):
        obtain_victim(toy_spec("badnets", recipe=wild), toy, Store(tmp_path), CPU)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_second_trial_of_a_cell_reads_nothing_and_stamps_nothing(
    toy_victim: Victim, toy_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: Any, **_settings: Any) -> Any:
        raise AssertionError("a trial made again what its process has")

    shutil.copytree(toy_store.root / toy_victim.name, tmp_path / toy_victim.name)
    monkeypatch.setattr("trainables.data.load.load_dataset", lambda _name, **_settings: toy_dataset())
    workbench._load.cache_clear()
    try:
        bench, cell = Workbench(Store(tmp_path), CPU, trains=False), cell_of(toy_victim, "super_ft")
        first = bench.run(cell, SHORT)
        shutil.rmtree(tmp_path)
        monkeypatch.setattr("trainables.data.load.load_dataset", never)
        monkeypatch.setattr("trainables.victims.measured_again.stamp", never)
        monkeypatch.setattr("trainables.victims.make.stamp", never)
        monkeypatch.setattr(base, "stamp", never)
        second = bench.run(cell, SHORT)
    finally:
        workbench._load.cache_clear()
    assert second.metrics == first.metrics


def test_evaluation_is_one_pass_over_each_test_set_after_the_last_step(toy_victim: Victim, toy: Dataset) -> None:
    passes = list[tuple[bool, int]]()

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Classifier):
            passes.append((module.training, len(output)))

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        run(toy_victim, toy, "super_ft", **SHORT)
    finally:
        hook.remove()
    assert passes == [(True, 8)] * 6 + [(False, len(toy.test)), (False, len(toy_victim.triggered))]
