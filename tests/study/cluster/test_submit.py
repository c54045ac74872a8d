"""`superft submit` against a real head: followed to its end, refused, stopped and continued."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from study.cluster import submit
from study.spec.yaml_io import SpecError
from tests.network import free_ports
from tests.study.commands import assert_refused, invoke
from tests.study.processes import PATIENCE, ROOT, Place, Running, new_place, rows_of, wait_for
from tests.study.tiny import TINY

pytestmark = pytest.mark.timeout(1500)


@dataclass
class Head:
    """A Ray head with 2 CPUs, a job server, and a token: it is safe also where tests get no network of their own."""

    place: Place
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, **changes: str | None) -> dict[str, str]:
        own = {
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.place.folder),  # no token of the user's own
            **changes,
        }
        # Without the checkout on the path: what runs on the cluster has come in the package.
        inherited = {
            key: value
            for key, value in self.place.environment().items()
            if not key.startswith("RAY_") and key != "PYTHONPATH"
        }
        return inherited | {key: value for key, value in own.items() if value is not None}

    def begin(self) -> None:
        """`ray start --head`, on free ports."""
        ports = free_ports(4)
        self.port = ports[0]
        options = ["dashboard-port", "port", "dashboard-agent-listen-port", "ray-client-server-port"]
        started = subprocess.run(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=2",
                "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
                f"--temp-dir={self.place.temporary / 'ray'}", "--disable-usage-stats",
                *(f"--{option}={port}" for option, port in zip(options, ports, strict=True)),
            ],
            env=self.environment(RAY_AUTH_MODE="token"),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr

    def submit(self, *arguments: object, **changes: str | None) -> Running:
        """`superft submit ARGUMENTS` in its own process."""
        number = len(list(self.place.folder.glob("*.stdout")))
        out, err = self.place.folder / f"{number}.stdout", self.place.folder / f"{number}.stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "study.cli", "submit", *map(str, arguments), "--address", self.address],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.place.folder,
                env=self.environment(**changes),
                start_new_session=True,
            )
        return Running(process, out, err)

    def ray_job(self, *arguments: str) -> str:
        """`ray job ARGUMENTS` as people would give it."""
        ran = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments],
            env=self.environment(RAY_AUTH_MODE="token", RAY_API_SERVER_ADDRESS=self.address),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with new_place(tmp_path_factory.mktemp("head")) as place:
        head = Head(place)
        head.begin()
        yield head
    place.wait_until_alone()


def job_of(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith("job:"))


@pytest.mark.cluster
def test_a_study_is_submitted_followed_and_its_report_found(head: Head) -> None:
    # A checkout with a defense of its own, which the cluster can only have from the package.
    mine = head.place.folder / "checkout"
    for name in ("superft", "study", "search_spaces", "trainables"):
        shutil.copytree(ROOT / name, mine / name, ignore=shutil.ignore_patterns("__pycache__"))
    (mine / "trainables" / "defenses" / "untouched.py").write_text(
        (mine / "trainables" / "defenses" / "none.py").read_text().replace('"none"', '"untouched"')
    )
    out, spec = head.place.folder / "one", head.place.spec(baselines=["none", "untouched"])
    ran = head.submit(spec, "--out", out, "--follow", RAY_AUTH_MODE=None, PYTHONPATH=str(mine)).end(PATIENCE)
    assert ran.code == 0, ran.stdout + ran.stderr
    rows = rows_of(out)
    assert len({row["trial"] for row in rows}) == len(rows) == 6
    assert {row["status"] for row in rows if row["defense"] in ("none", "untouched")} == {"ok"}
    assert (out / "report.html").is_file()
    job = job_of(ran.stdout)
    for line in (
        f"follow:  ray job logs --address {head.address} --follow {job}",
        f"stop:    ray job stop --address {head.address} {job}",
        f"report:  {out}/report.html",
        f"Ray dashboard: {head.address}/#/jobs/",
        "6 trials on 1 slot of 1 CPU",  # of the head's two, one is the driver's
        "[6/6]",  # the driver's progress
        f"report: {out}/report.html",  # and its last line
    ):
        assert line in ran.stdout, ran.stdout
    assert ran.stdout.count("Running entrypoint") == 1  # followed without repeats


@pytest.mark.cluster
def test_the_jobs_own_failure_is_the_exit_code(head: Head) -> None:
    out = head.place.folder / "occupied"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    ran = head.submit(head.place.spec(), "--out", out, "--follow").end(PATIENCE)
    assert ran.code == 2
    assert f"superft: --out {out} is not empty and holds no study.yaml; name a new folder" in ran.stdout


@pytest.mark.cluster
def test_a_stopped_job_flushes_says_so_and_is_continued_by_the_same_command(head: Head) -> None:
    out = head.place.folder / "stopped"
    search = {**TINY["search"], "trials": 14, "ranges": {"super_ft": {"iterations": [500, 2000]}}}
    spec = head.place.spec("long", search=search)
    first = head.submit(spec, "--out", out).end(PATIENCE)
    assert first.code == 0
    assert not (out / "report.html").exists()  # the command did not wait for it
    job = job_of(first.stdout)
    wait_for(lambda: len(rows_of(out)) >= 2, PATIENCE, lambda: head.ray_job("logs", job))
    head.ray_job("stop", job)
    assert "trials; the same command continues the study" in head.ray_job("logs", job)
    assert (out / "report.html").is_file()  # SIGTERM left the time to write it
    before = rows_of(out)
    assert 2 <= len(before) < 15, "the study was over before it was stopped: make it longer"
    again = head.submit(spec, "--out", out, "--follow").end(PATIENCE)
    assert again.code == 0, again.stdout
    assert f"continuing: {len(before)} of 15 trials are done" in again.stdout
    rows = rows_of(out)
    assert rows[: len(before)] == before
    assert len({row["trial"] for row in rows}) == len(rows) == 15


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "Invalid authentication token"),
        ({"RAY_AUTH_TOKEN": None}, "authentication token"),
        pytest.param(
            {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "/nowhere/token", marks=pytest.mark.slow
        ),
    ],
    ids=["wrong", "none", "no file"],
)
def test_without_the_right_token_nothing_is_submitted(changes: dict[str, str | None], named: str, head: Head) -> None:
    out = head.place.folder / "never"
    ran = head.submit(head.place.spec(), "--out", out, "--follow", **changes).end(PATIENCE)
    assert ran.code == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1, ran.stderr
    for text in (named, head.address, "RAY_AUTH_TOKEN"):
        assert text in ran.stderr
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "its token here"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None}, "no authentication token was found"),
        ({}, "its token here"),  # Ray sends a token only in this mode
    ],
    ids=["wrong", "none", "no mode"],
)
def test_run_says_in_its_last_line_that_a_cluster_wants_its_token(
    changes: dict[str, str | None], named: str, head: Head
) -> None:
    address = (head.place.temporary / "ray" / "ray_current_cluster").read_text().strip()
    out = head.place.folder / "never"
    ran = subprocess.run(
        [sys.executable, "-m", "study.cli", "run", str(head.place.spec()), "--address", address, "--out", str(out)],
        env=head.environment(**changes),
        cwd=head.place.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 2
    *before, said = ran.stderr.splitlines()
    assert said.startswith(f"superft: --address {address}: cannot reach a Ray cluster")
    assert named in said
    assert all("_client.cc:" in line or "network_util.cc:" in line for line in before), before  # Ray's own, from C++
    assert not out.exists()


@pytest.mark.slow
def test_rays_own_job_submit_takes_the_checkout_as_it_is(head: Head) -> None:
    out = head.place.folder / "plain"
    said = head.ray_job(
        "submit", "--working-dir", ".", "--entrypoint-num-cpus", "1", "--",
        "python", "-m", "study.cli", "run", str(head.place.spec()), "--out", str(out),
    )  # fmt: skip
    assert "succeeded" in said
    assert len(rows_of(out)) == 5


# What is refused before a cluster is asked, or by what answers there.


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers /api/version with what the server was given."""

    def do_GET(self) -> None:
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[Any]:
    """An HTTP server on loopback with a settable ``answer``; ``url`` is its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        running.url = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_cluster_around(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first: what `connect` does to them is undone afterwards.
    for key in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)


def call(*arguments: object) -> Result:
    return invoke("submit", *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("quickstart", ("--out is missing", "absolute path that all nodes see")),
        ("quickstart --out runs/a", ("--out runs/a is relative", "absolute path")),
        ("quickstart --out s3://bucket/a --address nowhere", ("--address 'nowhere'",)),  # its places are fine
        ("quickstart --out /s/a --store gs://bucket/v --address nowhere", ("--address 'nowhere'",)),
        ("quickstart --out /s/a --set data_root=s3://bucket/d", ("data_root: 's3:/bucket/d'", "mount the bucket")),
        ("quickstart --out /s/a --store victims", ("store: 'victims' is relative",)),
        ("quickstart --out /s/a --set dataset=folder:mine", ("dataset: 'folder:mine' is relative",)),
        ("quickstart --out /s/a --set data_root=mine", ("data_root: 'mine' is relative",)),
        ("quickstart --out /s/a --set search.warm_start=[runs/b]", ("search.warm_start: 'runs/b' is relative",)),
        (
            "quickstart --out /s/a --set attacks=[imported] --set attack.imported.path=victim.pt",
            ("attack.imported.path: 'victim.pt' is relative",),
        ),
        ("quickstart --out /s/a --set attack.blended.pattern=file:a.png", ("attack.blended.pattern: 'file:a.png'",)),
        ("quickstart --out /s/a --set search.trials=0", ("search.trials", "got 0")),
        ("quickstart --out /s/a --set defense.super_ft.lr_max1=0.5", ("lr_max1 is fixed by the spec but searched",)),
        ("quickstat --out /s/a", ("unknown recipe 'quickstat'",)),
        ("quickstart --out /s/a --address 127.0.0.1:8265", ("--address '127.0.0.1:8265'", "http://HOST:8265")),
        ("quickstart --out /s/a --address auto", ("--address 'auto'", "http://HOST:8265")),
    ],
)
def test_bad_input_is_refused_in_one_line_before_a_cluster_is_asked(arguments: str, named: tuple[str, ...]) -> None:
    assert_refused(call(*arguments.split()), *named)


def test_an_address_where_nothing_answers_is_refused() -> None:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    assert_refused(
        call("quickstart", "--out", "/s/a", "--address", address), address, "no Ray cluster answers", "ssh -L"
    )


def test_something_else_at_the_address_is_refused(server: Any) -> None:
    server.answer = (404, b"not here")
    assert_refused(call("quickstart", "--out", "/s/a", "--address", server.url), server.url, "no Ray dashboard", "404")


def test_a_cluster_with_another_version_of_ray_is_refused(server: Any) -> None:
    server.answer = (200, json.dumps({"version": "4", "ray_version": "2.9.3"}).encode())
    refused = call("quickstart", "--out", "/s/a", "--address", server.url)
    assert_refused(refused, server.url, "the cluster runs Ray 2.9.3", "ray[default,tune]==2.9.3")


def test_patch_releases_of_ray_fit_together() -> None:
    submit.check_versions("2.60.0", "2.60.1", "http://h")
    submit.check_versions("2.60.0", None, "http://h")
    with pytest.raises(SpecError, match=r"Ray 2\.59\.0"):
        submit.check_versions("2.60.0", "2.59.0", "http://h")


def test_the_job_reserves_a_cpu_sends_no_statistics_and_has_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Recorder:
        def submit_job(self, **arguments: Any) -> str:
            given.update(arguments)
            with zipfile.ZipFile(arguments["runtime_env"]["working_dir"]) as package:
                assert "study.yaml" in package.namelist()
            return str(arguments["submission_id"])

    monkeypatch.setattr(submit, "connect", lambda address: Recorder())
    result = call("quickstart", "--out", "/shared/my study", "--python", "/opt/venv/bin/python")
    assert result.exit_code == 0
    assert given["entrypoint"] == "/opt/venv/bin/python -m study.cli run study.yaml --out '/shared/my study'"
    assert given["entrypoint_num_cpus"] == 1
    assert given["submission_id"].startswith("superft-quickstart-")
    assert given["runtime_env"]["env_vars"] == {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert "/shared/my study/report.html" in result.stdout


def test_a_refused_job_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def submit_job(self, **_: Any) -> str:
            raise RuntimeError("Request failed with status code 413: too large.\nTraceback ...")

    monkeypatch.setattr(submit, "connect", lambda address: Refusing())
    assert_refused(call("quickstart", "--out", "/s/a"), "the job was refused", "413")
