"""The engine in corners that small clips do not reach by themselves: any rung, any number of threads, other tiles."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from oracle import config, error, randomise
from torch import Tensor

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.engine import Network, Plan, networks, run, schedule
from temporal_vae.engine.cost import Workload
from temporal_vae.engine.geometry import ITEMSIZE, TILE, Cut, Span, spans
from temporal_vae.engine.planner import choose

RUNGS = {rung.name: rung for rung in schedule.RUNGS}
ENCODER_RUNGS = [rung.name for rung in schedule.ENCODER_RUNGS]
ENGINE = 2e-5  # how far the engine may be from the modules in float32, of the output's scale
ON_TWO_LATENTS = 3e-5  # the same where norms are over four values: found is 2.4e-5, where modules have 0.9e-5


def build(dtype: torch.dtype = torch.float32, **options) -> AutoencoderKLTemporalDecoder:
    """A model with random weights, the same in every type."""
    model = randomise(AutoencoderKLTemporalDecoder(**config(**options))).eval()
    return model.to(dtype)


def decode_plan(
    network: Network,
    *rungs: str,
    frames: int,
    size: tuple[int, int],
    dtype: str = "float32",
    clips: int = 1,
    workers: int = 1,
    limit: int | None = None,
) -> Plan:
    """The plan of a decoder whose levels stand on any of `rungs`, within a limit; size in pixels."""
    task = decode_task(network, frames=frames, size=size, dtype=dtype, clips=clips, workers=workers)
    return choose(task, limit, [RUNGS[name] for name in rungs], schedule.RUNGS)


def decode_task(
    network: Network, *, frames: int, size: tuple[int, int], dtype: str, workers: int, clips: int = 1
) -> Workload:
    """A decoder on a shape, size in pixels."""
    return Workload(
        name="decode",
        layers=networks.decoder(network),
        sizes=[tuple(length >> level for length in size) for level in reversed(range(len(network.widths)))],
        frames=frames,
        batch=clips * frames,
        output=clips * frames * network.out_channels * size[0] * size[1] * ITEMSIZE[dtype],
        dtype=dtype,
        device="cpu",
        workers=workers,
    )


def encode_plan(
    network: Network,
    *rungs: str,
    frames: int,
    size: tuple[int, int],
    dtype: str = "float32",
    together: int | None = None,
    workers: int = 1,
    limit: int | None = None,
) -> Plan:
    """The plan of an encoder whose levels stand on any of `rungs`, `together` frames at a time; size in pixels."""
    task = encode_task(network, frames=frames, size=size, dtype=dtype, together=together, workers=workers)
    return choose(task, limit, [RUNGS[name] for name in rungs], schedule.ENCODER_RUNGS)


def encode_task(
    network: Network, *, frames: int, size: tuple[int, int], dtype: str, workers: int, together: int | None = None
) -> Workload:  # fmt: skip
    """An encoder on a shape, size in pixels."""
    sizes = [tuple(length >> level for length in size) for level in range(len(network.widths))]
    latents = sizes[-1][0] * sizes[-1][1]
    return Workload(
        name="encode",
        layers=networks.encoder(network),
        sizes=sizes,
        frames=together or frames,
        batch=frames,
        output=6 * frames * network.latent_channels * latents * ITEMSIZE[dtype],
        dtype=dtype,
        device="cpu",
        workers=workers,
    )


@torch.no_grad()
def decode(
    model: AutoencoderKLTemporalDecoder, z: Tensor, frames: int, rung: str = "whole", workers: int = 1
) -> Tensor:
    """Decode by the engine, on a rung; the work that it reports is the work that was planned."""
    size = tuple(model.spatial_factor * length for length in z.shape[-2:])
    plan = decode_plan(
        model.network,
        rung,
        frames=frames,
        size=size,
        dtype=str(z.dtype).removeprefix("torch."),
        clips=len(z) // frames,
        workers=workers,
    )
    done: list[int] = []
    decoded = run.run(model.decoder, z, plan, done.append)
    assert sum(done) == plan.work
    return decoded


@torch.no_grad()
def encode(
    model: AutoencoderKLTemporalDecoder,
    x: Tensor,
    rung: str = "whole",
    workers: int = 1,
    together: int | None = None,
) -> Tensor:
    """Encode by the engine, on a rung, into moments; the work that it reports is the work that was planned."""
    plan = encode_plan(
        model.network,
        rung,
        frames=len(x),
        size=tuple(x.shape[-2:]),
        dtype=str(x.dtype).removeprefix("torch."),
        together=together,
        workers=workers,
    )
    done: list[int] = []
    moments = run.run(model.encoder, x, plan, done.append)
    assert sum(done) == plan.work
    return moments


@contextmanager
def tiles(rows: int, pixels: int) -> Iterator[None]:
    """Strips of `rows` rows and runs of `pixels` pixels, in plans and passes alike; rows go up to multiples of 4."""

    def strips(self: Cut, height: int, *_: int) -> list[Span]:
        return spans(height, rows, TILE)

    def runs(self: Cut, count: int, *_: int) -> list[Span]:
        return spans(count, pixels)

    usual = Cut.strips, Cut.runs
    Cut.strips, Cut.runs = strips, runs
    try:
        yield
    finally:
        Cut.strips, Cut.runs = usual


def assert_as_exact(found: Tensor, modules: Tensor, exact: Tensor, bound: float = ENGINE) -> None:
    """Within a bound of a float64 result, or no further from it than twice what the modules are in the same type.

    Norms over very few values enlarge the rounding of whatever computes them.
    """
    assert found.dtype == modules.dtype
    assert found.is_contiguous()
    assert error(found.double(), exact) <= max(bound, 2 * error(modules.double(), exact))
