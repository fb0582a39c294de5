"""Clips as a stream: what overlaps with what, what is held, and how it ends. By events, never by timing."""

import gc
import itertools
import signal
import threading
import traceback
import weakref
from contextlib import closing
from contextvars import ContextVar

import pytest
import torch
from oracle import TINY, assert_close, config, noise, randomise
from torch import nn

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.engine.progress import reporting
from temporal_vae.errors import InputError, MemoryLimitError
from temporal_vae.streams import stream

pytestmark = pytest.mark.usefixtures("two_threads")

SOON = 20  # seconds within which what must happen has happened


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    return randomise(AutoencoderKLTemporalDecoder(**config(**TINY))).eval()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def working() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("temporal-vae"))


class Thing:
    """Something that can be watched."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_decode_stream_is_decode_of_each_clip(vae):
    clips = [noise(t, 4, 6, 8, seed=t) for t in (3, 1, 5)]
    with torch.no_grad():
        expected = [vae.decode(clip, num_frames=len(clip)).sample for clip in clips]
    for frames, whole in zip(vae.decode_stream(clips), expected, strict=True):
        assert torch.equal(frames, whole)
        assert not frames.requires_grad
        assert not frames.is_inference()


def test_encode_stream_is_encode_of_each_clip(vae):
    clips = [noise(t, 3, 12, 16, seed=t).clamp(-1, 1) for t in (2, 4)]
    posteriors = list(vae.encode_stream(iter(clips)))
    for clip, posterior in zip(clips, posteriors, strict=True):
        assert_close(posterior.mean, vae.encode(clip).latent_dist.mean.detach())
        assert not posterior.mean.requires_grad


def test_latents_of_a_stream_can_be_trained_with(vae):
    (posterior,) = vae.encode_stream([noise(1, 3, 12, 16)])
    weight = nn.Parameter(torch.ones(()))
    (posterior.mean * weight).sum().backward()
    assert weight.grad is not None


def test_no_clips():
    assert list(stream(lambda item: item, [])) == []


def test_nothing_is_read_before_the_first_result_is_asked_for():
    read = []
    results = stream(lambda item: item, map(read.append, range(3)))
    assert working() == []
    assert read == []
    results.close()
    assert read == []


def test_reading_computing_and_using_overlap():
    """Item 2 is read and result 0 is used while item 1 computes: each of the three waits for the other two."""
    meeting = threading.Barrier(3, timeout=SOON)

    def read():
        for number in range(4):
            if number == 2:
                meeting.wait()
            yield number

    def compute(number):
        if number == 1:
            meeting.wait()
        return number

    used = []
    for number in stream(compute, read()):
        if number == 0:
            meeting.wait()
        used.append(number)
    assert used == [0, 1, 2, 3]


def test_what_is_done_with_is_let_go():
    inputs, results, most = [], [], [0, 0]

    def count():
        for index, things in enumerate((inputs, results)):
            most[index] = max(most[index], sum(thing() is not None for thing in things))

    def read():
        for number in range(50):
            thing = Thing(number)
            inputs.append(weakref.ref(thing))
            count()
            yield thing
            del thing

    def compute(item):
        count()
        result = Thing(item.number)
        results.append(weakref.ref(result))
        return result

    last = None
    for number, last in enumerate(stream(compute, read())):
        assert last.number == number
        count()
    assert most[0] <= 2  # one is computed, one waits
    assert most[1] <= 3  # one is used, one waits, one is computed
    del last
    assert not any(thing() for thing in inputs + results)


def test_a_slow_consumer_holds_back_the_reader():
    read = []
    stalled = threading.Event()

    def source():
        for number in range(10):
            read.append(number)
            if number == 2:
                stalled.set()
            yield number

    with closing(stream(lambda item: item, source())) as results:
        assert next(results) == 0
        assert stalled.wait(SOON)  # 0 is used, 1 is computed and waits, 2 is read and waits
        threading.Event().wait(0.1)
        assert read == [0, 1, 2]


class Fault(Exception):
    pass


def test_an_exception_of_the_source_comes_after_the_results_before_it():
    def failing_source():
        yield 1
        yield 2
        raise Fault("no third")

    results = stream(lambda item: 10 * item, failing_source())
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(Fault, match="no third") as caught:
        next(results)
    assert "failing_source" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    with pytest.raises(StopIteration):
        next(results)


def test_an_exception_of_the_computation():
    def failing_computation(item):
        if item == 2:
            raise Fault("not two")
        return item

    results = stream(failing_computation, [1, 2, 3, 4])
    assert next(results) == 1
    with pytest.raises(Fault, match="not two") as caught:
        next(results)
    assert "failing_computation" in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_even_a_system_exit_arrives():
    def source():
        yield 1
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(stream(lambda item: item, source()))


@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt])
def test_an_exception_where_results_are_used_ends_the_threads(error):
    def use():
        for _ in stream(lambda item: item, iter(int, 1)):
            raise error

    with pytest.raises(error):
        use()


def test_ctrl_c_while_the_engine_computes(vae):
    """The signal arrives while this thread waits for the second clip."""

    def listen(done, total):
        if next(tiles) == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    tiles = itertools.count()
    clips = (noise(3, 4, 6, 8, seed=seed) for seed in itertools.count())
    with reporting(listen), pytest.raises(KeyboardInterrupt):
        list(vae.decode_stream(clips))


def test_closing_early_stops_the_engine_within_a_clip(vae):
    """The first clip is used; the second, which would go on, is stopped at a tile."""
    tiles, busy = [], threading.Event()

    def listen(done, total):
        tiles.append((done, total))
        if len(tiles) > 1 and tiles[-2][0] == total:  # the first tile of the second clip
            busy.set()
            assert closing_now.wait(SOON)

    closing_now = threading.Event()
    clips = [noise(3, 4, 6, 8, seed=seed) for seed in range(3)]
    with reporting(listen), closing(vae.decode_stream(clips)) as results:
        next(results)
        assert busy.wait(SOON)
        threading.Timer(0.2, closing_now.set).start()
    assert tiles[-1][0] < tiles[-1][1]
    threads = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for thread in threads:
        thread.join()


def test_an_abandoned_stream_ends():
    results = stream(lambda item: item, iter(int, 1))
    next(results)
    assert working() == ["temporal-vae compute", "temporal-vae read"]
    del results
    gc.collect()
    assert working() == []


def test_the_context_reaches_both_threads():
    name = ContextVar("name", default="nobody")
    name.set("somebody")
    assert list(stream(lambda item: (item, name.get()), (name.get() for _ in range(2)))) == [
        ("somebody", "somebody"),
        ("somebody", "somebody"),
    ]


def test_a_listener_hears_of_every_clip(vae):
    heard = []
    clips = [noise(2, 4, 6, 8), noise(1, 4, 6, 8)]
    with reporting(lambda done, total: heard.append((done, total))):
        list(vae.decode_stream(clips))
    works = [vae.plan_decode(num_frames=t, height=12, width=16).work for t in (2, 1)]
    assert [done for done, total in heard if done == total] == works


def test_neither_thread_records_gradients():
    seen = []

    def source():
        seen.append(torch.is_grad_enabled())
        yield 1

    assert list(stream(lambda item: torch.is_grad_enabled(), source())) == [False]
    assert seen == [False]


def test_a_clip_that_cannot_be_decoded(vae):
    with pytest.raises(InputError, match="8"):
        list(vae.decode_stream([noise(2, 8, 6, 8)]))
    with pytest.raises(InputError, match="axes"):
        list(vae.decode_stream([noise(2)]))
    with pytest.raises(InputError, match="list"):
        list(vae.encode_stream([[1, 2]]))


def test_a_limit_that_is_too_small_for_a_clip(vae):
    vae.enable_tiling(memory_limit=1)
    try:
        with pytest.raises(MemoryLimitError, match="raise the limit"):
            list(vae.decode_stream([noise(2, 4, 6, 8)]))
    finally:
        vae.disable_tiling()
