"""`superft submit` follows its job over a connection that breaks, to the end that the job had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from ray.job_submission import JobStatus

from study.cluster import submit
from study.spec.yaml_io import SpecError


@dataclass
class Info:
    status: JobStatus
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Client:
    """A job server: each follower sees ``streams`` in turn (an error at the end of one is raised), then the end."""

    log: str
    streams: list[tuple[int, Exception | None]]
    info: Info

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        length, error = self.streams.pop(0)
        for start in range(0, length, 4):
            yield self.log[start : min(start + 4, length)]
        await asyncio.sleep(0)
        if error is not None:
            raise error

    def get_job_info(self, job: str) -> Info:
        return self.info if not self.streams else Info(JobStatus.RUNNING)

    def get_job_logs(self, job: str) -> str:
        return self.log


def follow(client: Client, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = submit.follow_job(client, "job-1")  # type: ignore[arg-type]
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_lost_connection_is_taken_up_without_repeating_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    lost = RuntimeError("WebSocket connection closed unexpectedly")
    client = Client("one\ntwo\nthree\n", [(6, lost), (2, lost), (10, None)], Info(JobStatus.SUCCEEDED, 0))
    assert follow(client, capsys) == (0, "one\ntwo\nthree\n", "")


def test_a_cluster_that_is_gone_is_said_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    monkeypatch.setattr(submit, "LOST_SECONDS", -1)
    client = Client("one\n", [(4, ConnectionError("refused"))] * 3, Info(JobStatus.RUNNING))
    with pytest.raises(SpecError, match=r"no answer from the cluster .*refused.*job-1 may go on"):
        follow(client, capsys)


@pytest.mark.parametrize(
    ("info", "code", "named"),
    [
        (Info(JobStatus.FAILED, 7), 7, ""),
        (Info(JobStatus.STOPPED), 130, "job job-1 was stopped; the same submit again continues the study"),
        (Info(JobStatus.FAILED, None, "Runtime env failed\nlong\ntrace"), 1, "job job-1: FAILED: Runtime env failed\n"),
    ],
)
def test_how_the_job_ended_is_how_the_command_ends(
    info: Info, code: int, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, out, err = follow(Client("one\n", [(4, None)], info), capsys)
    assert (ended, out) == (code, "one\n")
    assert named in err


def test_ctrl_c_ends_the_following_not_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client("one\n", [(4, KeyboardInterrupt())], Info(JobStatus.RUNNING))  # type: ignore[list-item]
    code, _, err = follow(client, capsys)
    assert code == 130
    assert "job job-1 goes on" in err
