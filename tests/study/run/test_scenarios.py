"""A spec's scenario becomes victims, defenders and controls; bad combinations are one line before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from study.plan.costs import victims_cost
from study.plan.jobs import Plan, check_plan, load_data, make_plan
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec
from trainables.data.images import DataError
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.workbench import Workbench

TRANSFER = ("scenario.type=new-head", "attacks=[badnets, blended]", "baselines=[none, ft]", "seeds=[0, 7]")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Image folders of 8 pixels: three classes of noise around a tint."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for label, name in enumerate(("red", "green", "blue")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (8, 8, 3))
                pixels[..., label] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return f"folder:{root}"


def transfer_plan(upstream: str, *more: str) -> Plan:
    return make_plan(tiny_spec(*TRANSFER, f"scenario.upstream={upstream}", *more))


def test_same_label_gives_each_side_half_of_the_data() -> None:
    spec = tiny_spec("scenario.type=same-label", "clean_fraction=0.4")
    plan = make_plan(spec)
    cell = plan.baselines[0].cell
    assert (cell.victim.reserved_fraction, cell.clean_fraction, cell.clean_source) == (0.5, 0.2, "heldout")
    assert cell.victim.scenario == "standalone"
    data, upstream = load_data(spec)
    assert upstream is None
    check_plan(plan, data)


def test_users_images_of_same_label_are_never_the_attackers(tmp_path: Path) -> None:
    spec = tiny_spec("scenario.type=same-label", "victim.epochs=1", "clean_fraction=1.0")
    plan = make_plan(spec)
    cell = plan.baselines[0].cell
    bench = Workbench(Store(tmp_path), torch.device("cpu"))
    victim, data = bench.victim(cell), bench.dataset(cell.data)
    held = set(victim.clean_split(data, cell.clean_fraction, cell.clean_source).all.tolist())
    attackers = set(victim.attacker_indices.tolist())
    assert not held & attackers
    assert held | attackers == set(range(len(data.train)))


def test_every_baseline_of_a_transfer_has_a_control_and_no_search_has_one(pictures: str) -> None:
    plan = transfer_plan(pictures)
    roles = [job.role for job in plan.baselines]
    assert roles.count("baseline") == roles.count("control") == 2 * 2 * 2
    for job in plan.baselines:
        assert job.cell.control == (job.role == "control")
        assert job.trial.endswith(f"/{job.role}")
    assert not any(cell.control for search in plan.searches for cell in search.cells)
    assert not [job for job in transfer_plan(pictures, "scenario.controls=false").baselines if job.role == "control"]


def test_controls_need_no_victims_of_their_own(pictures: str) -> None:
    plan = transfer_plan(pictures)
    assert sorted((cell.victim.attack, cell.victim.seed) for cell in plan.victims()) == [
        ("badnets", 0),
        ("badnets", 7),
        ("blended", 0),
        ("blended", 7),
        ("clean", 0),
        ("clean", 7),
    ]
    assert not any(cell.control for cell in plan.victims())


def test_transfer_victims_cost_epochs_on_the_attackers_data(pictures: str) -> None:
    plan = transfer_plan(pictures, "victim.epochs=2")
    data, upstream = load_data(plan.spec)
    assert upstream is not None
    check_plan(plan, data, upstream)
    size = len(upstream.train)
    steps = 2 * -(-size // 64)
    # The user's head is trained on embeddings that are computed once: a forward pass over all of the user's images.
    assert victims_cost(plan.victims(), data, upstream) == pytest.approx(6 * (steps * 64 / len(data.train) + 1 / 3))


def test_a_transfer_runs_to_rows_of_both_models(pictures: str, tmp_path: Path) -> None:
    plan = make_plan(
        tiny_spec(
            "scenario.type=new-head", f"scenario.upstream={pictures}", "baselines=[ft]", "defense.ft.steps=3",
            "victim.epochs=2", "defense.ft.batch_size=16", "attack.badnets.target_label=1",
        )
    )  # fmt: skip
    bench = Workbench(Store(tmp_path), torch.device("cpu"))
    rows = {job.role: bench.run(job.cell, job.settings).row(role=job.role, trial=job.trial) for job in plan.baselines}
    assert rows["baseline"]["scenario"] == rows["control"]["scenario"] == "new-head"
    assert rows["control"]["asr_before"] == rows["baseline"]["asr_base"]
    assert rows["baseline"]["clean_accuracy_before"] != rows["control"]["clean_accuracy_before"]
    assert 0 <= rows["baseline"]["asr"] <= rows["baseline"]["asr_max"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("scenario.type=new-head",), "scenario: type new-head needs scenario.upstream"),
        (("scenario.upstream=svhn",), "scenario: upstream has no meaning in type standalone"),
        (("scenario.type=same-label", "scenario.head=probe"), "scenario: head has no meaning in type same-label"),
        (("scenario.type=same-label", "clean_source=heldout"), "clean_source heldout does not fit scenario same-label"),
        (("scenario.type=transfer",), "scenario.type: must be 'standalone', 'same-label', 'new-head' or 'encoder'"),
        (("scenario.kind=new-head",), "unknown key 'scenario.kind'"),
    ],
)
def test_scenario_that_means_nothing_is_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        tiny_spec(*settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (("scenario.upstream=digits",), DataError, "digits is also the upstream one"),
        (("clean_source=heldout",), DataError, "clean_source heldout means nothing in scenario new_head"),
        (("attacks=[badencoder]",), SettingError, "attack badencoder releases an encoder"),
        (("scenario.type=encoder",), SettingError, "attack badnets releases a classifier"),
        (("attack.badnets.target_label=5",), SettingError, "target_label must be below the number of classes"),
        (("baselines=[spectral]",), DataError, "attack badnets releases none in scenario new_head"),
        (
            ("scenario.type=encoder", "attacks=[badencoder]", "baselines=[abl]"),
            DataError,
            "attack badencoder releases none in scenario encoder",
        ),
        (
            ("baselines=[anp]",),
            DataError,
            "anp goes by the outputs .*use scenario.head: probe",
        ),
    ],
)
def test_scenario_that_does_not_fit_is_refused_before_any_work(
    pictures: str, settings: tuple[str, ...], error: type[Exception], message: str
) -> None:
    base = ("scenario.type=new-head", f"scenario.upstream={pictures}", "baselines=[none]", "defenses=[]")
    spec = tiny_spec(*base, *settings)
    with pytest.raises(error, match=message) as caught:
        check_plan(make_plan(spec), *load_data(spec))
    assert "\n" not in str(caught.value)
