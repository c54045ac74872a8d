"""A search whose storage is a PostgreSQL server: the one named by SUPERFT_TEST_POSTGRES, or one started here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage, written_behind
from study.run.driver import Driver
from study.spec.yaml_io import SpecError
from tests.network import free_ports
from tests.study.tiny import TINY, make_driver, run, tiny_spec

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[3]
SERVER_USER = "postgres"  # as root the server refuses to run; Debian's package makes this user


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a database on a server that listens on loopback alone."""
    if url := os.environ.get("SUPERFT_TEST_POSTGRES"):
        yield url
        return
    pytest.importorskip("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    found = str(programs[-1]) if programs else shutil.which("postgres")
    if found is None:
        pytest.skip("PostgreSQL is not installed, and SUPERFT_TEST_POSTGRES names no server")
    folder = Path(tempfile.mkdtemp(prefix="superft-pg-"))  # not below pytest's own folder, which is root's alone
    user = SERVER_USER if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    initdb = str(Path(found).resolve().with_name("initdb"))
    subprocess.run(
        [initdb, "-D", str(data), "-U", "superft", "-A", "trust", "--no-sync"],
        user=user, cwd=folder, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (port,) = free_ports(1)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [found, "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-F"],
            user=user, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_for(port, process, folder / "log")
        yield f"postgresql+psycopg://superft:any@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        process.wait(timeout=60)
        shutil.rmtree(folder)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    import psycopg

    end = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="superft", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.1)


@pytest.fixture
def name() -> str:
    """Of a study that the server does not know yet."""
    return f"test-{uuid.uuid4().hex[:12]}"


def test_search_asks_for_the_same_settings_as_with_the_journal(server: str, name: str, tmp_path: Path) -> None:
    asked = []
    for label, url in (("server", server), ("journal", "journal")):
        driver = make_driver(tiny_spec(f"name={name}"), tmp_path / f"{label}.jsonl", open_storage(url, tmp_path))
        run(driver)
        asked.append([{k: v for k, v in row.items() if k.startswith("param.")} for row in driver.ledger.rows()])
    assert asked[0] == asked[1]
    assert len(asked[0]) == 5


def test_interrupted_search_goes_on_under_its_old_numbers(server: str, name: str, tmp_path: Path) -> None:
    def driver() -> Driver:
        return make_driver(tiny_spec(f"name={name}"), tmp_path / "trials.jsonl", open_storage(server, tmp_path))

    first = driver()
    run(first, slots=1, finishes=3)
    lost = first.next_job()  # handed out, and its driver dies
    assert lost is not None
    second = driver()
    again = second.next_job()
    assert again is not None
    assert (again.trial, again.settings) == (lost.trial, lost.settings)
    third = driver()
    run(third)
    trials = [row["trial"] for row in third.ledger.rows()]
    assert third.finished
    assert len(trials) == len(set(trials)) == 5


def test_two_studies_at_once_share_a_database(server: str, name: str, tmp_path: Path) -> None:
    """Each driver in a thread of its own, over connections of its own, as two processes would have them."""

    def drive(own: str) -> None:
        with written_behind(open_storage(server, tmp_path)) as storage:
            run(make_driver(tiny_spec(f"name={own}", "search.trials=12"), tmp_path / f"{own}.jsonl", storage))

    names = [f"{name}-a", f"{name}-b"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(drive, names))
    for own in names:
        trials = optuna.load_study(study_name=f"{own}/badnets/super_ft", storage=server).trials
        rows = [row for row in Ledger.read(tmp_path / f"{own}.jsonl").rows() if row["search"]]
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
        values = {trial.user_attrs["id"]: trial.values for trial in trials}
        assert values == {row["trial"]: [row["asr_search"], row["clean_accuracy_search"]] for row in rows}
        assert all({"charged_epochs", "status", "asr_report"} <= trial.user_attrs.keys() for trial in trials)


def test_server_that_refuses_is_told_without_the_password(server: str, tmp_path: Path) -> None:
    wrong = server.rpartition("/")[0].replace(":any@", ":s3cret@") + "/no_such_database"
    with pytest.raises(SpecError, match=r"search\.storage: cannot open .*\*\*\*.*no_such_database") as caught:
        open_storage(wrong, tmp_path)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_study_is_kept_on_the_server(server: str, name: str, tmp_path: Path) -> None:
    settings = {**TINY, "name": name, "store": str(tmp_path / "store")}
    settings["search"] = {**TINY["search"], "storage": server, "trials": 3}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))

    def superft_run(out: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "study.cli", "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / out)],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    done = superft_run("one")
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name=f"{name}/badnets/super_ft", storage=server)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 3
    assert not (tmp_path / "one" / "optuna.journal").exists()
    other = superft_run("two")  # its results are the first folder's
    assert other.returncode == 2
    assert "of another folder" in other.stderr
