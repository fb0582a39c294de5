"""Places and turns, where a running server can't be brought to the moment in question."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import contextmanager

import pytest

from temporal_vae.engine import progress
from temporal_vae.serve.answers import Answer
from temporal_vae.serve.desk import Desk
from temporal_vae.serve.refusals import Refusal, bad, too_slow

SOON = 10  # seconds within which everything here happens


@pytest.fixture
def desk():
    desk = Desk(places=2, held_limit=100)
    yield desk
    desk.end()
    assert desk.taken == desk.held == 0


async def never():
    await asyncio.Event().wait()


def compute(desk, place, function, *, seconds=SOON, left=None):
    late = too_slow(seconds)
    return desk.compute(place, function, seconds=seconds, late=late, left=left or never())


class Work:
    """Something that is computed tile by tile, as the engine does, until it is let go or called off."""

    def __init__(self):
        self.began, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.tiles = threading.Event()
        self.tiles.set()

    def __call__(self):
        self.began.set()
        advance = progress.counter(10**9)
        try:
            while not self.go.wait(0.005):
                self.tiles.wait(SOON)
                advance(1)
        finally:
            self.ended.set()
        return "done"

    async def until_it_began(self):
        assert await asyncio.to_thread(self.began.wait, SOON)


@contextmanager
def refused(status):
    with pytest.raises(Refusal) as caught:
        yield caught
    assert caught.value.status == status


def test_places_and_what_they_hold_are_bounded(desk):
    first, second = desk.take(held=40, work=10), desk.take(held=60, work=10**14)
    assert (desk.taken, desk.held) == (2, 100)
    with refused(429) as caught:
        desk.take(held=0, work=0)
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 600
    second.release()
    with refused(429):  # a place is left, but no memory
        desk.take(held=61, work=0)
    with refused(413):
        desk.take(held=101, work=0)
    first.release()
    first.release()  # once is enough
    assert (desk.taken, desk.held) == (0, 0)


def test_places_are_counted_right_by_many_threads():
    desk, most = Desk(places=5, held_limit=10**9), []

    def take():
        for _ in range(300):
            try:
                place = desk.take(held=7, work=1)
            except Refusal:
                continue
            most.append(desk.taken)
            place.release()
            place.release()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= max(most) <= 5
    assert (desk.taken, desk.held) == (0, 0)
    desk.end()


def test_what_waits_is_computed_in_turn_and_called_off_without_having_begun(desk):
    async def run():
        places = [desk.take(held=1, work=1) for _ in range(2)]
        first, begun = Work(), []
        gone = asyncio.Event()
        one = asyncio.create_task(compute(desk, places[0], first))
        await first.until_it_began()
        two = asyncio.create_task(compute(desk, places[1], lambda: begun.append(2), left=gone.wait()))
        await asyncio.sleep(0.05)
        gone.set()
        with refused(408):
            await two
        places[1].release_when_done()
        assert desk.taken == 1  # at once, though the first goes on
        first.go.set()
        assert await one == "done"
        assert begun == []
        places[0].release()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["client", "time", "server", "task"])
def test_what_is_computed_ends_at_its_next_tile_and_only_then_gives_its_place_back(desk, how):
    async def run():
        place, work, gone = desk.take(held=1, work=1), Work(), asyncio.Event()
        seconds = 0.2 if how == "time" else SOON
        task = asyncio.create_task(compute(desk, place, work, seconds=seconds, left=gone.wait()))
        await work.until_it_began()
        work.tiles.clear()
        await asyncio.sleep(0.05)
        if how == "client":
            gone.set()
        elif how == "server":
            desk.call_off()
            work.tiles.set()  # it is told when the tile has ended
        elif how == "task":
            task.cancel()
        status = {"client": 408, "time": 504, "server": 503}.get(how)
        with refused(status) if status else pytest.raises(asyncio.CancelledError):
            await task
        place.release_when_done()
        assert desk.taken == (how != "server")
        work.tiles.set()
        assert await asyncio.to_thread(work.ended.wait, SOON)
        while desk.taken:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(run(), SOON))


def test_closing_lets_finish_what_is_computed_and_refuses_what_waits_or_comes(desk):
    async def run():
        places = [desk.take(held=1, work=1) for _ in range(2)]
        work = Work()
        one = asyncio.create_task(compute(desk, places[0], work))
        await work.until_it_began()
        two = asyncio.create_task(compute(desk, places[1], lambda: "never"))
        await asyncio.sleep(0.05)
        desk.close()
        with refused(503):
            await two
        with refused(503):
            desk.take(held=1, work=1)
        work.go.set()
        assert await one == "done"
        for place in places:
            place.release()

    asyncio.run(run())


def test_closed_while_the_body_was_read(desk):
    """A place was taken before, the computation is asked for after."""

    async def run():
        place, begun = desk.take(held=1, work=1), []
        desk.close()
        with refused(503):
            await compute(desk, place, lambda: begun.append(1))
        place.release_when_done()
        assert begun == []
        assert desk.taken == 0

    asyncio.run(run())


def test_errors_come_out_as_they_are_and_the_next_one_is_computed(desk):
    def fail():
        raise ZeroDivisionError

    def refuse():
        raise bad("no")

    async def run():
        for function, kind in ((fail, ZeroDivisionError), (refuse, Refusal)):
            place = desk.take(held=1, work=1)
            with pytest.raises(kind):
                await compute(desk, place, function)
            place.release_when_done()
        place = desk.take(held=1, work=1)
        assert await compute(desk, place, lambda: 3) == 3
        place.release()

    asyncio.run(run())


class Large:
    """Stands for a body or a tensor."""


@contextmanager
def without_the_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["answered", "refused", "failed", "called off"])
def test_nothing_of_a_request_stays_in_memory_once_its_place_is_given_back(desk, how):
    """Without waiting for the collector of circles, which may take its time while gigabytes pile up."""
    alive = []

    def ask(body):
        advance = progress.counter(1)
        alive.append(weakref.ref(body))
        if how == "refused":
            raise bad("no")
        if how == "failed":
            raise ZeroDivisionError
        while how == "called off":
            advance(0)
            time.sleep(0.001)
        answer = Answer(b"answer", "text/plain")
        alive.append(weakref.ref(answer))
        return answer

    async def request():
        body = Large()
        place = desk.take(held=1, work=1)
        seconds = 0.1 if how == "called off" else SOON
        try:
            answer = await compute(desk, place, lambda: ask(body), seconds=seconds)
        except BaseException:
            place.release_when_done()
            raise
        answer.place = place
        place.release()

    async def run():
        try:
            await request()
        except (Refusal, ZeroDivisionError):
            assert how != "answered"
        while desk.taken:
            await asyncio.sleep(0.001)
        await compute(desk, place := desk.take(held=0, work=1), lambda: None)  # the thread has put it away
        place.release()

    with without_the_collector():
        asyncio.run(run())
        assert alive
        assert not any(reference() for reference in alive)


def test_a_reason_is_raised_anew_each_time():
    """By several threads at once, and without what it was raised through before."""
    reason = Refusal(429, "later", retry_after=3)
    with pytest.raises(Refusal):
        raise reason
    twin = reason.anew()
    assert twin is not reason
    assert (twin.status, twin.detail, twin.headers, str(twin)) == (
        429,
        "later",
        {"Retry-After": "3"},
        "later",
    )
    assert twin.__traceback__ is None


def test_an_answer_gives_its_place_back_whatever_comes_of_it(desk):
    async def broken(message):
        raise ConnectionResetError

    async def stuck(message):
        await never()

    async def fine(message):
        pass

    async def run():
        for send, seconds in ((fine, SOON), (stuck, 0.05), (broken, SOON)):
            answer = Answer(b"x" * 10, "text/plain")
            answer.place, answer.seconds = desk.take(held=1, work=1), seconds
            try:
                await answer({}, None, send)
            except ConnectionResetError:
                assert send is broken
            assert desk.taken == 0

    asyncio.run(run())


def test_the_time_to_wait_follows_the_work_ahead():
    desk = Desk(places=1, held_limit=10)
    desk.speed = 100.0
    for work, seconds in ((1, 1), (1000, 10), (10**9, 600)):
        place = desk.take(held=0, work=work)
        with refused(429) as caught:
            desk.take(held=0, work=0)
        assert caught.value.headers["Retry-After"] == str(seconds)
        place.release()
    desk.end()
