"""What the page says in sentences is true of the rows, and says no more than they carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.record.columns import to_frame
from study.report.lead import attack_lead, study_lead
from study.report.page import _pairs, page
from study.results.fronts import fronts
from study.results.settings import aggregate
from study.results.verdicts import verdicts
from tests.study.rows import failed_row, made_up_study, make_row, point


def _study(rows: Sequence[dict[str, Any]]) -> str:
    frame = to_frame(rows)
    return study_lead(_pairs(aggregate(frame), fronts(frame)), frame)


def _attack(rows: Sequence[dict[str, Any]], target: str = "") -> str:
    frame = to_frame(rows)
    settings = aggregate(frame)
    return attack_lead(settings, verdicts(settings, fronts(frame)), frame, target)


# As in the shipped quickstart: at 1 point lost the search keeps the backdoor, but its pick for the greatest DER has as
# little ASR as the published setting and more accuracy.
QUICKSTART = [point(0, 0.0, 0.944, published=True), point(1, 0.9, 0.976), point(2, 0.0, 0.96)]
GAIN = [point(0, 0.4, 0.90, published=True), point(1, 0.1, 0.98)]


def test_a_gain_in_both_is_said_first() -> None:
    for lead in (_study(GAIN), _attack(GAIN)):
        first = lead.partition("<li>")[2]
        assert first.startswith("<b>In 1 of 1 ")
        assert "both less ASR and more clean accuracy than the published setting" in first.partition("</b>")[0]
        assert "ASR 40.0 % → 10.0 %, clean accuracy 90.0 % → 98.0 %" in lead


def test_searching_does_not_look_harmful_where_a_pick_is_as_good_and_more_accurate() -> None:
    for lead in (_study(QUICKSTART), _attack(QUICKSTART)):
        first = lead.partition("<li>")[2].partition("</li>")[0]
        assert "the same ASR or the same clean accuracy, and a better value of the other" in first
        assert "ASR 0.0 % → 0.0 %, clean accuracy 94.4 % → 96.0 %" in first
        assert "this is the pick with" in first
        assert "That may be chance" in first, "four images of 270"


def test_a_gain_within_the_intervals_is_called_possible_chance() -> None:
    assert "That may be chance" in _study([point(0, 0.11, 0.975, published=True), point(1, 0.1, 0.98)])
    apart = [(0, 0.9, 0.80), (1, 0.1, 0.98)]
    one = [point(number, asr, accuracy, published=not number) for number, asr, accuracy in apart]
    assert "That may be chance" in _study(one), "one attacker tells nothing of others"
    three = [row | {"seed": seed} for row in one for seed in range(3)]
    assert "The difference is larger than chance allows" in _study(three)


def test_a_pick_that_did_not_keep_its_lead_is_named() -> None:
    """It was better on the search half, and is not the setting that the matrix calls tuned."""
    lost = point(2, 0.0, 0.96, asr_report=0.0, clean_accuracy_report=0.93)
    lead = _study([QUICKSTART[0] | {"asr_report": 0.1}, QUICKSTART[1], lost])
    assert "less ASR for less clean accuracy: 1 – super_ft, the pick with least ASR at 5 points lost at most" in lead


def test_losses_are_said_too() -> None:
    rows = [point(0, 0.1, 0.97, published=True, asr_search=0.3), point(1, 0.2, 0.96, asr_search=0.1)]
    rows[1]["clean_accuracy_search"] = 0.98
    lead = _study(rows)
    assert "is better in neither: 1 – super_ft (badnets)" in lead
    assert "both less ASR" not in lead


def test_seeds_and_images_are_told_and_one_seed_is_called_one() -> None:
    lead = _study(GAIN)
    assert "<b>One seed</b> (0)" in lead
    assert "270 clean and 243 triggered test images per model" in lead
    several = _study([{**row, "seed": seed} for row in GAIN for seed in (0, 1, 2)])
    assert "Means over 3 seeds (0, 1, 2)" in several
    assert "One seed" not in several
    defenders = _study([{**row, "defense_seed": own} for row in GAIN for own in (0, 1)])
    assert "each number is a mean over 2 defense seeds on one backdoored model" in defenders


def test_methods_are_never_set_against_each_other() -> None:
    rows = made_up_study(defenses=("super_ft", "fst", "nad"), trials=12)
    whole = _study(rows)
    assert "they do not say that one method is better than another" in whole
    for lead in (whole, _attack([row for row in rows if row["attack"] == "badnets"])):
        for sentence in re.split(r"</li>|</b>|; ", lead):
            if re.search(r"\b(beats?|better|worse|best|wins?|outperforms?|less|more)\b", sentence):
                named = {name for name in ("super_ft", "fst", "nad") if f"{name} " in sentence}
                assert len(named) <= 1 or re.search(r"\d – ", sentence), sentence  # a list of defenses with one verdict


def test_a_study_without_a_search_says_how_often_the_backdoor_went() -> None:
    rows = [make_row("badnets/none/baseline", asr=0.99)]
    rows += [make_row("badnets/ft/baseline", asr=0.05, clean_accuracy=0.98), make_row("badnets/fp/baseline", asr=0.5)]
    rows.append(make_row("badnets/clp/baseline", asr=0.0, clean_accuracy=0.1, collapsed=True))
    lead = _study(rows)
    assert "Nothing was searched" in lead
    assert "In 1 of 3 runs of a defense on a backdoored model, ASR falls to 10% or less, in 1 of them" in lead


def test_a_search_over_all_attacks_is_one_pair() -> None:
    rows = made_up_study(trials=8, per="all")
    frame = to_frame(rows)
    pairs = _pairs(aggregate(frame), fronts(frame))
    assert len(pairs) == 0, "the means over all attacks are a table of their own"
    both = aggregate(frame, across_attacks=True)
    (pair,) = _pairs(both, fronts(frame))
    assert pair[0] == "all"


def test_the_lead_of_an_attack_names_the_target_and_each_defense() -> None:
    rows = [*GAIN, make_row("badnets/ft/baseline", asr=0.8, clean_accuracy=0.97), failed_row("badnets/nad/0000")]
    lead = _attack(rows, target="0 (airplane)")
    assert "go to the attacker's class, 0 (airplane)" in lead
    assert "<b>ft</b> (baseline): ASR 80.0 % at clean accuracy 97.0 %" in lead
    assert "<b>nad</b>: no result, its only setting failed." in lead


def test_many_defenses_are_folded_and_few_are_not() -> None:
    many = [row for name in "abcdefgh" for row in (make_row(f"badnets/{name}/0000", published=True),)]
    assert "<details><summary>Each defense in a sentence" in _attack(many)
    assert "<details" not in _attack(GAIN)


def test_the_page_goes_from_what_was_found_to_what_was_run() -> None:
    frame = to_frame(made_up_study(trials=4))
    sections = ['<section id="badnets"><h2>badnets</h2></section>']
    html = page({"name": "x"}, Path("x"), frame, aggregate(frame), fronts(frame), sections, [])
    order = [html.index(f'<section id="{name}"') for name in ("page-found", "badnets", "page-wrong", "page-run")]
    assert order == sorted(order)
    assert html.index('<div class="wide matrix">') < html.index("One seed")
    assert html.index("1 E is the compute of one training epoch") < html.index('<section id="badnets"')
