"""`encode-dataset` on Ray: the same clips as without it, also when actors, machines and the driver are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_encoders
from processes import free_port
from video_folders import BROKEN, assert_same, index, quarantine, records, summary, write_videos

from temporal_vae.distributed import Settings, encode_dataset
from temporal_vae.distributed.dataset.encode_job import Batch, ClipTask, EncodeJob, Report
from temporal_vae.distributed.dataset.executors import ModelSpec
from temporal_vae.distributed.dataset.executors.processes import WorkerError
from temporal_vae.distributed.dataset.executors.ranks import RankExecutor
from temporal_vae.distributed.dataset.executors.ray import RayExecutor
from temporal_vae.errors import InputError

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed; pip install 'temporal-vae[ray]'"
)

CLIP = 3
STORE = 80 << 20


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def alone(videos, tmp_path_factory) -> Path:
    """What this process makes of the videos, by itself."""
    dest = tmp_path_factory.mktemp("alone") / "latents"
    encode(videos, dest, RankExecutor(rank=0, world_size=1))
    return dest


@pytest.fixture
def two_machines() -> Iterator[Any]:
    """A Ray cluster of two nodes, each with room for one worker, and the second of them."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        yield cluster, cluster.add_node(**options)
    finally:
        cluster.shutdown()


def encode(source: Path, dest: Path, executor: Any, **how: Any) -> dict[str, Any]:
    how = {"settings": Settings(clip_frames=CLIP), "device": "cpu", "clips_per_shard": 2, **how}
    return encode_dataset(source, dest, executor=executor, **how).to_json()


def clip(number: int, source: str = "video") -> ClipTask:
    return ClipTask(
        identity=f"{number:032x}",
        path=f"{source}.mp4",
        source=source,
        source_sha256="",
        stamp="",
        start=Fraction(number),
        last=Fraction(number),
        end=Fraction(number + 1),
        frames=1,
        fps=None,
        rate=Fraction(1),
        read_from=Fraction(number),
        original=(8, 8),
        box=(Fraction(0), Fraction(0), Fraction(8), Fraction(8)),
        size=(8, 8),
        columns={},
    )


def job(dest: Path) -> EncodeJob:
    model = ModelSpec(name="none", subfolder=None, device="cpu", identity="")
    return EncodeJob(model=model, settings=Settings(), dest=str(dest), format="tar")


def without_model(encoder: Any, dest: Path, batches: Iterable[Batch]) -> Iterator[Report]:
    """Reports of two workers of `ray_encoders`."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_encoders)  # actors don't find it
    dest.mkdir()
    return RayExecutor(concurrency=2, make=encoder).run(job(dest), batches)


def test_ray_makes_the_same_as_one_process(videos, alone, tmp_path):
    counts: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    told = encode(
        videos, tmp_path / "latents", RayExecutor(concurrency=2), progress=lambda now: counts.append(now.done)
    )
    assert told["encoded"] == told["clips"] > 10
    assert_same(records(tmp_path / "latents"), records(alone))
    assert index(tmp_path / "latents")
    assert {line["source"] for line in quarantine(tmp_path / "latents")} >= set(BROKEN)
    assert len(set(counts)) > 4, "clips are counted as they are done"
    assert signal.getsignal(signal.SIGTERM) is before
    assert not ray_processes()


def test_nobody_at_an_address():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=rf"{address}: nobody answers .*ray start --head"):
        list(RayExecutor(address=address).run(job(Path("none")), [Batch(number=0, clips=(clip(0),))]))


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"gpus": -1}])
def test_values_out_of_range(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}="):
        RayExecutor(**options)


def test_no_machine_has_room():
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=STORE, log_to_driver=False)
    try:
        assert RayExecutor().at_once() == 1
        with pytest.raises(
            InputError, match=r"room for a worker of 1 CPU and 1 GPU \(there are 1 CPU, 0 GPU\)"
        ):
            list(RayExecutor(gpus=1).run(job(Path("none")), [Batch(number=0, clips=(clip(0),))]))
        assert ray.is_initialized(), "whose Ray it is, ends it"
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_clip_that_kills_workers_fails_alone(tmp_path):
    clips = [clip(number, "poison" if number == 5 else "video") for number in range(24)]
    batches = [Batch(number=first // 4, clips=tuple(clips[first : first + 4])) for first in range(0, 24, 4)]
    reports = list(without_model(ray_encoders.Noting, tmp_path / "notes", batches))
    failed = {failure.identity: failure.reason for report in reports for failure in report.failed}
    assert set(failed) == {each.identity for each in clips}
    assert sum(len(report.failed) for report in reports) == len(clips)
    assert "poison: a worker died 3 times" in failed[clips[5].identity]
    assert sum(reason == "noted" for reason in failed.values()) == len(clips) - 1
    notes = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "notes").iterdir()}
    assert notes == {each.identity: 1 for each in clips if each.source != "poison"}


@pytest.mark.slow
def test_only_a_few_batches_are_taken_before_others_have_come_back(tmp_path):
    taken: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(40):
            taken.append(number)
            yield Batch(number=number, clips=(clip(number),))

    reports = without_model(ray_encoders.Noting, tmp_path / "notes", batches())
    seen = [(next(reports).batch, len(taken)) for _ in range(20)]
    assert {count for _, count in seen} == {20}
    assert sorted(number for number, _ in seen) == list(range(20))
    assert sorted(report.batch for report in reports) == list(range(20, 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "error", "reason"),
    [
        (ray_encoders.Refusing, InputError, "none: no such model"),
        (ray_encoders.Dying, WorkerError, "workers die while they load the model"),
        (ray_encoders.Wrong, WorkerError, "ray_encoders.py:.*ZeroDivisionError: a mistake"),
    ],
)
def test_what_is_wrong_with_all_clips_ends_the_run_in_one_line(tmp_path, encoder, error, reason):
    batches = [Batch(number=number, clips=(clip(number),)) for number in range(3)]
    with pytest.raises(error, match=reason) as found:
        list(without_model(encoder, tmp_path / "notes", batches))
    assert "\n" not in str(found.value)
    assert not ray_processes()


@pytest.mark.slow
def test_a_machine_of_the_cluster_is_lost(videos, alone, two_machines, tmp_path):
    cluster, second = two_machines
    lost: list[int] = []

    def lose(now: Any) -> None:
        if now.phase == "encode" and now.done >= 3 and not lost:
            lost.append(now.done)
            cluster.remove_node(second, allow_graceful=False)

    told = encode(videos, tmp_path / "latents", RayExecutor(address=cluster.address), progress=lose)
    assert lost
    assert lost[0] < told["clips"]
    assert told["encoded"] == told["clips"]
    assert_same(records(tmp_path / "latents"), records(alone))
    assert len(index(tmp_path / "latents")) == len(index(alone))


@pytest.mark.slow
def test_actors_are_killed(videos, alone, tmp_path):
    killed: list[int] = []

    def kill(now: Any) -> None:
        actors = [each for each in ray_processes() if "MapWorker" in name(each)]
        if now.phase == "encode" and now.done > 2 * len(killed) and len(killed) < 3 and actors:
            with suppress(psutil.NoSuchProcess):
                actors[-1].kill()
                killed.append(actors[-1].pid)

    told = encode(videos, tmp_path / "latents", RayExecutor(concurrency=2), progress=kill)
    assert len(killed) == 3
    assert told["encoded"] == told["clips"]
    assert_same(records(tmp_path / "latents"), records(alone))


@pytest.mark.slow
def test_the_driver_is_killed_again_and_again(videos, alone, tmp_path):
    dest, ends = tmp_path / "latents", []
    words = ("encode-dataset", videos, dest, "--clip-frames", CLIP, "--clips-per-shard", 2, "--device", "cpu")
    command = [sys.executable, "-m", "temporal_vae", *map(str, words), "--executor", "ray", "--workers", "2"]
    for shards, number in ((1, signal.SIGKILL), (3, signal.SIGKILL), (6, signal.SIGINT)):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list(dest.glob("shards/*.tar"))) < shards:
            time.sleep(0.05)
        if number == signal.SIGINT:  # as a terminal does
            os.killpg(process.pid, number)
        else:
            process.kill()
        ends.append(process.wait(600))  # a machine may be busy with other things
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 128 + signal.SIGINT]
    assert subprocess.run(command, capture_output=True).returncode == 3
    assert 0 < summary(dest)["found"] < summary(dest)["clips"]
    assert_same(records(dest), records(alone))
    assert len(index(dest)) == len(index(alone))


def ray_processes() -> list[psutil.Process]:
    """Processes of Ray that descend from this one."""
    return [each for each in psutil.Process(os.getpid()).children(recursive=True) if "ray" in name(each)]


def name(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()[:3]])
    except psutil.Error:
        return ""
