"""Plug-ins in a spec: named, resolved, stored with their version, packed for a cluster, never loaded from a study."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import pytest
import yaml

import study
from study.cluster.submit import write_package
from study.record.folder import SPEC_FILE, check_folder, stored_spec
from study.spec.load import load_spec, make_spec
from study.spec.schema import StudySpec, differences
from study.spec.yaml_io import SpecError
from tests import foreign
from tests.study.tiny import TINY
from trainables.plugins import load, origin

pytestmark = pytest.mark.usefixtures("_as_before")


def spec_with(*plugins: object, **changes: object) -> StudySpec:
    return make_spec({**TINY, "plugins": list(plugins), **changes})


def test_a_spec_that_names_a_plug_in_may_use_its_names_and_stores_its_version(tmp_path: Path) -> None:
    file = foreign.put(tmp_path, "plug_spec.py", foreign.attack("corner_s") + foreign.defense("scaled_s"))
    made = spec_with(file, attacks=["corner_s"], defenses=["scaled_s"], search={"trials": 2}, defense={})
    (plugin,) = made.plugins
    assert (plugin.module, plugin.name, plugin.path) == ("plug_spec", "plug_spec", file)
    assert plugin.version == f"unversioned+{plugin.source}"
    again = make_spec(yaml.safe_load(made.to_yaml()))
    assert again == made
    assert differences(made, again) == []


def test_the_command_line_adds_to_the_spec(tmp_path: Path) -> None:
    one = foreign.put(tmp_path, "plug_one.py", foreign.attack("corner_t"))
    two = foreign.put(tmp_path, "plug_two.py", foreign.attack("corner_u"))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**TINY, "plugins": [one], "attacks": ["corner_t", "corner_u"]}))
    assert [plugin.module for plugin in load_spec(str(file), (), [two]).plugins] == ["plug_one", "plug_two"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("plug_gone", "plugins must be a list of modules or files"),
        ([3], "plugins must be a list of modules or files"),
        (["plug_gone"], "plug-in plug_gone: no module of that name is installed"),
        (["plug_gone.py"], r"plug-in plug_gone\.py: no such file"),
    ],
)
def test_what_is_no_plug_in_gets_one_line(given: object, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_spec({**TINY, "plugins": given})
    assert "\n" not in str(caught.value)


def test_a_search_is_refused_where_the_defense_refuses_an_end_of_its_space(tmp_path: Path) -> None:
    file = foreign.put(tmp_path, "plug_low.py", foreign.defense("scaled_v", low="-1.0"))
    with pytest.raises(SpecError, match=r"search space of scaled_v: factor: -1\.0 does not work: .* factor must be"):
        spec_with(file, defenses=["scaled_v"], search={"trials": 2}, defense={})


@pytest.mark.parametrize(
    ("paper", "message"),
    [
        ("{}", r"plug_paper\d\.py, line \d+: search space of scaled_w. \(default\): PAPER has no 'factor'"),
        ('{"factor": 3.0}', r"PAPER\['factor'\] = 3\.0 lies outside"),
        ("None", r"search space of scaled_w. has no PAPER"),
    ],
)
def test_a_plug_in_with_a_wrong_published_point_is_named(paper: str, message: str, tmp_path: Path) -> None:
    number = len(paper) % 10
    text = foreign.defense(f"scaled_w{number}", paper=paper)
    with pytest.raises(SpecError, match=message):
        spec_with(foreign.put(tmp_path, f"plug_paper{number}.py", text))


def test_a_studys_folder_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at the study of a stranger must not run what came with it."""
    foreign.put(tmp_path, "out/evil.py", "raise SystemExit('ran')")
    file = str(tmp_path / "out" / "evil.py")
    monkeypatch.chdir(tmp_path / "out")
    for entry in ("evil.py", file, {"module": "evil", "path": file}, "evil", {"module": "evil"}):
        (tmp_path / "out" / SPEC_FILE).write_text(yaml.safe_dump({**TINY, "plugins": [entry]}))
        with pytest.raises(SpecError, match=r"evil\.py, which is not loaded from a study|plug-in evil: no module"):
            stored_spec(tmp_path / "out")


def test_an_edited_plug_in_continues_its_study_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = foreign.put(tmp_path, "plug_moves.py", foreign.attack("corner_x"))
    made = spec_with(file, attacks=["corner_x"])
    folder = tmp_path / "out"
    folder.mkdir()
    text = made.to_yaml().replace(made.plugins[0].source, "0123456789ab")
    (folder / SPEC_FILE).write_text(text)
    with caplog.at_level(logging.WARNING, "superft.folder"):
        check_folder(folder, made)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("plug-in plug_moves changed: plug_moves unversioned+0123456789ab (0123456789ab) -> ")


def test_a_job_takes_the_source_along_and_finds_it_by_name(tmp_path: Path) -> None:
    foreign.put(tmp_path, "plug_job/__init__.py", "from plug_job import attack\n")
    foreign.put(tmp_path, "plug_job/attack.py", foreign.attack("corner_y"))
    made = spec_with(str(tmp_path / "plug_job"), attacks=["corner_y"])
    package = tmp_path / "package.zip"
    write_package(Path(study.__file__).parent.parent, made, package)
    with zipfile.ZipFile(package) as archive:
        assert {"plug_job/__init__.py", "plug_job/attack.py"} <= set(archive.namelist())
        (plugin,) = yaml.safe_load(archive.read(SPEC_FILE))["plugins"]
    assert (plugin["module"], plugin["path"], plugin["source"]) == ("plug_job", None, made.plugins[0].source)


def test_source_that_was_installed_elsewhere_keeps_its_name_and_version(tmp_path: Path) -> None:
    """On the cluster a packed package is plain source: the spec says what it was, and the digest that it is that."""
    file = foreign.put(tmp_path, "plug_known.py", foreign.attack("corner_z"))
    (plugin,) = load.load([file])
    load._loaded.clear()
    origin._source_of.cache_clear()
    stored = {"module": "plug_known", "path": file, "name": "known-package", "version": "4.5", "source": plugin.source}
    assert str(load.load([stored])[0]) == "known-package 4.5"
    load._loaded.clear()
    assert str(load.load([stored | {"source": "another"}])[0]) == str(plugin)
