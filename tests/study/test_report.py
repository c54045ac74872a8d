"""The report shows what the ledger holds, in one file that needs no network."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image
from rows import failed_row, made_up_study, make_row, point

from study import figures, front
from study.ledger import Ledger, to_frame
from study.report import before_after, write_report
from trainables.metrics import wilson

SPEC = {"name": "made-up", "dataset": "digits", "search": {"trials": 12, "per": "attack"}}


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
    assert _pictures(folder) == sorted(f"{kind}_{attack}" for kind in kinds for attack in ("badnets", "blended"))
    for name in _pictures(folder):
        assert min(Image.open(folder / "figures" / f"{name}.png").size) > 300
    assert len(pd.read_csv(folder / "trials.csv")) == len(rows)
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "front.csv")[["trial", "asr_report", "rank"]],
        front.fronts(to_frame(rows))[["trial", "asr_report", "rank"]],
        check_dtype=False,
    )


def test_the_page_is_one_file_that_asks_the_network_for_nothing(tmp_path: Path) -> None:
    path = write_report(_study(tmp_path, made_up_study(trials=6)))
    text = path.read_text()
    parser = _Tags()
    parser.feed(text)
    assert [tag for tag, attributes in parser.tags if {"src", "srcset", "data", "poster"} & set(attributes)] == []
    assert [tag for tag, _ in parser.tags if tag in ("link", "iframe", "img", "object", "embed", "base")] == []
    assert all(str(a.get("href", "#")).startswith("#") for _, a in parser.tags)
    assert "http" not in re.sub(r'"plotlyServerURL": ?""', "", _page(path))
    assert text.count("* plotly.js v") == 1
    assert '"showSendToCloud": false' in text, "Plotly's button that uploads the chart"


def test_reporting_only_reads_the_ledger_even_when_its_last_line_is_half_written(tmp_path: Path) -> None:
    folder = _study(tmp_path, made_up_study(trials=2))
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
            "at least 4 finished trials",
        ),
        ([make_row("badnets/ft/baseline")], ["front_badnets"], "1 trial finished (1 ok)"),
        ([failed_row("badnets/ft/baseline", error="RuntimeError: boom")], [], "RuntimeError: boom"),
        ([point(0, 0.1, 0.9, status="backdoor_not_implanted", asr_before=0.2)], [], "no backdoor took hold"),
        (
            [point(0, 1.0, 0.0, status="diverged", error="loss is NaN")],
            ["front_badnets", "hypervolume_badnets"],
            "loss is NaN",
        ),
    ],
    ids=["empty", "single trial", "one baseline", "failure", "no backdoor", "diverged"],
)
def test_small_and_unlucky_studies_have_a_report(
    tmp_path: Path, rows: list[dict[str, Any]], pictures: list[str], sentence: str
) -> None:
    folder = _study(tmp_path, rows)
    assert sentence in _page(write_report(folder))
    assert _pictures(folder) == pictures


def test_a_study_that_still_runs_says_how_far_it_is(tmp_path: Path) -> None:
    rows = made_up_study(trials=5)
    assert "badnets / super_ft: 5 of 12" in _page(write_report(_study(tmp_path, rows)))
    finished = _page(write_report(_study(tmp_path, made_up_study(trials=12))))
    assert "not finished" not in finished


def test_seeds_are_averaged_and_several_defenses_share_a_picture(tmp_path: Path) -> None:
    rows = made_up_study(attacks=("badnets",), defenses=("fst", "super_ft"), trials=5, seeds=(0, 1))
    page = _page(write_report(_study(tmp_path, rows)))
    assert "mean of 2 runs" in page
    assert all(f"{defense}: front (report half)" in page for defense in ("fst", "super_ft"))


def test_a_search_over_all_attacks_has_a_section_of_means(tmp_path: Path) -> None:
    folder = _study(tmp_path, made_up_study(trials=5, per="all"))
    assert "all attacks (means)" in _page(write_report(folder))
    assert "front_all" in _pictures(folder)


def test_pictures_that_the_rows_no_longer_support_go_and_foreign_ones_stay(tmp_path: Path) -> None:
    folder = _study(tmp_path, made_up_study(trials=4))
    write_report(folder)
    (folder / "figures" / "triggers_badnets.png").write_bytes(b"someone else's")
    write_report(_study(folder, [make_row("badnets/ft/baseline")]))
    assert _pictures(folder) == ["front_badnets", "triggers_badnets"]


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither study\.yaml nor trials\.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["a: [1", "- a list"])
def test_a_broken_spec_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"study\.yaml"):
        write_report(tmp_path)


def test_the_same_ledger_gives_the_same_tables(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = _study(tmp_path / name, made_up_study(trials=6))
        write_report(folder)
        contents.append([(folder / f).read_bytes() for f in ("trials.csv", "front.csv", "figures/front_badnets.png")])
    assert contents[0] == contents[1]


def test_before_and_after_gives_report_half_values_with_wilson_intervals() -> None:
    rows = [
        make_row(
            "badnets/ft/baseline", asr=0.9, asr_report=12 / 243, clean_accuracy_report=0.95, robust_accuracy_report=0.9
        ),
        point(0, 0.1, 0.95, published=True),
        failed_row("badnets/scratch/baseline"),
    ]
    frame = to_frame(rows)
    table = {row["model"]: row for row in before_after(front.aggregate(frame), front.fronts(frame))}
    low, high = wilson(12, 243)
    assert table["ft (baseline)"]["ASR"] == f"4.9 % [{100 * low:.1f}, {100 * high:.1f}]"
    # DER (.99 - .0494 - .035 + 1)/2 and RIR (.9 - .01 - .035 + 1)/2, from ASR .99, RA .01, CA .985 before.
    assert table["ft (baseline)"]["DER"] == "0.953"
    assert table["ft (baseline)"]["RIR"] == "0.927"
    # (64,000 + 2 * 64,000) / (3 * 1,257)
    assert table["ft (baseline)"]["E"] == "50.91"
    assert table["scratch (baseline)"] == {"model": "scratch (baseline)", "settings": "", "status": "failed"}
    assert table["super_ft, published settings"]["status"] == "ok"
    assert "super_ft, found: knee, least ASR at ≤ 5 points lost, max DER" in table
    assert table["before repair"]["ASR"].startswith("99.0 % [")


# -- figures: tested by their data -------------------------------------------------------------------------------------


def _picture(rows: list[dict[str, Any]]) -> figures.FrontPicture:
    frame = to_frame(rows)
    return figures.front_picture("badnets", front.aggregate(frame), front.fronts(frame))


def _by_kind(picture: figures.FrontPicture) -> dict[str, figures.Marks]:
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
    assert set(shapes) == {"super_ft: published settings", "before repair"} | {
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
    page, print_ = figures.front_plotly(picture), figures.front_png(picture)
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


def test_one_ruined_trial_does_not_squeeze_the_overview() -> None:
    rows = [point(i, 0.08 * i, 0.95 + 0.001 * i) for i in range(12)] + [point(20, 1.0, 0.0, status="diverged")]
    picture = _picture(rows)
    assert picture.overview[0][0] > 0.9
    assert picture.outside == 1
    (low, high), (bottom, top) = picture.corner
    assert 0.9 < low < high <= 1.01
    assert bottom < 0 < top < 0.25


def test_hypervolume_lines_carry_both_halves_and_the_published_point() -> None:
    history = front.hypervolume_over_trials(to_frame([point(0, 0.5, 0.9, asr_report=0.6), point(1, 0.2, 0.9)]))
    lines = figures.hypervolume_series(history, {"super_ft": 0.3})
    assert [line["y"] for line in lines] == [
        pytest.approx([0.4 * 0.9, 0.8 * 0.9]),
        pytest.approx([0.5 * 0.9, 0.8 * 0.9]),
        [0.3, 0.3],
    ]
    assert [line["style"] for line in lines] == ["solid", "dashed", "dotted"]
    drawn = [list(line.get_ydata()) for line in figures.hypervolume_png("x", lines).axes[0].get_lines()]
    assert drawn == [line["y"] for line in lines]
    assert [list(trace.y) for trace in figures.hypervolume_plotly(lines).data] == drawn


@pytest.mark.slow
def test_a_thousand_trials_are_reported_in_seconds(tmp_path: Path) -> None:
    attacks = ("badnets", "blended", "lf", "inputaware", "wanet")
    folder = _study(tmp_path, made_up_study(attacks, defenses=("fst", "anp", "super_ft"), trials=67))
    start = time.monotonic()
    write_report(folder)
    assert time.monotonic() - start < 60  # 8 s on two busy cores; the limit only catches a change of order
    assert len(_pictures(folder)) == 15
