"""Does a study at a URI keep up with its driver, and how fast is one of 10,000 trials opened?

    python -m benchmarks.remote_folder [s3://bucket/scratch]

Without a URI an S3 server of moto is started on loopback: its own Python time is most of what is measured then, while
the way to a real bucket (some 30 ms per request) is not. Rows and journal entries have the size of a study's. They are
appended one between two looks of the mirror, which are a second apart in a study, and 17, as of 256 slots of 15 s
trials.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import uuid
from pathlib import Path

import torch

from benchmarks.common import machine, record, summary
from study.record.shipping import Mirror
from tests.s3 import s3_server
from trainables.storage.remote import Remote

ROW = {"attack": "badnets", "seed": 0, **{f"column{number}": 0.123456789 for number in range(110)}}
ENTRY = json.dumps({"op_code": 4, "trial": "x" * 250}).encode() + b"\n"
ENTRIES = 4  # of the journal, per trial


def measure(uri: str, trials: int, at_once: int) -> dict[str, object]:
    remote = Remote(f"{uri}/{uuid.uuid4().hex}")
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        mirror = Mirror(Path(here), remote, lambda: None, print)
        mirror.fetch()
        seconds = []
        with (Path(here) / "trials.jsonl").open("ab") as ledger, (Path(here) / "optuna.journal").open("ab") as journal:
            for number in range(trials):
                ledger.write(json.dumps({**ROW, "trial": f"badnets/super_ft/{number:05d}"}).encode() + b"\n")
                journal.write(ENTRY * ENTRIES)
                if (number + 1) % at_once == 0 or number + 1 == trials:
                    ledger.flush()
                    journal.flush()
                    started = time.perf_counter()
                    mirror.flush()
                    seconds.append(time.perf_counter() - started)
        objects = len(remote.sizes())
        started = time.perf_counter()
        Mirror(Path(there), remote, lambda: None, print).fetch()
        opened = time.perf_counter() - started
        lines = (Path(there) / "trials.jsonl").read_bytes().count(b"\n")
        assert lines == trials
        size = sum(path.stat().st_size for path in Path(there).iterdir())
    remote.delete(list(remote.sizes()))
    flush = summary(seconds)
    return {
        "trials": trials, "rows_per_flush": at_once, "megabytes": round(size / 2**20, 1), "objects": objects,
        "flush_ms_median": round(1e3 * flush["median"], 1), "flush_ms_max": round(1e3 * flush["max"], 1),
        "flushes": flush["n"], "open_seconds": round(opened, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", nargs="?", help="a folder to write to; default: a server of moto")
    parser.add_argument("--trials", type=int, default=10_000)
    arguments = parser.parse_args()
    with s3_server() if arguments.uri is None else contextlib.nullcontext(arguments.uri) as uri:
        for at_once in (1, 17):
            row = measure(uri, arguments.trials, at_once)
            storage = "moto" if arguments.uri is None else arguments.uri.partition("://")[0]
            record("remote_folder", {"storage": storage, **row, **machine(torch.device("cpu"))})


if __name__ == "__main__":
    main()
