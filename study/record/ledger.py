"""The ledger of a study, ``trials.jsonl``: append-only, one flat JSON object per finished trial."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.record.columns import to_frame, upgraded
from study.record.files import append_whole, write_atomically
from study.spec.yaml_io import SpecError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
LONGEST_NAME = 200
Key = tuple[str, str, int, int]


class Ledger:
    """Rows of one study, held in memory and on disk; each ``append`` is on the disk before it returns.

    Opening repairs: lines that a crash cut off, or that are no row, go to ``<name>.damaged`` and out of the ledger,
    so the study simply goes on; so do repeated rows of the same (trial, attack, seed, defense seed), of which the first
    counts. ``damaged`` says in words what was set aside. One process may write at a time; any number may look with
    ``Ledger.read``.

    Rows of earlier versions are given in today's columns and stay in the file as they are.

    Args:
        path: the file ``trials.jsonl``; made, with its folder, if missing.

    Raises:
        SpecError: the rows are of a later version of superft.
    """

    damaged: list[str]
    _rows: list[Row]
    _keys: set[Key]

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._load(repair=True)
        self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @classmethod
    def read(cls, path: Path | str) -> Ledger:
        """The rows so far, for looking only: changes nothing on disk, tolerates a line that is just being written."""
        ledger = cls.__new__(cls)
        ledger.path = Path(path)
        ledger._file = None
        ledger._load(repair=False)
        return ledger

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one finished trial: one line, one write, flushed to the disk.

        Raises:
            ValueError: a NaN or infinite number, a missing trial, attack or seed, or a row that is already there.
            TypeError: a value that JSON cannot hold.
            OSError: the line could not be written whole (disk full, file removed); the ledger is left as it was before.
        """
        if self._file is None:
            raise ValueError(f"{self.path} was opened for reading only; open it with Ledger(path) to append")
        row = dict(row)
        line = (_encode(row) + "\n").encode()
        if (key := row_key(row)) in self._keys:
            raise ValueError(f"{_in_words(key)} is already in {self.path}; ask has() first")
        if os.fstat(self._file).st_nlink == 0:  # writing would succeed, and the row would be nowhere
            raise FileNotFoundError(errno.ENOENT, "the ledger was removed", str(self.path))
        append_whole(self._file, line, self.path, wait=True)
        self._keys.add(key)
        self._rows.append(row)

    def set_aside_failed(self) -> int:
        """Take the failed rows out, into ``<name>.retried``, so that their trials run again; how many there were."""
        if self._file is None:
            raise ValueError(f"{self.path} was opened for reading only; open it with Ledger(path) to change it")
        failed = [row for row in self._rows if row.get("status") == "failed"]
        if failed:
            _put_aside(self.path, ".retried", [_encode(row).encode() for row in failed])
            kept = [row for row in self._rows if row.get("status") != "failed"]
            write_atomically(self.path, b"".join((_encode(row) + "\n").encode() for row in kept))
            os.close(self._file)  # of the file that was replaced
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            damaged = self.damaged
            self._load(repair=False)
            self.damaged = damaged
        return len(failed)

    def rows(self) -> list[Row]:
        """All rows in the order in which the trials finished."""
        return list(self._rows)

    def has(self, trial: str, attack: str, seed: int, defense_seed: int = 0) -> bool:
        """Whether this setting was already scored on this attack and these seeds (whatever its status)."""
        return (trial, attack, seed, defense_seed) in self._keys

    def __len__(self) -> int:
        return len(self._rows)

    def to_frame(self, rows: Iterable[Mapping[str, Any]] | None = None) -> pd.DataFrame:
        """``to_frame`` of these rows, or of all rows of the ledger."""
        return to_frame(self._rows if rows is None else rows)

    def close(self) -> None:
        """Give the file back; rows stay readable."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, repair: bool) -> None:
        self._rows, self._keys, self.damaged = [], set(), []
        content = self.path.read_bytes() if self.path.exists() else b""
        good: list[bytes] = []
        bad: list[bytes] = []
        lines = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _decode(line)
                if not isinstance(row.get("status"), str):
                    raise ValueError(f"status must be a text, got {row.get('status')!r}")
                if (key := row_key(row)) in self._keys:
                    raise ValueError(f"repeats {_in_words(key)}; the first one counts")
            except ValueError as error:
                bad.append(line)
                cut = "is cut off" if number == len(lines) else "is no row"
                why = f"{error}" if str(error).startswith("repeats") else f"{cut} ({error})"
                self.damaged.append(f"{self.path}, line {number} {why}: {self._remedy(repair)}")
            else:
                good.append(line)
                self._keys.add(key)
                self._rows.append(self._upgraded(row, number))
        if repair and (bad or (content and not content.endswith(b"\n"))):
            if bad:
                _put_aside(self.path, ".damaged", bad)
            write_atomically(self.path, b"".join(line + b"\n" for line in good))

    def _upgraded(self, row: Row, number: int) -> Row:
        """The row in today's columns; refuses the ledger of a later version whole, before anything is repaired."""
        try:
            return upgraded(row)
        except ValueError as error:
            raise SpecError(f"{self.path}, line {number}: {error}") from error

    def _remedy(self, repair: bool) -> str:
        if repair:
            return f"kept aside in {_beside(self.path).name}; the study goes on, a trial that was lost there runs again"
        return "left out here; if no study is running, continuing it repairs the file"


def _beside(path: Path, ending: str = ".damaged") -> Path:
    return path.with_name(path.name + ending)


def _put_aside(path: Path, ending: str, lines: Iterable[bytes]) -> None:
    with _beside(path, ending).open("ab") as aside:
        aside.write(b"".join(line + b"\n" for line in lines))
        aside.flush()
        os.fsync(aside.fileno())


def row_key(row: Mapping[str, Any]) -> Key:
    """What tells a row from all others of its study: trial, attack, seed, defense seed.

    Raises:
        ValueError: one of them is missing, or is none.
    """
    row = {"defense_seed": 0, **row}  # rows of earlier versions know only one
    for name, kind in (("trial", str), ("attack", str), ("seed", int), ("defense_seed", int)):
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {row.get(name)!r}")
    return row["trial"], row["attack"], row["seed"], row["defense_seed"]


def key_as_name(key: Key) -> str:
    """The key of a row as the name of a file, without ending; no two keys have the same."""
    plain = "/".join(map(str, key))
    name = re.sub(r"[^A-Za-z0-9._-]", "--", plain)
    # What cannot be read back from the name, as of labels with a blank, is told apart by a digest; so is what is cut
    # off, for the combinations of a sweep may have long names and file systems allow 255 letters.
    if name.replace("--", "/") == plain and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"


def _in_words(key: Key) -> str:
    trial, attack, seed, own = key
    return f"trial {trial!r}, attack {attack!r}, seed {seed}" + (f", defense seed {own}" if own else "")


def _encode(row: Mapping[str, Any]) -> str:
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{name} is {value}; a row holds finite numbers only (a diverged trial is asr 1, clean_accuracy 0)"
            )
    try:
        return json.dumps(row, allow_nan=False, ensure_ascii=False)
    except TypeError as error:
        raise TypeError(
            f"row of trial {row.get('trial')!r}: {error}; convert it to a plain Python value first"
        ) from error


def _decode(line: bytes) -> Row:
    row = _DECODER.decode(line.decode("utf-8"))
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no finite number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # json.loads would make one anew for every line
