"""A study brought here: whole or not at all, from a bucket or another machine, and nothing that is no study."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from study.cluster.pull import ON_HOST, pull
from study.record.ledger import Ledger
from study.record.object_log import SegmentLog
from study.spec.yaml_io import SpecError
from tests.remotes import new_uri
from tests.study.commands import assert_refused, invoke
from tests.study.rows import point
from tests.study.tiny import tiny_spec
from trainables.storage.remote import Remote, RemoteError

# In place of ssh: drops the name of the machine, and runs what it is told here, as a login shell there would.
SHELL = '#!/bin/sh\necho x >> "$0.used"\nwhile [ "$1" != elsewhere ]; do shift; done\nshift\nexec sh -c "$*"\n'


def study(folder: Path, rows: int, name: str = "tiny") -> Path:
    """A made-up study with a report."""
    (folder / "figures").mkdir(parents=True)
    (folder / "study.yaml").write_text(tiny_spec(f"name={name}").to_yaml())
    with Ledger(folder / "trials.jsonl") as ledger:
        for number in range(rows):
            ledger.append(point(number, 0.5, 0.9))
    (folder / "report.html").write_text(f"<p>{rows} rows")
    (folder / "figures/front.png").write_bytes(b"png")
    return folder


def at_uri(folder: Path) -> str:
    """The same in a bucket."""
    uri = new_uri()
    remote = Remote(uri)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "trials.jsonl":
            remote.upload(path, path.relative_to(folder).as_posix())
    log = SegmentLog(remote, "trials.jsonl", salvage=True)
    log.read()
    log.append((folder / "trials.jsonl").read_bytes())
    return uri


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """rsync's way to the machine ``elsewhere``, which is this one."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    shell = tmp_path / "shell"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    return shell


def test_a_study_comes_from_a_bucket_with_its_report(tmp_path: Path) -> None:
    uri = at_uri(study(tmp_path / "there", 3))
    result = invoke("pull", uri, tmp_path / "here")
    assert result.stdout.splitlines() == [
        f"tiny: 3 rows in {tmp_path / 'here'}",
        f"report: {tmp_path / 'here/report.html'}",
    ]
    assert (tmp_path / "here/report.html").read_text() == "<p>3 rows"
    assert (tmp_path / "here/figures/front.png").read_bytes() == b"png"
    assert len(Ledger.read(tmp_path / "here/trials.jsonl")) == 3


def test_a_study_comes_from_a_machine_without_what_is_hidden_there(elsewhere: Path, tmp_path: Path) -> None:
    there = study(tmp_path / "it's there", 3)
    (there / ".lock").write_text("")
    assert pull(f"elsewhere:{there}/", tmp_path / "here").rows == 3
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "figures",
        "report.html",
        "study.yaml",
        "trials.jsonl",
    ]
    assert Path(f"{elsewhere}.used").exists()


def test_without_a_folder_it_goes_into_the_working_folder_by_its_name(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = study(tmp_path / "there/one", 2)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pull(f"elsewhere:{there}", None)
    assert (tmp_path / "work/one/report.html").exists()


def test_a_copy_is_brought_up_to_date_whole(tmp_path: Path) -> None:
    first, second = at_uri(study(tmp_path / "there", 2)), at_uri(study(tmp_path / "later", 5))
    pull(first, tmp_path / "here")
    (tmp_path / "here/figures/of-an-older-version.png").write_bytes(b"")
    again = pull(second, tmp_path / "here")
    assert (again.rows, again.anew) == (5, True)
    assert not (tmp_path / "here/figures/of-an-older-version.png").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "later", "here"}, "nothing is left beside it"


def test_what_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = at_uri(study(tmp_path / "there", 5))
    here = study(tmp_path / "here", 2)
    download = Remote.download

    def broken(self: Remote, name: str, path: Path) -> bool:
        if name.endswith("report.html"):
            raise RemoteError("the line is cut")
        return download(self, name, path)

    monkeypatch.setattr(Remote, "download", broken)
    with pytest.raises(RemoteError, match="the line is cut"):
        pull(uri, here)
    with pytest.raises(RemoteError, match="the line is cut"):
        pull(uri, tmp_path / "new")
    assert (here / "report.html").read_text() == "<p>2 rows"
    assert {path.name for path in tmp_path.iterdir()} == {"there", "here"}


def test_what_is_no_study_is_refused_in_one_line(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"")
    assert_refused(invoke("pull", f"elsewhere:{tmp_path}/photos", tmp_path / "here"), "no study folder", "study.yaml")
    assert_refused(invoke("pull", new_uri(), tmp_path / "here"), "no study folder")
    assert_refused(invoke("pull", tmp_path / "photos", tmp_path / "here"), "is no place elsewhere")
    assert_refused(invoke("pull", "--", f"-oProxyCommand=x:{tmp_path}", tmp_path / "here"), "is no place elsewhere")
    assert not (tmp_path / "here").exists()


def test_nothing_is_written_over_that_is_not_an_older_copy_of_it(tmp_path: Path) -> None:
    uri = at_uri(study(tmp_path / "there", 3))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"")
    assert_refused(invoke("pull", uri, tmp_path / "photos"), "is no study's folder")
    other = study(tmp_path / "other", 1, name="other")
    assert_refused(invoke("pull", uri, other), "holds the study other")
    more = study(tmp_path / "more", 4)
    assert_refused(invoke("pull", uri, more), "has 4 rows", "only 3")
    runs = study(tmp_path / "runs", 1)
    with FileLock(runs / ".lock"):
        assert_refused(invoke("pull", uri, runs), "runs here")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "photos", "other", "more", "runs"}


def test_a_machine_that_cannot_be_reached_is_said_so_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\necho 'ssh: connect to host elsewhere port 22: No route to host' >&2\nexit 255\n")
    shell.chmod(0o755)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    result = invoke("pull", "elsewhere:/x", tmp_path / "here")
    assert result.exit_code == 75
    assert result.stderr.count("\n") == 1
    assert "No route to host" in result.stderr
    assert not (tmp_path / "here").exists()


def test_scp_does_it_where_there_is_no_rsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of scp; the real one needs a server."""
    there = study(tmp_path / "there", 2)
    (there / ".lock").write_text("")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scp").write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do case $1 in -rp) r=-r;; esac; shift; done\n'
        'exec /bin/cp $r "${2#elsewhere:}" "$3"\n'
    )
    (tools / "scp").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    assert pull(f"elsewhere:{there}", tmp_path / "here").rows == 2
    assert not (tmp_path / "here/.lock").exists()
    (there / "study.yaml").unlink()
    with pytest.raises(SpecError, match="no study folder"):
        pull(f"elsewhere:{there}", tmp_path / "new")


@pytest.mark.parametrize("place", ["C:x", "node7:studies/one", "me@node7:/shared/one"])
def test_a_host_and_a_folder_are_told_apart(place: str) -> None:
    found = ON_HOST.fullmatch(place)
    assert found is not None
    assert os.sep not in found[1]
