"""What the service does not do: each request that makes no sense is answered by one sentence, in JSON, at once."""

import asyncio
import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import read_answer
from starlette.testclient import TestClient

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.serve import Service, Settings
from temporal_vae.serve.counters import Counters
from temporal_vae.serve.desk import Desk
from temporal_vae.serve.guard import Guard

MIB = 2**20
SHAPE = [1, 8, 3, 4]
ZEROS = np.zeros(SHAPE, np.float32).tobytes()


def values(value):
    return np.full(SHAPE, value, np.float32).tobytes()


def png(width, height, mode="RGB"):
    buffer = BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def floating():
    buffer = BytesIO()
    Image.new("F", (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


def asked(**changes):
    """Parameters of a little picture, some of them changed; None leaves one out."""
    parameters = {"shape": SHAPE, "dtype": "float32", **changes}
    return {name: value for name, value in parameters.items() if value is not None}


# Status, what the sentence has to hold, what is asked.
PARAMETERS = {
    "no shape": (422, "shape is missing; send it", asked(shape=None)),
    "no dtype": (422, "dtype is missing; send it", asked(dtype=None)),
    "two dimensions": (422, "shape has 2 numbers; it has to have at least 3", asked(shape=[1, 8])),
    "six dimensions": (422, "shape has 6 numbers; it has to have at most 5", asked(shape=[1] * 6)),
    "no frames": (422, "shape[0]=0: it has to be at least 1", asked(shape=[0, 8, 3, 4])),
    "a negative size": (422, "shape[2]=-3: it has to be at least 1", asked(shape=[1, 8, -3, 4])),
    "a size that is no number": (
        422,
        "shape[2]=nan: it has to be a whole number",
        asked(shape=[1, 8, "nan", 4]),
    ),
    "a broken size": (422, "shape[3]=4.5: it has to be a whole number", asked(shape=[1, 8, 3, 4.5])),
    "a list as one": (422, "shape[0]=[1,8,3,4]: it has to be a whole number", asked(shape="[1,8,3,4]")),
    "a size of 5000 digits": (422, "shape[2]=999", asked(shape=[1, 8, "9" * 5000, 4])),
    "more than 32 bits": (
        422,
        "shape[2]=4294967299: it has to be at most",
        asked(shape=[1, 8, 2**32 + 3, 4]),
    ),
    "enormous": (413, "take more than 160.93 GiB, and this server", asked(shape=[1, 8, 30000, 30000])),
    "products beyond 64 bits": (
        413,
        "GiB; send less",
        asked(shape=[1, 8, 1, 2**31 - 1, 2**31 - 1]),
    ),
    "too large for the engine": (413, "takes at least", asked(shape=[1, 8, 1, 100_000])),
    "other channels": (400, "latents of 4 channels; this model has 8", asked(shape=[1, 4, 3, 8])),
    "packed": (400, "shape (1, 12, 8): packed latents (b, n, c)", asked(shape=[1, 12, 8])),
    "no such type": (422, "dtype=int8: it has to be 'float16', 'bfloat16' or 'float32'", asked(dtype="int8")),
    "no such parameter": (422, "there is no parameter quality; /openapi.json", asked(quality=90)),
    "no such output": (422, "output_type=gif: it has to be 'pil', 'pt' or 'mp4'", asked(output_type="gif")),
    "no such format": (422, "image_format=webp: it has to be 'jpg' or 'png'", asked(image_format="webp")),
    "a factor of NaN": (422, "scaling_factor=nan: it has to be a finite number", asked(scaling_factor="nan")),
    "a factor of nothing": (422, "scaling_factor=: it has to be a number", asked(scaling_factor="")),
    "a factor of zero": (422, "scaling_factor=0: latents can't be divided by zero", asked(scaling_factor=0)),
    "a tiny factor": (400, "values that are not finite", asked(scaling_factor=1e-320)),
    "an infinite shift": (422, "shift_factor=inf: it has to be a finite number", asked(shift_factor="inf")),
    "maybe": (422, "do_scaling=maybe: it has to be true or false", asked(do_scaling="maybe")),
    "no rate": (422, "fps=0: it has to be at least 0.01", asked(output_type="mp4", fps=0)),
    "too quick": (422, "fps=1000000.0: it has to be at most 1000", asked(output_type="mp4", fps=1e6)),
    "another size": (400, "height=7: latents of this shape make pictures of 12x16", asked(height=7, width=9)),
    "many faults": (422, "(and 4 more)", asked(shape=[-1] * 5, dtype="x", fps=-1)),
    "too short": (
        400,
        "a body of 384 bytes; shape and dtype make 768",
        asked(shape=[2, 8, 3, 4], output_type="pt"),
    ),
    "too long": (400, "a body of 384 bytes; shape and dtype make 192", asked(dtype="float16")),
    "clips as one image": (400, "2 frames do not go into one image", asked(shape=[2, 8, 2, 3])),
    "clips as one video": (
        400,
        "2 clips do not go into one video",
        asked(shape=[2, 8, 1, 2, 3], output_type="mp4"),
    ),
}
BODIES = {
    "NaN": (400, "not finite (NaN or infinite)", values(np.nan)),
    "infinite": (400, "not finite (NaN or infinite)", values(-np.inf)),
    "enormous values": (400, "larger than this model takes in float32", values(3e38)),
}
IMAGES = {
    "nothing": (400, "the body is no image (PNG, JPEG", b""),
    "a text": (400, "the body is no image (PNG, JPEG", b"hello"),
    "a program": (400, "the body is no image (PNG, JPEG", b"MZ" + bytes(100)),
    "a pickle": (400, "the body is no image (PNG, JPEG", b"\x80\x04\x95" + bytes(100)),
    "an address": (400, "the body is no image (PNG, JPEG", b"http://127.0.0.1/secret.png"),
    "a drawing": (400, "the body is no image (PNG, JPEG", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "a damaged image": (400, "the image is damaged", png(400, 400)[:-30]),
    "half an image": (400, "the image is damaged", png(400, 400)[:60]),
    "a small one": (400, "an image of 4x3 is smaller than a latent, 4x4", png(4, 3)),
    "floating-point values": (400, "floating-point values of unknown range", floating()),
    "a large one": (413, "takes at least", png(5000, 5000)),
    "a bomb": (413, "an image of 9000x9000 has more than 67,108,864 pixels", png(9000, 9000, "1")),
    "a bomb that Pillow knows": (413, "an image of more than 67,108,864 pixels", png(20000, 20000, "1")),
}  # fmt: skip
TENSORS = {
    "without a type": (400, "a tensor comes with shape and dtype", asked(shape=[1, 3, 4, 8], dtype=None)),
    "without a shape": (400, "a tensor comes with shape and dtype", asked(shape=None)),
    "smaller than a latent": (400, "smaller than a latent, 4 pixels a side", asked(shape=[1, 3, 3, 3])),
    "other channels": (400, "pixels of 4 channels; this model has 3", asked(shape=[1, 4, 4, 6])),
    "packed": (400, "packed latents", asked(shape=[4, 4, 6])),
    "enormous": (413, "GiB; send less", asked(shape=[1, 3, 100_000, 100_000])),
    "a parameter of decode": (422, "there is no parameter fps", asked(shape=[1, 3, 4, 8], fps=24)),
}


def one_sentence(response, status, *parts):
    """A refusal as clients and people can read it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    detail = response.json()["detail"]
    assert set(response.json()) == {"detail"}
    assert detail
    assert "\n" not in detail
    assert detail[-1] not in ".;:"
    assert len(detail) < 400
    for part in parts:
        assert part in detail, detail


@pytest.mark.parametrize(("status", "part", "params"), PARAMETERS.values(), ids=PARAMETERS)
def test_decode_refuses_parameters(server, status, part, params):
    one_sentence(server.post("/decode", params=params, data=ZEROS), status, part)


@pytest.mark.parametrize(("status", "part", "body"), BODIES.values(), ids=BODIES)
def test_decode_refuses_values(server, status, part, body):
    one_sentence(server.post("/decode", params=asked(output_type="pt"), data=body), status, part)


@pytest.mark.parametrize(("status", "part", "content"), IMAGES.values(), ids=IMAGES)
def test_encode_refuses_images(server, status, part, content):
    one_sentence(server.post("/encode", data=content), status, part)


@pytest.mark.parametrize(("status", "part", "params"), TENSORS.values(), ids=TENSORS)
def test_encode_refuses_tensors(server, status, part, params):
    one_sentence(server.post("/encode", params=params, data=ZEROS), status, part)


def test_refusals_take_no_memory(server):
    server.forget_peak()
    before = server.resident()
    for _ in range(3):
        for _, _, params in PARAMETERS.values():
            server.post("/decode", params=params, data=ZEROS)
        for _, _, content in IMAGES.values():
            server.post("/encode", data=content)
        for _, _, params in TENSORS.values():
            server.post("/encode", params=params, data=ZEROS)
    assert server.peak() - before < 30 * MIB


def test_a_body_over_the_limit_is_refused_without_memory(server):
    server.forget_peak()
    before = server.resident()
    response = server.post("/decode", params=asked(shape=[1, 8, 4096, 4096]), data=bytes(300 * MIB))
    one_sentence(
        response, 413, "a body of 314,572,800 bytes; this server takes 268,435,456, see --body-limit"
    )
    assert server.peak() - before < 10 * MIB


METHODS = [
    ("GET", "/decode", 405, "POST"),
    ("PUT", "/decode", 405, "POST"),
    ("DELETE", "/encode", 405, "POST"),
    ("OPTIONS", "/decode", 405, "POST"),
    ("BREW", "/decode", 405, "POST"),
    ("POST", "/info", 405, "GET"),
    ("PUT", "/", 405, "GET"),
    ("GET", "/nowhere", 404, None),
    ("POST", "/decode/", 404, None),
    ("GET", "/../../etc/passwd", 404, None),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, None),
]


@pytest.mark.parametrize(("method", "path", "status", "allowed"), METHODS)
def test_paths_and_methods(server, method, path, status, allowed):
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    answer = server.raw(head.encode())
    assert answer.status == status
    assert "/openapi.json lists" in answer.detail
    assert allowed is None or allowed in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/healthz", "/info", "/metrics", "/openapi.json", "/"])
def test_head_is_get_without_a_body(server, path):
    whole = server.get(path)
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-type: {whole.headers['content-type']}".encode() in head
    assert body == b""


QUERY = "shape=1&shape=8&shape=3&shape=4&dtype=float32&output_type=pt"


def head(*lines, query=QUERY):
    return "\r\n".join([f"POST /decode?{query} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


RAW = {
    "no length": (411, "Content-Length; send a body of known length", head()),
    "chunks": (411, "Content-Length; send a body", head("Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "chunks beside a length": (
        411,
        "Content-Length; send a body",
        head("Transfer-Encoding: chunked", "Content-Length: 384") + b"400\r\n" + bytes(1024) + b"\r\n0\r\n\r\n",
    ),
    "a negative length": (400, "no request of HTTP", head("Content-Length: -3")),
    "a length in letters": (400, "no request of HTTP", head("Content-Length: many")),
    "a length that is no ASCII": (400, "no request of HTTP", b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n"),
    "no HTTP": (400, "no request of HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "no host": (421, "for host '', and this server is 127.0.0.1", b"GET /info HTTP/1.0\r\n\r\n"),
    "another host": (421, "for host 'evil.example:80'", b"GET /info HTTP/1.1\r\nHost: evil.example:80\r\n\r\n"),
    "a host that is none": (421, "for host '[', and this", b"GET /info HTTP/1.1\r\nHost: [\r\n\r\n"),
    "an endless line": (400, "no request of HTTP", b"GET /" + b"a" * 200_000),
}  # fmt: skip


@pytest.mark.parametrize(("status", "part", "request_"), RAW.values(), ids=RAW)
def test_what_no_client_of_python_sends(server, status, part, request_):
    answer = server.raw(request_)
    assert answer.status == status
    assert part in answer.detail
    assert answer.headers["content-type"] == "application/json"


def test_other_sites_may_not_send(server):
    for origin, part in (
        (
            "http://evil.example",
            "pages of http://evil.example may not use this server; start it with --origin",
        ),
        ("null", "pages without an address of their own"),
        ("http://[", "pages of http://[ may not"),
    ):
        response = server.post("/decode", params=asked(), data=ZEROS, headers={"Origin": origin})
        one_sentence(response, 403, part)
    own = server.post("/decode", params=asked(), data=ZEROS, headers={"Origin": server.url})
    assert own.status_code == 200


def test_who_waits_for_leave_to_send_is_refused_without_sending(server):
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(head("Content-Length: 999999999", "Expect: 100-continue"))
        answer = read_answer(connection)
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert connection.recv(1) == b""
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(head("Content-Length: 384", "Expect: 100-continue"))
        assert read_answer(connection).status == 100
        connection.sendall(ZEROS)
        assert read_answer(connection).status == 200


def test_a_connection_goes_on_after_a_refusal(server):
    refused = head("Content-Length: 384", query="shape=1&dtype=float32") + ZEROS
    taken = head("Content-Length: 384") + ZEROS
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(refused)
        assert read_answer(connection).status == 422
        connection.sendall(taken)
        assert read_answer(connection).status == 200


def test_requests_in_a_row_are_answered_in_a_row(server):
    first, second = head("Content-Length: 384") + ZEROS, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(first + second)
        received = b""
        while b'"ok"' not in received:
            received += connection.recv(65536)
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.index(b"tensor/binary") < received.index(b'"ok"')


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKLTemporalDecoder.from_pretrained(EMBEDDED).eval()


def client(vae, **settings):
    return TestClient(Service(vae, Settings(memory_limit=2**30, **settings)).app, base_url="http://localhost")


def test_a_token_lets_in_whoever_shows_it(vae):
    with client(vae, token="a secret") as guarded:
        for shown in ({}, {"Authorization": "Bearer another"}, {"Authorization": "Basic a secret"}):
            response = guarded.post("/decode", params=asked(), content=ZEROS, headers=shown)
            one_sentence(response, 401, "send it as Authorization: Bearer TOKEN")
            assert response.headers["www-authenticate"] == "Bearer"
            assert guarded.get("/info", headers=shown).status_code == 401
            assert guarded.get("/metrics", headers=shown).status_code == 401
            assert guarded.get("/openapi.json", headers=shown).status_code == 401
        assert guarded.get("/healthz").status_code == 200
        for scheme in ("Bearer", "bearer"):
            right = {"Authorization": f"{scheme} a secret"}
            assert guarded.post("/decode", params=asked(), content=ZEROS, headers=right).status_code == 200


def test_pages_of_a_site_that_was_named_may_send_and_read(vae):
    site = {"Origin": "https://a.example"}
    with client(vae, token="a secret", origins=("https://a.example",)) as shared:
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = shared.options("/decode", headers=site | asking)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        right = site | {"Authorization": "Bearer a secret", "Accept": "tensor/binary"}
        response = shared.post("/decode", params=asked(output_type="pt"), content=ZEROS, headers=right)
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert "shape" in response.headers["access-control-expose-headers"]
        assert shared.post("/decode", content=ZEROS, headers=site).headers["access-control-allow-origin"]
        assert (
            shared.post("/decode", content=ZEROS, headers={"Origin": "https://b.example"}).status_code == 403
        )


def test_refusals_name_no_path_of_the_server(server):
    for path in ("/nowhere", "/info", "/openapi.json"):
        assert str(Path(__file__).parents[1]) not in server.get(path).text


def test_who_is_given_up_while_the_server_stops_is_told_in_json():
    """What uvicorn cancels when its patience is over, it would answer in plain text."""

    async def endless(scope, receive, send):
        await asyncio.Event().wait()

    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        guard = Guard(
            endless, Settings(memory_limit=1), Counters(Desk(places=1, held_limit=1)), lambda path: True
        )
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        task = asyncio.create_task(guard(scope, asyncio.Event().wait, send))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert sent[0]["status"] == 503
    assert b"the server is stopping" in sent[1]["body"]
