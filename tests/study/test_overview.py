"""What `plan` and `show` tell: what is left, its cost by defense and attack, victims, activity, time left, fronts."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from study.overview import plan_summary
from study.plan.slots import Node
from study.record.files import write_atomically
from study.spec.schema import StudySpec
from study.watch.words import overview
from tests.study.processes import new_place
from tests.study.tiny import made_up_row, make_driver, run, tiny_spec
from trainables.data.images import DataError

BEGIN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
TWO = ("attacks=[badnets, blended]", "baselines=[none, ft]", "search.trials=4")


def begun(folder: Path, spec: StudySpec, finishes: int, **columns: Any) -> Path:
    """A study folder with so many made-up rows, one a minute."""
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "study.yaml", spec.to_yaml().encode())
    driver = make_driver(spec, folder / "trials.jsonl", InMemoryStorage())

    def measure(job: Any, plan: Any) -> dict[str, Any]:
        started = BEGIN + timedelta(minutes=len(driver.ledger))
        before = {"asr_before": 0.99, "clean_accuracy_before": 0.97}
        return made_up_row(job, plan, started=started.isoformat(), wall_seconds=30.0, **before, **columns)

    run(driver, slots=1, finishes=finishes, measure=measure)
    driver.ledger.close()
    return folder


def test_show_says_victims_activity_time_left_and_the_state_of_each_search(tmp_path: Path) -> None:
    folder = begun(tmp_path / "one", tiny_spec(*TWO), 8)
    now = (BEGIN + timedelta(minutes=7, seconds=30 + 120)).timestamp()
    said = overview(folder, called="somewhere", now=now)
    assert "study tiny in somewhere: 8 of 12 trials done (8 ok)" in said
    assert "last trial ended 2 min ago" in said
    assert "time in trials: 4 min" in said
    assert "time left: about 4 min for 4 trials at the pace of the last 8" in said
    assert "badnets     0  0.990           0.970  implanted" in said
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert lines["badnets/super_ft"][1:3] == ["2", "2"]
    assert lines["badnets/super_ft"][3:] != ["0", "-", "-"]


def test_show_says_when_a_study_is_finished_and_which_victim_has_no_backdoor(tmp_path: Path) -> None:
    folder = begun(tmp_path / "one", tiny_spec(), 5, status="backdoor_not_implanted")
    said = overview(folder, called="somewhere")
    assert "finished" in said.splitlines()
    assert "NOT IMPLANTED" in said
    assert "5 of 5 trials done (5 backdoor_not_implanted)" in said


def test_plan_counts_only_what_is_left_and_costs_it_by_defense_and_attack(tmp_path: Path) -> None:
    folder = begun(tmp_path / "one", tiny_spec(*TWO), 5)
    said = plan_summary(tiny_spec(*TWO, f"store={tmp_path / 'store'}"), folder)
    assert "done:      5 trials; what follows is what is left" in said
    assert "victims:   3 of 3 are missing" in said
    table = [line.split() for line in said.splitlines()]
    (super_ft,) = [cells for cells in table if cells[:2] == ["super_ft", "search"]]
    assert super_ft[2:4] == ["2", "7"], "attacks, trials"
    assert ["attack", "trials", "E"] in table
    assert "total:     7 trials" in said


def test_a_study_is_planned_for_a_cluster_that_is_elsewhere(tmp_path: Path) -> None:
    spec = tiny_spec("resources.gpus_per_trial=1/4", "search.trials=200")
    said = plan_summary(spec, tmp_path, [Node("node 1", 128, 8), Node("node 2", 128, 8)])
    assert "201 trials on 64 slots of 1 CPU and 1/4 GPU (2 nodes of 128 CPUs and 8 GPUs: 32 slots each)" in said


def test_hours_are_those_of_the_epochs_and_only_asked_for(tmp_path: Path) -> None:
    spec, nodes = tiny_spec(*TWO, f"store={tmp_path / 'store'}"), [Node("node 1", 128, 8), Node("node 2", 128, 8)]
    assert "hours" not in plan_summary(spec, tmp_path / "study", nodes)
    said = plan_summary(spec, tmp_path / "study", nodes, 3600.0)
    (line,) = [line for line in said.splitlines() if line.startswith("hours:")]
    total, victims, trials = (
        float(re.findall(pattern, line)[0])
        for pattern in (r"(\S+) of one GPU", r"victims ([\d.]+)", r"trials ([\d.]+)")
    )
    (epochs,) = re.findall(r"total: .* trials, (\d+\.\d) E", said)
    assert total == float(epochs), "an hour for each E"
    assert victims + trials == pytest.approx(total, abs=0.11)
    assert "at best" in line
    assert line.endswith("on 16 GPUs")
    table = [line.split() for line in said.splitlines()]
    assert ["defense", "role", "attacks", "trials", "E", "a", "trial", "E", "hours"] in table
    (super_ft,) = [cells for cells in table if cells[:2] == ["super_ft", "search"]]
    assert super_ft[-1] == super_ft[-2]


def test_hours_without_a_card_are_those_of_slots(tmp_path: Path) -> None:
    said = plan_summary(tiny_spec(f"store={tmp_path / 'store'}"), tmp_path / "study", [Node("here", 4)], 10.0)
    (line,) = [line for line in said.splitlines() if line.startswith("hours:")]
    assert "of one slot at 10 s for 1 E" in line
    assert line.endswith("on 4 slots")


def test_a_study_is_planned_where_its_data_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERFT_DATA", str(tmp_path / "no-data"))
    said = plan_summary(tiny_spec("dataset=cifar10", "image_size=", "width=8"), tmp_path)
    assert "50000 training and 10000 test images of 32 pixels, 10 classes" in said
    assert "data:      not on this machine; planned from its published sizes, classes of equal size" in said
    with pytest.raises(DataError):
        plan_summary(tiny_spec("dataset=folder:/nowhere"), tmp_path)


@pytest.mark.skipif(shutil.which("taskset") is None, reason="Linux with taskset")
def test_a_plan_counts_the_cores_that_the_command_may_use(tmp_path: Path) -> None:
    with new_place(tmp_path) as place:
        place.inside = ("taskset", "-c", "0")
        ended = place.run("plan", place.spec(), "--out", tmp_path / "study")
    assert ended.code == 0, ended.stderr
    assert " on 1 slot of 1 CPU (1 node of 1 CPU: 1 slot each)" in ended.stdout


@pytest.mark.parametrize(("cores", "said"), [(4, "4 slots of 1 CPU"), (1, "1 slot of 1 CPU")])
def test_a_plan_without_nodes_is_for_the_cores_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, said: str
) -> None:
    monkeypatch.setattr("study.overview.usable_cores", lambda: cores)
    assert said in plan_summary(tiny_spec(), tmp_path / "study")
