"""How ranks notice that one of them died, failed or stands still: signs of life in the store of their group.

Each rank writes, a few times a second, how often it has done so, how far it has come, whom it waits for and whether it
failed, and reads what the others wrote. A rank that waits does so in a thread, and gives up when a rank has failed,
when one has written nothing for as long as the timeout, or when the one that all others wait for has come no further
for as long.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from queue import SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any

from temporal_vae.engine import Listener
from temporal_vae.errors import RankError, one_line

BEAT = 0.25  # seconds between signs of life
ANSWER = 2.0  # seconds in which a store answers
BEATS_TO_DIE = 6  # after which a rank whose connection broke is held to be dead, if it gave no sign meanwhile


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a rank says of itself."""

    place: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")
    beat: int = 0
    steps: int = 0  # tiles, transfers and whatever else it has done
    waits_for: int | None = None
    done: bool = False  # it has its results, and says no more
    failure: str | None = None
    culprit: int | None = None  # who failed first, as far as it knows

    @property
    def progress(self) -> tuple[int, int | None]:
        """What changes when it comes further."""
        return self.steps, self.waits_for


@dataclass(slots=True)
class _Seen:
    """The last sign of a rank, and when it and its progress changed."""

    sign: Sign
    changed: float
    moved: float


class Board:
    """Signs of life of the ranks of a group; a context manager.

    Args:
        store: of the group, `torch.distributed.Store`.
        name: of what they do together, the same on all ranks and new each time.
        rank: this one.
        ranks: how many there are.
        timeout: seconds that a rank may give no sign, or come no further.
        give_up: ends what `wait` was given, when nobody wants it any more.
    """

    def __init__(
        self,
        store: Any,
        name: str,
        rank: int,
        ranks: int,
        *,
        timeout: float,
        give_up: Callable[[], object],
    ) -> None:
        self.rank, self.ranks, self.timeout = rank, ranks, timeout
        self._give_up = give_up
        self._store, self._name = _own_connection(store), name
        self._sign, self._lock, self._steps = Sign(), Lock(), 0
        now = monotonic()
        self._seen = {other: _Seen(Sign(place=""), now, now) for other in range(ranks) if other != rank}
        self._read = now  # when the store answered last
        self._beat, self._end = Event(), Event()
        self._thread = Thread(target=self._beat_on, name="temporal-vae signs of life", daemon=True)
        self._waiter = _Waiter()

    def __enter__(self) -> Board:
        self._thread.start()
        self._waiter.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._say(done=True)
        else:
            culprit = error.rank if isinstance(error, RankError) else None
            name = kind.__name__ if kind is not None else ""
            self._say(failure=f"{name}: {one_line(error)}", culprit=self.rank if culprit is None else culprit)
        self._end.set()
        self._beat.set()
        self._thread.join(2 * ANSWER)
        if not self._waiter.end():
            self._give_up()  # or the thread would be there when the interpreter ends, and abort it
            self._waiter.end()

    def step(self) -> None:
        """This rank has come further."""
        self._steps += 1

    def listening(self, listener: Listener | None) -> Listener:
        """A listener of the engine that takes whatever is done as a sign of progress, and tells another one."""

        def listen(done: int, total: int) -> None:
            self.step()
            if listener is not None:
                listener(done, total)

        return listen

    def wait(self, work: Callable[[], object], rank: int | None = None) -> None:
        """Do what waits for other ranks, one of them in particular or not.

        Raises:
            RankError: a rank died, failed or stands still; the message names it.
        """
        self._say(waits_for=rank)
        done, errors = self._waiter.start(work)
        began = monotonic()
        while not done.wait(BEAT):
            self._look(began)
        self._say(waits_for=None)
        with self.explaining(rank):
            if errors:
                raise errors[0]
        self.step()

    @contextmanager
    def explaining(self, rank: int | None = None) -> Iterator[None]:
        """Within this, a connection that breaks is a `RankError` that says why; `rank` is at its other end."""
        try:
            yield
        except RuntimeError as error:
            raise self._explained(error, rank) from error

    def check(self) -> None:
        """Raise `RankError` if a rank has failed."""
        for other, seen in self._seen.items():
            if seen.sign.failure is not None:
                raise self._failed(other, seen.sign)

    def _look(self, began: float) -> None:
        """Raise what keeps a wait from ending."""
        self.check()
        now = monotonic()
        if now - self._read > self.timeout:
            raise self._lost_store()
        for other, seen in self._seen.items():
            if now - max(seen.changed, began) > self.timeout and not seen.sign.done:
                raise self._silent(other, seen.sign)
        slowest = self._last_in_line()
        if slowest is None:
            return
        seen = self._seen[slowest]
        if now - max(seen.moved, began) > self.timeout and not seen.sign.done:
            raise RankError(
                f"rank {slowest} ({seen.sign.place}) has come no further for {self.timeout:g} s, and others wait for "
                "it; look at what it does, or allow more time with --timeout (timeout=)",
                rank=slowest,
            )

    def _last_in_line(self) -> int | None:
        """The rank that this one waits for, or the one which that one waits for, and so on to one that computes."""
        at, passed = self._sign.waits_for, {self.rank}
        while at is not None and at not in passed:
            passed.add(at)
            after = self._seen[at].sign.waits_for
            if after is None or after in passed:
                return at
            at = after
        return None

    def _explained(self, error: RuntimeError, rank: int | None) -> RankError:
        """The error in words: a connection breaks when a rank dies, and when it ends because another did."""
        before = {other: seen.sign.beat for other, seen in self._seen.items()}
        for _ in range(BEATS_TO_DIE):
            for other, seen in self._seen.items():
                if seen.sign.failure is not None:
                    return self._failed(other, seen.sign)
            sleep(BEAT)
        if monotonic() - self._read > BEATS_TO_DIE * BEAT / 2:
            return self._lost_store()
        silent = [
            other
            for other, seen in self._seen.items()
            if seen.sign.beat == before[other] and not seen.sign.done
        ]
        if rank not in silent and silent:
            rank = min(silent, key=lambda other: self._seen[other].changed)
        if rank is None:
            return RankError(f"the ranks lost each other ({one_line(error)}); start again")
        place = self._seen[rank].sign.place
        return RankError(
            f"rank {rank} ({place}) is gone: it was ended or its machine lost; start again", rank=rank
        )

    def _lost_store(self) -> RankError:
        return RankError(
            "the store of the ranks does not answer: rank 0, which keeps it where torchrun does not, stands still or "
            "is gone; start again",
            rank=0,
        )

    def _failed(self, other: int, sign: Sign) -> RankError:
        culprit = other if sign.culprit is None else sign.culprit
        if culprit in (other, self.rank):
            return RankError(f"rank {other} ({sign.place}) failed: {sign.failure}", rank=other)
        return RankError(
            f"rank {culprit} is the reason that rank {other} gave up: {sign.failure}", rank=culprit
        )

    def _silent(self, other: int, sign: Sign) -> RankError:
        place = f" ({sign.place})" if sign.place else ""
        return RankError(
            f"rank {other}{place} has given no sign of life for {self.timeout:g} s: it was stopped, ended or lost; "
            "start again, or allow more time with --timeout (timeout=)",
            rank=other,
        )

    def _say(self, **changes: Any) -> None:
        """Change what this rank says, and say a failure at once."""
        with self._lock:
            self._sign = replace(self._sign, **changes)
        if "failure" in changes:
            self._beat.set()

    # In the thread

    def _beat_on(self) -> None:
        """Write and read until the end; what the store does not take is tried again."""
        pause = max(BEAT, self.ranks / 128)
        while True:
            ends = self._end.is_set()
            with suppress(RuntimeError):  # torch's errors of stores are of this kind
                self._write()
                if ends:
                    return
                self._look_around()
            if ends:
                return
            self._beat.wait(pause)
            self._beat.clear()

    def _write(self) -> None:
        with self._lock:
            self._sign = sign = replace(self._sign, beat=self._sign.beat + 1, steps=self._steps)
        self._store.set(self._key(self.rank), json.dumps(asdict(sign)))

    def _look_around(self) -> None:
        for other, seen in self._seen.items():
            key = self._key(other)
            if not self._store.check([key]):
                continue
            sign, now = Sign(**json.loads(self._store.get(key))), monotonic()
            if sign.progress != seen.sign.progress:
                seen.moved = now
            if sign.beat != seen.sign.beat:
                seen.changed = now
            seen.sign = sign
        self._read = monotonic()

    def _key(self, rank: int) -> str:
        return f"temporal-vae/{self._name}/{rank}"


class _Waiter:
    """A thread that waits, so that the one that asks may look around meanwhile, and give up."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._loop, name="temporal-vae wait", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def start(self, work: Callable[[], object]) -> tuple[Event, list[BaseException]]:
        """Begin to wait; the event is set at the end, when the list holds what went wrong."""
        done, errors = Event(), list[BaseException]()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self._asked.put(run)
        return done, errors

    def end(self) -> bool:
        """Stop; false if the thread still waits."""
        self._asked.put(None)
        self._thread.join(BEAT)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (run := self._asked.get()) is not None:
            run()


def _own_connection(store: Any) -> Any:
    """The store by a connection of its own, where it knows that: others may be in the middle of something."""
    try:
        own = store.clone()
    except (AttributeError, NotImplementedError, RuntimeError):
        return store
    own.set_timeout(timedelta(seconds=ANSWER))
    return own
