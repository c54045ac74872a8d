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
from study.report.cells import cost_table
from study.report.figures.registry import FIGURES, AttackTables, Drawing
from study.report.figures.style import canvas
from study.report.lead import attack_lead
from study.report.sections import _front_table, before_after
from study.report.write import write_report
from study.results.equal_rules import search_costs
from study.results.fronts import fronts
from study.results.settings import aggregate
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


def test_sentences_costs_and_the_front_itself_are_read_on_the_report_half() -> None:
    halves = {"asr_search": 0.1, "asr_report": 0.3, "clean_accuracy_search": 0.99, "clean_accuracy_report": 0.95}
    frame = to_frame([point(0, 0.2, 0.97, published=True, **halves)])
    settings, members = aggregate(frame), fronts(frame)
    assert "with its published setting ASR 30.0 % at clean accuracy 95.0 %" in attack_lead(
        settings, verdicts(settings, members), frame
    )
    (cost,) = cost_table(search_costs(frame), settings)
    assert cost["published: ASR"].startswith("30.0 % [")
    assert cost["published: clean accuracy"].startswith("95.0 % [")
    (member,) = _front_table(members, settings)
    assert member["ASR"].startswith("30.0 % [")
    assert member["clean accuracy"].startswith("95.0 % [")
    assert (member["search half: ASR"], member["search half: accuracy"]) == ("10.0 %", "99.0 %")


@pytest.mark.slow
def test_a_thousand_trials_are_reported_in_seconds(tmp_path: Path) -> None:
    attacks = ("badnets", "blended", "lf", "inputaware", "wanet")
    folder = _study(tmp_path, made_up_study(attacks, defenses=("fst", "anp", "super_ft"), trials=67))
    start = time.monotonic()
    write_report(folder)
    assert time.monotonic() - start < 60  # 8 s on two busy cores; the limit only catches a change of order
    assert len(_pictures(folder)) == 15


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
