"""Claims of study.run.repeat: one trial is found, and what differs is told; test_engine.py repeats a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from study.record.ledger import Ledger
from study.run.repeat import compared
from tests.study.commands import assert_refused, invoke
from tests.study.rows import make_row
from tests.study.tiny import TINY


def test_what_differs_is_told_with_what_may_explain_it() -> None:
    then = make_row("badnets/super_ft/0003", asr=0.016, threads=1)
    assert (
        compared({**then, "wall_seconds": 99.0, "started": "later"}, then) == "  as in the study: every result is equal"
    )
    told = compared({**then, "asr": 0.0, "threads": 2}, then)
    assert told.splitlines() == [
        "  differs from the study's row in 1 column:",
        "    asr 0.016, now 0.0",
        "    threads: 1, now 2",
    ]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study with two seeds, and no row but made-up ones."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump({**TINY, "name": "made-up", "seeds": [0, 1]}))
    with Ledger(folder / "trials.jsonl") as ledger:
        for seed in (0, 1):
            ledger.append(make_row("badnets/super_ft/0003", seed=seed))
    return folder


LIKE = ("trial", "--like")


def test_a_trial_that_is_not_there_is_refused(study: Path) -> None:
    assert_refused(invoke(*LIKE, study, "badnets/super_ft/0004"), "no trial 'badnets/super_ft/0004'", "0003")
    assert_refused(invoke(*LIKE, study.parent, "badnets/super_ft/0003"), "is no study folder")


def test_of_several_cells_one_must_be_named(study: Path) -> None:
    refused = invoke(*LIKE, study, "badnets/super_ft/0003")
    assert_refused(refused, "2 cells", "--attack badnets --seed 0", "--attack badnets --seed 1")
    assert_refused(invoke(*LIKE, study, "badnets/super_ft/0003", "--seed", "7"), "2 cells")


@pytest.mark.parametrize("given", [("--defense", "ft"), ("--set", "lr_max1=1"), ("--dataset", "digits")])
def test_what_the_study_decides_is_not_given_beside_it(study: Path, given: tuple[str, ...]) -> None:
    refused = invoke(*LIKE, study, "badnets/super_ft/0003", "--seed", "0", *given)
    assert refused.exit_code == 2
    assert f"{given[0]} has no meaning with --like" in refused.stderr


def test_without_it_attack_defense_and_data_set_are_needed() -> None:
    refused = invoke("trial", "--attack", "badnets", "--defense", "ft")
    assert refused.exit_code == 2
    assert "Missing option '--dataset'" in refused.stderr
