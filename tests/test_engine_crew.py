"""Threads that sweep in machine code: every job is done once, by all of them, and nobody waits for ever."""

import signal
import threading
import time
from os import getpid, kill

import numpy as np
import pytest
import torch

from temporal_vae.engine import processor
from temporal_vae.engine.kernels import compiler, crew
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.workers import Workers

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")


def emit(b, machine, scratch, done, doers, turns, index):
    """Count a job as done, write down whose scratch it was done with, and take some time."""
    b.count_up(b.add(done, b.mul(index, 8)), 1)
    b.ir.store(scratch, b.pointer(b.add(doers, b.mul(index, 8))))
    with b.loop(0, turns):
        b.pause()


@pytest.fixture(scope="module")
def kernel():
    machine = processor.host()
    return compiler.sweep(emit, ("done", "doers", "turns"), ("index",), machine, "test of the crew")


@pytest.fixture(params=["woken", pytest.param("asleep", marks=pytest.mark.slow)])
def _system(request, monkeypatch):
    """As on this system, or as on one that can't wake who waits for a word."""
    if request.param == "asleep":
        monkeypatch.setattr(crew, "FUTEX", None)
        monkeypatch.setattr(crew, "_system", crew._system.__wrapped__)
        monkeypatch.setattr(crew, "_function", crew._function.__wrapped__)


class Sweep:
    """Jobs that take `turns` short pauses each."""

    def __init__(self, kernel, jobs, turns):
        self.kernel, self.turns = kernel, turns
        self.done, self.doers = np.zeros((2, jobs), dtype=np.int64)

    def run(self, crew, progress=lambda share: None):
        call = [self.done.ctypes.data, self.doers.ctypes.data, self.turns]
        jobs = np.arange(len(self.done))[:, None]
        crew.sweep(self.kernel, call, jobs, list(range(1, crew.count + 1)), progress)


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("jobs", [1, 2, 3, 100])
def test_every_job_is_done_once(kernel, count, jobs):
    """Sweep after sweep, at once and after a rest in which the helpers fell asleep."""
    told = []
    with Workers(count, CPU).at_work() as workers:
        one = Crew(workers)
        for number in range(30):
            sweep = Sweep(kernel, jobs, 100)
            sweep.run(one, told.append)
            assert (sweep.done == 1).all()
            assert set(sweep.doers) <= set(range(1, count + 1))
            if number % 10 == 9:
                time.sleep(0.02)
    assert sum(told) == pytest.approx(30)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("temporal-vae")]


def test_helpers_help(kernel):
    with Workers(3, CPU).at_work() as workers:
        sweep = Sweep(kernel, 300, 10**5)
        sweep.run(Crew(workers))
    assert set(sweep.doers) == {1, 2, 3}


def test_without_workers_at_work_the_caller_does_it_all(kernel):
    sweep = Sweep(kernel, 10, 1)
    sweep.run(Crew(Workers(4, CPU)))
    assert (sweep.done == 1).all()
    assert set(sweep.doers) == {1}


def test_progress_is_told_on_the_way(kernel):
    """And the caller comes back for it; an error there ends the sweep for all."""
    shares = []
    with Workers(2, CPU).at_work() as workers:
        one = Crew(workers)
        sweep = Sweep(kernel, 40, 2 * 10**6)
        sweep.run(one, shares.append)
        assert len(shares) > 3
        assert all(0 <= share < 1 for share in shares)

        def fail(share):
            raise RuntimeError("enough")

        sweep = Sweep(kernel, 400, 2 * 10**6)
        with pytest.raises(RuntimeError, match="enough"):
            sweep.run(one, fail)
        assert sweep.done.sum() < 200
        sweep = Sweep(kernel, 40, 100)  # and the next one goes on
        sweep.run(one)
        assert (sweep.done == 1).all()


def test_an_interrupt_ends_a_sweep(kernel):
    sweep = Sweep(kernel, 10**4, 2 * 10**6)
    with Workers(2, CPU).at_work() as workers:
        threading.Timer(0.3, kill, (getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            sweep.run(Crew(workers))
    assert 0 < sweep.done.sum() < 10**4


def test_several_crews_at_once(kernel):
    """More threads than cores."""
    sweeps = [[Sweep(kernel, 50, 1000) for _ in range(20)] for _ in range(4)]

    def work(mine):
        with Workers(3, CPU).at_work() as workers:
            one = Crew(workers)
            for sweep in mine:
                sweep.run(one)

    everybody = [threading.Thread(target=work, args=(mine,)) for mine in sweeps]
    for thread in everybody:
        thread.start()
    for thread in everybody:
        thread.join()
    assert all((sweep.done == 1).all() for mine in sweeps for sweep in mine)
