"""Whether the engine is right on this kind of machine.

It is trusted with a task on a kind of device in a dtype after it has computed a small network there as the modules do,
by the kernels that the call at hand needs. That is tried once: a success is kept on disk, for this processor, these
versions and these kernels; after a failure the modules run, and the next process tries again.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Any, get_args

import diffusers
import torch
from torch import nn

from temporal_vae.engine import cache, processor
from temporal_vae.engine.gate import Reason, built
from temporal_vae.engine.kernels.winograd import F43
from temporal_vae.engine.networks import Network
from temporal_vae.engine.planner import DTYPES, cores, plan
from temporal_vae.engine.run import run
from temporal_vae.engine.schedule import Task
from temporal_vae.engine.threads import once

NETWORK = Network(in_channels=3, out_channels=3, latent_channels=4, widths=(32, 64), layers=2)
"""Every kind of pass: enlarging and halving, more channels and fewer, attention, blocks over space and time."""
LATENTS = 11, 10  # not whole tiles; the full pictures have enough pixels to be filtered, these have not
LATENTS_OF_ONE = 27, 21
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.15, "float16": 0.03}
"""How far the engine may be from modules in float32 or wider, of the output's scale: many times what rounding makes."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a self-check found."""

    trusted: bool
    detail: str  # in words: how far off, or what went wrong
    kept: bool = False  # read from disk rather than computed


def reason(
    task: Task, frames: int, device: torch.device, dtype: torch.dtype, *, temporal: bool = True
) -> Reason | None:
    """Why the engine is not trusted with a task on clips of so many frames, or on pictures; None if it is."""
    key = task, _alike(task, frames), device.type, str(dtype).removeprefix("torch.")
    found = verdict(*key) if temporal or task == "encode" else verdict(*key, False)
    if found.trusted:
        return None
    return Reason(
        f"its self-check failed on this machine ({found.detail}); please report what `temporal-vae info` prints",
        "set TEMPORAL_VAE_ENGINE=always to use it nevertheless",
        ordinary=False,
    )


def _alike(task: Task, frames: int) -> int:
    """The shortest clip, longer than a block of frames, that is computed by the same kernels."""
    if task == "encode" or frames == 1:
        return 1
    return F43.outputs + frames % F43.outputs


@once
def verdict(task: Task, frames: int, device: str, dtype: str, temporal: bool = True) -> Verdict:
    """Whether the engine computes what modules do, on a kind of device in a dtype; tried once on a machine.

    `temporal` is False for image decoders.
    """
    versions = torch.__version__, diffusers.__version__, platform.python_version()
    key = ("self-check", task, frames, temporal, dtype, describe(device), versions)
    kept = cache.read(*key)
    if kept is not None:
        return Verdict(trusted=True, detail=kept.decode(), kept=True)
    try:
        network = replace(NETWORK, temporal=temporal)
        part = _part(task, network)
        with torch._C.DisableTorchFunction(), torch.no_grad():  # a default device is not meant here
            error = _error(task, part, network, frames, device, dtype)
    except Exception as failure:
        text = " ".join(str(failure).split())
        return Verdict(trusted=False, detail=f"{type(failure).__name__}: {text:.200}")
    detail = f"off by {error:.1e} of the output's scale, {TOLERANCE[dtype]:g} is allowed"
    trusted = error <= TOLERANCE[dtype]  # not so for NaN
    if trusted:
        cache.keep(detail.encode(), *key)
    return Verdict(trusted=trusted, detail=detail)


def _part(task: Task, network: Network) -> nn.Module:
    """What does the task, without memory, so that nobody's random numbers are drawn."""
    kind, numbers = built(task, network)
    with torch.device("meta"):
        return kind(**numbers)


def _error(task: Task, part: nn.Module, network: Network, frames: int, device: str, dtype: str) -> float:
    """How far the engine is from modules in float32 or wider."""
    if device == "cpu" and dtype != "float64":
        import llvmlite  # noqa: F401  # where the compiler is missing, torch would do its work, slowly
    generator = torch.Generator().manual_seed(0)
    latents = LATENTS_OF_ONE if frames == 1 else LATENTS
    height, width = (network.factor * length for length in latents)
    shape = (3, height, width) if task == "encode" else (4, *latents)
    kind = getattr(torch, dtype)
    wide = torch.promote_types(kind, torch.float32)
    x = torch.randn(frames, *shape, generator=generator, dtype=wide)
    modules = _filled(part.to(wide), generator)
    clips = task == "decode" and network.temporal
    expected = modules(x, num_frames=frames) if clips else modules(x)
    made = plan(
        task, network, num_frames=frames, height=height, width=width, dtype=dtype, device=device, workers=2
    )
    found = run(modules.to(device, kind), x.to(device, kind), made, lambda amount: None)
    return float((found.to("cpu", wide) - expected).abs().max() / expected.abs().max())


def _filled(part: nn.Module, generator: torch.Generator) -> nn.Module:
    """A part with weights as a training leaves them."""
    modules = part.to_empty(device="cpu")
    for name, parameter in modules.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = shift + values / fan**0.5
    return modules.eval()


def describe(device: str) -> str:
    """A processor or GPU, as exactly as kernels depend on it."""
    if device == "cuda":
        return ", ".join(
            f"{torch.cuda.get_device_name(i)} {torch.cuda.get_device_capability(i)}"
            for i in range(torch.cuda.device_count())
        )
    machine = processor.host()
    if machine is None:
        return f"{platform.machine()}, without kernels of its own"
    features = " ".join(name[1:] for name in machine.features.split(",") if name.startswith("+"))
    return f"{machine.name}, kernels for {machine.kernels} ({features})"


def machine() -> dict[str, Any]:
    """What this machine is, and what the engine does on it; every dtype is checked."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }
    for device in devices:
        found[device] = describe(device)
        for dtype in DTYPES:
            kernels = processor.arithmetic(device, dtype)
            checks = {
                f"{task} clips": verdict(task, _alike(task, 5), device, dtype) for task in get_args(Task)
            }
            checks["decode pictures"] = verdict("decode", 1, device, dtype, False)
            found[f"{device} {dtype}"] = {
                "kernels": "of torch" if kernels == "torch" else f"native, products in {kernels}",
                "self-check": "; ".join(
                    f"{'passed' if check.trusted else 'failed'} to {what} ({check.detail})"
                    for what, check in checks.items()
                ),
            }
    return found
