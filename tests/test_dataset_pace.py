"""Batches are small at first, and take about half a minute later."""

import pytest

from temporal_vae.distributed.dataset import pace
from temporal_vae.distributed.dataset.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(pace, "monotonic", lambda: now[0])
    return now


def sizes(given: Pace, clips: int) -> list[int]:
    """Of all batches, if nothing comes back meanwhile."""
    found = []
    while clips:
        found.append(given.next(clips))
        clips -= found[-1]
    return found


def test_batches_grow_up_to_the_most(clock):
    assert sizes(Pace(1, 8), 40) == [1, 1, 2, 2, 4, 4, 8, 8, 8, 2]
    assert sizes(Pace(2, 64), 9) == [1, 1, 1, 1, 2, 2, 1]  # every worker has a batch at the end


def test_a_slow_model_has_small_batches(clock):
    given = Pace(2, 64)
    for _ in range(40):
        given.next(1000)
    clock[0] += 100
    given.done(20)  # ten seconds each, of a worker
    assert given.next(1000) == 3
    clock[0] += 1000
    given.done(1)
    assert given.next(1000) == 1


def test_a_fast_model_has_large_batches(clock):
    given = Pace(2, 64)
    for _ in range(40):
        given.next(10_000)
    clock[0] += 1
    given.done(1000)
    assert given.next(10_000) == 64
