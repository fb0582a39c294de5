"""The service under load: many clients at once, slow ones, ones that go away, and the end of the server itself."""

import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from serving import PATIENCE, read_answer, serving

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.loading import EMBEDDED

LIMIT, QUEUE = 10, 3  # seconds and requests of the server that is asked for too much
ROUNDING = 2e-5  # as in the tests of the protocol
LONG = (25, 8, 128, 128)  # minutes on two cores, so that it never ends by itself here


@pytest.fixture(scope="module")
def model():
    return AutoencoderKLTemporalDecoder.from_pretrained(EMBEDDED).eval()


@pytest.fixture(scope="module")
def hurried():
    with serving("--seconds", str(LIMIT), "--queue", str(QUEUE)) as running:
        yield running


def query(shape, **options):
    return {"shape": list(shape), "dtype": "float32", "output_type": "pt", **options}


def head(shape, length=None):
    """Of a request to decode, for sockets."""
    sizes = "&".join(f"shape={size}" for size in shape)
    length = 4 * np.prod(shape) if length is None else length
    return (
        f"POST /decode?{sizes}&dtype=float32&output_type=pt HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def zeros(shape):
    return bytes(4 * int(np.prod(shape)))


@contextmanager
def asking(server, shape=LONG):
    """A connection on which a request was sent whole."""
    with socket.create_connection(server.address, timeout=PATIENCE) as connection:
        connection.sendall(head(shape) + zeros(shape))
        yield connection


def in_hand(server):
    return float(re.search(r"^temporal_vae_places_taken (\S+)", server.get("/metrics").text, re.M)[1])


def wait_until_in_hand(server, number, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while (found := in_hand(server)) != number:
        assert time.monotonic() < deadline, f"{found:g} requests in hand, not {number}"
        time.sleep(0.05)


def small(server):
    """The answer to a request that takes no time."""
    return server.post("/decode", params=query((1, 8, 2, 2)), data=zeros((1, 8, 2, 2)))


# Many at once


def decoding(model, seed):
    z = torch.randn(1 + seed % 2, 8, 4, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = model.decode(z, num_frames=len(z)).sample
    return "/decode", {"params": query(z.shape), "data": z.numpy().tobytes()}, expected


def encoding(model, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with torch.no_grad():
        x = VaeImageProcessor(vae_scale_factor=4).preprocess(Image.fromarray(pixels))
        expected = model.encode(x).latent_dist.mode()
    return "/encode", {"data": buffer.getvalue()}, expected


MALFORMED = [
    ("/decode", {"params": query((1, 8, 4, 5)), "data": bytes(100)}, 400),
    ("/decode", {"params": query((1, 8, 30000, 30000)), "data": bytes(100)}, 413),
    ("/decode", {"params": query((1, 8, -4, 5)), "data": bytes(100)}, 422),
    ("/decode", {"params": query((1, 8, 2, 2)), "data": b"\xff" * 128}, 400),
    ("/encode", {"data": b"no image"}, 400),
    ("/encode", {"data": b"\x89PNG\r\n\x1a\n" + bytes(2**20)}, 400),
    ("/nowhere", {"data": b"x"}, 404),
]


def until_taken(server, path, options):
    """Ask again for as long as the server says that it is busy, as clients should; the answer, and how often."""
    for attempt in range(1000):
        response = server.post(path, **options)
        if response.status_code != 429:
            return response, attempt
        assert 1 <= int(response.headers["retry-after"]) <= 600
        assert "send this again later" in response.json()["detail"]
        time.sleep(random.uniform(0.1, 1))
    raise AssertionError("never taken")


def ask_at_once(server, model, number):
    """So many requests at the same time, a third of them malformed; every answer is looked at."""
    kinds = [decoding, encoding]
    asked = [
        MALFORMED[seed % len(MALFORMED)] if seed % 3 == 0 else kinds[seed % 2](model, seed)
        for seed in range(number)
    ]
    idle = server.resident()
    server.forget_peak()
    with ThreadPoolExecutor(number) as clients:
        answers = list(clients.map(lambda one: until_taken(server, one[0], one[1]), asked))
    for (_, _, expected), (response, _) in zip(asked, answers, strict=True):
        if isinstance(expected, int):
            assert response.status_code == expected, response.text
            assert set(response.json()) == {"detail"}
        else:
            assert response.status_code == 200, response.text
            found = torch.frombuffer(bytearray(response.content), dtype=torch.float32)
            torch.testing.assert_close(found.view_as(expected), expected, atol=ROUNDING, rtol=ROUNDING)
    wait_until_in_hand(server, 0)
    return server.peak() - idle, sum(again for _, again in answers)


def test_many_requests_at_once(server, model):
    taken, _ = ask_at_once(server, model, 36)
    assert taken < 256 * 2**20


@pytest.mark.slow
def test_two_hundred_requests_at_once(server, model):
    taken, again = ask_at_once(server, model, 200)
    assert taken < 512 * 2**20
    assert again > 0  # the queue is of eight


# Those that take too long, or too much


def test_the_queue_is_bounded(hurried):
    with asking(hurried), asking(hurried), asking(hurried):
        wait_until_in_hand(hurried, QUEUE)
        response = small(hurried)
        assert response.status_code == 429
        assert "3 requests are in hand" in response.json()["detail"]
        assert 1 <= int(response.headers["retry-after"]) <= 600
        assert hurried.get("/healthz").status_code == 200
    wait_until_in_hand(hurried, 0)
    assert small(hurried).status_code == 200


def test_memory_that_waiting_requests_hold_is_bounded(server):
    """A quarter of 2 GiB: one holds more than half of it, so that a second one is told to wait."""
    shape = (1, 8, 2000, 2000)  # 122 MiB, and as float32 pixels 732
    refused = server.post("/decode", params=query(shape), data=zeros(shape))
    assert refused.status_code == 413
    shape = (1, 8, 1200, 1200)
    with asking(server, shape):
        wait_until_in_hand(server, 1)
        response = server.post("/decode", params=query(shape), data=zeros(shape))
        assert response.status_code == 429, response.text
    wait_until_in_hand(server, 0)


def test_what_takes_too_long_is_ended_and_stops_nobody_else(hurried):
    """A body that never ends, an answer that is never read, and more work than there is time for."""
    answered = (1, 8, 180, 180)  # 6 MiB, more than sockets take
    unread = socket.socket()
    unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    unread.connect(hurried.address)
    unread.sendall(head(answered) + zeros(answered))
    with unread, socket.create_connection(hurried.address, timeout=PATIENCE) as stalled:
        stalled.sendall(head((1, 8, 8, 8)) + bytes(100))
        wait_until_in_hand(hurried, 2)
        began = time.monotonic()
        for _ in range(8):  # one place is left
            assert small(hurried).status_code in (200, 504)
            stalled.sendall(b"x")
            time.sleep(0.1)
        late = read_answer(stalled)
        assert late.status == 408
        assert "the body came too slowly, not all of 2,048 bytes within 10 s" in late.detail
        wait_until_in_hand(hurried, 0)
        assert time.monotonic() - began < 6 * LIMIT
        with pytest.raises(ConnectionError):
            read_answer(unread)


@pytest.mark.slow
def test_work_beyond_the_time_limit_is_ended(hurried):
    with asking(hurried) as connection:
        answer = read_answer(connection)
    assert answer.status == 504
    assert "not done within the server's limit of 10 s" in answer.detail
    wait_until_in_hand(hurried, 0)


# Clients that go away


CLIENT = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
print("sent", flush=True)
time.sleep(600)
"""


def test_a_client_that_is_killed_while_its_request_is_computed(server):
    words = [sys.executable, "-c", CLIENT, str(server.address[1])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        client.stdin.write(head(LONG) + zeros(LONG))
        client.stdin.close()
        assert client.stdout.readline() == b"sent\n"
        wait_until_in_hand(server, 1)
        time.sleep(0.5)  # so that it is being computed
        client.kill()
        began = time.monotonic()
        assert small(server).status_code == 200
        wait_until_in_hand(server, 0)
    assert time.monotonic() - began < 20  # the whole takes minutes


def test_a_client_that_goes_away_while_it_waits(server):
    with asking(server):
        wait_until_in_hand(server, 1)
        with asking(server):
            wait_until_in_hand(server, 2)
        wait_until_in_hand(server, 1)
    wait_until_in_hand(server, 0)


def test_a_client_that_goes_away_while_it_sends(server):
    with socket.create_connection(server.address, timeout=PATIENCE) as connection:
        connection.sendall(head(LONG) + bytes(1000))
        wait_until_in_hand(server, 1)
    wait_until_in_hand(server, 0)


def test_clients_that_go_away_leave_no_memory_behind(server):
    idle = server.resident()
    for _ in range(5):
        with asking(server):
            wait_until_in_hand(server, 1)
            time.sleep(0.5)
        wait_until_in_hand(server, 0)
    assert server.resident() - idle < 200 * 2**20  # one takes 300


# The end of the server


def answered(connection):
    """The status of a whole answer, or that there was none."""
    try:
        answer = read_answer(connection)
    except ConnectionError:
        return "nothing"
    assert answer.status == 200 or "stopping" in answer.detail
    return answer.status


def test_sigterm_finishes_what_is_computed_and_refuses_the_rest():
    shape = (1, 8, 128, 128)  # a second or two
    with serving("--grace", "60") as server, ThreadPoolExecutor(8) as clients:
        reading = socket.create_connection(server.address, timeout=PATIENCE)
        reading.sendall(head(shape) + bytes(1000))
        idle = socket.create_connection(server.address, timeout=PATIENCE)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_answer(idle)
        with asking(server, shape) as first:
            wait_until_in_hand(server, 2)
            time.sleep(0.3)
            with asking(server, LONG) as second, asking(server, LONG) as third:
                wait_until_in_hand(server, 4)
                waiting = [clients.submit(answered, one) for one in (first, second, third, reading, idle)]
                server.process.send_signal(signal.SIGTERM)
                found = [one.result(PATIENCE) for one in waiting]
                assert found == [200, 503, 503, 503, "nothing"]
                assert server.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionError):
            socket.create_connection(server.address, timeout=5)
        reading.close()
        idle.close()
    assert not any("Traceback" in line for line in server.lines), "\n".join(server.lines)


@pytest.mark.slow
def test_what_is_not_done_within_the_grace_is_refused():
    with serving("--grace", "1") as server, asking(server) as connection:
        wait_until_in_hand(server, 1)
        time.sleep(0.5)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert answered(connection) == 503
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    with serving("--grace", "600") as server, asking(server) as connection:
        wait_until_in_hand(server, 1)
        time.sleep(0.5)  # so that it is being computed
        server.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert server.process.poll() is None
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert answered(connection) == 503
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 30
    assert not any("Traceback" in line for line in server.lines), "\n".join(server.lines)


@pytest.mark.slow
def test_signals_in_the_middle_of_many_requests(model):
    """Every client gets a right answer, a refusal or none, and never a part of one."""
    asked = [decoding(model, seed) for seed in range(60)]

    def ask(server, one):
        try:
            response = requests.post(f"{server.url}{one[0]}", timeout=PATIENCE, **one[1])
        except requests.ConnectionError:
            return "nothing"
        if response.status_code == 200:
            found = torch.frombuffer(bytearray(response.content), dtype=torch.float32)
            torch.testing.assert_close(found.view_as(one[2]), one[2], atol=ROUNDING, rtol=ROUNDING)
        else:
            assert set(response.json()) == {"detail"}
        return response.status_code

    with serving() as server, ThreadPoolExecutor(60) as clients:
        first = [clients.submit(ask, server, one) for one in asked]
        while not any(one.done() for one in first):
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        counts = Counter(one.result(PATIENCE) for one in first)
        assert server.process.wait(PATIENCE) == 0
    assert set(counts) <= {200, 429, 503, "nothing"}
    assert counts[200]


@pytest.mark.slow
def test_a_server_that_was_killed_leaves_its_port_free():
    with serving() as server, asking(server):
        wait_until_in_hand(server, 1)
        server.end(signal.SIGKILL)
        with serving("--port", str(server.address[1])) as another:
            assert another.url == server.url
            assert small(another).status_code == 200


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "temporal_vae", "serve", "--port", str(port)]
        run = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 1
    assert run.stderr == (
        f"temporal-vae: 127.0.0.1, port {port}: address already in use; choose others with --host and --port\n"
    )
