"""Exclusive use of something behind a URI, where no kernel could release a lock: a claim that its holder renews.

A claim is an object with a number, ``FOLDER/00000007.json``. The next number is created exclusively, so of two that
want it one wins. The holder rewrites its object every `BEAT` seconds. A claim that was not renewed for `STALE` seconds,
by the storage's own clock (where it has none: while we look on), or whose process is gone from this very machine, is
taken over by creating the next number. Clocks of two machines are never compared.
A holder that wakes up after that (a machine that slept) sees the higher number and knows that it has lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.storage.remote import Remote, RemoteError

log = logging.getLogger("superft.lease")

BEAT = 10.0  # seconds
STALE = 60.0
POLL = 1.0
RELEASES = 3
CLAIM = re.compile(r"\d{8}\.json")


class LeaseTakenError(Exception):
    """Somebody else holds the claim; the message says who, since when."""


@dataclass
class Lease:
    """A claim on ``folder`` of ``remote``.

    Args:
        beat: seconds between renewals.
        stale: seconds without one after which others may take the claim over.
        on_lost: called from the renewing thread with one line when the claim is lost.
    """

    remote: Remote
    folder: str
    beat: float = BEAT
    stale: float = STALE
    on_lost: Callable[[str], None] | None = None
    lost: str | None = field(default=None, init=False)

    def acquire(self) -> None:
        """Take the claim, at once.

        Raises:
            LeaseTakenError: a living process has it.
            RemoteError: the storage cannot be reached.
        """
        left = self._left_behind()
        number = max((int(claim.partition(".")[0]) for claim in left), default=0) + 1
        self._name = f"{self.folder}/{number:08d}.json"
        self._me = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self._me["since"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        content = self._content()
        # A driver that tried twice, because the first answer was lost, meets what it wrote itself.
        if not self.remote.create(self._name, content) and self.remote.read(self._name) != content:
            raise LeaseTakenError("another process, just now")
        # Somebody else may have taken what the same dead process had, given it back, and a third have begun anew at 1.
        # Of two that claim at once at least one sees the other here.
        mine = self._name.rpartition("/")[2]
        others = {name: content for name, content in self._contents().items() if name != mine}
        if any(left.get(name) != content for name, content in others.items()):
            self.remote.delete([self._name])
            raise LeaseTakenError("another process, just now")
        self.remote.delete([f"{self.folder}/{claim}" for claim in left])
        self._renewed, self._busy, self._end = time.time(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {self.folder}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the claim back; what cannot be removed now becomes stale by itself."""
        self._end.set()
        self._thread.join()
        if self.lost is None:
            try:
                self.remote.delete([self._name])
            except RemoteError as error:
                log.debug("claim not removed: %s", error)

    def check(self) -> None:
        """Call it before a write that only the holder may do: after a sleep of this machine the claim is asked for.

        Raises:
            RemoteError: it is lost, or cannot be asked for.
        """
        if self.lost is None and time.time() - self._renewed > 2 * self.beat:
            self._renew()
        if self.lost is not None:
            raise RemoteError(self.lost)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Hold the claim for the block, after waiting for whoever has it."""
        while True:
            with contextlib.suppress(LeaseTakenError):
                self.acquire()
                break
            time.sleep(POLL)
        try:
            yield
        finally:
            self.release()

    def _left_behind(self) -> dict[str, bytes]:
        """The claims of processes that are gone or silent, and their contents; none where nobody claims it.

        One that vanishes while we look was given back, which is not the same: whoever comes next begins at 1, and so
        must we.

        Raises:
            LeaseTakenError: a living process has it.
        """
        for _ in range(RELEASES):
            contents = self._contents()
            if not contents:
                return {}
            last = max(contents)
            if (holder := self._living(last, contents[last])) is not None:
                raise LeaseTakenError(holder)
            if self.remote.read(f"{self.folder}/{last}") == contents[last]:
                return contents
        raise LeaseTakenError("another process, just now")

    def _contents(self) -> dict[str, bytes]:
        """All claims with what they hold; those that vanish meanwhile are left out."""
        read = {claim: self.remote.read(f"{self.folder}/{claim}") for claim in self._claims()}
        return {claim: content for claim, content in read.items() if content is not None}

    def _claims(self) -> list[str]:
        names = (name.rpartition("/")[2] for name in self.remote.sizes(self.folder))
        return sorted(name for name in names if CLAIM.fullmatch(name))

    def _living(self, claim: str, content: bytes) -> str | None:
        """Who holds it, in words; None when that process is gone or silent, or has given it back meanwhile."""
        name = f"{self.folder}/{claim}"
        holder: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            holder = dict(json.loads(content))
        if holder.get("machine") == _machine() and not _is_running(holder.get("pid")):
            return None
        age = self._age(name, content)
        if age > self.stale:
            return None
        return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}, seen {age:.0f} s ago"

    def _age(self, name: str, content: bytes) -> float:
        """Seconds since the claim was renewed; by the storage's clock, for those of two machines may differ."""
        renewed = self.remote.modified(name)
        if renewed is None:  # this storage does not say
            return self._age_seen(name, content)
        probe = f"{self.folder}/.now-{uuid.uuid4().hex}"
        self.remote.write(probe, b"")
        try:
            now = self.remote.modified(probe)
        finally:
            self.remote.delete([probe])
        return (now - renewed).total_seconds() if now is not None else 0.0

    def _age_seen(self, name: str, content: bytes) -> float:
        """0 as soon as the claim is renewed while we look; infinite if it is gone, or silent for `stale` seconds."""
        end = time.monotonic() + self.stale
        while time.monotonic() < end:
            time.sleep(min(POLL, self.beat / 2))
            if (now := self.remote.read(name)) is None:
                break
            if now != content:
                return 0.0
        return math.inf

    def _content(self) -> bytes:
        return json.dumps({**self._me, "renewed": time.time()}).encode()

    def _run(self) -> None:
        while self.lost is None and not self._end.wait(self.beat):
            try:
                self._renew()
            except RemoteError as error:
                # Beyond that somebody else may rightly believe us dead.
                if time.time() - self._renewed > self.stale / 2:
                    self._lose(str(error))

    def _renew(self) -> None:
        with self._busy:
            if self._claims()[-1:] != [self._name.rpartition("/")[2]]:
                self._lose(f"{self.remote.uri}/{self.folder}: another process has taken over")
                return
            self.remote.write(self._name, self._content())
            self._renewed = time.time()

    def _lose(self, why: str) -> None:
        self.lost = why
        if self.on_lost is not None:
            self.on_lost(why)


def _is_running(pid: Any) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _machine() -> str:
    """This boot of this machine, and the process table that our ids belong to (a container has its own)."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex  # unknown: nobody's process is known to be gone
