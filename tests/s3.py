"""An S3 server for tests: moto on a free port of loopback, in a process of its own that holds everything in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.network import free_ports

BUCKET = "superft-tests"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """``s3://BUCKET``, which this process and all that it starts reach through the usual variables."""
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    os.environ.update({**ENVIRONMENT, "AWS_ENDPOINT_URL": url})
    try:
        _wait_for(url, process)
        s3fs.S3FileSystem.clear_instance_cache()  # one made before has another endpoint
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        process.terminate()
        process.wait(60)
        s3fs.S3FileSystem.clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no S3 server on {url}") from None
            time.sleep(0.05)
