"""Claims of append-only files as objects: any prefix of the work done is a valid file, whoever reads or was killed."""

from __future__ import annotations

import pytest

from study.record.object_log import MOST_SEGMENTS, SegmentLog
from tests.remotes import new_uri
from trainables.storage.remote import Remote, RemoteError

LINES = [f"line {number}\n".encode() for number in range(7)]


@pytest.fixture
def remote() -> Remote:
    return Remote(new_uri())


def log_of(remote: Remote, salvage: bool = True) -> SegmentLog:
    return SegmentLog(remote, "rows", salvage=salvage)


@pytest.fixture
def log(remote: Remote) -> SegmentLog:
    """Three lines as the beginning, four appended."""
    log = log_of(remote)
    log.read()
    log.rewrite(b"".join(LINES[:3]))
    for line in LINES[3:]:
        log.append(line)
    return log


def test_what_was_appended_is_read_in_its_order(log: SegmentLog, remote: Remote) -> None:
    assert log_of(remote).read() == b"".join(LINES)
    assert len(remote.sizes("rows.d")) == 4


def test_nothing_is_an_empty_file(remote: Remote) -> None:
    log = log_of(remote)
    assert not log.exists()
    assert log.read() == b""
    assert log.sound


def test_appending_goes_on_where_reading_ended(log: SegmentLog, remote: Remote) -> None:
    other = log_of(remote)
    other.read()
    other.append(b"more\n")
    assert log_of(remote).read() == b"".join(LINES) + b"more\n"


def test_no_object_is_ever_rewritten_by_an_append(log: SegmentLog, remote: Remote) -> None:
    late = log_of(remote)
    late.read()
    log.append(b"mine\n")
    with pytest.raises(RemoteError, match="another process has appended to this study"):
        late.append(b"its\n")
    assert log_of(remote).read().endswith(b"mine\n")


def test_an_append_whose_answer_was_lost_may_be_repeated(log: SegmentLog, remote: Remote) -> None:
    log.append(b"more\n")
    log.length -= len(b"more\n")
    log.append(b"more\n")
    assert log_of(remote).read() == b"".join(LINES) + b"more\n"


@pytest.mark.parametrize("removed", range(5))
def test_a_driver_killed_while_it_tidied_up_loses_nothing(log: SegmentLog, remote: Remote, removed: int) -> None:
    segments = list(remote.sizes("rows.d"))
    remote.write("rows", b"".join(LINES))  # then some of the objects that it holds now are removed, and it is killed
    remote.delete(segments[:removed])
    again = log_of(remote)
    assert again.read() == b"".join(LINES)
    assert again.sound
    again.append(b"more\n")
    assert log_of(remote).read() == b"".join(LINES) + b"more\n"


def test_a_rewritten_file_is_one_plain_object(log: SegmentLog, remote: Remote) -> None:
    log.rewrite(b"".join(LINES))
    assert remote.sizes() == {"rows": sum(map(len, LINES))}
    assert log_of(remote).read() == b"".join(LINES)


def test_a_lost_object_costs_its_own_lines_where_lines_stand_for_themselves(log: SegmentLog, remote: Remote) -> None:
    remote.delete([list(remote.sizes("rows.d"))[1]])
    again = log_of(remote, salvage=True)
    assert again.read() == b"".join([*LINES[:4], *LINES[5:]])
    assert not again.sound


def test_a_lost_object_ends_a_file_whose_lines_build_on_each_other(log: SegmentLog, remote: Remote) -> None:
    remote.delete([list(remote.sizes("rows.d"))[1]])
    again = log_of(remote, salvage=False)
    assert again.read() == b"".join(LINES[:4])
    assert not again.sound


def test_reading_while_another_process_tidies_up_sees_the_whole_file(
    log: SegmentLog, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reader's look at the beginning and its list, all objects went into a new beginning."""
    tidied: list[bool] = []
    sizes = Remote.sizes

    def tidy_first(self: Remote, folder: str = "") -> dict[str, int]:
        if not tidied:
            tidied.append(True)
            log.rewrite(b"".join(LINES))
            log.append(b"more\n")
        return sizes(self, folder)

    monkeypatch.setattr(Remote, "sizes", tidy_first)
    again = log_of(remote)
    assert again.read() == b"".join(LINES) + b"more\n"
    assert again.sound


def test_a_reader_whose_list_is_outdated_tries_again(
    log: SegmentLog, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied: list[bool] = []
    read_all = Remote.read_all

    def tidy_first(self: Remote, names: list[str]) -> list[bytes | None]:
        if not tidied:
            tidied.append(True)
            log.rewrite(b"".join(LINES))
        return read_all(self, names)

    monkeypatch.setattr(Remote, "read_all", tidy_first)
    assert log_of(remote).read() == b"".join(LINES)


def test_a_file_is_crowded_after_so_many_appends_until_it_is_rewritten(remote: Remote) -> None:
    log = log_of(remote)
    log.read()
    for _ in range(MOST_SEGMENTS):
        assert not log.crowded
        log.append(b"x\n")
    assert log.crowded
    log.rewrite(b"x\n" * MOST_SEGMENTS)
    assert not log.crowded
