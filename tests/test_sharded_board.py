"""Signs of life: who is done, slow, still, silent or has failed. Ranks are boards on one store."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from torch.distributed import HashStore

from temporal_vae.distributed.clip import board
from temporal_vae.distributed.clip.board import Board
from temporal_vae.errors import RankError

TIMEOUT, LONG = 0.6, 1.6
given_up = threading.Event()


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(board, "BEAT", 0.05)
    before = set(threading.enumerate())
    given_up.clear()
    yield
    given_up.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def boards(count: int, timeout: float = TIMEOUT) -> list[Board]:
    store, name = HashStore(), "test"
    return [Board(store, name, rank, count, timeout=timeout, give_up=given_up.set) for rank in range(count)]


def sleep_long() -> None:
    given_up.wait(LONG)


def test_a_rank_that_is_done_is_not_missed():
    first, second, third = boards(3)
    with first, third:
        with second:
            second.step()
        first.wait(sleep_long)


def test_a_rank_that_is_slow_may_take_its_time():
    first, second = boards(2)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.1):
            second.step()

    thread = threading.Thread(target=work)
    with first, second:
        thread.start()
        first.wait(sleep_long, 1)
        stop.set()
        thread.join()


def test_a_rank_that_stands_still_is_named_by_those_who_wait_for_those_who_wait_for_it():
    first, second, third = boards(3)
    with first, second, third, ExitStack() as waiting:
        done = threading.Event()
        waiting.callback(done.set)
        errors: list[RankError] = []

        def wait() -> None:
            try:
                second.wait(done.wait, 2)
            except RankError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        with pytest.raises(RankError, match=r"rank 2 .* has come no further") as found:
            first.wait(lambda: done.wait(5), 1)
        assert found.value.rank == 2
        thread.join()
        assert errors[0].rank == 2


def test_a_rank_that_says_nothing_is_named():
    first, _ = boards(2)
    with first, pytest.raises(RankError, match="rank 1 has given no sign of life") as found:
        first.wait(sleep_long)
    assert found.value.rank == 1


def test_a_rank_that_fails_ends_those_who_wait_at_once():
    first, second = boards(2, timeout=60)
    begun = time.monotonic()
    with pytest.raises(ValueError, match="no such thing"), second:
        raise ValueError("no such thing")
    with first, pytest.raises(RankError, match=r"rank 1 .* failed: ValueError: no such thing"):
        first.wait(lambda: given_up.wait(30), 1)
    assert time.monotonic() - begun < 20
