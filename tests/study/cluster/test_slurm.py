"""The Slurm scripts on a real Slurm of one node: two jobs side by side on it, GPUs that it has not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study.cluster.slurm import Slurm, missing, new_slurm
from tests.study.processes import PATIENCE, ROOT, new_place, rows_of, wait_for
from tests.study.tiny import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
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


@pytest.mark.parametrize("slurm", ["task/affinity"], indirect=True)
def test_two_jobs_share_a_node_each_with_a_ray_of_its_own(slurm: Slurm) -> None:
    """Each comes to its end only because the other one runs beside it: one of its trials waits for a second Ray's."""
    outs = [slurm.place.folder / name for name in ("one", "two")]
    changes = {
        "baselines": ["none", "meets"],
        "search": {**TINY["search"], "trials": 2, "startup_trials": 1},
        "victim": {**TINY["victim"], "require_implanted": "run"},  # without that trial neither would wait
    }
    jobs = []
    for out in outs:
        spec = slurm.place.spec(out.name, **changes)
        jobs.append(slurm.submit(NO_GRES, "--cpus-per-task=1", "--time=30", SHARED, spec, "--out", out))
    ended = [slurm.end(job, PATIENCE) for job in jobs]
    for out, job in zip(outs, ended, strict=True):
        assert (job.state, job.code) == ("COMPLETED", 0), job
        rows = rows_of(out)
        assert len(rows) == 4
        assert "badnets/meets/baseline" in {row["trial"] for row in rows}
        assert "1 slot of 1 CPU" in job.log  # of the node's two, the job's own
        assert f"report: {out}/report.html" in job.log


def test_a_job_that_asks_for_gpus_where_slurm_counts_none_is_refused(slurm: Slurm) -> None:
    for script in (WHOLE, SHARED):
        refused = slurm.call("sbatch", "--nodes=1", "--cpus-per-task=1", script, "quickstart", "--out", "/nowhere")
        assert refused.returncode != 0
        assert "generic resource" in refused.stderr


def test_whole_nodes_run_a_study_to_its_report(slurm: Slurm) -> None:
    out = slurm.place.folder / "whole"
    spec = slurm.place.spec("whole", search={**TINY["search"], "trials": 2, "startup_trials": 1})
    ended = slurm.end(slurm.submit("--nodes=1", NO_GRES, "--time=10", WHOLE, spec, "--out", out))
    assert (ended.state, ended.code) == ("COMPLETED", 0), ended.log
    assert len(rows_of(out)) == 3
    assert f"report: {out}/report.html" in ended.log


def test_scancel_stops_a_study_in_order_and_the_same_command_goes_on(slurm: Slurm) -> None:
    out, words = endless(slurm, "--time=10")
    rows = 0
    for _ in range(2):
        rows = stopped_in_order(slurm, slurm.submit(*words), out, rows)
    assert_none_twice(out)


@pytest.mark.slow
def test_the_time_limit_stops_a_study_in_order_and_the_same_command_goes_on(slurm: Slurm) -> None:
    out, words = endless(slurm, "--time=10")
    job = slurm.submit(*words)
    wait_for_rows(slurm, job, out, 2)
    # The script asks for a signal two minutes before the limit. Instead of waiting for it, the limit is brought near.
    hours, minutes, _ = map(int, slurm.show(job)["RunTime"].split(":"))
    limit = slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 3}")
    assert limit.returncode == 0, limit.stderr
    ended = slurm.end(job)
    assert (ended.state, ended.code) == ("FAILED", 130), ended.log  # by itself: Slurm would have called it TIMEOUT
    assert "the same command continues" in ended.log
    assert (out / "report.html").exists()
    stopped_in_order(slurm, slurm.submit(*words), out, len(rows_of(out)))
    assert_none_twice(out)


def endless(slurm: Slurm, *options: str) -> tuple[Path, list[object]]:
    """A study of more trials than a test waits for: its folder, and the words of `sbatch` that start it."""
    out = slurm.place.folder / "endless"
    spec = slurm.place.spec("endless", search={**TINY["search"], "trials": 500, "startup_trials": 500})
    return out, ["--nodes=1", NO_GRES, *options, WHOLE, spec, "--out", out]


def stopped_in_order(slurm: Slurm, job: str, out: Path, before: int) -> int:
    """The rows of a study that goes on from ``before`` and is then stopped by `scancel`."""
    wait_for_rows(slurm, job, out, before + 2)
    assert slurm.call("scancel", "--batch", "--signal=TERM", job).returncode == 0
    ended = slurm.end(job)
    assert (ended.state, ended.code) == ("FAILED", 130), ended.log
    assert "the same command continues" in ended.log
    assert (out / "report.html").exists()
    rows = len(rows_of(out))
    assert rows > before
    return rows


def wait_for_rows(slurm: Slurm, job: str, out: Path, count: int) -> None:
    wait_for(lambda: len(rows_of(out)) >= count or slurm.is_over(job), 240, lambda: slurm.log(job), 0.5)
    assert not slurm.is_over(job), slurm.log(job)


def assert_none_twice(out: Path) -> None:
    trials = [(row["trial"], row["attack"], row["seed"]) for row in rows_of(out)]
    assert len(set(trials)) == len(trials)
