"""The report shows what the ledger holds, in one file that needs no network."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from study.record.columns import to_frame
from study.record.ended import write_ended
from study.record.ledger import Ledger
from study.report.cells import cost_table, detection_table
from study.report.figures.front_marks import FrontPicture, Marks, front_picture
from study.report.figures.front_page import front_plotly
from study.report.figures.front_print import front_png
from study.report.figures.hypervolume import _published, hypervolume_plotly, hypervolume_png, hypervolume_series
from study.report.figures.importance import importance_plotly, importance_png
from study.report.figures.registry import FIGURES, AttackTables, Drawing
from study.report.figures.style import canvas
from study.report.lead import attack_lead
from study.report.sections import _front_table, before_after
from study.report.write import write_report
from study.results.equal_rules import search_costs
from study.results.fronts import fronts, hypervolume_over_trials
from study.results.importance import importance
from study.results.settings import aggregate, candidates
from study.results.verdicts import verdicts
from tests.study.report.conftest import few_resamples
from tests.study.rows import failed_row, made_up_study, make_row, point
from trainables.evaluation.metrics import wilson
from trainables.registry import SettingError

SPEC = {
    "name": "made-up",
    "dataset": "digits",
    "attacks": ["badnets", "blended"],
    "defenses": ["super_ft"],
    "baselines": ["none", "ft", "scratch"],
    "search": {"trials": 12, "per": "attack"},
}


def _study(folder: Path, rows: list[dict[str, Any]], spec: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(SPEC if spec is None else spec))
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _page(path: Path) -> str:
    """The page without Plotly's own source."""
    return re.sub(r"<script>/\*\*\s*\* plotly\.js.*?</script>", "", path.read_text(), count=1, flags=re.S)


def _pictures(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "figures").iterdir())


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of one attack that is reported, without a trigger's picture. Shared: do not modify."""
    folder = _study(tmp_path_factory.mktemp("reported"), made_up_study(attacks=("badnets",), trials=6))
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_resamples(monkeypatch)
        write_report(folder)
    return folder


@pytest.fixture
def again(reported: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(reported, tmp_path / "again")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_report_leaves_page_tables_and_pictures(tmp_path: Path) -> None:
    rows = made_up_study(trials=12)
    folder = _study(tmp_path, rows)
    path = write_report(folder)
    assert path == folder / "report.html"
    kinds = ("front", "hypervolume", "importance")
    of_attacks = [f"{kind}_{attack}" for kind in kinds for attack in ("badnets", "blended")]
    assert _pictures(folder) == sorted([*of_attacks, "plane_all"])
    for name in _pictures(folder):
        assert min(Image.open(folder / "figures" / f"{name}.png").size) > 300
    assert len(pd.read_csv(folder / "trials.csv")) == len(rows)
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "front.csv")[["trial", "asr_report", "rank"]],
        fronts(to_frame(rows))[["trial", "asr_report", "rank"]],
        check_dtype=False,
    )


def test_the_page_is_one_file_that_asks_the_network_for_nothing(again: Path) -> None:
    Image.new("RGB", (8, 8)).save(again / "figures" / "trigger_badnets.png")
    path = write_report(again)
    text = path.read_text()
    parser = _Tags()
    parser.feed(text)
    sources = [a for _, a in parser.tags if {"src", "srcset", "data", "poster"} & set(a)]
    assert all(set(a) == {"alt", "src"} and str(a["src"]).startswith("data:image/png;base64,") for a in sources)
    assert len(sources) == 1
    assert [tag for tag, _ in parser.tags if tag in ("link", "iframe", "object", "embed", "base")] == []
    assert all(str(a.get("href", "#")).startswith("#") for _, a in parser.tags)
    assert "http" not in re.sub(r'"plotlyServerURL": ?""', "", _page(path))
    assert text.count("* plotly.js v") == 1
    assert '"showSendToCloud": false' in text, "Plotly's button that uploads the chart"


def test_a_trigger_picture_that_is_there_is_shown(reported: Path, again: Path) -> None:
    assert "<img" not in _page(reported / "report.html")
    Image.new("RGB", (8, 8)).save(again / "figures" / "trigger_badnets.png")
    page = _page(write_report(again))
    assert page.count("<img") == 1
    assert "The trigger of badnets" in page


def test_reporting_only_reads_the_ledger_even_when_its_last_line_is_half_written(tmp_path: Path) -> None:
    folder = _study(tmp_path, made_up_study(attacks=("badnets",), trials=2))
    ledger = folder / "trials.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-30])
    before = ledger.read_bytes()
    path = write_report(folder)
    assert ledger.read_bytes() == before
    assert not (folder / "trials.jsonl.damaged").exists()
    assert "is cut off" in _page(path)
    Ledger(ledger)
    assert "1 damaged or repeated line kept aside" in _page(write_report(folder))


def test_names_from_a_ledger_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    rows = made_up_study(attacks=("badnets",), trials=5)
    for row in rows:
        row |= {
            name: row[name] + evil for name in ("defense", "attack", "dataset", "model", "study", "device", "versions")
        }
        row["trial"] = row["trial"].replace("super_ft", evil)
        row["param.<b>"] = evil
    rows.append(failed_row("badnets/ft/baseline", error=evil))
    path = write_report(_study(tmp_path, rows, {"name": evil}))
    parser = _Tags()
    parser.feed(path.read_text())
    assert not {"img", "b>"} & {tag for tag, _ in parser.tags}
    assert not any("onerror" in attributes for _, attributes in parser.tags)


@pytest.mark.parametrize(
    ("rows", "pictures", "sentence"),
    [
        ([], [], "No trial has finished yet"),
        (
            [point(0, 0.1, 0.95, **{"param.lr": 0.1})],
            ["front_badnets", "hypervolume_badnets"],
            "at least 4 finished settings",
        ),
        ([make_row("badnets/ft/baseline")], ["front_badnets"], "1 trial finished (1 ok)"),
        (
            [make_row("badnets/ft/baseline", asr=0.0, clean_accuracy=0.1, collapsed=True)],
            ["front_badnets"],
            "1 trial finished (1 ok; 1 left a collapsed model)",
        ),
        (
            [make_row("badnets/ac/baseline", status="abstained", flags=["features_reused"])],
            ["front_badnets"],
            "the defense found nothing to repair",
        ),
        ([failed_row("badnets/ft/baseline", error="RuntimeError: boom")], [], "RuntimeError: boom"),
        ([point(0, 0.1, 0.9, status="backdoor_not_implanted", asr_before=0.2)], [], "no backdoor took hold"),
        (
            [point(0, 1.0, 0.0, status="diverged", error="loss is NaN")],
            ["front_badnets", "hypervolume_badnets"],
            "loss is NaN",
        ),
    ],
    ids=["empty", "single trial", "one baseline", "collapsed", "abstained", "failure", "no backdoor", "diverged"],
)
def test_small_and_unlucky_studies_have_a_report(
    tmp_path: Path, rows: list[dict[str, Any]], pictures: list[str], sentence: str
) -> None:
    folder = _study(tmp_path, rows)
    assert sentence in _page(write_report(folder))
    assert _pictures(folder) == pictures


def test_a_study_that_still_runs_says_how_far_it_is(tmp_path: Path) -> None:
    spec = SPEC | {"attacks": ["badnets"]}
    rows = made_up_study(attacks=("badnets",), trials=12)
    assert "badnets / super_ft: 5 of 12" in _page(write_report(_study(tmp_path, rows[:-7], spec)))
    finished = _page(write_report(_study(tmp_path, rows, spec)))
    assert "not finished" not in finished


def test_a_search_that_spent_its_budget_is_finished(tmp_path: Path) -> None:
    rows = [point(i, 0.1, 0.9) for i in range(3)]  # 50.91 E each
    spec = SPEC | {"attacks": ["badnets"], "baselines": [], "search": {"trials": 12, "budget_epochs": 160}}
    folder = _study(tmp_path, rows, spec)
    assert "not finished" not in _page(write_report(folder)), "a fourth setting of their mean cost would overspend"
    dear = _study(tmp_path / "more", rows, spec | {"search": {"trials": 12, "budget_epochs": 260}})
    assert "badnets / super_ft: 3 of 5 settings" in _page(write_report(dear))
    write_ended(dear, {"badnets/super_ft": 3})
    assert "not finished" not in _page(write_report(dear)), "no proposal fitted into what was left"


def test_an_attack_that_was_not_implanted_has_its_line_and_no_empty_picture(tmp_path: Path) -> None:
    rows = made_up_study(attacks=("badnets",), trials=4)
    absent = {"attack": "blended", "asr_before": 0.24, "status": "backdoor_not_implanted"}
    rows += [make_row("blended/none/baseline", **absent), make_row("blended/super_ft/0000", **absent)]
    rows.append(make_row("blended/nc/baseline", **absent | {"status": "abstained", "detection_tpr": 0.5}))
    folder = _study(tmp_path, rows)
    section = _page(write_report(folder)).partition('<section id="blended">')[2].partition("</section>")[0]
    assert "The backdoor was not implanted" in section
    assert "ASR was 24.0 %" in section
    assert "which condition for a backdoor failed says" in section
    assert "3 trials count in no front" in section
    assert "<table" not in section
    assert "plotly" not in section
    assert _pictures(folder) == ["front_badnets", "hypervolume_badnets", "importance_badnets"]


def test_searches_stand_beside_each_other_with_intervals_and_costs(tmp_path: Path) -> None:
    rows = [make_row(f"badnets/a/{i:04d}", asr=0.4 - 0.1 * i, wall_seconds=10.0) for i in range(3)]
    rows += [make_row("badnets/b/0000", asr=0.2, published=True), failed_row("badnets/b/0001", wall_seconds=0.5)]
    page = _page(write_report(_study(tmp_path, rows)))
    table = page.partition("<summary>The searches under equal rules")[2].partition("</table>")[0]
    assert "first 2 settings: hypervolume" in table
    assert re.search(r"<td>a</td><td>0\.665 <span class=\"ci\">\[0\.\d{3}, 0\.\d{3}\]</span>", table)  # .7 x .95
    costs = page.partition("<summary>What tuning took")[2].partition("</table>")[0]
    (row,) = re.findall(r"<tr><td>a</td>.*?</tr>", costs)
    assert re.sub(r"<.*?>", " ", row).split() == ["a", "3", "3", "152.7", "30"]
    assert re.search(r"<td>b</td><td>20\.0 % <span", costs), "the published point"


def test_defenses_without_a_result_are_named_in_the_summary(tmp_path: Path) -> None:
    rows = [point(0, 0.1, 0.9), *(failed_row(f"badnets/nad/{i:04d}") for i in range(2))]
    assert "<b>nad</b>: no result, all of its 2 settings failed." in _page(write_report(_study(tmp_path, rows)))


def test_seeds_are_averaged_and_several_defenses_share_a_picture(tmp_path: Path) -> None:
    rows = made_up_study(attacks=("badnets",), defenses=("fst", "super_ft"), trials=2, seeds=(0, 1))
    page = _page(write_report(_study(tmp_path, rows)))
    assert "mean of 2 runs" in page
    assert all(f"{defense}: front (report half)" in page for defense in ("fst", "super_ft"))


def test_a_search_over_all_attacks_has_a_section_of_means(tmp_path: Path) -> None:
    folder = _study(tmp_path, made_up_study(trials=2, per="all"))
    assert "all attacks (means)" in _page(write_report(folder))
    assert "front_all" in _pictures(folder)


def test_pictures_that_the_rows_no_longer_support_go_and_foreign_ones_stay(again: Path) -> None:
    assert "importance_badnets" in _pictures(again)
    (again / "figures" / "trigger_badnets.png").write_bytes(b"someone else's")
    write_report(_study(again, [make_row("badnets/ft/baseline")]))
    assert _pictures(again) == ["front_badnets", "trigger_badnets"]


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither study\.yaml nor trials\.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["a: [1", "- a list"])
def test_a_broken_spec_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"study\.yaml"):
        write_report(tmp_path)


def test_the_same_ledger_gives_the_same_tables(reported: Path, tmp_path: Path) -> None:
    folder = _study(tmp_path, made_up_study(attacks=("badnets",), trials=6))
    write_report(folder)
    for name in ("trials.csv", "front.csv", "figures/front_badnets.png"):
        assert (folder / name).read_bytes() == (reported / name).read_bytes()


def test_before_and_after_gives_report_half_values_with_wilson_intervals() -> None:
    rows = [
        make_row(
            "badnets/ft/baseline", asr=0.9, asr_report=12 / 243, clean_accuracy_report=0.95, robust_accuracy_report=0.9
        ),
        point(0, 0.1, 0.95, published=True),
        failed_row("badnets/scratch/baseline"),
    ]
    for row in rows:  # of the full test set: no business of this table
        row["robust_accuracy_before"] = 0.5
    frame = to_frame(rows)
    table = {row["model"]: row for row in before_after(aggregate(frame), fronts(frame))}
    low, high = wilson(12, 243)
    assert table["ft (baseline)"]["ASR"] == f"4.9 % [{100 * low:.1f}, {100 * high:.1f}]"
    # DER (.99 - .0494 - .035 + 1)/2 and RIR (.9 - .01 - .035 + 1)/2, from ASR .99, RA .01, CA .985 before.
    assert table["ft (baseline)"]["DER"] == "0.953"
    assert table["ft (baseline)"]["RIR"] == "0.927"
    # (64,000 + 2 * 64,000) / (3 * 1,257)
    assert table["ft (baseline)"]["E"] == "50.91"
    assert table["scratch (baseline)"] == {"model": "scratch (baseline)", "setting": "", "status": "failed"}
    name = "super_ft, published setting; found: knee, least ASR at ≤ 5 points lost, max DER"
    assert table[name]["status"] == "ok"
    assert table["before repair"]["ASR"].startswith("99.0 % [")
    assert table["before repair"]["RA"].startswith("1.0 % [")


def test_a_setting_that_was_dropped_in_a_race_speaks_for_no_model_but_its_own() -> None:
    """It ended first, on the two easy victims of six."""
    victims = [0.99, 0.99, 0.9, 0.9, 0.9, 0.9]
    before = [{f"asr_before{half}": asr for half in ("", "_report")} | {"seed": i} for i, asr in enumerate(victims)]
    rows = [point(1, 0.3, 0.98, **before[i], dropped_by="badnets/super_ft/0000") for i in (0, 1)]
    rows += [point(0, 0.1, 0.9, **one) for one in before]
    frame = to_frame(rows)
    settings, members = aggregate(frame), fronts(frame)
    (first, *_) = before_after(settings, members)
    assert first["ASR"].startswith("93.0 % [")
    assert "93.0 % of triggered images" in attack_lead(settings, verdicts(settings, members))
    drawn = _by_kind(front_picture("badnets", settings, members))
    assert drawn["baseline"].y == pytest.approx((0.93,))
    assert 0.3 not in [y for marks in drawn.values() for y in marks.y]


def test_sentences_costs_and_the_front_itself_are_read_on_the_report_half() -> None:
    halves = {"asr_search": 0.1, "asr_report": 0.3, "clean_accuracy_search": 0.99, "clean_accuracy_report": 0.95}
    frame = to_frame([point(0, 0.2, 0.97, published=True, **halves)])
    settings, members = aggregate(frame), fronts(frame)
    assert "with its published setting ASR 30.0 % at clean accuracy 95.0 %" in attack_lead(
        settings, verdicts(settings, members)
    )
    (cost,) = cost_table(search_costs(frame), settings)
    assert cost["published: ASR"].startswith("30.0 % [")
    assert cost["published: clean accuracy"].startswith("95.0 % [")
    (member,) = _front_table(members, settings)
    assert member["ASR"].startswith("30.0 % [")
    assert member["clean accuracy"].startswith("95.0 % [")
    assert (member["search half: ASR"], member["search half: accuracy"]) == ("10.0 %", "99.0 %")


def _detections(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    frame = to_frame(rows)
    table = detection_table(frame, aggregate(frame), fronts(frame))
    return {row["model"]: {key: text for key, text in row.items() if text and key != "model"} for row in table}


def test_detectors_are_judged_where_they_judged_samples() -> None:
    found = {"detection_removed": 0.15, "detection_tpr": 0.9, "detection_fpr": 0.05, "detection_precision": 0.6}
    found |= {"detection_auroc": 0.987, "detection_auprc": None, "detection_auroc_target": 0.5}
    found |= {"detection_removed_target": 0.15, "detection_ceiling_share": 1.0, "detection_ceiling_classes": 0.28}
    rows = [make_row("badnets/spectral/baseline", **found), make_row("badnets/ft/baseline")]
    assert _detections(rows) == {
        "spectral (baseline)": {
            "removed": "15.0 %",
            "TPR": "90.0 %",
            "FPR": "5.0 %",
            "precision": "60.0 %",
            "most TPR at this share": "100.0 %",
            "most TPR at these shares of the classes": "28.0 %",
            "removed of the target class": "15.0 %",
            "AUROC within the target class": "0.500",
            "AUROC over all classes": "0.987",
        }
    }


def test_flagged_classes_come_with_their_anomaly_indices() -> None:
    indices = {"note.anomaly_indices": [0.5, 3.24, 1.0]}
    flags = {"flagged_classes": [1], "target_flagged": False, "false_classes": 1}
    none = {"flagged_classes": [], "target_flagged": False, "false_classes": 0}
    rows = [
        make_row("badnets/nc/baseline", **indices, **flags),
        point(0, 0.1, 0.9, published=True, **none, **{"note.anomaly_indices": [0.5, 1.5, 1.0]}),
        point(1, 0.9, 0.5, flagged_classes=[0, 2], target_flagged=True, false_classes=1, **indices),
    ]
    table = _detections(rows)
    assert table["nc (baseline)"] == {
        "flagged classes": "1 (index 3.2)",
        "target found": "no",
        "false classes": "1",
    }
    assert table["super_ft, published setting; found: knee, max DER"]["flagged classes"] == "none (largest index 1.5)"
    assert table["super_ft, all 2 trials: least to most"] == {
        "flagged classes": "1 of 2 runs flag",
        "target found": "1 of 2",
        "false classes": "0 to 1",
    }


def test_detection_over_seeds_is_a_mean() -> None:
    rows = [
        make_row("badnets/ac/baseline", seed=seed, detection_tpr=tpr, flagged_classes=flags, target_flagged=bool(flags))
        for seed, (tpr, flags) in enumerate([(1.0, [0]), (0.5, [])])
    ]
    assert _detections(rows) == {
        "ac (baseline)": {"TPR": "75.0 %", "flagged classes": "1 of 2 runs flag", "target found": "1 of 2"}
    }


# -- figures: tested by their data -------------------------------------------------------------------------------------


def _picture(rows: list[dict[str, Any]]) -> FrontPicture:
    frame = to_frame(rows)
    return front_picture("badnets", aggregate(frame), fronts(frame))


def _by_kind(picture: FrontPicture) -> dict[str, Marks]:
    return {marks.kind: marks for marks in picture.marks}


def test_the_front_is_drawn_at_report_coordinates_and_the_dashed_line_at_search_coordinates() -> None:
    rows = [
        point(0, 0.2, 0.95, asr_report=0.25, clean_accuracy_report=0.94),
        point(1, 0.1, 0.90, asr_report=0.12, clean_accuracy_report=0.91),
        point(2, 0.5, 0.85),
    ]
    marks = _by_kind(_picture(rows))
    assert list(zip(marks["front"].x, marks["front"].y, strict=True)) == [(0.91, 0.12), (0.94, 0.25)]
    assert list(zip(marks["front_search"].x, marks["front_search"].y, strict=True)) == [(0.90, 0.1), (0.95, 0.2)]
    assert len(marks["trials"].x) == 3


def test_a_chosen_setting_that_others_beat_on_the_report_half_is_off_the_line() -> None:
    rows = [point(0, 0.2, 0.95, asr_report=0.0), point(1, 0.1, 0.90)]
    marks = _by_kind(_picture(rows))
    assert (marks["front"].x, marks["front"].y) == ((0.95,), (0.0,))
    assert (marks["front_behind"].x, marks["front_behind"].y) == ((0.90,), (0.1,))


def test_published_point_baselines_and_victim_have_marks_of_their_own() -> None:
    rows = [point(0, 0.3, 0.9, published=True), point(1, 0.1, 0.95), point(2, 1.0, 0.0, status="diverged")]
    rows += [make_row(f"badnets/{name}/baseline") for name in ("ft", "scratch", "nad", "abl")]
    picture = _picture(rows)
    shapes = {m.name: m.shape for m in picture.marks if m.kind in ("baseline", "published")}
    assert set(shapes) == {"super_ft: published setting", "before repair"} | {
        f"{name} (baseline)" for name in ("ft", "scratch", "nad", "abl")
    }
    assert len(set(shapes.values())) == len(shapes)
    assert _by_kind(picture)["published"].x == (0.9,)
    assert _by_kind(picture)["diverged"].y == (1.0,)
    with_none = _picture([*rows, make_row("badnets/none/baseline")])
    names = [m.name for m in with_none.marks]
    assert "none (no repair)" in names
    assert "before repair" not in names


def test_plotly_and_matplotlib_draw_the_same_points() -> None:
    picture = _picture(made_up_study(attacks=("badnets",), trials=15))
    page, print_ = front_plotly(picture), front_png(picture)
    assert [(tuple(t.x), tuple(t.y), t.name) for t in page.data] == [(m.x, m.y, m.name) for m in picture.marks]
    for axis in print_.axes:
        lines = {line.get_label(): line for line in axis.get_lines() if not str(line.get_label()).startswith("_")}
        drawn = {name: (tuple(line.get_xdata()), tuple(line.get_ydata())) for name, line in lines.items()}
        assert drawn == {m.name: (m.x, m.y) for m in picture.marks}


def test_hover_tells_settings_status_and_cost() -> None:
    rows = [point(0, 0.1, 0.95, published=True, **{"param.lr_max1": 0.1, "param.iterations": 500})]
    (text,) = _by_kind(_picture(rows))["trials"].hover
    for words in ("badnets/super_ft/0000", "status ok", "lr_max1 = 0.1", "iterations = 500", "50.91 E", "ASR 10.0 %"):
        assert words in text


def test_every_outcome_has_a_mark_of_its_own_and_a_collapsed_model_is_off_the_front() -> None:
    rows = [point(0, 0.2, 0.9), point(1, 1.0, 0.0, status="diverged"), point(2, 0.99, 0.98, status="abstained")]
    rows += [point(3, 0.0, 0.1, collapsed=True), failed_row("badnets/super_ft/0004")]
    picture = _picture(rows)
    marks = _by_kind(picture)
    places = {kind: (marks[kind].x, marks[kind].y) for kind in ("trials", "diverged", "abstained", "collapsed")}
    assert places == {
        "trials": ((0.9,), (0.2,)),
        "diverged": ((0.0,), (1.0,)),
        "abstained": ((0.98,), (0.99,)),
        "collapsed": ((0.1,), (0.0,)),
    }
    assert len({marks[kind].shape for kind in places}) == 4
    assert marks["front"].x == (0.9, 0.98)
    assert picture.outside == 2


def test_many_searches_have_one_legend_entry_each_and_colour_and_shape_never_repeat() -> None:
    names = [f"d{i:02d}" for i in range(14)]
    rows = [make_row(f"badnets/{name}/{i:04d}", asr=0.1 + 0.3 * i) for name in names for i in range(2)]
    rows.append(make_row("badnets/d00/0002", asr=1.0, clean_accuracy=0.0, status="diverged"))
    picture = _picture(rows)
    assert picture.crowded
    listed = [m for m in picture.marks if m.listed]
    assert [m.name for m in listed[:2]] == ["d00 (3 settings, 1 diverged)", "d01 (2 settings)"]
    assert len(listed) == 14 + 1  # and before repair
    styles = {(m.owner, m.colour, m.shape) for m in picture.marks if m.kind == "front"}
    assert len({style[1:] for style in styles}) == len(styles) == 14
    drawn = front_plotly(picture)
    assert [t.name for t in drawn.data if t.showlegend] == [m.name for m in listed]
    assert all(t.legendgroup == m.owner for t, m in zip(drawn.data, picture.marks, strict=True) if m.owner)
    (legend,) = front_png(picture).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[: len(listed)] == [m.name for m in listed]
    assert "front (report half)" in texts[len(listed) :]


def test_controls_are_marked_and_are_no_part_of_what_was_before_repair() -> None:
    rows = [point(0, 0.2, 0.9), make_row("badnets/ft/control", role="control", asr_before_report=0.0)]
    picture = _picture(rows)
    assert _by_kind(picture)["control"].name == "ft (clean control)"
    (before,) = [m for m in picture.marks if m.name == "before repair"]
    assert before.y == (0.99,)


def test_panels_of_importance_stand_in_rows() -> None:
    frame = to_frame(made_up_study(attacks=("badnets",), defenses=tuple("abcde"), trials=6))
    found = {str(name): importance(one) for name, one in candidates(frame).groupby("defense")}
    panels = [axis for axis in importance_png("x", found).axes if axis.get_title()]
    assert len(panels) == 5
    assert len({round(axis.get_position().y0, 2) for axis in panels}) == 2
    assert len(importance_plotly(found).data) == 15


def test_one_ruined_trial_does_not_squeeze_the_overview() -> None:
    rows = [point(i, 0.08 * i, 0.95 + 0.001 * i) for i in range(12)] + [point(20, 1.0, 0.0, status="diverged")]
    picture = _picture(rows)
    assert picture.overview[0][0] > 0.9
    assert picture.outside == 1
    (low, high), (bottom, top) = picture.corner
    assert 0.9 < low < high <= 1.01
    assert bottom < 0 < top < 0.25


def test_an_empty_corner_says_so() -> None:
    texts = [
        [text.get_text() for text in front_png(_picture([point(0, asr, 0.98)])).axes[1].texts] for asr in (0.5, 0.1)
    ]
    assert texts == [["no setting is in this corner"], []]


def test_hypervolume_lines_carry_both_halves_and_the_published_point() -> None:
    history = hypervolume_over_trials(to_frame([point(0, 0.5, 0.9, asr_report=0.6), point(1, 0.2, 0.9)]))
    lines = hypervolume_series(history, {"super_ft": 0.3})
    assert [line["y"] for line in lines] == [
        pytest.approx([0.4 * 0.9, 0.8 * 0.9]),
        pytest.approx([0.5 * 0.9, 0.8 * 0.9]),
        [0.3, 0.3],
    ]
    assert [line["style"] for line in lines] == ["solid", "dashed", "dotted"]
    drawn = [list(line.get_ydata()) for line in hypervolume_png("x", lines).axes[0].get_lines()]
    assert drawn == [line["y"] for line in lines]
    assert [list(trace.y) for trace in hypervolume_plotly(lines).data] == drawn


def test_the_last_value_of_a_search_is_marked_and_the_published_line_is_not() -> None:
    history = hypervolume_over_trials(to_frame([point(0, 0.5, 0.9), point(1, 0.2, 0.9)]))
    lines = hypervolume_series(history, {"super_ft": 0.3})
    drawn = hypervolume_png("x", lines).axes[0].get_lines()
    assert [(line.get_marker(), line.get_markevery()) for line in drawn[:2]] == [("o", [-1])] * 2
    assert drawn[2].get_marker() == "None"
    traces = hypervolume_plotly(lines).data
    assert [trace.marker.size for trace in traces] == [(0, 7), (0, 7), None]


def test_a_published_setting_that_collapsed_has_no_hypervolume() -> None:
    searched = candidates(to_frame([point(0, 0.0, 0.1, published=True, collapsed=True)]))
    assert _published(searched) == {"super_ft": 0.0}


@pytest.mark.slow
def test_a_thousand_trials_are_reported_in_seconds(tmp_path: Path) -> None:
    attacks = ("badnets", "blended", "lf", "inputaware", "wanet")
    folder = _study(tmp_path, made_up_study(attacks, defenses=("fst", "anp", "super_ft"), trials=67))
    start = time.monotonic()
    write_report(folder)
    assert time.monotonic() - start < 60  # 8 s on two busy cores; the limit only catches a change of order
    assert len(_pictures(folder)) == 15


def test_many_baselines_are_named_beside_their_marks_and_look_different_each() -> None:
    names = [f"d{i:02d}" for i in range(18)]
    rows = [make_row(f"badnets/{name}/baseline", asr=0.05 * i) for i, name in enumerate(names)]
    picture = _picture(rows)
    marks = [m for m in picture.marks if m.kind == "baseline" and m.name != "before repair"]
    assert [m.label for m in marks] == names
    assert len({(m.colour, m.shape) for m in marks}) == 18
    written = [text.get_text() for text in front_png(picture).axes[0].texts]
    assert written == names
    assert [trace.text for trace in front_plotly(picture).data if trace.text] == names


def test_few_baselines_need_no_names_beside_their_marks() -> None:
    rows = [make_row(f"badnets/{name}/baseline") for name in ("none", "ft", "scratch")]
    assert not any(m.label for m in _picture(rows).marks)


def test_beside_searches_baselines_without_a_colour_of_their_own_are_grey() -> None:
    rows = [point(0, 0.2, 0.9), make_row("badnets/nad/baseline"), make_row("badnets/abl/baseline")]
    grey = {m.colour for m in _picture(rows).marks if m.name in ("nad (baseline)", "abl (baseline)")}
    assert grey == {"#777777"}


# -- figures of somebody else's ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_as_before")
def test_a_registered_figure_stands_in_the_report_and_beside_the_others(tmp_path: Path) -> None:
    def count(title: str, tables: AttackTables) -> Drawing:
        figure = canvas(3, 2)
        figure.subplots().plot([0, len(tables.rows)])
        return Drawing(figure, title="How many rows", note=f"{len(tables.rows)} rows of <{title}>")

    FIGURES.register("counted")(count)
    FIGURES.register("empty")(lambda title, tables: None)
    folder = _study(tmp_path, made_up_study(attacks=("badnets",), trials=2))
    page = _page(write_report(folder))
    assert "How many rows" in page
    assert "rows of &lt;badnets&gt;" in page
    png = (folder / "figures" / "counted_badnets.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert base64.b64encode(png).decode() in page
    assert not list((folder / "figures").glob("empty_*"))


@pytest.mark.usefixtures("_as_before")
def test_a_figure_that_raises_is_named_in_one_line_and_the_report_is_written(tmp_path: Path) -> None:
    def breaks(title: str, tables: AttackTables) -> Drawing:
        raise KeyError("not a\ncolumn")

    FIGURES.register("breaks")(breaks)
    FIGURES.register("wrong")(lambda title, tables: "a picture")  # type: ignore[arg-type,return-value]
    folder = _study(tmp_path, made_up_study(attacks=("badnets",), trials=2))
    wrong = _page(write_report(folder)).partition("What went wrong</h2>")[2]
    assert re.search(r"<p>The figure breaks of badnets could not be drawn: KeyError: .*column", wrong)
    assert "<p>The figure wrong of badnets could not be drawn: must give a Drawing or nothing, got str" in wrong
    assert (folder / "figures" / "front_badnets.png").exists()


def test_a_figure_has_a_name_that_makes_a_file_of_its_own() -> None:
    for name in ("trigger", "My figure", "../up"):
        with pytest.raises(SettingError, match="its name must be"):
            FIGURES.register(name)(lambda title, tables: None)
