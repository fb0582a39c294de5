"""Jobs of a service in this process: how long they and their files last, and how much room they have."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from serving import PATIENCE, picture

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.serve import Service, Settings
from temporal_vae.serve.jobs import Jobs


@contextmanager
def in_this_process(folder: Path, **limits: Any) -> Iterator[TestClient]:
    """A server whose start takes no time."""
    vae = AutoencoderKLTemporalDecoder.from_embedded().eval()
    settings = Settings(memory_limit=2**31, folder=folder, **limits)
    with TestClient(Service(vae, settings).app) as client:
        yield client
    assert not list(folder.iterdir())


def polled(client: TestClient, response: Any) -> dict[str, Any]:
    """A job at its end."""
    assert response.status_code == 202, response.text
    deadline = time.monotonic() + PATIENCE
    while (job := client.get(f"/jobs/{response.json()['id']}").json())["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def test_results_are_kept_within_their_room(footage: Path, tmp_path: Path) -> None:
    """A source of 0.6 MB, of which frames are read that leave 0.2 MB of results, or more."""
    clip = {"file": ("clip.mp4", footage.read_bytes())}
    with in_this_process(tmp_path, results_limit=700_000) as client:
        small = {"size": "64x48", "frames": "2"}
        jobs = [polled(client, client.post("/jobs", files=clip, data=small)) for _ in range(3)]
        assert [job["state"] for job in jobs] == ["done"] * 3
        assert [client.get(f"/jobs/{job['id']}").status_code for job in jobs] == [404, 404, 200]
        large = polled(client, client.post("/jobs", files=clip, data={"size": "256x192", "frames": "3"}))
        assert large["state"] == "failed"
        assert "--results-limit" in large["error"]
        assert large["results"] == {}
        too_large = client.post("/jobs", files={"file": ("clip.mp4", bytes(800_000))})
        assert too_large.status_code == 413
        assert "--results-limit" in too_large.json()["detail"]


def test_results_expire(tmp_path: Path) -> None:
    with in_this_process(tmp_path, results_seconds=0.5) as client:
        job = polled(client, client.post("/jobs", files={"file": ("photo.png", picture())}))
        assert job["state"] == "done"
        assert job["expires"]
        time.sleep(0.6)
        gone = client.get(f"/jobs/{job['id']}")
        assert gone.status_code == 404
        assert "send the video again" in gone.json()["detail"]


def test_a_job_that_takes_too_long_is_ended(footage: Path, tmp_path: Path) -> None:
    with in_this_process(tmp_path, job_seconds=0.2) as client:
        clip = {"file": ("clip.mp4", footage.read_bytes())}
        job = polled(client, client.post("/jobs", files=clip, data={"size": "480"}))
        assert job["state"] == "failed"
        assert "limit of 0.2 s" in job["error"]


def test_files_that_vanish_while_they_are_counted(tmp_path: Path) -> None:
    """As those of another job do, which is removed at that moment."""
    jobs = Jobs(tmp_path, Settings(memory_limit=2**30), lambda job: None, lambda state: None)
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            deep = tmp_path / "job" / "upload" / "made"
            deep.mkdir(parents=True)
            (deep / "video.mp4").write_bytes(bytes(10))
            shutil.rmtree(tmp_path / "job")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(500):
            jobs.remove(jobs.receive(1))
    finally:
        stop.set()
        other.join()
        jobs.end()


def test_two_services_of_one_process_leave_each_other_their_files(tmp_path: Path) -> None:
    vae = AutoencoderKLTemporalDecoder.from_embedded().eval()
    apps = [Service(vae, Settings(memory_limit=2**31, folder=tmp_path)).app for _ in range(2)]
    with TestClient(apps[0]) as first:
        job = polled(first, first.post("/jobs", files={"file": ("photo.png", picture())}))
        with TestClient(apps[1]):
            assert len(list(tmp_path.iterdir())) == 2
        result = first.get(f"/jobs/{job['id']}/results/result.png")
        assert result.status_code == 200
    assert not list(tmp_path.iterdir())
