"""Processes of this machine that take tasks and give results; one that dies is replaced.

Each process has a pipe of its own, and a thread that empties it at once: it sees the driver end, however that comes
about, and ends too. Two tasks are in a process at most, so that the next one is there when the last is done.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from temporal_vae.errors import TemporalVaeError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_HAND = 2  # tasks that a process has at a time, one of them waiting
_DEATHS_AT_START = 3  # one after the other, while nobody else gets anything done, before all is given up

Make = Callable[[int], Callable[[Any], Any]]


class WorkerError(TemporalVaeError, RuntimeError):
    """Processes that cannot be started, or one in which something unforeseen went wrong."""


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Task, Result]):
    """A task and its result."""

    task: Task
    result: Result


@dataclass(frozen=True, kw_only=True)
class Died(Generic[Task]):
    """A task over which its process died. It is not given out again unless the caller says so."""

    task: Task


def in_processes(
    make: Make, tasks: Iterable[Task], count: int, again: deque[Task]
) -> Generator[Done[Task, Any] | Died[Task], None, None]:
    """Have tasks done by `count` processes, in any order. Closing the iterator ends the processes.

    Args:
        make: called in each process with its number; returns what does a task. It is pickled, as tasks and results are.
        tasks: taken when a process can have one.
        count: of processes.
        again: tasks to do before all others; the caller puts those there that a process died over.

    Raises:
        WorkerError: processes that die before they do anything, or an exception in one of them.
        TemporalVaeError: what `make` or a task raised.
    """
    crew = _Crew(make, iter(tasks), count, again)
    try:
        yield from crew.work()
    finally:
        crew.end()


@dataclass(eq=False)
class _Hand:
    process: BaseProcess
    pipe: Connection
    number: int
    tasks: deque[Any] = field(default_factory=deque)
    started: bool = False


class _Crew:
    def __init__(self, make: Make, tasks: Iterator[Any], count: int, again: deque[Any]) -> None:
        self._make, self._tasks, self._again = make, tasks, again
        self._dead_at_start = 0
        self._hands: list[_Hand] = []
        self._numbers = range(count)

    def work(self) -> Iterator[Done[Any, Any] | Died[Any]]:
        """Give out tasks and yield what becomes of them, until there are none."""
        while True:
            self._give_out()
            if not any(hand.tasks for hand in self._hands):
                return
            ready = set(wait([each for hand in self._hands for each in (hand.pipe, hand.process.sentinel)]))
            for hand in list(self._hands):
                if hand.pipe in ready:
                    yield from self._hear(hand)
                elif hand.process.sentinel in ready:
                    yield from self._bury(hand)

    def end(self) -> None:
        """End all processes, whatever they do."""
        for hand in self._hands:
            hand.pipe.close()
            hand.process.kill()
        for hand in self._hands:
            hand.process.join()
        self._hands.clear()

    def _give_out(self) -> None:
        """Fill hands in turn, so that each has one task before any has two."""
        for most in range(1, _IN_HAND + 1):
            for number in self._numbers:
                hand = next((hand for hand in self._hands if hand.number == number), None)
                if hand is not None and len(hand.tasks) >= most:
                    continue
                task = self._next()
                if task is None:
                    return
                hand = hand or self._hire(number)
                hand.tasks.append(task)
                with suppress(OSError):  # it died: its sentinel says so
                    hand.pipe.send(task)

    def _next(self) -> Any:
        if self._again:
            return self._again.popleft()
        return next(self._tasks, None)

    def _hire(self, number: int) -> _Hand:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_live, args=(theirs, self._make, number), daemon=True)
        process.start()
        theirs.close()
        hand = _Hand(process=process, pipe=ours, number=number)
        self._hands.append(hand)
        return hand

    def _hear(self, hand: _Hand) -> Iterator[Done[Any, Any] | Died[Any]]:
        try:
            kind, value = hand.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, perhaps in the middle of a word
            yield from self._bury(hand)
            return
        if kind == "error":
            raise value
        self._dead_at_start = 0  # somebody can work
        if kind == "started":
            hand.started = True
            return
        yield Done(task=hand.tasks.popleft(), result=value)

    def _bury(self, hand: _Hand) -> Iterator[Died[Any]]:
        hand.process.join()
        hand.pipe.close()
        self._hands.remove(hand)
        tasks = list(hand.tasks)
        if not hand.started:
            self._dead_at_start += 1
            if self._dead_at_start >= _DEATHS_AT_START:
                raise WorkerError(
                    f"worker processes end while they start (exit code {hand.process.exitcode}); a script that "
                    'starts them needs `if __name__ == "__main__":` around what it does'
                )
            self._again.extendleft(reversed(tasks))
            return
        self._again.extendleft(reversed(tasks[1:]))
        if tasks:
            yield Died(task=tasks[0])


def _live(pipe: Connection, make: Make, number: int) -> None:
    """What a process does."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to all processes of a terminal: the driver decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    try:
        work = make(number)
        pipe.send(("started", None))
        while True:
            pipe.send(("done", work(inbox.get())))
    except TemporalVaeError as error:
        _tell(pipe, error)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}"
        _tell(
            pipe,
            WorkerError(f"a worker process failed at {place} ({type(error).__name__}: {error}); report it"),
        )


def _tell(pipe: Connection, error: Exception) -> None:
    with suppress(OSError):
        try:
            pipe.send(("error", error))
        except (pickle.PicklingError, TypeError, AttributeError):
            pipe.send(("error", WorkerError(str(error))))


def _listen(pipe: Connection, inbox: SimpleQueue[Any]) -> None:
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):  # the driver is no more
            os._exit(1)
