"""`encode-dataset` on Ray, whose machines and driver are killed at random moments: nothing is lost or there twice."""

import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import ray_encoders
from video_files import render, scene
from video_folders import assert_as_whole, write_videos

from temporal_vae.distributed.dataset.executors.ray import Attempts

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed; pip install 'temporal-vae[ray]'"
)

CLIP = 3
SHORT, LONG = 0.2, 0.6  # seconds of the pauses that workers make
PATIENCE = 600  # seconds that a machine busy with other things may take for anything
MACHINE = {"object_store_memory": 80 << 20}
LOOKING = {"health_check_period_ms": 300}  # after five looks in vain a machine is held to be dead


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Enough for many batches, and what is broken."""
    folder = write_videos(tmp_path_factory.mktemp("videos"))
    render(folder / "long.mp4", scene(75, 32, 32, seed=7), options={"g": "25"})
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory) -> Path:
    """What an uninterrupted run makes, without Ray."""
    dest = tmp_path_factory.mktemp("whole") / "latents"
    words = ("encode-dataset", videos, dest, "--clip-frames", CLIP, "--device", "cpu", "--workers", 1)
    limit = ("--memory-limit", ray_encoders.LIMIT)
    command = (sys.executable, "-m", "temporal_vae", *map(str, (*words, *limit)))
    assert subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 3
    return dest


class Machines:
    """A cluster of two nodes: the driver's, and one with room for a worker that is killed and replaced."""

    def __init__(self, cluster: Any) -> None:
        self._cluster, self.address = cluster, cluster.address
        self._second = self._add()

    def replace(self) -> None:
        """Kill the second node, and add another one."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._add()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, **MACHINE)


@contextmanager
def two_machines(workers_here: int) -> Iterator[Machines]:
    """With a worker, or none, beside the driver."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": workers_here, "include_dashboard": False, "_system_config": LOOKING, **MACHINE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Machines(cluster)
    finally:
        cluster.shutdown()


@contextmanager
def driver(videos: Path, dest: Path, address: str, pause: float) -> Iterator[BaseProcess]:
    """A process that encodes; it is killed at the end of the block, if it still runs."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=ray_encoders.drive, args=(videos, dest, address, CLIP, pause))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_for_shards(dest: Path, chance: random.Random, process: BaseProcess) -> None:
    """Wait until a random number of shards more are there, and a random moment after that; or all is done."""
    enough, end = len(shards(dest)) + chance.randrange(1, 5), time.monotonic() + PATIENCE
    while len(shards(dest)) < enough and process.is_alive():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)
    time.sleep(2 * LONG * chance.random())


def shards(dest: Path) -> list[Path]:
    return list(dest.glob("shards/*.tar"))


def kill_in_turn(
    videos: Path, dest: Path, machines: Machines, chance: random.Random, kills: list[str], pause: float = LONG
) -> int:
    """Kill a machine, or the driver, at random moments, as `kills` says; how many of them while there was work."""
    left, bitten = list(kills), 0
    while True:
        with driver(videos, dest, machines.address, pause) as process:
            while left:
                wait_for_shards(dest, chance, process)
                bitten += process.is_alive()
                if left.pop(0) == "driver":
                    break
                machines.replace()
            else:
                process.join(PATIENCE)
                assert process.exitcode == 0
                return bitten


def test_workers_whose_machines_die_while_they_start_are_replaced_as_long_as_others_encode():
    attempts = Attempts(workers=2)
    for number in range(20):
        assert attempts.start()
        assert attempts.begin(number) == 1
        attempts.end(number)
    assert [attempts.start() for _ in range(6)] == [True] * 5 + [False]


def test_the_machine_that_encodes_is_killed_twice(videos, whole, tmp_path):
    with two_machines(workers_here=0) as machines:
        kills = ["machine"] * 2
        bitten = kill_in_turn(videos, tmp_path / "latents", machines, random.Random(0), kills, SHORT)
    assert bitten == 2
    assert_as_whole(tmp_path / "latents", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("workers_here", [0, 1])
def test_machines_are_killed_one_after_the_other(videos, whole, tmp_path, workers_here, seed):
    with two_machines(workers_here) as machines:
        bitten = kill_in_turn(videos, tmp_path / "latents", machines, random.Random(seed), ["machine"] * 4)
    assert bitten >= (2 if workers_here else 4)
    assert_as_whole(tmp_path / "latents", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_machines_and_drivers_are_killed(videos, whole, tmp_path, seed):
    chance = random.Random(seed)
    kills = ["machine"] * 3 + ["driver"] * 2
    chance.shuffle(kills)
    with two_machines(workers_here=seed % 2) as machines:
        bitten = kill_in_turn(videos, tmp_path / "latents", machines, chance, kills)
    assert bitten >= 3
    assert_as_whole(tmp_path / "latents", whole)
