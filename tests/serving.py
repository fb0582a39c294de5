"""A server of the service, in a process of its own, as users start it."""

import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
import uvicorn
from PIL import Image

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.serve import Service, Settings
from temporal_vae.serve.connections import Connection

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

    @property
    def address(self) -> tuple[str, int]:
        """For sockets."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def forget_peak(self) -> None:
        """Let `peak` begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def resident(self) -> int:
        """Bytes that the server has in memory."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """The most that it had."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

    def raw(self, request: bytes, patience: float = PATIENCE) -> "Raw":
        """Send bytes that need not be HTTP; the first answer to them, and whether the server then closed."""
        with socket.create_connection(self.address, timeout=patience) as connection:
            connection.sendall(request)
            return read_answer(connection)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@dataclass
class Raw:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        return json.loads(self.body)["detail"]


def read_answer(connection: socket.socket) -> Raw:
    """The next answer of a connection, which has to be whole."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += _some(connection)
    return Raw(int(first.split()[1]), headers, body)


def _some(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise ConnectionError("closed before the answer was complete")
    return received


@contextmanager
def serving_here(vae: Autoencoder, **settings: Any) -> Iterator[str]:
    """The address of a service in this process, for models that are in no folder."""
    with running_here(Service(vae, Settings(memory_limit=2**31, **settings)).app) as url:
        yield url


@contextmanager
def running_here(app: Any) -> Iterator[str]:
    """The address of an application in this process, with the connections of the service."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


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
            process.send_signal(signal.SIGINT)  # twice: it takes its files with it, and does not wait
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def picture(height: int = 33, width: int = 50) -> bytes:
    """A PNG file."""
    y, x = np.mgrid[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 5, y * 7, x + y], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
