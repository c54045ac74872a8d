"""Claims of trainables.aftermath: it changes no number of the repair, and costs what is planned."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from superft.testing.defense_checks import reachable
from tests.toy import toy_spec
from trainables.aftermath import check_aftermath, planned_work, shadow_work
from trainables.attacks.badnets import BadNets
from trainables.attacks.base import ATTACKS
from trainables.columns import AFTERMATH_COLUMNS, CIRCUMSTANCES
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, Defense, NoData, Repair
from trainables.evaluation.aftermath import membership
from trainables.evaluation.aftermath.settings import Aftermath, Connectivity, Membership, Reinjection, Retuning
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.storage.memo import Memo
from trainables.storage.store import Store
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer
from trainables.trial import run_trial
from trainables.victims.victim import Victim

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"iterations": 3, "batch_size": 8}
REINJECTED = Reinjection(rates=("original",), counts=(0, 5), epochs=1, batch_size=64)
ASKED = Aftermath(
    REINJECTED,
    Retuning(share=0.1, counts=(0, 5), draws=1),
    Membership(images=60, attacks=("loss", "entropy", "shadow", "lira"), shadows=2),
    Connectivity(points=3),
)


def cell_of(victim: Victim, defense: str = "super_ft", **changes: Any) -> Cell:
    return Cell(DataSource("toy"), victim.spec, defense, **{"clean_fraction": 0.3, **changes})


def test_no_number_of_the_repair_depends_on_the_aftermath(toy: Dataset, toy_victim: Victim, tmp_path: Path) -> None:
    given: dict[str, Any] = {"dataset": toy, "victim": toy_victim, "device": CPU}
    cell, memo = cell_of(toy_victim), Memo(Store(tmp_path))
    without = run_trial(cell, SHORT, **given).row()
    asked = run_trial(cell, SHORT, **given, memo=memo, aftermath=ASKED).row()
    timed = {"started", "wall_seconds", "seconds_setup", "seconds_repair", "seconds_evaluate", "peak_memory_bytes"}
    assert {name: asked[name] for name in without if name not in timed} == {
        name: value for name, value in without.items() if name not in timed
    }
    known = {column.name: column for column in AFTERMATH_COLUMNS}
    assert asked.keys() - without.keys() == known.keys()
    assert asked["wall_seconds"] < asked["wall_seconds"] + asked["seconds_aftermath"]
    # Twice: the same to the last digit, whether shadow models are made or found ready.
    again = run_trial(cell, SHORT, **given, memo=memo, aftermath=ASKED).row()
    assert {name: again[name] for name in known.keys() - CIRCUMSTANCES} == {
        name: asked[name] for name in known.keys() - CIRCUMSTANCES
    }
    # Step 0 is the model as it was measured.
    for curve in json.loads(asked["reinjection"]):
        assert (curve["asr"][0], curve["clean_accuracy"][0]) == pytest.approx(
            (asked["asr_report"], asked["clean_accuracy_report"]), abs=1e-5
        )
    without_poison, retuned = json.loads(asked["retuning"])
    assert (retuned["poisoned"], retuned["images"], retuned["steps"]) == (5, 20, [0, 1, 2, 5])
    assert retuned["o_asr"] == without_poison["o_asr"] == pytest.approx(asked["asr_report"], abs=1e-5)
    way, refreshed = json.loads(asked["connectivity"])
    assert way["statistics"] == "interpolated"
    for at, when in ((0, "report"), (-1, "before_report")):
        assert (way["asr"][at], way["clean_accuracy"][at]) == pytest.approx(
            (asked[f"asr_{when}"], asked[f"clean_accuracy_{when}"]), abs=1e-5
        )
    assert (refreshed["statistics"], refreshed["share"]) == ("refreshed", [0.0, 0.5, 1.0])
    records = json.loads(asked["membership"])
    assert {record["group"] for record in records} == {"clean", "defender", "poisoned"}
    assert {record["attack"] for record in records} == {"loss", "entropy", "shadow", "lira"}
    clean = next(record for record in records if record["group"] == "clean")
    assert clean["images"] == 30
    assert clean["gap"] == pytest.approx(clean["train_accuracy"] - clean["test_accuracy"], abs=1e-5)
    # What it took is what was planned; the first trial of a victim trains the shadow models.
    planned = planned_work(ASKED, cell, SHORT, toy)
    shadows = shadow_work(ASKED, cell, toy)
    assert again["aftermath_steps"] == planned.steps
    assert again["aftermath_backward_samples"] == planned.backward_samples
    assert asked["aftermath_backward_samples"] == planned.backward_samples + shadows.backward_samples
    # The smaller groups and the shadow models' own images are not planned: forward passes, a tenth of the whole.
    assert planned.forward_samples <= again["aftermath_forward_samples"] <= 1.5 * planned.forward_samples


def test_the_clean_control_is_asked_under_the_victims_trigger(toy: Dataset, toy_victim: Victim) -> None:
    clean = dataclasses.replace(
        toy_victim,
        is_control=True,
        poisoned=dataclasses.replace(
            toy_victim.poisoned,
            **{name: getattr(toy_victim.poisoned, name)[:0] for name in ("indices", "images", "labels", "kinds")},
            appended=None,
        ),
    )
    asked = Aftermath(membership=Membership(images=60, attacks=("loss",)))
    groups = {}
    for victim in (toy_victim, clean):
        cell = cell_of(toy_victim, "none", control=victim.is_control)
        row = run_trial(cell, {}, dataset=toy, victim=victim, device=CPU, aftermath=asked).row()
        groups[victim.is_control] = {one["group"]: one for one in json.loads(row["membership"])}
    assert (set(groups[False]), set(groups[True])) == ({"clean", "poisoned"}, {"clean"})
    # The model is the same here, so equal numbers mean equal images: those that the victim's attack left alone.
    assert groups[False]["clean"] == groups[True]["clean"]


def test_nothing_of_it_reaches_the_defense(toy: Dataset, toy_victim: Victim) -> None:
    received = list[Any]()

    class Looks(Defense):
        owns: ClassVar[Any] = NoData

        def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
            return Counters()

        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            received.append((self, model, assets, trainer, trainer.generator("reinjection").initial_seed()))
            return Repair(model)

    DEFENSES.register("probe")(dataclasses.dataclass(frozen=True)(Looks))
    try:
        seeds = []
        for asked in (None, Aftermath(REINJECTED)):
            run_trial(cell_of(toy_victim, "probe"), {}, dataset=toy, victim=toy_victim, device=CPU, aftermath=asked)
            *handed, seed = received[-1]
            seeds.append(seed)
            for thing, path in reachable(tuple(handed)):
                assert not isinstance(thing, Aftermath | Reinjection | Membership), path
        assert seeds[0] == seeds[1]
        assert len(received) == 2  # the defense runs once: no arm repairs anything again
    finally:
        DEFENSES.remove("probe")


@pytest.mark.parametrize(
    ("asked", "cell", "message"),
    [
        ({"images": 101}, {}, "images: 101 members .* data set toy has 100 of each .*; use at most 100"),
        ({"attacks": ("shadow",)}, {"clean_fraction": 0.05}, "a shadow model is trained on .* set adaptive: false"),
    ],
)
def test_membership_beyond_the_data_is_refused_in_one_line(
    toy: Dataset, toy_victim: Victim, asked: dict[str, Any], cell: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_aftermath(Aftermath(membership=Membership(**asked)), cell_of(toy_victim, **cell), SHORT, toy)
    assert "\n" not in str(caught.value)


def test_membership_needs_the_attackers_own_task(toy: Dataset, toy_victim: Victim) -> None:
    cell = Cell(
        DataSource("toy"), dataclasses.replace(toy_spec("badnets"), scenario="new_head"), "none", scenario="new-head"
    )
    with pytest.raises(DataError, match="in scenario new-head the attacker's training images are of another task"):
        check_aftermath(Aftermath(membership=Membership()), cell, {}, toy)


def test_no_shadow_model_is_asked_of_an_image_that_it_was_trained_on(
    toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defender's images and the originals of the poisoned ones may be among those that shadow models train on."""
    asked = Aftermath(membership=Membership(images=40, attacks=("lira",), shadows=3, adaptive=False))
    groups: dict[str, membership.Group] = {}
    seen = list[torch.Tensor]()
    known: dict[str, list[torch.Tensor]] = {}
    infer, ratio = membership.infer, membership.likelihood_ratio

    def watched(*given: Any) -> list[dict[str, Any]]:
        settings, model, of, shadow, *rest = given
        groups.update({group.name: group for group in of})

        def noted(number: int) -> membership.Shadow:
            one = shadow(number)
            seen.append(one.seen)
            return one

        return infer(settings, model, of, noted, *rest)

    def told(outputs: torch.Tensor, labels: torch.Tensor, unseen: Any) -> torch.Tensor:
        known[list(groups)[len(known)]] = list(unseen)
        return ratio(outputs, labels, unseen)

    monkeypatch.setattr(membership, "infer", watched)
    monkeypatch.setattr(membership, "likelihood_ratio", told)
    run_trial(cell_of(toy_victim), SHORT, dataset=toy, victim=toy_victim, device=CPU, aftermath=asked)
    assert set(groups) == {"clean", "defender", "poisoned"}
    train = toy.train.subset(toy_victim.attacker_indices)
    for name in ("clean", "defender"):
        own, at = groups[name].member, groups[name].places
        assert torch.equal(train.images[at[own]], groups[name].images[own])
        assert bool((at[~own] == -1).all())
    met = 0
    for name, group in groups.items():
        for model, values in zip(seen, known[name], strict=True):
            trained_on = torch.isin(group.places, model)
            assert torch.equal(values.isnan(), trained_on), name
            met += int(trained_on.sum())
        assert not bool(torch.stack(known[name]).isnan().all(0).any()), "each image has a model that never saw it"
        if name == "clean":
            assert met == 0
    assert met > 0
    # The second model has the half that the first has not.
    assert not bool(torch.isin(seen[0], seen[1]).any())


def test_shadow_models_share_nothing_that_an_attack_trains_beside_its_model(
    toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = list[Any]()
    implant = BadNets.implant

    def watched(attack: BadNets, train: Any, trainer: Trainer, recipe: Any) -> Any:
        tasks.append(trainer.task)
        return implant(attack, train, trainer, recipe)

    monkeypatch.setattr(BadNets, "implant", watched)
    asked = Aftermath(membership=Membership(images=40, attacks=("lira",), shadows=2))
    run_trial(cell_of(toy_victim), SHORT, dataset=toy, victim=toy_victim, device=CPU, aftermath=asked)
    assert len(tasks) == len(set(tasks)) == 2


def test_shadow_models_of_an_attack_that_trains_nothing_are_refused(
    toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not ATTACKS.get("imported").trains
    monkeypatch.setattr(BadNets, "trains", False)
    with pytest.raises(DataError, match=r"badnets has ready-made weights, .* leave shadow and lira out"):
        check_aftermath(Aftermath(membership=Membership()), cell_of(toy_victim), SHORT, toy)
    check_aftermath(Aftermath(membership=Membership(attacks=("loss", "entropy"))), cell_of(toy_victim), SHORT, toy)
