"""Clip after clip of a long video: the next one is read and the last one used while the present one computes.

Three parties work at once: a thread that reads, a thread that computes, and whoever iterates over the results. Each
hands one thing at a time to the next and goes on when it was taken, so that at most one clip waits before the
computation, one is in it, and one result waits or is in use after it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from threading import Condition, Event, Thread, current_thread
from typing import Generic, TypeVar

import torch

from temporal_vae.engine import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def stream(compute: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """`map(compute, items)`, with the next item read and the last result used while the present one is computed.

    Nothing is read before the first result is asked for. `items` and `compute` run in threads of their own, without
    gradients, in copies of the context (`contextvars`) and on the CUDA stream of whoever asks for the first result.

    An exception of `items` or `compute` is raised where the results are used, with its type and traceback, after the
    results of all items before it. Both threads are over when the iteration is: at its end, after an exception, or
    when it is closed early, by `close()` or because nobody refers to it any more. Closing it stops the engine
    at its next tile; it waits for an item that is being read, and for what is computed outside of the engine.
    """
    stopped = Event()
    read: _Place[Item] = _Place(stopped)
    computed: _Place[Result] = _Place(stopped)
    # Daemons, so that a program may end although it still holds an iteration that it did not finish.
    threads = [
        _thread("read", lambda: read.fill(items)),
        _thread("compute", lambda: _guarded(stopped, lambda: computed.fill(map(compute, read)))),
    ]
    try:
        for thread in threads:
            thread.start()
        yield from computed
    finally:
        stopped.set()
        read.wake()
        computed.wake()
        for thread in threads:
            # Not so where the first was interrupted as it started, or where the garbage collector runs in a thread.
            if thread.is_alive() and thread is not current_thread():
                thread.join()


class _Stopped(Exception):
    """Nobody wants the results any more."""


class _Place(Generic[Item]):
    """Where one thing at a time goes from thread to thread; who puts it there goes on when it was taken."""

    def __init__(self, stopped: Event) -> None:
        self._stopped = stopped
        self._changed = Condition()
        self._waiting: list[Item] = []  # none or one
        self._ended = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[Item]) -> None:
        """Hand over all items, then their end or what went wrong."""
        try:
            for item in items:
                self._put(item)
                del item  # or it would be held while the next one is made
        except _Stopped:
            return
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        """Take one item after the other."""
        while self._arrived():
            yield self._take()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame

    def wake(self) -> None:
        """Let whoever waits here see that all is stopped."""
        with self._changed:
            self._changed.notify_all()

    def _put(self, item: Item) -> None:
        with self._changed:
            self._waiting.append(item)
            self._changed.notify_all()
            self._wait(lambda: not self._waiting)

    def _arrived(self) -> bool:
        """Wait for an item; False after the last."""
        with self._changed:
            self._wait(lambda: bool(self._waiting) or self._ended)
            return bool(self._waiting)

    def _take(self) -> Item:
        with self._changed:
            item = self._waiting.pop()
            self._changed.notify_all()
            return item

    def _wait(self, condition: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._stopped.is_set() or condition())
        if self._stopped.is_set():
            raise _Stopped


def _thread(name: str, work: Callable[[], None]) -> Thread:
    """A thread that works in a copy of the present context and on the present CUDA stream, without gradients."""
    context, on_stream = copy_context(), _present_cuda_stream()

    def run() -> None:
        with on_stream, torch.no_grad():
            work()

    return Thread(target=context.run, args=(run,), name=f"temporal-vae {name}", daemon=True)


def _present_cuda_stream() -> AbstractContextManager[None]:
    return torch.cuda.stream(torch.cuda.current_stream()) if torch.cuda.is_initialized() else nullcontext()


def _guarded(stopped: Event, work: Callable[[], None]) -> None:
    """Work so that the engine, which reports after each tile, is interrupted once all is stopped."""
    listener = progress.listener_now()

    def listen(done: int, total: int) -> None:
        if stopped.is_set():
            raise _Stopped
        if listener is not None:
            listener(done, total)

    with progress.reporting(listen):
        work()
