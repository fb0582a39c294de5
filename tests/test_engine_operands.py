"""Native code is entered with operands that are what it takes them for, or not at all."""

from dataclasses import replace

import pytest
import torch
from engines import decode, encode
from oracle import config, noise, randomise
from torch import nn

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.engine import processor
from temporal_vae.engine.kernels import native_code
from temporal_vae.engine.kernels.native import NativeKernels
from temporal_vae.engine.stats import Affine
from temporal_vae.engine.storage import Rows, Scratch
from temporal_vae.engine.workers import Workers

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")


@pytest.fixture
def kernels(monkeypatch):
    """Kernels whose native code is never entered: `entered` tells whether it would have been."""

    def enter(*_):
        raise AssertionError("native code was entered")

    for name in ("spatial", "temporal", "halve"):
        monkeypatch.setattr(native_code, name, lambda *_: enter)
    kernels = NativeKernels(torch.float32, Workers(1, CPU))
    kernels.sums.resize(2**22)
    return kernels


def room():
    scratch = Scratch(CPU)
    scratch.resize(2**24)
    return scratch


def call_spatial(kernels, weights, *, source=None, target=None, scale=None, shift=None):
    source = source or Rows(noise(6, 8, 32), 3, 12)
    target = target or Rows(torch.zeros(4, 8, 64), 4, 12)
    affine = Affine(noise(32) if scale is None else scale, noise(32) if shift is None else shift)
    kernels.spatial(source, target, weights, affine, room())


SPATIAL = {
    "source of another type": {"source": Rows(noise(6, 8, 32).half(), 3, 12)},
    "source of other channels": {"source": Rows(noise(6, 8, 64), 3, 12)},
    "source of another width": {"source": Rows(noise(6, 7, 32), 3, 12)},
    "source that is no row of memory": {"source": Rows(noise(6, 32, 8).transpose(1, 2), 3, 12)},
    "source on another device": {"source": Rows(noise(6, 8, 32).to("meta"), 3, 12)},
    "source that begins too late": {"source": Rows(noise(6, 8, 32), 4, 12)},
    "source that ends too early": {"source": Rows(noise(5, 8, 32), 3, 12)},
    "source of another height": {"source": Rows(noise(6, 8, 32), 3, 9)},
    "target of another type": {"target": Rows(torch.zeros(4, 8, 64).double(), 4, 12)},
    "target of other channels": {"target": Rows(torch.zeros(4, 8, 32), 4, 12)},
    "target of another width": {"target": Rows(torch.zeros(4, 9, 64), 4, 12)},
    "target that ends within a tile": {"target": Rows(torch.zeros(3, 8, 64), 4, 12)},
    "target that begins within a tile": {"target": Rows(torch.zeros(3, 8, 64), 5, 12)},
    "target beyond its height": {"target": Rows(torch.zeros(8, 8, 64), 8, 12)},
    "target that is no row of memory": {"target": Rows(torch.zeros(4, 16, 64)[:, ::2], 4, 12)},
    "short scale": {"scale": noise(16)},
    "scale of another type": {"scale": noise(32).double()},
    "short shift": {"shift": noise(31)},
    "strided shift": {"shift": noise(64)[::2]},
}
WEIGHTS = {
    "short weights": lambda w: replace(w, values=w.values[:-1]),
    "weights of another type": lambda w: replace(w, values=w.values.half()),
    "weights in another order": lambda w: replace(w, values=w.values.transpose(2, 3)),
    "short bias": lambda w: replace(w, bias=w.bias[:40].contiguous()),
    "no bias": lambda w: replace(w, bias=None),
    "bias of another type": lambda w: replace(w, bias=w.bias.bfloat16()),
    "fewer outputs": lambda w: replace(w, outputs=32),
    "more inputs": lambda w: replace(w, inputs=64),
    "inputs that fill no vector": lambda w: replace(w, inputs=28, values=w.values[:, :, :28].contiguous()),
    "outputs that fill no panel": lambda w: replace(w, outputs=72, bias=noise(72)),
    "enlarged": lambda w: replace(w, enlarge=True),
}


def spatial_weights(kernels, pixels=10**6):
    return kernels.spatial_weights(randomise(nn.Conv2d(32, 64, 3)), room(), pixels)


def temporal_weights(kernels, frames=5):
    return kernels.temporal_weights(randomise(nn.Conv3d(32, 64, (3, 1, 1))), frames, room(), 10**6)


@torch.no_grad()
def test_what_is_right_comes_in(kernels):
    with pytest.raises(AssertionError, match="native code was entered"):
        call_spatial(kernels, spatial_weights(kernels))
    with pytest.raises(AssertionError, match="native code was entered"):
        call_temporal(kernels, temporal_weights(kernels))


@pytest.mark.parametrize("broken", SPATIAL.values(), ids=SPATIAL)
@torch.no_grad()
def test_spatial(kernels, broken):
    with pytest.raises(RuntimeError, match="a kernel"):
        call_spatial(kernels, spatial_weights(kernels), **broken)


@pytest.mark.parametrize("broken", WEIGHTS.values(), ids=WEIGHTS)
@torch.no_grad()
def test_weights(kernels, broken):
    with pytest.raises(RuntimeError, match="a kernel"):
        call_spatial(kernels, broken(spatial_weights(kernels)))


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "enlarged"])
@torch.no_grad()
def test_weights_over_time(kernels, name):
    with pytest.raises(RuntimeError, match="a kernel"):
        call_temporal(kernels, WEIGHTS[name](temporal_weights(kernels)))


@torch.no_grad()
def test_factors_of_integers(kernels):
    kernels._fixed = kernels._packing._fixed = True
    kernels._arithmetic = "int16"
    weights = spatial_weights(kernels)
    assert weights.factors is not None
    for factors in (None, weights.factors[:, :32].contiguous(), weights.factors.double()):
        with pytest.raises(RuntimeError, match="a kernel reads factors"):
            call_spatial(kernels, replace(weights, factors=factors))


def call_temporal(kernels, weights, *, sources=None, targets=None, scale=None):
    sources = sources or [noise(10, 32) for _ in range(5)]
    targets = targets or [torch.zeros(10, 64) for _ in range(5)]
    affine = Affine(noise(1, 32) if scale is None else scale, noise(1, 32))
    kernels.temporal(sources, targets, weights, affine, room())


TEMPORAL = {
    "fewer frames to read": {"sources": [noise(10, 32) for _ in range(4)]},
    "fewer frames to write": {"targets": [torch.zeros(10, 64) for _ in range(4)]},
    "one frame of fewer pixels": {"sources": [noise(10 - (t == 3), 32) for t in range(5)]},
    "one target of fewer pixels": {"targets": [torch.zeros(10 - (t == 3), 64) for t in range(5)]},
    "other channels": {"sources": [noise(10, 64) for _ in range(5)]},
    "channels that are apart": {"targets": [torch.zeros(10, 128)[:, ::2] for _ in range(5)]},
    "another type": {"sources": [noise(10, 32).bfloat16() for _ in range(5)]},
    "short scale": {"scale": noise(1, 16)},
}


@pytest.mark.parametrize("broken", TEMPORAL.values(), ids=TEMPORAL)
@torch.no_grad()
def test_temporal(kernels, broken):
    with pytest.raises(RuntimeError, match="a kernel"):
        call_temporal(kernels, temporal_weights(kernels), **broken)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 32), (2, 16)])
def test_a_sweep_has_a_norm_of_each_frame(kernels, shape):
    weights = kernels.spatial_weights(randomise(nn.Conv2d(32, 64, 3)), room(), 10**6)
    sources, targets = ([torch.zeros(8, 8, channels) for _ in range(2)] for channels in (32, 64))
    affine = Affine(noise(*shape), noise(*shape))
    with pytest.raises(RuntimeError, match="a kernel reads scale"):
        kernels.sweep_space(sources, targets, weights, affine, [room()], print)


@torch.no_grad()
def test_sweeps(kernels):
    """An enlarged frame has twice the rows and columns; a halved one half of them."""
    scratch, small, wide = [room()], noise(6, 8, 32), torch.zeros(13, 17, 64)
    weights = kernels.spatial_weights(randomise(nn.Conv2d(32, 64, 3)), room(), 1, enlarge=True)
    for target in (wide[:, :16].contiguous(), wide[:12].contiguous(), wide):
        with pytest.raises(RuntimeError, match="a kernel"):
            kernels.sweep_space([small], [target], weights, None, scratch, print)
    halving = kernels.strided_weights(randomise(nn.Conv2d(32, 64, 3)), room(), 1)
    for target in (torch.zeros(3, 5, 64), torch.zeros(4, 4, 64)):
        with pytest.raises(RuntimeError, match="a kernel"):
            kernels.sweep_halving([small], [target], halving, scratch, print)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Rows(noise(9, 8, 32), 3, 12), Rows(torch.zeros(4, 8, 64), 0, 12)),  # reads before the source
        (Rows(noise(4, 8, 32), 4, 12), Rows(torch.zeros(8, 8, 64), 4, 12)),
        (Rows(noise(4, 8, 64), 4, 12), Rows(torch.zeros(4, 8, 64), 4, 12)),
    ],
)
@torch.no_grad()
def test_pointwise(kernels, source, target):
    weights = kernels.pointwise_weights(randomise(nn.Conv2d(32, 64, 1)), room(), 10**6)
    with pytest.raises(RuntimeError, match="a kernel"):
        kernels.pointwise(source, target, weights, room())


# Whole networks that are not what their plan says, past the gate


@pytest.fixture
def vae():
    return randomise(Ours(**config(block_out_channels=(32, 64)))).eval()


def drop_upsampler(vae):
    vae.decoder.up_blocks[0].upsamplers = None


def drop_downsampler(vae):
    vae.encoder.down_blocks[0].downsamplers = None


def shorten_bias(vae):
    for conv in (vae.decoder.conv_in, vae.encoder.conv_in):
        conv.bias = nn.Parameter(conv.bias[:16].clone())


def narrow(vae):
    vae.decoder.up_blocks[1].resnets[0].spatial_res_block.conv1 = randomise(nn.Conv2d(32, 32, 3, padding=1))
    vae.encoder.down_blocks[1].resnets[0].conv1 = randomise(nn.Conv2d(64, 64, 3, padding=1))


@pytest.mark.parametrize("change", [drop_upsampler, drop_downsampler, shorten_bias, narrow])
@torch.no_grad()
def test_the_process_goes_on(vae, change):
    change(vae)
    for compute, x in ((decode, noise(2, 4, 6, 8)), (encode, noise(2, 3, 12, 16))):
        affected = {drop_upsampler: decode, drop_downsampler: encode}.get(change, compute)
        if compute is affected:
            with pytest.raises((RuntimeError, AssertionError)):
                compute(vae, x, *((2,) if compute is decode else ()))
