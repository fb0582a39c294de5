"""The schedule is all that the engine knows of a network: one of another kind is a builder, and nothing else."""

import pytest
import torch
from engines import ENGINE
from oracle import assert_close, noise, randomise
from torch import nn

from temporal_vae.engine import Network
from temporal_vae.engine.cost import Workload
from temporal_vae.engine.networks import decoder, encoder
from temporal_vae.engine.planner import choose
from temporal_vae.engine.run import run
from temporal_vae.engine.schedule import RUNGS, Attend, Enter, Leave, SpatialBlock
from temporal_vae.errors import MemoryLimitError
from temporal_vae.model import Encoder, TemporalDecoder
from temporal_vae.model.blocks import GROUPS, SpatialResBlock, Upsample, spatial_attention

# A plain image decoder: the same blocks without time.


class ImageDecoder(nn.Module):
    """Latents `(n, 4, h, w)` to pictures `(n, 3, 2h, 2w)`, each by itself."""

    def __init__(self):
        super().__init__()
        self.enter, self.attention = nn.Conv2d(4, 96, 3, padding=1), spatial_attention(96)
        self.small, self.enlarge = SpatialResBlock(96, 96), Upsample(96)
        self.large = nn.ModuleList([SpatialResBlock(96, 64), SpatialResBlock(64, 64)])
        self.norm, self.leave = nn.GroupNorm(GROUPS, 64, eps=1e-6), nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, z):
        x = self.enlarge(self.attention(self.small(self.enter(z))))
        for block in self.large:
            x = block(x)
        return self.leave(nn.functional.silu(self.norm(x)))


IMAGE_DECODER = (
    (
        Enter(conv="enter", inputs=4, outputs=96),
        SpatialBlock(name="small", inputs=96, outputs=96),
        Attend(attention="attention", channels=96),
    ),
    (
        SpatialBlock(name="large.0", inputs=96, outputs=64, enlarging="enlarge.conv"),
        SpatialBlock(name="large.1", inputs=64, outputs=64),
        Leave(norm="norm", conv="leave", inputs=64, outputs=3),
    ),
)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_an_image_decoder_within_a_limit(share):
    model, z = randomise(ImageDecoder()).eval(), noise(3, 4, 40, 48)
    load = Workload(
        name="decode", layers=IMAGE_DECODER, sizes=((40, 48), (80, 96)), frames=3, batch=3,
        output=3 * 3 * 80 * 96 * 4, dtype="float32", device="cpu", workers=2,
    )  # fmt: skip
    peaks = [offer.peak for offer in choose(load, None, RUNGS).ladder]
    limit = int(min(peaks) + share * (max(peaks) - min(peaks)))
    plan, done = choose(load, limit, RUNGS), []
    assert plan.peak <= limit
    assert_close(run(model, z, plan, done.append), model(z), ENGINE)
    assert sum(done) == plan.work
    with pytest.raises(MemoryLimitError):
        choose(load, min(peaks) // 2, RUNGS)


# The schedules of the published network


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("widths", [(32,), (32, 64, 64)])
def test_schedules_name_every_parameter_that_runs(widths, layers):
    """And no other: what diffusers holds and does not run is held and not run."""
    network = Network(in_channels=3, out_channels=3, latent_channels=4, widths=widths, layers=layers)
    numbers = {"latent_channels": 4, "block_out_channels": widths, "layers_per_block": layers}
    decoding, encoding = TemporalDecoder(out_channels=3, **numbers), Encoder(in_channels=3, **numbers)
    idle = {name for name in dict(decoding.named_parameters()) if name.startswith("mid_block.attentions")}
    idle = set() if layers > 1 else idle
    idle |= {
        name
        for name in dict(decoding.named_parameters())
        if name.startswith("mid_block.resnets.") and int(name.split(".")[2]) > 1
    }
    for module, levels, resting in ((decoding, decoder(network), idle), (encoding, encoder(network), set())):
        size = [(8, 8)] * len(levels)
        load = Workload(
            name="", layers=levels, sizes=size, frames=2, batch=2, output=0, dtype="float32", device="cpu", workers=1,
        )  # fmt: skip
        read = {
            f"{home}.{name}"
            for index in range(len(levels))
            for step in load.steps(index, RUNGS[0], "memory")
            for one in step.passes
            for home in (one.module, one.norm, one.shortcut, one.mixer)
            if home is not None
            for name, _ in module.get_submodule(home).named_parameters()
        }
        assert read == set(dict(module.named_parameters())) - resting
