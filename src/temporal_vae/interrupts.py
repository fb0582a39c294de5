"""Ctrl-C, SIGTERM and SIGHUP in a command: one line, and nothing unfinished is left behind.

While nothing is being written, as when libraries and models load, a signal ends the process at once: an exception
raised inside of an import or of another library may come out as anything, or not at all. While an output is written, it
is a `KeyboardInterrupt`, which removes what is unfinished on its way. Needs nothing but the standard library, so that
it can come first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MESSAGE = "interrupted; nothing unfinished is left behind"
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_caught: list[int] = []
_careful = False


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals within the block, but for those that whoever started the process told it to ignore."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def be_careful() -> None:
    """From now on let signals be exceptions in any case: there are processes to end."""
    global _careful
    _careful = True


def exit_code() -> int | None:
    """What a command that was interrupted exits with, 128 and the number of the signal; None if it was not."""
    return 128 + _caught[0] if _caught else None


def _handle(number: int, frame: FrameType | None) -> None:
    _caught.append(number)
    outputs = sys.modules.get("temporal_vae.outputs")
    unfinished = getattr(outputs, "anything_unfinished", bool)()
    if len(_caught) > 2 or not (unfinished or _careful):
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
        if os.environ.get("RANK", "0") == "0":  # of several processes that a launcher ends, one speaks
            os.write(2, f"{cursor}temporal-vae: {MESSAGE}\n".encode())
        os._exit(128 + number)
    if len(_caught) == 1:  # a second one waits for what the first does; a third does not
        raise KeyboardInterrupt


class Interrupts:
    """Remembers that the run was asked to end; a second Ctrl-C ends it at once. A context manager.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # as `nohup` asks
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
