"""Connections on which nothing happens any more are ended, and those on which something does are not."""

import socket
import time

import pytest
from serving import read_answer, running_here
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from temporal_vae.serve import connections
from temporal_vae.serve.answers import Answer

PATIENCE = 0.5  # seconds, in place of 30
LARGE = 2**25  # bytes, more than sockets take


def ask(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.fixture(scope="module")
def address():
    routes = [
        Route("/small", lambda request: PlainTextResponse("small")),
        Route("/large", lambda request: Answer(bytes(LARGE), "text/plain")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "_PATIENCE", PATIENCE)
        with running_here(Starlette(routes=routes)) as url:
            host, port = url.removeprefix("http://").split(":")
            yield host, int(port)


@pytest.fixture
def connection(address):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(address)
        yield connection


def until_the_end(connection):
    """How much comes until the server ends it."""
    received = 0
    try:
        while piece := connection.recv(2**20):
            received += len(piece)
    except ConnectionError:
        pass
    return received


def send_slowly(connection, request):
    for letter in request:
        connection.sendall(bytes([letter]))
        time.sleep(0.05)


def test_who_says_nothing(connection):
    assert until_the_end(connection) == 0


def test_who_never_ends_the_head_of_a_request(connection):
    with pytest.raises(ConnectionError):
        send_slowly(connection, ask("/small")[:-1] * 100)


def test_who_asks_now_and_then_is_answered(connection):
    for _ in range(6):
        connection.sendall(ask("/small"))
        assert read_answer(connection).body == b"small"
        time.sleep(0.4 * PATIENCE)
    assert until_the_end(connection) == 0


def test_who_does_not_read(connection):
    connection.sendall(ask("/large"))
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    time.sleep(4 * PATIENCE)
    assert until_the_end(connection) < LARGE


def test_who_reads_slowly(connection):
    """For longer than the patience, which is for silence."""
    connection.sendall(ask("/large"))
    end = time.monotonic() + 6 * PATIENCE
    while time.monotonic() < end:
        assert connection.recv(2**20)
        time.sleep(0.001)
