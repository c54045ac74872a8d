"""The attacker's class may be given by its name, which becomes a number before any work, and is told with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from study.plan.forecast import plan_lines
from study.plan.jobs import prepare
from study.spec.load import make_spec
from study.spec.schema import differences
from study.spec.yaml_io import parse_yaml
from tests.study.tiny import tiny_spec
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.workbench import Workbench

NAMES = ("1", "10", "2")  # as folders are sorted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of three classes whose names are numbers, in the order of texts."""
    root, drawn = tmp_path_factory.mktemp("numbers"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in NAMES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = drawn.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return f"folder:{root}"


def test_a_name_becomes_the_label_of_its_class_and_a_number_stays_a_label(folder: str) -> None:
    for given, label in (('"10"', 1), ('"2"', 2), ("2", 2), ("0", 0)):
        plan, _, _ = prepare(tiny_spec(f"dataset={folder}", f"attack.badnets.target_label={given}", "baselines=[none]"))
        assert plan.cells[0].victim.make_attack().target_label == label
        stored = make_spec(parse_yaml(plan.spec.to_yaml(), "spec"))
        assert stored.attack["badnets"]["target_label"] == label, "what is stored is the number"


def test_the_name_is_told_beside_the_number(folder: str) -> None:
    spec = tiny_spec(f"dataset={folder}", "attacks=[badnets, blended]", 'attack.badnets.target_label="10"')
    plan, dataset, upstream = prepare(spec)
    assert "attacks:   badnets -> 10 (label 1); blended -> 1 (label 0)" in plan_lines(plan, dataset, upstream)
    plain, digits, _ = prepare(tiny_spec("attack.badnets.label_mode=all_to_all"))
    assert "attacks:   badnets -> every class to the one 1 further" in plan_lines(plain, digits)


def test_a_class_that_does_not_exist_is_refused_with_those_that_do(folder: str) -> None:
    with pytest.raises(SettingError, match=r"attack\.badnets\.target_label: .* no class 'cat': known: 1, 10, 2"):
        prepare(tiny_spec(f"dataset={folder}", "attack.badnets.target_label=cat"))


def test_a_name_that_was_not_looked_up_never_becomes_a_victim(folder: str) -> None:
    victim = tiny_spec(f"dataset={folder}", "attack.badnets.target_label=cat").resolve()
    with pytest.raises(SettingError, match="target_label must be a whole number, got 'cat'"):
        victim.victim(victim.attacks[0], 0).make_attack()


def test_a_folder_is_mirrored_unless_its_owner_says_no_and_the_plan_says_which(folder: str) -> None:
    for given, flip, said in (
        ((), True, "half of the images in training; flip: false where left and right matter"),
        (("flip=false",), False, "no image, as flip: false says"),
    ):
        spec = tiny_spec(f"dataset={folder}", "baselines=[none]", *given)
        plan, dataset, _ = prepare(spec)
        assert dataset.flip is flip
        assert f"mirrored:  {folder}: {said}" in plan_lines(plan, dataset)
        assert parse_yaml(spec.to_yaml(), "spec")["flip"] is flip, "the stored spec is complete"
    assert not any("mirrored" in line for line in plan_lines(*prepare(tiny_spec())[:2]))


def test_a_study_of_a_folder_is_not_continued_the_other_way_round(folder: str) -> None:
    first, second = (tiny_spec(f"dataset={folder}", f"flip={flip}") for flip in ("true", "false"))
    assert differences(first, second) == ["flip: True -> False"]


def test_rows_name_the_class(folder: str, tmp_path: Path) -> None:
    import torch

    spec = tiny_spec(f"dataset={folder}", 'attack.badnets.target_label="10"', "victim.epochs=1", "clean_fraction=0.5")
    plan, _, _ = prepare(spec)
    row = Workbench(Store(tmp_path), torch.device("cpu")).run(plan.baselines[0].cell, {}).row()
    assert (row["target_label"], row["target_class"]) == (1, "10")
    assert row["flip"] is True
