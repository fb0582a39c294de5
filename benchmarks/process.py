"""The parent's hand on a child process: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.memory import resident_bytes, watch_peak
from benchmarks.trials import Trial

CHILD = "--child"
_REASON = 160  # characters of a reason that a row shows


class WorkerFailed(Exception):
    """A child process could not do what it was asked; the message says why in one line."""


class Worker:
    """A child process of `worker.py` that waits while it is asked nothing.

    Args:
        role: name of a contestant, `reference` or `ceiling`.
        trial: what it is to do.
        folder: for its log.
        environment: variables beside those of this process.

    Attributes:
        resting_bytes: its resident memory with the model loaded, before the first call.
    """

    def __init__(
        self, role: str, trial: Trial, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.resting_bytes = 0
        self._trial = trial
        self._log = folder / f"{role}.log"
        variables = {
            "OMP_NUM_THREADS": str(trial.threads),
            "MKL_NUM_THREADS": str(trial.threads),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # compilation is timed, so never remembered
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **variables, **(environment or {})},
            )

    def wait_for_imports(self) -> None:
        """Wait until it has its libraries; several processes get there side by side.

        Raises:
            WorkerFailed: it could not import them.
        """
        self._receive()

    def load(self) -> dict[str, Any]:
        """Let it make its model ready; return what it says of that.

        Raises:
            WorkerFailed: it could not.
        """
        ready = self._exchange(self._trial.to_dict())
        self.resting_bytes = resident_bytes(self._process.pid)
        return ready

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Returns:
            The answer and `peak_bytes`, the peak of resident memory meanwhile.

        Raises:
            WorkerFailed: the process threw an error, or is gone.
        """
        with watch_peak(self._process.pid) as peaks:
            answer = self._exchange(request)
        return {**answer, "peak_bytes": max([self.resting_bytes, *peaks])}

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it had to say before it ended is still to be read
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise WorkerFailed(shorten(answer["error"]))
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "killed by the system, which had no more memory"
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        return f"ended with code {code}: {last}"


def watch_once(module: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Let a child of `module` make ready, do its job once, and save the result.

    It writes a line of JSON when it is ready and one when it is done, and waits for a line after each.

    Returns:
        What both lines say, and `peak`: bytes of resident memory above those that it had when it was ready.

    Raises:
        WorkerFailed: it ended before that.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, CHILD, json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ready = process.stdout.readline()
    before, done = resident_bytes(process.pid) if ready else 0, ""
    with watch_peak(process.pid) as peak, suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()
        done = process.stdout.readline()
    if ready and done:
        process.stdin.write("save\n")
        process.stdin.close()
    if process.wait() or not done:
        raise WorkerFailed(f"ended with code {process.returncode}")
    return {"peak": peak[0] - before, **json.loads(ready), **json.loads(done)}


def command_line(module: str) -> str:
    """How this program was started, without the paths of this machine."""
    return " ".join(["python -m", module, *sys.argv[1:]])


def shorten(reason: str) -> str:
    """One line of a length that a table bears."""
    line = " ".join(reason.split())
    return line if len(line) <= _REASON else line[: _REASON - 3] + "..."
