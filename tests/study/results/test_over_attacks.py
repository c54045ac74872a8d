"""Attacks taken together: one rule for what a search is told, its progress, the tables and the report."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from study.plan.jobs import Plan
from study.record.columns import to_frame
from study.record.folder import LEDGER_FILE, SPEC_FILE
from study.record.ledger import Ledger
from study.report.terminal import front_summary
from study.report.write import write_report
from study.results.equal_rules import areas, parity
from study.results.fronts import fronts, fronts_by_rule, hypervolume_over_trials
from study.results.intervals import Counted, estimate
from study.results.rows import ALL_ATTACKS
from study.results.scores import accuracy_drop, front_point, scores
from study.results.settings import aggregate
from study.spec.over_attacks import MEAN, WORST_CASE, OverAttacks, parse_rule
from tests.study.rows import made_up_study, make_row
from tests.study.tiny import made_up_row, make_driver, run, tiny_spec
from trainables.job import Job

THREE = ("attacks=[badnets, blended, wanet]", "search.per=all", "seeds=[0, 7]", "search.trials=8", "baselines=[none]")
RULES = ("worst", "cvar:0.5", "cvar:1")


def test_the_worst_share_of_known_values() -> None:
    attacks, values = ["a", "a", "b", "c", "d"], [0.0, 0.2, 0.4, 0.3, 0.2]  # means over seeds: .1 .4 .3 .2
    for rule, high, low in (
        ("worst", 0.4, 0.1),
        ("cvar:0.25", 0.4, 0.1),
        ("cvar:0.1", 0.4, 0.1),
        ("cvar:0.5", 0.35, 0.15),
        ("cvar:0.375", (0.4 + 0.5 * 0.3) / 1.5, (0.1 + 0.5 * 0.2) / 1.5),
        ("cvar:1", 0.25, 0.25),
        ("mean", 0.22, 0.22),
    ):
        one = parse_rule(rule)
        assert one.over(attacks, values, high_is_worst=True) == pytest.approx(high), rule
        assert one.over(attacks, values, high_is_worst=False) == pytest.approx(low), rule
        assert sum(one.shares(range(4), 4)) == pytest.approx(1.0)
        assert parse_rule(str(one)) == one
    assert str(parse_rule("cvar")) == "cvar:0.25"


def test_cvar_lies_between_mean_and_worst_and_falls_with_its_level() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(7).tolist()
        names = [str(n) for n in range(7)]
        at = [OverAttacks("cvar", level).over(names, values, high_is_worst=True) for level in (0.1, 0.3, 0.55, 0.9, 1)]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise([max(values), *at])), at
        assert at[-1] == pytest.approx(np.mean(values))


def _measure(job: Job, plan: Plan) -> dict[str, Any]:
    """The stronger a setting, the better on all attacks but wanet, where the strongest ones fail."""
    row = made_up_row(job, plan)
    rng = np.random.default_rng(int(1e9 * job.settings.get("lr_max1", 0.5)) % 2**32)
    fails = rng.random() < 0.5
    for n, half in enumerate(("", "_search", "_report")):
        luck = 0.01 * n + 0.002 * job.cell.seed
        row[f"asr{half}"] = 0.9 - luck if fails and job.cell.attack == "wanet" else min(1.0, 0.3 * row["asr"] + luck)
        row[f"clean_accuracy{half}"] = 0.9 + 0.05 * rng.random() - luck
    counts = {"badnets": 100, "blended": 200, "wanet": 400}[job.cell.attack]
    row |= {"n_triggered_report": counts, "n_clean_report": counts + 1, "n_triggered": 2 * counts, "n_clean": 999}
    return row | {"asr_before": 1.0, "asr_before_report": 1.0, "train_size": 10}


@pytest.mark.parametrize("rule", RULES)
def test_search_progress_and_tables_keep_to_one_rule(rule: str, tmp_path: Path) -> None:
    spec, storage = tiny_spec(*THREE, f"search.aggregate={rule}"), InMemoryStorage()
    driver = make_driver(spec, tmp_path / "trials.jsonl", storage)
    run(driver, measure=_measure)
    rows, frame = driver.ledger.rows(), driver.ledger.to_frame()
    assert {row["aggregate"] for row in rows} == {rule}, "baselines too: they stand beside the settings"
    (search,) = driver.searches
    told = {t.user_attrs["id"]: tuple(t.values) for t in search.study.get_trials(deepcopy=False)}
    table = aggregate(frame, across_attacks=True)
    for trial, values in told.items():
        one = table[table["trial"] == trial].iloc[0]
        assert (one["asr_search"], one["clean_accuracy_search"]) == pytest.approx(values)
        own = [row for row in rows if row["trial"] == trial]
        by_attack = [np.mean([r["asr_search"] for r in own if r["attack"] == a]) for a in spec.attacks]
        taken = {"worst": 1, "cvar:0.5": 1.5, "cvar:1": 3}[rule]
        weights = np.clip(taken - np.arange(3), 0, 1) / taken
        assert values[0] == pytest.approx(np.sort(by_attack)[::-1] @ weights)
    members = fronts(frame)
    members = members[members["attack"] == ALL_ATTACKS]
    points = driver.fronts[search.search.label].points
    assert members[["asr_search", "clean_accuracy_search"]].to_numpy() == pytest.approx(np.array(points))
    history = hypervolume_over_trials(frame)
    last = history[history["attack"] == ALL_ATTACKS]["search"].iloc[-1]
    assert last == pytest.approx(driver.fronts[search.search.label].hypervolume)
    found = parity(frame)
    found = found[found["attack"] == ALL_ATTACKS].iloc[0]
    assert found["hypervolume_all_low"] <= found["hypervolume_all"] <= found["hypervolume_all_high"]
    assert found["hypervolume_all"] == pytest.approx(
        areas(*(members[[name]].to_numpy().T for name in ("asr_report", "clean_accuracy_report")))[0]
    )


def test_the_worst_case_is_read_with_the_images_of_the_attack_it_is_of(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*THREE, "search.aggregate=worst"), tmp_path / "trials.jsonl")
    run(driver, measure=_measure)
    table = aggregate(driver.ledger.to_frame(), across_attacks=True)
    table = table[table["role"] == "search"]
    assert set(table["n_triggered_report"]) <= {100, 200, 400}, "of one attack, whose seeds share them"
    failing = table[table["asr_report"] > 0.8]
    assert len(failing)
    assert set(failing["n_triggered_report"]) == {400}
    per_attack = aggregate(driver.ledger.to_frame())
    assert set(per_attack["aggregate"]) == {"mean"}


def test_what_a_setting_gives_up_in_the_worst_case_is_taken_against_the_worst_case_before() -> None:
    victims = {"a": 0.98, "b": 0.90}
    rows = []
    for attack, before in victims.items():
        rates = {f"clean_accuracy_before{half}": before for half in ("", "_report")}
        rows.append(make_row("all/ft/0000", attack=attack, asr=0.05, clean_accuracy=before - 0.004, **rates))
    found = fronts(to_frame([{**row, "aggregate": "worst", "models": 2} for row in rows]))
    (member,) = found[found["attack"] == ALL_ATTACKS].to_dict("records")
    assert "drop_0.5" in member["picks"].split(";")


def test_a_setting_that_fails_on_one_attack_leaves_the_front_of_the_worst_case(tmp_path: Path) -> None:
    rows = []
    for trial, asr, accuracy in (("all/ft/0000", (0.0, 0.0, 0.6), 0.95), ("all/ft/0001", (0.3, 0.3, 0.3), 0.90)):
        for attack, value in zip(("a", "b", "c"), asr, strict=True):
            rows.append(make_row(trial, attack=attack, asr=value, clean_accuracy=accuracy, models=3))
    frame = to_frame(rows)
    by_rule = fronts_by_rule(frame)
    assert {str(rule): set(group["trial"]) for rule, group in by_rule.groupby("rule")} == {
        "mean": {"all/ft/0000"},
        "worst": {"all/ft/0000", "all/ft/0001"},
    }
    better = make_row("all/ft/0001", attack="a", asr=0.0, clean_accuracy=0.9)
    assert scores([better, rows[4], rows[5]]) == pytest.approx((0.2, 0.9))
    worst = [{**row, "aggregate": "worst"} for row in rows]
    assert scores(worst[:3]) == (0.6, 0.95)
    assert scores(worst[3:]) == (0.3, 0.9)
    assert front_point([*worst[:2], {**worst[2], "collapsed": True}]) is None
    # What is measured on the easier attacks alone is nothing to learn from.
    assert scores([*rows[:2], {**rows[2], "status": "failed"}]) is None
    assert fronts_by_rule(frame[frame["attack"] == "a"].assign(search="a/ft", models=1)).empty
    mean_front = by_rule[by_rule["rule"] == "mean"].iloc[0]
    assert (mean_front["asr_report_mean"], mean_front["asr_report_worst"]) == pytest.approx((0.2, 0.6))


def test_an_accuracy_floor_is_of_the_attack_that_loses_most() -> None:
    rows = [make_row("all/ft/0000", attack=name, clean_accuracy=value) for name, value in (("a", 0.98), ("b", 0.90))]
    before = rows[0]["clean_accuracy_before"]
    assert accuracy_drop(rows) == pytest.approx(before - 0.94)
    assert accuracy_drop([{**row, "aggregate": "worst"} for row in rows]) == pytest.approx(before - 0.90)


def test_intervals_of_the_worst_case_cover_what_repeated_measurements_give() -> None:
    """Three attacks of true ASR 0.2, 0.2 and 0.3: 1,000 images each, so that 0.3 is the worst in nearly every draw."""
    rng, hits = np.random.default_rng(1), 0
    seeds = np.zeros(3, dtype=np.int64)
    names = np.array(["a", "b", "c"], dtype=object)
    counts = np.full(3, 1000.0)
    for _ in range(60):
        asr = rng.binomial(1000, [0.2, 0.2, 0.3]) / 1000
        counted = Counted(asr[None], asr[None], counts, counts, seeds, names, WORST_CASE)
        worst = estimate(counted, lambda asr, _: asr[:, 0], draws=400)
        hits += worst.low <= 0.3 <= worst.high
        assert worst.value == asr.max()
        least = estimate(counted, lambda _, accuracy: accuracy[:, 0], draws=400)
        assert least.value == asr.min(), "of an accuracy the least is the worst"
    assert hits >= 52
    mean = estimate(Counted(asr[None], asr[None], counts, counts, seeds, names, MEAN), lambda asr, _: asr[:, 0])
    assert mean.value == pytest.approx(asr.mean())


@pytest.mark.parametrize(("rule", "words"), [("mean", "means"), ("cvar:0.5", "worst 50 %")])
def test_report_and_terminal_name_the_rule_and_show_both_fronts(rule: str, words: str, tmp_path: Path) -> None:
    spec = tiny_spec(*THREE, f"search.aggregate={rule}")
    (tmp_path / SPEC_FILE).write_text(spec.to_yaml())
    with Ledger(tmp_path / LEDGER_FILE) as ledger:
        for row in made_up_study(attacks=("badnets", "blended"), trials=8, per="all", seeds=(0, 1)):
            ledger.append(row if rule == "mean" else {**row, "aggregate": rule})
    page = write_report(tmp_path).read_text()
    assert re.search(rf"<h2>all attacks \(.*{words}\)</h2>", page)
    assert "front by" in page
    assert "hypervolume, worst case" in page
    assert (tmp_path / "figures" / "worst_all.png").is_file()
    assert not (tmp_path / "figures" / "worst_badnets.png").exists()
    said = front_summary(tmp_path)
    assert re.search(rf"all attacks \(.*{words}\) on digits", " ".join(said.split()))


def test_by_default_nothing_changes(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*THREE), tmp_path / "trials.jsonl")
    run(driver, measure=_measure)
    assert all("aggregate" not in row for row in driver.ledger.rows())
    (search,) = driver.searches
    for trial in search.study.get_trials(deepcopy=False):
        own = [row["asr_search"] for row in driver.ledger.rows() if row["trial"] == trial.user_attrs["id"]]
        assert trial.values[0] == math.fsum(own) / len(own)
