"""Jobs of the service: a video in, progress, results, and what is done with those that nobody wants."""

import io
import json
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors.torch import load_file
from serving import PATIENCE, Running, picture, read_answer, serving

from temporal_vae import encode_video, reconstruct_video
from temporal_vae.media.reader import VideoReader

SMALL = {"size": "64x48", "frames": "5", "clip_frames": "3", "overlap": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("results")
    with serving("--results-folder", str(folder), "--jobs", "2") as running:
        running.folder = folder  # type: ignore[attr-defined]
        yield running


def send(server: Running, content: bytes | Path, name: str = "clip.mp4", **fields: str) -> requests.Response:
    data = content.read_bytes() if isinstance(content, Path) else content
    return server.post("/jobs", files={"file": (name, data)}, data=fields)


def events(server: Running, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that a job tells until it ends."""
    found = []
    with requests.get(f"{server.url}/jobs/{job['id']}/events", stream=True, timeout=PATIENCE) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith(b"data: "):
                found.append(json.loads(line.removeprefix(b"data: ")))
    return found


def ended(server: Running, job: dict[str, Any]) -> dict[str, Any]:
    return events(server, job)[-1]


def wait_for(server: Running, job: dict[str, Any], state: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.get(f"/jobs/{job['id']}").json()["state"] != state:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cancel(server: Running, job: dict[str, Any]) -> requests.Response:
    return requests.delete(f"{server.url}/jobs/{job['id']}", timeout=PATIENCE)


def wait_until_idle(server: Running) -> None:
    """No files are left of jobs that were cancelled."""
    (folder,) = (path for path in server.folder.iterdir() if path.is_dir())  # type: ignore[attr-defined]
    deadline = time.monotonic() + PATIENCE
    while list(folder.iterdir()):
        assert time.monotonic() < deadline, list(folder.rglob("*"))
        time.sleep(0.05)


def test_a_video_comes_back_with_all_there_is_to_see(server: Running, footage: Path, tmp_path: Path) -> None:
    response = send(server, footage, "../a <b>clip</b>.mp4", **SMALL)
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"./jobs/{job['id']}"
    told = events(server, job)
    done = told[-1]
    assert [one["state"] for one in told if one["state"] == "running"]
    assert done["state"] == "done", done
    assert done["name"] == "../a <b>clip</b>.mp4"
    assert done["done"] == done["total"] > 0
    assert done["plan"]["decode"]["peak"] > 0
    assert "whole" in done["plan"]["encode"]["text"]
    for name, address in done["results"].items():
        content = server.get(address.removeprefix("."))
        assert content.status_code == 200
        (tmp_path / f"{name}{Path(address).suffix}").write_bytes(content.content)

    selection: dict[str, Any] = {"size": (64, 48), "frames": 5}
    found = json.loads((tmp_path / "metrics.json").read_text())
    here = reconstruct_video(footage, tmp_path / "here.mp4", clip_frames=3, overlap=1, **selection)
    assert found["summary"] == pytest.approx(here.to_dict()["summary"], rel=1e-3)
    assert (found["source"], found["target"]) == ("../a <b>clip</b>.mp4", "result.mp4")
    encode_video(footage, tmp_path / "here.safetensors", **selection)
    latents = load_file(tmp_path / "latents.safetensors")
    for name, values in load_file(tmp_path / "here.safetensors").items():
        assert (latents[name] - values).abs().max() < 1e-4
    stamps = []
    for name in ("source", "result"):
        with VideoReader(tmp_path / f"{name}.mp4") as reader:
            frames = list(reader)
            assert (len(frames), reader.width, reader.height) == (5, 64, 48)
            stamps.append([stamp for _, stamp in frames])
    assert stamps[0] == stamps[1]
    report = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;clip" in report or "_b_clip_" in report
    assert "<b>clip" not in report
    for text in (report, json.dumps(found), json.dumps(done)):
        assert str(server.folder) not in text  # type: ignore[attr-defined]
    assert cancel(server, job).status_code == 204
    assert server.get(f"/jobs/{job['id']}").status_code == 404
    wait_until_idle(server)


def test_a_picture_comes_back_as_one(server: Running) -> None:
    job = send(server, picture(), "photo.png").json()
    done = ended(server, job)
    assert done["state"] == "done", done
    assert {name: Path(address).suffix for name, address in done["results"].items()} == {
        "source": ".png",
        "result": ".png",
        "latents": ".safetensors",
        "sheet": ".png",
        "metrics": ".json",
        "report": ".html",
    }
    result = server.get(done["results"]["source"].removeprefix("."))
    assert np.array_equal(
        np.array(Image.open(io.BytesIO(result.content))), np.array(Image.open(io.BytesIO(picture())))
    )
    missing = server.get(f"/jobs/{job['id']}/results/upload")
    assert (missing.status_code, missing.json()["detail"].startswith("job ")) == (404, True)
    cancel(server, job)


@pytest.mark.parametrize("path", ["..%2F..%2Fetc%2Fpasswd", "metrics.json%00", "%2e%2e/upload"])
def test_results_are_the_named_ones_only(server: Running, path: str) -> None:
    job = send(server, picture(), "photo.png").json()
    ended(server, job)
    response = server.get(f"/jobs/{job['id']}/results/{path}")
    assert response.status_code == 404
    assert response.json()["detail"]
    cancel(server, job)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("clip.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("clip.ffconcat", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("clip.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
        ("clip.txt", "once upon a time"),
        ("clip.mp4", ""),
    ],
)
def test_what_is_no_video_or_names_other_files_fails_with_a_sentence(
    server: Running, footage: Path, tmp_path: Path, name: str, content: str
) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(footage.read_bytes())
    response = send(server, content.format(secret=secret).encode(), name)
    failed = ended(server, response.json()) if response.status_code == 202 else response.json()
    message = failed.get("error") or failed["detail"]
    assert re.match(rf"{name}: |file: ", message), message
    assert ";" in message
    assert "/" not in message.replace("MP4/", "")
    if "id" in failed:
        assert failed["state"] == "failed"
        assert failed["results"] == {}
        cancel(server, failed)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"clip_frames": "0"}, "clip_frames="),
        ({"clip_frames": "many"}, "clip_frames="),
        ({"overlap": "-1"}, "overlap="),
        ({"memory_limit": "much"}, "memory_limit="),
        ({"size": "0x3"}, "size="),
        ({"start": "nan"}, "start=nan: it has to be"),
        ({"fps": "inf"}, "fps="),
        ({"colour": "red"}, "there is no parameter colour"),
    ],
)
def test_fields_that_make_no_sense(server: Running, fields: dict[str, str], what: str) -> None:
    response = send(server, picture(), "photo.png", **fields)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(what)


def test_a_form_without_a_file(server: Running) -> None:
    assert server.post("/jobs", data={"frames": "3"}).status_code == 400
    assert server.post("/jobs", files={"other": b"x"}).status_code == 422
    broken = server.post("/jobs", data=b"x", headers={"content-type": "multipart/form-data; boundary=y"})
    assert broken.status_code == 400
    assert broken.json()["detail"].startswith("the form can't be read")


def test_an_overlap_longer_than_clips_is_told(server: Running, footage: Path) -> None:
    failed = ended(server, send(server, footage, clip_frames="2", overlap="2", frames="4").json())
    assert failed["state"] == "failed"
    assert "overlap" in failed["error"]
    cancel(server, failed)


def test_jobs_wait_are_called_off_and_let_requests_between_their_clips(
    server: Running, footage: Path
) -> None:
    long = send(server, footage, size="480", clip_frames="4").json()
    wait_for(server, long, "running")
    waiting = send(server, footage, "next.mp4", **SMALL).json()
    assert server.get(f"/jobs/{waiting['id']}").json()["position"] == 1
    full = send(server, footage)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) > 0
    # A request does not wait for the whole video.
    shape = {"shape": [1, 8, 8, 8], "dtype": "float32", "output_type": "pt"}
    decoded = server.post("/decode", params=shape, data=bytes(4 * 8 * 64))
    assert decoded.status_code == 200
    assert server.get(f"/jobs/{long['id']}").json()["state"] == "running"
    with requests.get(f"{server.url}/jobs/{long['id']}/events", stream=True, timeout=PATIENCE) as stream:
        lines = stream.iter_lines()
        assert next(lines) == b"event: job"
        assert cancel(server, long).status_code == 204
        told = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
    assert told[-1]["state"] == "cancelled"
    assert ended(server, waiting)["state"] == "done"
    cancel(server, waiting)
    queued = [send(server, footage, size="480").json(), send(server, footage, **SMALL).json()]
    for job in reversed(queued):  # the second one before it began
        assert cancel(server, job).status_code == 204
    wait_until_idle(server)


def test_clips_that_do_not_fit_the_memory_are_refused_with_the_figure(server: Running, footage: Path) -> None:
    """2 GiB of the server are 1 GiB for the model and half of one for frames."""
    frames = ended(server, send(server, footage, size="4096x4096", clip_frames="25").json())
    assert frames["state"] == "failed"
    assert re.search(r"25 frames of 4096x4096 take [\d.]+ GiB.*512 MiB", frames["error"])
    model = ended(server, send(server, footage, memory_limit="1MiB", frames="2").json())
    assert model["state"] == "failed"
    assert re.search(r"at least \d+ MiB", model["error"])
    for job in (frames, model):
        cancel(server, job)


@pytest.mark.slow
def test_a_server_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    options = ("--results-folder", str(tmp_path))
    with serving(*options) as server:
        job = ended(server, send(server, picture(), "photo.png").json())
        assert job["state"] == "done"
        server.end(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1
    with serving(*options) as server:
        assert len(list(tmp_path.iterdir())) == 1
        assert server.end() == 0
    assert not list(tmp_path.iterdir())


def test_a_server_that_stops_tells_its_jobs(footage: Path, tmp_path: Path) -> None:
    with serving("--grace", "0", "--results-folder", str(tmp_path)) as server:
        running = send(server, footage, size="480").json()
        waiting = send(server, footage).json()
        wait_for(server, running, "running")
        streams = [
            requests.get(f"{server.url}/jobs/{job['id']}/events", stream=True, timeout=PATIENCE)
            for job in (running, waiting)
        ]
        lines = [stream.iter_lines() for stream in streams]
        assert [next(one) for one in lines] == [b"event: job"] * 2
        server.process.send_signal(signal.SIGTERM)
        for one in lines:
            last = [json.loads(line[6:]) for line in one if line.startswith(b"data: ")][-1]
            assert last["state"] == "failed"
            assert "stopping" in last["error"]
        assert server.process.wait(PATIENCE) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_upload_that_comes_too_slowly_is_ended(tmp_path: Path) -> None:
    """And gives back its place, of which there is one."""
    form = b"--x\r\nContent-Disposition: form-data; name=file; filename=a.png\r\n\r\n"
    head = b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    options = ("--seconds", "2", "--jobs", "1", "--results-folder", str(tmp_path), "--grace", "0")
    with serving(*options) as server:
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), PATIENCE) as slow:
            slow.sendall(head + b"Content-Length: 9999\r\n\r\n" + form)
            time.sleep(0.5)
            assert send(server, picture(), "photo.png").status_code == 429
            answer = read_answer(slow)
            assert answer.status == 408
            assert "came too slowly" in answer.detail
        assert ended(server, send(server, picture(), "photo.png").json())["state"] == "done"
        with socket.create_connection((address[0], int(address[1])), PATIENCE) as slow:
            slow.sendall(head + b"Content-Length: 9999\r\n\r\n" + form)
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            assert read_answer(slow).status == 503
        assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in "\n".join(server.lines)
