"""Threads that work on tiles side by side.

Each thread takes the next tile when it is done with one, keeps it in its own cache and uses torch with a single
thread of its own: tiles are independent, so nobody waits for anybody until the pass is over. A single worker is a
thread too, and so computes the same to the bit as several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import count
from threading import Event, Lock
from typing import TypeVar

import torch

from temporal_vae.engine.threads import use_one_torch_thread

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """`count` threads, numbered so that each can have scratch of its own; on a GPU each with its own stream."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self._device = device
        self._pool: ThreadPoolExecutor | None = None
        self._until_end = ExitStack()
        cuda = device.type == "cuda"
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if cuda else None

    @contextmanager
    def at_work(self) -> Iterator[Workers]:
        """Start the threads, and end them afterwards."""
        with (
            ThreadPoolExecutor(self.count, "temporal-vae", initializer=use_one_torch_thread) as pool,
            self._until_end,
        ):
            self._pool = pool
            try:
                yield self
            finally:
                self._pool = None

    def at_end(self, callback: Callable[[], object]) -> bool:
        """Call back when the threads end; false if they have not begun."""
        if self._pool is not None:
            self._until_end.callback(callback)
        return self._pool is not None

    def run(self, work: Callable[[Job, int], Result], jobs: Sequence[Job]) -> list[Result]:
        """`[work(job, worker) for job in jobs]`, side by side; results in the order of the jobs."""
        results: list[Result] = []
        self.each(work, jobs, results.append)
        return results

    def each(
        self, work: Callable[[Job, int], Result], jobs: Sequence[Job], receive: Callable[[Result], object]
    ) -> None:
        """`for job in jobs: receive(work(job, worker))`, side by side; results are received in the order of the jobs.

        Few results wait for those before them, so that many large ones need little memory if `receive` adds them up.
        """
        tickets, lock, stop = count(), Lock(), Event()
        waiting: dict[int, Result] = {}
        received = 0
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        def hand_over() -> None:
            nonlocal received
            while received in waiting:
                receive(waiting.pop(received))
                received += 1

        def loop(worker: int) -> None:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad), self._stream(worker):
                try:
                    while not stop.is_set() and (index := next(tickets)) < len(jobs):
                        result = work(jobs[index], worker)
                        with lock:
                            waiting[index] = result
                            if not self._streams:  # what another stream computes is not there yet
                                hand_over()
                except BaseException:
                    stop.set()  # for all workers, at their next tile
                    raise

        for stream in self._streams or ():
            stream.wait_stream(torch.cuda.current_stream(self._device))
        loops: list[Future[None]] = []
        try:
            if self._pool is None:
                loop(0)
            else:
                loops += [self._pool.submit(loop, worker) for worker in range(min(self.count, len(jobs)))]
                wait(loops)
                # An error holds this frame, which must not hold the error: all buffers would stay.
                while loops:
                    loops.pop().result()
        finally:
            stop.set()  # an interrupt of the caller ends the pass too
            wait(loops)
            loops.clear()
            for stream in self._streams or ():
                torch.cuda.current_stream(self._device).wait_stream(stream)
        hand_over()

    def _stream(self, worker: int) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._streams[worker]) if self._streams else nullcontext()
