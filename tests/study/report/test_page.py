"""The page: what matters is open, details are folded, and every link finds its part."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
import yaml

from study.record.columns import to_frame
from study.report.figures.front_marks import front_picture
from study.report.figures.front_page import front_plotly
from study.report.figures.hypervolume import hypervolume_plotly, hypervolume_series
from study.report.figures.importance import importance_plotly
from study.report.html import slug
from study.report.template import SCRIPT
from study.report.write import write_report
from study.results.fronts import fronts, hypervolume_over_trials
from study.results.importance import importance
from study.results.settings import aggregate, candidates
from tests.study.report.conftest import few_resamples
from tests.study.rows import made_up_study, make_row


class _Parts(HTMLParser):
    """Ids, links, and for each heading, summary, table and plot whether it lies in something folded."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open_plots: list[str] = []
        self.folded_plots: list[str] = []
        self.tables = {"open": 0, "folded": 0}
        self.summaries: list[str] = []
        self._depth = 0
        self._in_summary = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "details":
            assert "open" not in found
            self._depth += 1
        if tag == "summary":
            self._in_summary = True
        if tag == "table":
            self.tables["folded" if self._depth else "open"] += 1
        if "plotly-graph-div" in str(found.get("class")):
            (self.folded_plots if self._depth else self.open_plots).append(str(found["id"]))

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "details"
        self._in_summary = self._in_summary and tag != "summary"

    def handle_data(self, data: str) -> None:
        if self._in_summary:
            self.summaries.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    rows = made_up_study(attacks=("badnets",), defenses=("fst", "super_ft"), trials=8)
    rows.append(make_row("badnets/spectral/baseline", detection_tpr=0.9))
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "made-up", "search": {"trials": 8}}))
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_resamples(monkeypatch)
        return write_report(folder).read_text()


def test_what_matters_is_open_and_details_are_folded(page: str) -> None:
    parts = _Parts()
    parts.feed(page)
    assert parts.open_plots == ["front-badnets"]
    assert set(parts.folded_plots) == {"hypervolume-badnets", "importance-badnets"}
    assert parts.tables["open"] == 3  # the matrix, before and after, what was run
    folded = " / ".join(parts.summaries)
    for title in ("equal rules", "What tuning took", "The front:", "long enough", "parameters", "detectors"):
        assert title in folded


def test_every_link_on_the_page_finds_its_part(page: str) -> None:
    parts = _Parts()
    parts.feed(page)
    assert len(parts.ids) == len(set(parts.ids))
    assert {link.removeprefix("#") for link in parts.links} <= set(parts.ids)
    assert "#badnets-rules" in parts.links
    assert "at.open = true" in SCRIPT, "a link opens what it leads into"
    assert SCRIPT in page


def test_every_plot_has_a_second_layout_for_narrow_screens_and_finds_back() -> None:
    frame = to_frame(made_up_study(attacks=("badnets",), defenses=("fst", "super_ft"), trials=8))
    searched = candidates(frame)
    lines = hypervolume_series(hypervolume_over_trials(frame), {"fst": 0.5})
    mattered = {str(name): importance(group) for name, group in searched.groupby("defense")}
    plots = [
        front_plotly(front_picture("badnets", aggregate(frame), fronts(frame))),
        hypervolume_plotly(lines),
        importance_plotly(mattered),
    ]
    for plot in plots:
        two = plot.to_plotly_json()["layout"]["meta"]
        assert two["narrow"].keys() == two["wide"].keys()
        assert two["narrow"]["legend.orientation"] == "h"
        assert two["wide"]["height"] == plot.layout.height
        assert two["wide"]["margin.b"] == plot.layout.margin.b
        assert two["entries"] == sum(trace.showlegend is not False for trace in plot.data)


def test_on_a_narrow_screen_the_panels_of_importance_stand_below_each_other() -> None:
    frame = to_frame(made_up_study(attacks=("badnets",), defenses=("a", "b", "c"), trials=6))
    found = {str(name): importance(one) for name, one in candidates(frame).groupby("defense")}
    layout = importance_plotly(found).to_plotly_json()["layout"]
    narrow = layout["meta"]["narrow"]
    assert layout["xaxis"]["domain"] != layout["xaxis2"]["domain"]
    assert narrow["xaxis.domain"] == narrow["xaxis2.domain"] == narrow["xaxis3.domain"] == [0.0, 1.0]
    assert narrow["yaxis.domain"][0] > narrow["yaxis2.domain"][1] > narrow["yaxis3.domain"][1]


def test_names_for_links_and_files_are_short_and_of_one_text_each() -> None:
    assert slug("badnets on digits, airbench_cnn") == "badnets_on_digits_airbench_cnn"
    folders = [f"blended, dataset folder:/data/{name}" for name in ("\u7532", "\u4e59", "x" * 300, "x" * 301)]
    names = [slug(one) for one in folders]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 200
