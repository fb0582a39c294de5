"""Who hears how far a computation is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

Listener = Callable[[int, int], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def reporting(listener: Listener) -> Iterator[None]:
    """Within this, `listener(done, total)` is told of every encode and decode: multiply-adds done, and all of them.

    It is called from the threads that compute, one call at a time, often; it should return at once. If it raises, the
    computation ends with that error.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener_now() -> Listener | None:
    """Who hears of it at present."""
    return _LISTENER.get()


def at_most(total: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """`advance`, told of no more than a total: what is done again is not counted."""
    lock, left = Lock(), total

    def tell(amount: int) -> None:
        nonlocal left
        with lock:
            amount = min(amount, left)
            left -= amount
        advance(amount)

    return tell


def counter(total: int) -> Callable[[int], None]:
    """A function that passes on what was done to the present listener."""
    listener = _LISTENER.get()
    if listener is None:
        return lambda amount: None
    lock, done = Lock(), 0

    def advance(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            listener(done, total)

    return advance
