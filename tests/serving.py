"""A server of the service, in a process of its own, as users start it."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import requests

PATIENCE = 120  # seconds


@dataclass
class Running:
    """A server that listens."""

    url: str
    process: "subprocess.Popen[str]"
    lines: list[str]

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=PATIENCE, **options)

    def post(self, path: str, **options: object) -> requests.Response:
        return requests.post(f"{self.url}{path}", timeout=PATIENCE, **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[Running]:
    """A server with these options, on a port that is free; ended with the block."""
    words = [sys.executable, "-m", "temporal_vae", "serve", "--port", "0", "--memory-limit", "2GiB", *options]
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, start_new_session=True
    )
    lines: list[str] = []
    address: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if found := re.match(r"serving on (\S+)", line):
                address.put(found[1])
        address.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        url = address.get(timeout=PATIENCE)
        assert url is not None, "\n".join(lines)
        yield Running(url, process, lines)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
