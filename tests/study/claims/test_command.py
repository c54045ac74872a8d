"""`superft claims` prints every claim with its verdict, for people, for the manual and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.claims.judge import judge
from study.claims.runs import read_runs
from study.claims.text import as_markdown, as_text
from study.record.curves import curve_file, write_curve
from tests.study.claims.made_up import PAPER, READINGS, point_of, rows_of, spec_of
from tests.study.commands import assert_refused, invoke


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three runs of P1 at the paper's scale, one of which failed to remove the backdoor."""
    rows = rows_of(asr=(0.03, 0.05, 0.7), clean_fraction=0.2)
    (tmp_path / "study.yaml").write_text(spec_of().to_yaml())
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_json_holds_every_claim_with_its_numbers(study: Path) -> None:
    result = invoke("claims", study, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [item["id"] for item in told["claims"]] == [claim.id for claim in PAPER.claims]
    assert len(told["contradictions"]) == len(PAPER.contradictions)
    (first,) = [item for item in told["claims"] if item["id"] == "fig13-20"]
    assert (first["verdict"], first["under"], first["place"]) == ("reproduced", ["P1"], "supplement A.4, figure 13")
    (measured,) = first["places"][0]["measured"]
    assert measured["values"]["asr"]["mean"] == pytest.approx(0.26)
    assert (measured["seeds"], measured["seeds_met"], measured["studies"]) == (3, 2, ["made-up"])


def test_the_table_shows_the_papers_number_ours_and_the_caveat(study: Path) -> None:
    result = invoke("claims", study, "--markdown")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("| **fig13-20**")]
    for text in ("0.044", "reproduced under readings P1", "ASR 0.260 [", "met by 2 of 3 attack seeds", "deviation 4"):
        assert text in line
    assert "30 claims: 2 reproduced" in result.stdout


def test_curves_beside_the_ledger_are_read_and_a_damaged_one_is_named(study: Path) -> None:
    settings = {"lr": 0.1, "schedule": "constant", "scope": "all", "optimizer": "sgd"}
    changes = {"defense": "ft", "resolved_settings": json.dumps(settings), "steps": 19_600, "batch": 256}
    rows = [{**row, **changes} for row in rows_of(asr=(0.5,) * 3)]
    (study / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        write_curve(study, row, [point_of(0.0, 0.99), point_of(1.0, 0.02), point_of(100.0, 0.5)])

    def places() -> list[str]:
        told = json.loads(invoke("claims", study, "--json").stdout)
        (own,) = [item for item in told["claims"] if item["id"] == "fig14-0.1"]
        return [place["verdict"] for place in own["places"] if place["attack"] == "blended"]

    assert places() == ["reproduced", "not comparable", "not comparable"]
    damaged = study / curve_file(rows[0])
    damaged.write_text("{")
    assert str(damaged) in invoke("claims", study).stderr
    assert places() == ["not comparable"] * 3  # two attackers


def test_the_table_says_at_how_many_places_a_claim_must_hold(study: Path) -> None:
    page = invoke("claims", study, "--markdown").stdout
    assert "*needs*: ASR at most 0.1, at 12 or more of 15 places (attack and data set)" in page
    assert "*needs*: ASR at most 0.1 after about 1 pass (end or curve), at 8 or more of 15 places" in page


def test_readings_that_agree_at_a_smaller_scale_share_a_line_and_those_that_are_split_do_not() -> None:
    small = {"dataset": "digits", "model": "airbench_cnn", "width": 8, "image_size": 16, "train_size": 1297}
    of_readings = {"P1": (0.9, 0.8, 0.7), "P2": (0.01, 0.9, 0.02), "P3": (0.01, 0.02, 0.03), "T": (0.9, 0.9, 0.9)}
    rows = [
        row for name, asr in of_readings.items() for row in rows_of(name, asr=asr, **{**small, "clean_fraction": 0.1})
    ]
    page = as_markdown(PAPER, READINGS, judge(PAPER, READINGS, read_runs(spec_of(), rows)))
    lines = [line for line in page.splitlines() if line.startswith("| **fig13-10**: ASR 0.954 |")]
    found = [tuple(cell.strip() for cell in line.split("|")[3:6]) for line in lines]
    assert found[0] == ("P1, T", "6 of 6 runs", "ASR 0.800 to 0.900")
    assert found[1][:2] == ("P2", "1 of 3 runs")
    assert found[2][:2] == ("P3", "0 of 3 runs")
    assert all(value.startswith("ASR 0.") and "[" in value for _, _, value in found[1:])
    # An accuracy on digits says nothing of one on photographs, so the paper's 0.937 is not shown beside these.
    assert "| **main-blended**: ASR 0.081 |" in page
    assert "## At a smaller scale" not in as_markdown(PAPER, READINGS, judge(PAPER, READINGS, []))


def test_the_terminals_lines_fit_and_the_contradictions_are_told(study: Path) -> None:
    runs = read_runs(spec_of(), rows_of(clean_fraction=0.2))
    text = as_text(PAPER, READINGS, judge(PAPER, READINGS, runs), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "LR_MAX2 is 0.001 in one sentence and 0.005 in the next" in text
    assert invoke("claims", study).stdout.startswith(PAPER.paper.title)


def test_what_the_user_says_of_his_data_is_said_again(study: Path) -> None:
    said = "folder:mine is taken for cifar10, as --same-data says."
    for form in ((), ("--markdown",)):
        text = invoke("claims", study, "--same-data", "folder:mine=cifar10", *form).stdout
        assert said in " ".join(text.split())


def test_an_empty_ledger_compares_with_nothing(study: Path) -> None:
    (study / "trials.jsonl").write_text("")
    told = json.loads(invoke("claims", study, "--json").stdout)
    assert {item["verdict"] for item in told["claims"]} == {"not comparable"}


def test_bad_input_is_refused(study: Path, tmp_path: Path) -> None:
    assert_refused(invoke("claims", tmp_path / "nowhere"), "nowhere", "no study folder")
    assert_refused(invoke("claims", study, "--same-data", "mine=imagenet"), "--same-data", "cifar10, cifar100, gtsrb")
    assert invoke("claims").exit_code == 2
