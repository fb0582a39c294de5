"""Threads that sweep: each calls a kernel once for a pass, which takes jobs until none is left.

Sweeps are short and many, so what lies between them counts. The caller is one of the crew; the others wait in machine
code, without the interpreter's lock: for some microseconds awake, as the next sweep is near, and then asleep. What they
are to do stands on a board, an array of 64-bit words.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from threading import Thread
from time import perf_counter

import numpy as np
import torch

from temporal_vae.engine import processor
from temporal_vae.engine.kernels import Progress, compiler
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.compiler import Function, Sweep
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.threads import once
from temporal_vae.engine.workers import Workers

SECONDS = 0.1  # that the caller is away at a time: then it tells of progress, and may be interrupted

# Words of the board. Those that several threads write have a cache line of their own.
SWEEPS, BUSY, TICKET = 0, 8, 16  # sweeps so far; helpers that are still at work; the next job
CODE, CALL, JOBS, COUNT = range(24, 28)  # what is swept; no code ends the work
SYSTEM = 28  # address of the function that lets a thread sleep and wakes it
ROOMS = 32  # addresses of scratch, one for each of the crew

FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
"""Linux's number of the call that sleeps until a word changes. Other systems just sleep for a little while."""
SLEEP_AND_WAKE = 128, 129  # of that call, within a process
EVERYBODY = 2**31 - 1
SPINS = 5000  # looks at a word before a thread sleeps: one or two tenths of a millisecond
MICROSECONDS = 50  # of sleep, where a thread is not woken
ALL = 2**62  # jobs: as many as there are


class Crew:
    """The caller and `workers.count - 1` helpers, who are there as long as the workers are at work."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._helpers: list[Thread] = []
        board = torch.zeros(ROOMS + workers.count, dtype=torch.int64)  # torch aligns to cache lines
        board[SYSTEM] = _system()
        self._board, self._place = board.numpy(), board.data_ptr()

    @property
    def count(self) -> int:
        """How many they are."""
        return self.workers.count

    def sweep(
        self,
        code: Sweep,
        call: Sequence[int],
        jobs: np.ndarray[tuple[int, int], np.dtype[np.int64]],
        rooms: Sequence[int],
        progress: Progress,
    ) -> None:
        """Run a kernel over all jobs.

        Args:
            code: the kernel.
            call: the fields that its jobs share.
            jobs: the fields of each, a row.
            rooms: addresses of scratch, one for each of the crew.
            progress: told of shares of the work that are done, all of them one.
        """
        fields, count, board = np.array(call, dtype=np.int64), len(jobs), self._board
        given = fields.ctypes.data, jobs.ctypes.data, count, self._place + 8 * TICKET
        helpers = self._hire() if count > 1 else 0
        board[TICKET] = 0
        told = 0
        if helpers:
            board[CODE:SYSTEM] = code.address, *given[:3]
            board[ROOMS:] = rooms
        try:
            if helpers:
                _function("begin")(self._place, helpers)
            at_a_time = 1
            while True:
                begun = perf_counter()
                code(*given, rooms[0], at_a_time)
                if (taken := int(board[TICKET])) >= count:
                    break
                done = max(told, taken - helpers)
                progress((done - told) / count)
                told = done
                at_a_time = max(1, int(at_a_time * SECONDS / (perf_counter() - begun)))
        finally:
            board[TICKET] = count  # an error or an interrupt ends the sweep
            if helpers:
                _function("join")(self._place)
        progress((count - told) / count)

    def _hire(self) -> int:
        """Have helpers, if the workers are at work; how many."""
        if self.count > 1 and not self._helpers and self.workers.at_end(self._dismiss):
            for number in range(1, self.count):
                arguments, name = (self._place, number), f"temporal-vae-{number}"
                helper = Thread(target=_function("serve"), args=arguments, name=name, daemon=True)
                helper.start()
                self._helpers.append(helper)
        return len(self._helpers)

    def _dismiss(self) -> None:
        """The work is over."""
        self._board[CODE] = 0
        _function("begin")(self._place, 0)
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()


@once
def _system() -> int:
    """Address of the function that lets a thread sleep."""
    library = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
    function = library.syscall if FUTEX else library.Sleep if sys.platform == "win32" else library.usleep
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


@once
def _function(name: str) -> Function:
    """One of the functions below, in machine code."""
    machine = processor.host()
    assert machine is not None
    emit, arguments = _FUNCTIONS[name]
    return compiler.function(emit, arguments, machine, "crew", name, FUTEX)


def _serve(b: Builder, machine: Machine, board: Value, number: Value) -> None:
    """What a helper does: sweep after sweep, until there is none any more."""
    seen = b.variable(b.integer(0))
    with b.forever() as leave:
        _await(b, board, SWEEPS, b.get(seen))
        b.set(seen, b.shared_word(_at(b, board, SWEEPS)))
        code, call, jobs, count = (b.word(_at(b, board, field)) for field in range(CODE, SYSTEM))
        leave(b.ir.icmp_signed("==", code, b.integer(0)))
        room = b.word(b.add(_at(b, board, ROOMS), b.mul(number, 8)))
        b.call(code, call, jobs, count, _at(b, board, TICKET), room, b.integer(ALL))
        before = b.count_up(_at(b, board, BUSY), -1)
        with b.ir.if_then(b.ir.icmp_signed("==", before, b.integer(1))):
            _wake(b, board, BUSY)


def _begin(b: Builder, machine: Machine, board: Value, helpers: Value) -> None:
    """Let all helpers begin with what stands on the board."""
    b.ir.store(helpers, b.pointer(_at(b, board, BUSY)), align=8)
    b.count_up(_at(b, board, SWEEPS), 1)
    _wake(b, board, SWEEPS)


def _join(b: Builder, machine: Machine, board: Value) -> None:
    """Wait for all helpers."""
    with b.forever() as leave:
        busy = b.shared_word(_at(b, board, BUSY))
        leave(b.ir.icmp_signed("==", busy, b.integer(0)))
        _await(b, board, BUSY, busy)


def _at(b: Builder, board: Value, word: int) -> Value:
    return b.add(board, 8 * word)


def _await(b: Builder, board: Value, word: int, old: Value) -> None:
    """Wait until a word has another value."""
    spins, place = b.variable(b.integer(0)), _at(b, board, word)
    with b.forever() as leave:
        leave(b.ir.icmp_signed("!=", b.shared_word(place), old))
        many = b.ir.icmp_signed(">=", b.get(spins), b.integer(SPINS))
        with b.ir.if_else(many) as (then, otherwise):
            with then:
                if FUTEX:
                    _call_system(b, board, FUTEX, place, SLEEP_AND_WAKE[0], old, 0)
                else:
                    _call_system(b, board, 1 if sys.platform == "win32" else MICROSECONDS)
            with otherwise:
                b.set(spins, b.add(b.get(spins), 1))
                b.pause()


def _wake(b: Builder, board: Value, word: int) -> None:
    """Wake whoever sleeps for a word."""
    if FUTEX:
        _call_system(b, board, FUTEX, _at(b, board, word), SLEEP_AND_WAKE[1], EVERYBODY, 0)


def _call_system(b: Builder, board: Value, *given: int | Value) -> None:
    b.call(b.word(_at(b, board, SYSTEM)), *map(b.integer, given))


_FUNCTIONS: dict[str, tuple[compiler.Emit, tuple[str, ...]]] = {
    "serve": (_serve, ("board", "number")),
    "begin": (_begin, ("board", "helpers")),
    "join": (_join, ("board",)),
}
