"""Claims of merging: the parts of a study are the study, and what is no part of it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import superft
from study.cli import main
from study.record.folder import LEDGER_FILE, SPEC_FILE
from study.record.ledger import Ledger, Row
from study.run.merge import merge_studies
from study.spec.yaml_io import SpecError
from tests.study.tiny import make_driver, run, tiny_spec

TWO_ATTACKS = ("attacks=[badnets, blended]", "baselines=[none, ft]")


def study_in(folder: Path, *assignments: str, finishes: int | None = None) -> Path:
    """A study of made-up rows, as a run leaves it."""
    spec = tiny_spec(*assignments)
    folder.mkdir()
    (folder / SPEC_FILE).write_text(spec.to_yaml())
    driver = make_driver(spec, folder / LEDGER_FILE)
    run(driver, slots=1, finishes=finishes)  # one after the other: what a search proposes hangs on nothing else
    driver.ledger.close()
    return folder


def merged(out: Path, *parts: Path) -> list[Row]:
    merge_studies({part.name: part for part in parts}, out)
    return Ledger.read(out / LEDGER_FILE).rows()


def by_key(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["trial"], row["attack"], row["seed"]))


def test_parts_cut_along_attacks_are_the_study_that_ran_at_once(tmp_path: Path) -> None:
    whole = study_in(tmp_path / "whole", *TWO_ATTACKS)
    one = study_in(tmp_path / "one", *TWO_ATTACKS, "attacks=[badnets]")
    other = study_in(tmp_path / "other", *TWO_ATTACKS, "attacks=[blended]")
    rows = merged(tmp_path / "out", one, other)
    assert by_key(rows) == by_key(Ledger.read(whole / LEDGER_FILE).rows())
    assert superft.load(tmp_path / "out").attacks == ["badnets", "blended"]


def test_baselines_cut_along_seeds_rest_on_all_of_them(tmp_path: Path) -> None:
    parts = [study_in(tmp_path / f"seed{n}", "defenses=[]", "baselines=[none, ft]", f"seeds=[{n}]") for n in (3, 5)]
    rows = merged(tmp_path / "out", *parts)
    assert sorted((row["defense"], row["seed"]) for row in rows) == [("ft", 3), ("ft", 5), ("none", 3), ("none", 5)]
    assert {row["models"] for row in rows} == {2}
    assert {row["models"] for row in Ledger.read(parts[0] / LEDGER_FILE).rows()} == {1}, "the parts stay as they are"


def test_searches_that_each_chose_for_themselves_are_not_averaged(tmp_path: Path) -> None:
    parts = [study_in(tmp_path / f"seed{n}", f"seeds=[{n}]") for n in (0, 1)]
    for part, worse in zip(parts, (0, 0.1), strict=True):  # the two saw other values, so later proposals differ
        rows = Ledger.read(part / LEDGER_FILE).rows()
        assert len(rows) == 5
        (part / LEDGER_FILE).unlink()
        with Ledger(part / LEDGER_FILE) as ledger:
            for row in rows:
                changed = {"param.lr_max1": row["param.lr_max1"] + worse} if "param.lr_max1" in row else {}
                ledger.append({**row, **changed})
    with pytest.raises(SpecError, match=r"^seed1: other settings than in a part before it of trial badnets/super_ft/"):
        merged(tmp_path / "out", *parts)
    assert not (tmp_path / "out").exists()


def test_studies_of_two_specs_are_refused_by_the_key(tmp_path: Path) -> None:
    one = study_in(tmp_path / "one", "clean_fraction=0.1")
    other = study_in(tmp_path / "other", "clean_fraction=0.2", "attacks=[blended]")
    with pytest.raises(SpecError, match=r"one and other are no parts of one study \(clean_fraction: 0.1 -> 0.2\)"):
        merged(tmp_path / "out", one, other)
    assert not (tmp_path / "out").exists()


def test_settings_of_an_attack_differ_only_where_both_run_it(tmp_path: Path) -> None:
    small = "attack.badnets.size=2"
    one = study_in(tmp_path / "one", "attacks=[badnets]", small, "defenses=[]")
    other = study_in(tmp_path / "other", "attacks=[blended]", "defenses=[]")
    assert len(merged(tmp_path / "out", one, other)) == 2
    third = study_in(tmp_path / "third", "attacks=[badnets]", "defenses=[]", "seeds=[1]")
    with pytest.raises(SpecError, match=r"attack\.badnets\.size"):
        merged(tmp_path / "out2", one, third)


def test_what_two_parts_measured_is_there_once_and_told(tmp_path: Path) -> None:
    one = study_in(tmp_path / "one", *TWO_ATTACKS, "attacks=[badnets]")
    other = study_in(tmp_path / "other", *TWO_ATTACKS)
    before = Ledger.read(one / LEDGER_FILE).rows()
    found = merge_studies({"one": one, "other": other}, tmp_path / "out")
    assert (found.rows, found.repeated, found.differ, found.left) == (12, 6, 0, 0)
    assert Ledger.read(tmp_path / "out" / LEDGER_FILE).rows()[: len(before)] == before


def test_trials_that_the_whole_still_lacks_are_counted_and_can_be_run(tmp_path: Path) -> None:
    one = study_in(tmp_path / "one", *TWO_ATTACKS, "attacks=[badnets]")
    other = study_in(tmp_path / "other", *TWO_ATTACKS, "attacks=[blended]", finishes=4)
    out = tmp_path / "out"
    assert merge_studies({"one": one, "other": other}, out).left == 2
    driver = make_driver(tiny_spec(*TWO_ATTACKS), out / LEDGER_FILE)
    assert driver.done == 10
    run(driver)
    assert driver.finished
    assert driver.done == 12


def test_nothing_is_merged_over_something(tmp_path: Path) -> None:
    one = study_in(tmp_path / "one", "defenses=[]")
    other = study_in(tmp_path / "other", "defenses=[]", "seeds=[1]")
    with pytest.raises(SpecError, match="is there already; name a new folder"):
        merged(one, one, other)
    with pytest.raises(SpecError, match="at least two studies"):
        merged(tmp_path / "out", one)


def test_the_command_says_what_came_of_it_in_a_line_each(tmp_path: Path) -> None:
    one = study_in(tmp_path / "one", "defenses=[]")
    other = study_in(tmp_path / "other", "defenses=[]", "seeds=[1]")
    ran = CliRunner().invoke(main, ["merge", str(one), str(other), "--out", str(tmp_path / "out"), "--name", "both"])
    assert ran.exit_code == 0, ran.output
    assert ran.output.splitlines() == ["both: 2 rows of 2 studies", f"report: {tmp_path / 'out' / 'report.html'}"]
    assert superft.load(tmp_path / "out").spec.name == "both"
    again = CliRunner().invoke(main, ["merge", str(one), str(other), "--out", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert again.output == f"superft: --out {tmp_path / 'out'} is there already; name a new folder\n"
