"""Claims of benchmarks/blind.py: what its tables say follows from its rows."""

from typing import Any

import pandas as pd
import pytest

from benchmarks.blind import (
    LEDGER,
    LIKE,
    by_attack,
    less_published,
    oracle,
    read,
    spread,
    summary,
    table_of,
    transfer,
    variants,
    with_regret,
)
from tests.test_architecture import ROOT
from trainables.choice.own_triggers import KINDS


def row(attack: str, kind: str, chosen: str, asr: float, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "attack": attack,
        "seed": 0,
        "conditions": "made up",
        "kind": kind,
        "chosen": chosen,
        "status": "ok",
        "asr": asr,
        "clean_accuracy": accuracy,
        "asr_before": 1.0,
        "clean_accuracy_before": 0.98,
        "E": 2.0,
        "moved": True,
        "collapsed": False,
        "rule": None,
        "defense": "super_ft",
        "param.iterations": None,
        **more,
    }


def made_up() -> pd.DataFrame:
    rows = []
    for attack, weak, strong in (("badnets", 0.9, 0.0), ("blended", 0.8, 0.3)):
        rows += [
            row(attack, "candidate", "super_ft iterations=60", weak, 0.97, **{"param.iterations": 60}),
            row(attack, "candidate", "super_ft iterations=120", strong, 0.94, **{"param.iterations": 120}),
            row(attack, "rule", "super_ft iterations=60", weak, 0.97, rule="validation"),
            row(attack, "rule", "ft lr=0.1", strong + 0.2, 0.93, rule="ft_peak"),
            row(attack, "rule", "", 1.0, 0.98, rule="planted", status="refused", moved=False),
            row(attack, "variant", "x", weak - 0.1, 0.97, rule="validation", change={"a": 1}),
        ]
    return pd.DataFrame(rows)


def test_regret_is_to_the_least_asr_of_candidates_as_accurate() -> None:
    frame = made_up()
    found = with_regret(frame[frame["kind"] == "rule"], frame)
    by = {(one["rule"], one["attack"]): one["regret"] for _, one in found.iterrows()}
    assert by["ft_peak", "badnets"] == pytest.approx(0.2)  # 0.0 could be had at 0.94
    assert by["validation", "badnets"] == pytest.approx(0.0)  # nothing as accurate has less
    assert by["planted", "badnets"] == 0.0


def test_transfer_takes_what_was_best_elsewhere() -> None:
    frame = made_up()
    found = transfer(frame)
    assert set(found["chosen"]) == {"super_ft iterations=120"}
    assert dict(zip(found["attack"], found["asr"], strict=True)) == {"badnets": 0.0, "blended": 0.3}


def test_the_oracle_pays_no_more_than_it_may() -> None:
    found = oracle(made_up())
    two = found[found["rule"].str.contains("2 points")]
    assert set(two["chosen"]) == {"super_ft iterations=60"}
    five = found[found["rule"].str.contains("5 points")]
    assert set(five["chosen"]) == {"super_ft iterations=120"}


def test_tables_tell_refusals_spread_and_each_attack() -> None:
    frame = made_up()
    found = with_regret(frame[frame["kind"] == "rule"], frame)
    text = table_of(found, frame)
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()}
    assert lines["planted"][3] == "2"
    assert lines["validation"][9] == "0.100"
    assert lines["ft_peak"][2] == "0 of 2"
    assert "| validation | 0.900 / 1.0 | 0.800 / 1.0 |" in by_attack(found)
    assert spread(found[found["rule"] == "ft_peak"], frame[frame["kind"] == "nothing"]) == ""
    assert "transfer (ASR elsewhere)" in summary(frame.to_dict("records"))
    assert summary([]) == "no rows yet"


def test_planted_draws_no_trigger_of_the_attacks_own_kind() -> None:
    assert set(LIKE.values()) <= set(KINDS)
    kinds = ",".join(kind for kind in KINDS if kind != LIKE["badnets"])
    changes = list(variants("planted", {"kinds": kinds}))
    assert {"kinds": "noise,waves"} in changes
    assert all("patch" not in change.get("kinds", "") for change in changes)


def test_the_tables_of_the_manual_are_those_of_the_ledger() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text()
    title, *tables = summary(read(LEDGER)).split("\n\n")
    assert title.startswith("7 attacks, 1 to 3 seeds each")
    for table in tables:
        assert table in page


def test_points_are_compared_on_the_same_victim() -> None:
    """Victims differ by ten points, rules by one each time."""
    rows = []
    for attack, before in (("badnets", 0.98), ("blended", 0.88), ("wanet", 0.78)):
        for rule, lost in (("published", 0.02), ("short_ramp", 0.03)):
            accuracy = before - lost * (1.5 if attack == "wanet" else 1.0)
            rows.append(row(attack, "rule", "x", 0.0, accuracy, rule=rule, clean_accuracy_before=before))
    found = with_regret(pd.DataFrame(rows), pd.DataFrame(rows))
    assert less_published(found)[found["rule"] == "short_ramp"].tolist() == pytest.approx([1.0, 1.0, 1.5])
    lines = {line.split("|")[1].strip(): line.split("|")[8].strip() for line in table_of(found, found).splitlines()}
    assert lines["published"] == ""
    assert lines["short_ramp"].startswith("+1.2 [+0.4, +1.9]")
