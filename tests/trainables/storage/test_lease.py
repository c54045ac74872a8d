"""Claims of exclusive use without a kernel's lock: one holder, takeover of the dead and the silent, no way back."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.remotes import new_uri
from trainables.storage.lease import Lease, LeaseTakenError
from trainables.storage.remote import Remote, RemoteError

QUICK = {"beat": 0.05, "stale": 0.5}


@pytest.fixture
def remote() -> Remote:
    return Remote(new_uri())


def pretend(remote: Remote, **changes: object) -> None:
    """Make the newest claim somebody else's."""
    name = max(remote.sizes("lease"))
    content = remote.read(name)
    assert content is not None
    remote.write(name, json.dumps({**json.loads(content), **changes}).encode())


def abandoned(remote: Remote, **changes: object) -> Lease:
    """A claim that nobody renews any more."""
    lease = Lease(remote, "lease", beat=3600)
    lease.acquire()
    pretend(remote, **changes)
    return lease


def test_a_second_holder_is_refused_and_told_of_the_first(remote: Remote) -> None:
    first = Lease(remote, "lease")
    first.acquire()
    with pytest.raises(LeaseTakenError, match=r"process \d+ on .* since 20"):
        Lease(remote, "lease").acquire()
    first.release()
    assert remote.sizes() == {}
    again = Lease(remote, "lease")
    again.acquire()
    again.release()


def test_a_holder_that_renews_keeps_its_claim_beyond_the_time_of_staleness(remote: Remote) -> None:
    first = Lease(remote, "lease", **QUICK)
    first.acquire()
    pretend(remote, machine="another")
    end = time.monotonic() + 3 * QUICK["stale"]
    while time.monotonic() < end:
        with pytest.raises(LeaseTakenError):
            Lease(remote, "lease", beat=QUICK["beat"], stale=10.0).acquire()
        time.sleep(0.1)
    assert first.lost is None
    first.release()


def test_a_process_that_is_gone_from_this_machine_is_followed_at_once(remote: Remote) -> None:
    abandoned(remote, pid=2**22 + 1)
    heir = Lease(remote, "lease")
    heir.acquire()
    heir.release()


def test_a_holder_on_another_machine_is_followed_once_it_is_silent(remote: Remote) -> None:
    abandoned(remote, machine="another")
    with pytest.raises(LeaseTakenError):
        Lease(remote, "lease").acquire()
    time.sleep(0.3)
    heir = Lease(remote, "lease", stale=0.2)
    heir.acquire()
    assert len(remote.sizes("lease")) == 1
    heir.release()


def test_a_holder_that_wakes_up_after_its_successor_came_knows_it(remote: Remote) -> None:
    sleeper = abandoned(remote, machine="another")
    time.sleep(0.3)
    heir = Lease(remote, "lease", stale=0.2)
    heir.acquire()
    sleeper.check()  # it believes in its last renewal for two beats
    sleeper._renewed -= 3 * sleeper.beat
    with pytest.raises(RemoteError, match="another process has taken over"):
        sleeper.check()
    sleeper.release()
    assert len(remote.sizes("lease")) == 1, "the successor's claim is left alone"
    heir.release()


def test_a_lost_claim_is_reported_from_the_renewing_thread(remote: Remote) -> None:
    told = threading.Event()
    lease = Lease(remote, "lease", **QUICK, on_lost=lambda why: told.set())
    lease.acquire()
    remote.write("lease/00000099.json", b"{}")
    assert told.wait(30)
    lease.release()


def test_of_many_that_want_it_one_has_it_at_a_time(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.storage.lease.POLL", 0.01)
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with Lease(remote, "lease").waiting():
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 5
    assert remote.sizes() == {}


def test_a_claim_that_is_no_json_is_taken_over_when_it_is_old(remote: Remote) -> None:
    remote.write("lease/00000001.json", b"{half")
    with pytest.raises(LeaseTakenError):
        Lease(remote, "lease").acquire()
    time.sleep(0.3)
    heir = Lease(remote, "lease", stale=0.2)
    heir.acquire()
    heir.release()


class Slow(Lease):
    """One that something happens to just after it has looked (``looked``), and just before it claims (``claims``)."""

    looked = claims = staticmethod(lambda: None)

    def _living(self, claim: str, content: bytes) -> str | None:
        found = super()._living(claim, content)
        self.looked()
        return found

    def _content(self) -> bytes:
        self.claims()
        return super()._content()


def test_a_claim_that_vanishes_while_one_looks_is_not_followed_by_the_next_number(remote: Remote) -> None:
    """Whoever comes next begins at 1; a second one that went on from the claim it saw would hold it, too."""
    abandoned(remote, pid=2**22 + 1)
    second, slow = Lease(remote, "lease"), Slow(remote, "lease")

    def another_comes() -> None:
        slow.looked = lambda: None
        remote.delete([max(remote.sizes("lease"))])
        second.acquire()

    slow.looked = another_comes
    with pytest.raises(LeaseTakenError, match="since 20"):
        slow.acquire()
    assert len(remote.sizes("lease")) == 1
    second.check()
    second.release()


def test_of_two_that_follow_a_dead_one_the_late_one_sees_who_came_between(remote: Remote) -> None:
    """The quick one took over, gave back, and a third began anew at 1: under the name of the dead one's claim."""
    abandoned(remote, pid=2**22 + 1)
    quick, third, late = Lease(remote, "lease"), Lease(remote, "lease"), Slow(remote, "lease")

    def others_come() -> None:
        late.claims = lambda: None
        quick.acquire()
        quick.release()
        third.acquire()

    late.claims = others_come
    with pytest.raises(LeaseTakenError):
        late.acquire()
    assert len(remote.sizes("lease")) == 1, "the late one has taken its claim back"
    third._renew()
    assert third.lost is None
    third.release()
