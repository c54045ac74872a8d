"""The Slurm scripts on a real Slurm of one node: run to the report, stopped, continued, two at once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study.cluster.slurm import Slurm, missing, new_slurm
from tests.study.processes import ROOT, new_place, rows_of, wait_for
from tests.study.tiny import TINY

pytestmark = pytest.mark.cluster
WHOLE, SHARED = ROOT / "cluster" / "slurm.sbatch", ROOT / "cluster" / "slurm-shared.sbatch"
NO_GRES = "--gpus-per-node=0"


@pytest.fixture
def slurm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slurm]:
    """A node of two CPUs; parameter: the plug-in that binds a job to its cores, or not."""
    if why := missing():
        pytest.skip(why)
    with new_place(tmp_path) as place:
        (place.folder / "venv" / "bin").mkdir(parents=True)
        (place.folder / "venv" / "bin" / "activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
        with new_slurm(place, cpus=2, task=getattr(request, "param", "task/none")) as running:
            yield running
        place.wait_until_alone()


def test_the_time_limit_and_scancel_stop_a_study_in_order_and_the_same_command_continues_it(slurm: Slurm) -> None:
    # Longer than the limit by far. Slurm knows minutes, and may signal up to one before it was told to.
    search = {**TINY["search"], "trials": 400, "ranges": {"super_ft": {"iterations": [500, 2000]}}}
    out = slurm.place.folder / "long"
    command = ["--nodes=1", NO_GRES, "--time=2", "--signal=B:TERM@40", WHOLE, slurm.place.spec("long", search=search)]
    stopped = slurm.end(slurm.submit(*command, "--out", out))
    assert (stopped.state, stopped.code) == ("FAILED", 130), stopped
    assert "trials; the same command continues the study" in stopped.log
    assert (out / "report.html").is_file()
    before = rows_of(out)
    assert len(before) >= 2
    (out / "report.html").unlink()

    again = slurm.submit(*command, "--out", out)
    wait_for(lambda: len(rows_of(out)) > len(before), 100, lambda: slurm.log(again), 0.5)
    assert slurm.call("scancel", "--batch", "--signal=TERM", again).returncode == 0
    cancelled = slurm.end(again)
    assert f"continuing: {len(before)} of 401 trials are done" in cancelled.log
    assert (cancelled.state, cancelled.code) == ("FAILED", 130), cancelled
    assert (out / "report.html").is_file()
    rows = rows_of(out)
    assert rows[: len(before)] == before
    assert len({row["trial"] for row in rows}) == len(rows)


@pytest.mark.parametrize("slurm", ["task/affinity"], indirect=True)
def test_two_jobs_share_a_node_each_with_a_ray_of_its_own(slurm: Slurm) -> None:
    outs = [slurm.place.folder / name for name in ("one", "two")]
    short = {**TINY["search"], "trials": 2, "startup_trials": 1}
    jobs = []
    for out in outs:
        spec = slurm.place.spec(out.name, search=short)
        jobs.append(slurm.submit(NO_GRES, "--cpus-per-task=1", "--time=10", SHARED, spec, "--out", out))
    wait_for(lambda: all(rows_of(out) for out in outs), 200, lambda: "".join(map(slurm.log, jobs)), 0.5)
    together = [slurm.show(job)["JobState"] for job in jobs]
    ended = [slurm.end(job) for job in jobs]
    for out, job in zip(outs, ended, strict=True):
        assert (job.state, job.code) == ("COMPLETED", 0), job
        assert len(rows_of(out)) == 3
        assert "1 slot of 1 CPU" in job.log  # of the node's two, the job's own
        assert f"report: {out}/report.html" in job.log
    assert together == ["RUNNING", "RUNNING"], "they did not run side by side"


def test_whole_nodes_come_to_the_report_and_a_job_that_asks_for_gpus_where_none_are_is_refused(slurm: Slurm) -> None:
    out = slurm.place.folder / "one"
    spec = slurm.place.spec()
    for script in (WHOLE, SHARED):
        refused = slurm.call("sbatch", "--nodes=1", "--cpus-per-task=1", script, spec, "--out", out)
        assert refused.returncode != 0
        assert "generic resource" in refused.stderr
    done = slurm.end(slurm.submit("--nodes=1", NO_GRES, WHOLE, spec, "--out", out))
    assert (done.state, done.code) == ("COMPLETED", 0), done
    assert len(rows_of(out)) == 5
    assert f"report: {out}/report.html" in done.log
    # Bad input is the job's exit code, with its line in the log.
    shutil.rmtree(out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    bad = slurm.end(slurm.submit("--nodes=1", NO_GRES, "--cpus-per-task=1", SHARED, spec, "--out", out))
    assert (bad.state, bad.code) == ("FAILED", 2), bad
    assert f"superft: --out {out} is not empty" in bad.log
