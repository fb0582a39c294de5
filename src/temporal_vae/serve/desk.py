"""One model, one computation at a time: who wants it takes a place, waits for a turn, and can be called off.

A single thread computes, in the order in which it was asked. Requests hold a place from before their body is read until
their answer is sent, so that what they hold in memory is bounded; jobs ask for one turn per clip, so that requests come
between the clips of a long video.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context
from math import ceil
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

from temporal_vae import engine
from temporal_vae.serve.refusals import Refusal, busy, gone, stopping, too_large

Result = TypeVar("Result")

_USUAL_SPEED = 5e10  # multiply-adds per second, until some were timed
_INERTIA = 0.7  # share of what was known of the speed that a new figure leaves
_LONGEST_WAIT = 600  # seconds that a client is told to wait at most


class Task:
    """A computation that may be called off; the engine looks at it after each tile."""

    def __init__(self) -> None:
        self.began = False
        self._reason: Refusal | None = None
        self.future: Future[Any] | None = None

    def call_off(self, reason: Refusal) -> None:
        """Let it end with this reason: at once where it waits, else at the next tile."""
        self._reason = self._reason or reason
        future = self.future
        if future is not None:
            future.cancel()

    @property
    def reason(self) -> Refusal | None:
        """Why it was called off, to be raised: once more for each thread that does."""
        return self._reason and self._reason.anew()

    def check(self, done: int = 0, total: int = 0) -> None:
        """Raise the reason if it was called off; a listener of the engine."""
        if self._reason is not None:
            raise self._reason.anew()

    def run(self, function: Callable[[], Result]) -> Result:
        """Compute in this thread."""
        self.began = True
        self.check()
        with engine.reporting(self.check):
            return function()


class Place:
    """What a request holds: a place in the queue, and memory for its tensors."""

    def __init__(self, desk: Desk, held: int, work: int) -> None:
        self.task, self.held, self.work = Task(), held, work
        self._desk = desk

    def release(self, *_: object) -> None:
        """Give it back; any number of times."""
        self._desk._release(self)

    def release_when_done(self) -> None:
        """Give it back once what is computed for it has really ended."""
        future = self.task.future
        if future is None:
            self.release()
        else:
            future.add_done_callback(self.release)


class Desk:
    """Hands out places and turns.

    Args:
        places: requests in hand at once.
        held_limit: bytes that all of them may hold.

    Attributes:
        speed: multiply-adds per second, as requests were computed of late.
    """

    def __init__(self, *, places: int, held_limit: int) -> None:
        self._most, self._held_limit = places, held_limit
        self._places: set[Place] = set()
        self._lock = Lock()
        self._closed = False
        self.speed = _USUAL_SPEED
        self._timed_any = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="temporal-vae computes")

    @property
    def closed(self) -> bool:
        """Whether nothing new is begun."""
        return self._closed

    @property
    def taken(self) -> int:
        """Requests in hand."""
        return len(self._places)

    @property
    def held(self) -> int:
        """Bytes that they hold."""
        with self._lock:
            return sum(place.held for place in self._places)

    def take(self, *, held: int, work: int) -> Place:
        """A place for a request that holds so many bytes and computes so much.

        Raises:
            Refusal: too large for this server, too many for now, or the server is stopping.
        """
        if held > self._held_limit:
            raise too_large(
                f"its tensors take {engine.readable(held)}, and requests may hold {engine.readable(self._held_limit)}; "
                "send less, or start the server with more --memory-limit"
            )
        place = Place(self, held, work)
        with self._lock:
            if self._closed:
                raise stopping()
            fits = sum(other.held for other in self._places) + held <= self._held_limit
            if len(self._places) < self._most and fits:
                self._places.add(place)
                return place
            ahead = sum(other.work for other in self._places)
        raise busy(
            f"{len(self._places)} requests are in hand already; send this again later", self._wait(ahead)
        )

    async def compute(
        self,
        place: Place,
        function: Callable[[], Result],
        *,
        seconds: float,
        late: Refusal,
        left: Coroutine[Any, Any, object],
    ) -> Result:
        """Compute in turn; called off when time is over, or once `left` says that the client went away.

        Args:
            place: of the request.
            function: what is computed.
            seconds: how much time there is.
            late: the reason when it is over.
            left: returns when the client goes away.

        Raises:
            Refusal: it was called off, by whomever.
        """
        watch: asyncio.Future[Any] = asyncio.create_task(left)
        place.task.future = future = self.turn(lambda: self._timed(place, function))
        waiting: asyncio.Future[Any] = asyncio.wrap_future(future)
        waiting.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # somebody has to look at it
        try:
            await asyncio.wait({waiting, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                place.task.call_off(gone() if watch.done() else late)
                raise place.task.reason or gone()
            return future.result()
        except CancelledError:
            raise place.task.reason or stopping() from None
        finally:
            watch.cancel()
            if not future.done():
                place.task.call_off(stopping())
            del future, waiting  # an error that they hold would hold this frame, and the frame them

    def turn(self, function: Callable[[], Result]) -> Future[Result]:
        """Have something computed when everything that was asked for before is done, in a copy of this context."""
        return self._executor.submit(copy_context().run, function)

    def close(self) -> None:
        """Begin nothing new: what waits is refused, what is being computed goes on."""
        with self._lock:
            self._closed = True
        for place in self._in_hand():
            if not place.task.began:
                place.task.call_off(stopping())

    def call_off(self) -> None:
        """Refuse what is being computed, too; it ends at its next tile."""
        self.close()
        for place in self._in_hand():
            place.task.call_off(stopping())

    def end(self) -> None:
        """Call everything off and wait until nothing is computed any more."""
        self.call_off()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _timed(self, place: Place, function: Callable[[], Result]) -> Result:
        began = perf_counter()
        result = place.task.run(function)
        speed = place.work / max(perf_counter() - began, 1e-6)
        self.speed = _INERTIA * self.speed + (1 - _INERTIA) * speed if self._timed_any else speed
        self._timed_any = True
        return result

    def _wait(self, work: int) -> int:
        """Whole seconds after which to ask again, by what was timed so far."""
        return min(max(1, ceil(work / self.speed)), _LONGEST_WAIT)

    def _in_hand(self) -> list[Place]:
        with self._lock:
            return list(self._places)

    def _release(self, place: Place) -> None:
        place.task.future = None  # it holds the answer, which holds its place
        with self._lock:
            self._places.discard(place)
