"""Threads: the process keeps its number of torch threads, kernels are made once, and an error ends a pass."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch
from oracle import config, noise, randomise

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.engine import progress, threads, workers
from temporal_vae.engine.threads import once, use_one_torch_thread
from temporal_vae.engine.workers import Workers

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def vae():
    return randomise(Ours(**config(block_out_channels=(32, 32)))).eval()


@pytest.fixture
def planned(monkeypatch):
    """How many workers each pass over a clip began with."""
    counts = []
    begin = Workers.__init__

    def counting(self, count, device):
        counts.append(count)
        begin(self, count, device)

    monkeypatch.setattr(workers.Workers, "__init__", counting)
    return counts


def of_a_fresh_thread(found=None):
    """With how many threads torch computes in a thread that is new."""
    found = [] if found is None else found
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[-1]


def decode(vae, listener=None):
    with torch.no_grad(), progress.reporting(listener or (lambda done, total: None)):
        return vae.decode(noise(2, 4, 6, 8), num_frames=2).sample


def test_the_number_of_threads_is_nobody_elses_business(vae):
    """Before, meanwhile and afterwards, for the caller and for threads that begin."""
    found = []
    decode(vae, lambda done, total: of_a_fresh_thread(found))
    assert found
    assert set(found) == {2}
    assert (torch.get_num_threads(), of_a_fresh_thread()) == (2, 2)


def test_several_at_once_and_one_that_fails(vae):
    found, errors = [], []

    def fail(done, total):
        raise RuntimeError("enough")

    def work(listener):
        try:
            decode(vae, listener)
        except RuntimeError as error:
            errors.append(str(error))

    listeners = [lambda *_: of_a_fresh_thread(found), fail, lambda *_: of_a_fresh_thread(found), fail]
    everybody = [threading.Thread(target=work, args=(listener,)) for listener in listeners]
    for thread in everybody:
        thread.start()
    for thread in everybody:
        thread.join()
    assert errors == ["enough"] * 2
    assert set(found) == {2}
    assert (torch.get_num_threads(), of_a_fresh_thread()) == (2, 2)


def test_streams_use_the_whole_machine_again_and_again(vae, planned):
    for _ in range(2):
        list(vae.decode_stream([noise(2, 4, 6, 8)] * 2))
    assert planned == [2] * 4


@pytest.mark.slow
def test_in_a_process_of_its_own():
    """Nothing was set by hand: the number comes from the environment, and no thread has used torch before."""
    code = """
import threading, torch
from temporal_vae import AutoencoderKLTemporalDecoder as Vae
def fresh():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]
vae = Vae.from_embedded()
with torch.no_grad():
    for _ in range(2):
        vae.decode(torch.zeros(2, vae.config.latent_channels, 4, 4), num_frames=2)
        print(torch.get_num_threads(), fresh())
"""
    environment = {"OMP_NUM_THREADS": "2", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * 4, done.stderr


@pytest.mark.parametrize("openmp", [True, False])
def test_one_thread_for_one(monkeypatch, openmp):
    """Also where torch's OpenMP is not to be found."""
    if not openmp:
        monkeypatch.setattr(threads, "_setters", lambda: ())
    found = []

    def work():
        use_one_torch_thread()
        found.append(torch.get_num_threads())
        torch.rand(300, 300) @ torch.rand(300, 300)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1, 1]
    assert (torch.get_num_threads(), of_a_fresh_thread()) == (2, 2)


def test_made_once_by_many_threads():
    calls = []

    @once
    def make(key):
        calls.append(key)
        time.sleep(0.02)  # the others ask meanwhile
        return object()

    results = []
    asking = [threading.Thread(target=lambda: results.append(make("kernel"))) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert calls == ["kernel"]
    assert len(set(results)) == 1
    assert make("another") not in results


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_any_worker_ends_the_pass(failing):
    """Whichever job fails; the other worker would have enough to do for seconds."""
    computed = []

    def work(job, worker):
        if job == failing:
            raise RuntimeError("a tile")
        computed.append(job)
        time.sleep(0.002)

    with Workers(2, torch.device("cpu")).at_work() as both, pytest.raises(RuntimeError, match="a tile"):
        both.run(work, range(3000))
    assert len(computed) < 1000


def test_an_error_holds_no_memory():
    """Nor a circle of its traceback, which would keep all buffers until the garbage collector comes."""
    buffer = torch.zeros(1)
    there = weakref.ref(buffer)

    def fail(buffer):
        with Workers(2, torch.device("cpu")).at_work() as both:
            both.run(lambda job, worker: buffer / job if job else int("no number"), range(3))

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no number") as caught:
            fail(buffer)
        del buffer, caught
        assert there() is None
    finally:
        gc.enable()
