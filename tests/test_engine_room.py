"""The planned work memory is what passes take, at sizes of real videos: everything runs, nothing is computed."""

from contextlib import contextmanager
from mmap import mmap

import pytest
import torch
from engines import ENCODER_RUNGS, RUNGS, decode_plan, decode_task, encode_plan, encode_task
from hypothesis import given
from hypothesis import strategies as st

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.engine import attention, passes, processor, run, storage
from temporal_vae.engine.kernels import crew, native_code, norms
from temporal_vae.engine.kernels.native import NativeKernels
from temporal_vae.engine.spill import SpillFile
from temporal_vae.engine.stats import Moments

pytestmark = pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")

CONFIGS = [((128, 256, 512, 512), 2), ((96, 96, 96), 1), ((64,), 1), ((32, 160), 2), ((256, 64, 128), 1)]
MOST_PIXELS = 2**20  # of all frames


def empty(widths, layers):
    """A model whose weights nobody writes or reads."""
    blocks = ("DownEncoderBlock2D",) * len(widths)
    with torch.device("meta"):
        model = AutoencoderKLTemporalDecoder(
            block_out_channels=widths, down_block_types=blocks, layers_per_block=layers
        )
    return model.to_empty(device="cpu")


MODELS = [empty(*options) for options in CONFIGS]


class Idle:
    """Workers that pack no weights."""

    def __init__(self, count):
        self.count = count

    def run(self, work, jobs):
        return []


class Counted(mmap):
    """Memory for activations and scratch; `top` is the most that was alive at once."""

    alive = top = 0

    def __new__(cls, file, nbytes, **flags):
        Counted.alive += nbytes
        Counted.top = max(Counted.top, Counted.alive)
        return super().__new__(cls, file, nbytes, **flags)

    def __del__(self):
        Counted.alive -= len(self)


class Nowhere(SpillFile):
    """A file that keeps nothing."""

    def read(self, target, offset):
        pass

    def write(self, source, offset):
        pass


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_computed():
    @contextmanager
    def spill_file(nbytes):
        yield Nowhere(0)

    def attend(context, attention, state, frames, *, moments, work):
        zeros = torch.zeros(len(frames), state.channels, dtype=torch.float64)
        return Moments(state.height * state.width, zeros, zeros)

    with pytest.MonkeyPatch.context() as patch:
        kernels = [(native_code, name) for name in ("spatial", "temporal", "halve", "pack")]
        for module, name in [*kernels, (norms, "_moments"), (norms, "_affine")]:
            patch.setattr(module, name, lambda *_: lambda *_: None)
        patch.setattr(
            run,
            "kernels_for",
            lambda device, dtype, workers, scale: NativeKernels(dtype, Idle(workers.count)),
        )
        patch.setattr(crew.Crew, "sweep", lambda *_: None)
        patch.setattr(run, "spill_file", spill_file)
        patch.setattr(storage, "mmap", Counted)
        patch.setattr(attention, "attend", attend)
        patch.setattr(passes, "finish_over_time", lambda *_, **__: None)
        yield


@given(
    model=st.sampled_from(MODELS),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    frames=st.one_of(st.integers(1, 8), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    workers=st.integers(1, 9),
    share=st.floats(0, 1),
    decodes=st.booleans(),
)
@torch.no_grad()
def test_every_plan_has_room(model, dtype, frames, size, workers, share, decodes):
    """`Scratch.take` refuses what was not planned, and what is alive at once is what was counted."""
    height, width = (model.spatial_factor * length for length in size)
    frames = max(1, min(frames, MOST_PIXELS // (height * width)))
    network = model.network
    settings = {"frames": frames, "size": (height, width), "dtype": dtype, "workers": workers}
    make, rungs = (decode_plan, RUNGS) if decodes else (encode_plan, ENCODER_RUNGS)
    peaks = [make(network, rung, **settings).peak for rung in rungs]
    plan = make(network, *rungs, limit=int(min(peaks) + share * (max(peaks) - min(peaks))), **settings)
    Counted.top = Counted.alive
    if decodes:
        z = torch.empty(frames, 4, *size, dtype=getattr(torch, dtype))
        run.run(model.decoder, z, plan, lambda amount: None)
    else:
        x = torch.empty(frames, 3, height, width, dtype=getattr(torch, dtype))
        run.run(model.encoder, x, plan, lambda amount: None)
    load = (
        decode_task(network, **settings)
        if decodes
        else encode_task(network, together=plan.frames, **settings)
    )
    assert Counted.top <= counted(load, plan)


def counted(load, plan):
    """Bytes of activations, scratch, packed weights and sums at the worst moment of a plan."""
    rungs = [level.rung for level in plan.levels]
    costs = [load.cost(index, rung, rungs[max(0, index - 1)].state) for index, rung in enumerate(rungs)]
    return max(cost.alive + plan.workers * cost.scratch + cost.weights + cost.sums for cost in costs)
