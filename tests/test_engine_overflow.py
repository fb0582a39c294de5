"""No black pictures: float16 is finite wherever float32 is, although activations are larger than it can hold."""

import pytest
import torch
from oracle import error, noise, randomise

from temporal_vae import AutoencoderKL, AutoencoderKLTemporalDecoder
from temporal_vae.engine import calls, reporting, run
from temporal_vae.engine.kernels.naive import NaiveKernels

WIDTHS = (64, 96)
LEVELS = {
    "block_out_channels": WIDTHS,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "layers_per_block": 2,
}
IMAGE = {**LEVELS, "up_block_types": ("UpDecoderBlock2D",) * 2}
GAINS = {"as trained": (1.0, 1.0), "overflow": (1e4, 1.0), "huge": (1e4, 1e3)}


def models(kind, gains):
    """The same model in float32, float16 and bfloat16; the weights are numbers that all of them have."""
    outer, inner = gains
    made = randomise(kind(**(IMAGE if kind is AutoencoderKL else LEVELS))).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "conv2" in name or name.endswith(("coder.conv_in.weight", "coder.conv_in.bias")):
                parameter *= outer
            elif "norm2" in name:
                parameter *= inner
    weights = {name: values.bfloat16().half().float() for name, values in made.state_dict().items()}
    found = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = kind.from_config(made.config)
        model.load_state_dict(weights)
        found.append(model.to(dtype).eval())
    return found


def decoded(model, z, **options):
    length = {} if isinstance(model, AutoencoderKL) else {"num_frames": len(z)}
    return model.decode(z.to(model.dtype), **length, **options).sample.float()


def encoded(model, x):
    return model.encode(x.to(model.dtype)).latent_dist.parameters.float()


@pytest.mark.parametrize("gains", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderKLTemporalDecoder])
@torch.no_grad()
def test_float16_is_finite_where_float32_is(kind, gains, monkeypatch):
    """And closer to it than bfloat16: the scale is a power of two, and costs no digit."""
    wide, half, brain = models(kind, gains)
    z, x = noise(3, 4, 25, 18).bfloat16().half().float(), noise(2, 3, 50, 36).bfloat16().half().float()
    for call, given in ((decoded, z), (encoded, x)):
        exact = call(wide, given)
        assert error(call(half, given), exact) < min(0.01, 0.5 * error(call(brain, given), exact))
    monkeypatch.setenv(calls.VARIABLE, "never")
    assert decoded(half, z).isfinite().all() == (gains == GAINS["as trained"])


@pytest.mark.parametrize("kernels", ["native", "naive"])
@torch.no_grad()
def test_every_rung_and_all_kernels_hold_it(kernels, monkeypatch):
    if kernels == "naive":
        monkeypatch.setattr(
            run, "kernels_for", lambda device, dtype, workers, scale: NaiveKernels(device, scale=scale)
        )
    wide, half, _ = models(AutoencoderKL, GAINS["overflow"])
    z = noise(1, 4, 24, 20).half().float()
    exact = decoded(wide, z)
    for offer in half.plan_decode(height=48, width=40).ladder:
        assert error(decoded(half, z, memory_limit=offer.peak), exact) < 0.01


@torch.no_grad()
def test_what_a_scale_does_not_hold_is_computed_again_and_counted_once(monkeypatch):
    half = models(AutoencoderKL, GAINS["huge"])[1]
    told, scales, fill = [], [], run._fill
    monkeypatch.setattr(run, "_fill", lambda *given, scale: (scales.append(scale), fill(*given, scale=scale)))
    with reporting(lambda done, total: told.append((done, total))):
        assert decoded(half, noise(1, 4, 25, 18)).isfinite().all()
    assert scales == [2**8, 2**16]
    assert told[-1][0] == told[-1][1] == max(done for done, _ in told)


@pytest.mark.parametrize("where", ["weights", "latents"])
@torch.no_grad()
def test_what_is_not_finite_in_float32_is_not_here(where):
    half, z = models(AutoencoderKL, GAINS["as trained"])[1], noise(1, 4, 25, 18)
    if where == "weights":
        half.decoder.up_blocks[1].resnets[0].conv1.bias[0] = torch.inf
    else:
        z[0, 0, 0, 0] = torch.nan
    assert not decoded(half, z).isfinite().any()


@torch.no_grad()
def test_the_modules_of_a_gpu_give_way_where_they_overflow(monkeypatch):
    """They are fast there, and where their result is finite it is what is wanted."""
    monkeypatch.setattr(calls, "_modules_do", lambda x, made, limit: True)
    for gains, name in ((GAINS["as trained"], "modules"), (GAINS["overflow"], "engine")):
        wide, half, _ = models(AutoencoderKL, gains)
        z, by = noise(1, 4, 25, 18).half().float(), []
        monkeypatch.setattr(calls, "run", lambda *given, by=by: by.append("engine") or run.run(*given))
        assert error(decoded(half, z), decoded(wide, z)) < 0.01
        assert by[:1] == (["engine"] if name == "engine" else [])


@torch.no_grad()
def test_another_processor_is_given_what_it_expects():
    """It has a norm of its own, so activations are not scaled for it."""
    from diffusers.models.attention_processor import AttnProcessor

    wide, half, _ = models(AutoencoderKL, GAINS["as trained"])
    half.set_attn_processor(AttnProcessor())
    z = noise(1, 4, 25, 18).half().float()
    assert error(decoded(half, z), decoded(wide, z)) < 0.01
