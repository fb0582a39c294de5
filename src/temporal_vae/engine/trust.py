"""Whether the engine is right on this kind of machine.

It is trusted with a kind of device and a dtype after it has computed a small network there as the modules do. That is
tried once: a success is kept on disk, for this processor, these versions and these kernels; after a failure the modules
run, and the next process tries again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from temporal_vae.engine import processor
from temporal_vae.engine.gate import Reason, built
from temporal_vae.engine.planner import DTYPES, cores, plan
from temporal_vae.engine.resources import cache_folder
from temporal_vae.engine.run import run
from temporal_vae.engine.schedule import Network, Task
from temporal_vae.engine.threads import once
from temporal_vae.errors import MediaError
from temporal_vae.outputs import complete_or_nothing

NETWORK = Network(in_channels=3, out_channels=3, latent_channels=4, widths=(32, 64), layers=2)
"""Every kind of pass: enlarging and halving, more channels and fewer, attention, blocks over space and time."""
FRAMES, LATENTS = 5, (5, 3)  # not whole tiles, nor whole blocks of frames
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.15, "float16": 0.03}
"""How far the engine may be from modules in float32 or wider, of the output's scale: many times what rounding makes."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a self-check found."""

    trusted: bool
    detail: str  # in words: how far off, or what went wrong
    kept: bool = False  # read from disk rather than computed


def reason(device: torch.device, dtype: torch.dtype) -> Reason | None:
    """Why the engine is not trusted with a kind of device and a dtype; None if it is."""
    found = verdict(device.type, str(dtype).removeprefix("torch."))
    if found.trusted:
        return None
    return Reason(
        f"its self-check failed on this machine ({found.detail}); please report what `temporal-vae info` prints",
        "set TEMPORAL_VAE_ENGINE=always to use it nevertheless",
        ordinary=False,
    )


@once
def verdict(device: str, dtype: str) -> Verdict:
    """Whether the engine computes what modules do, on a kind of device in a dtype; tried once on a machine."""
    key = _key(device, dtype)
    file = _folder() / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    kept = _read(file)
    if kept is not None:
        return Verdict(trusted=True, detail=kept, kept=True)
    try:
        parts = _parts()
        with torch._C.DisableTorchFunction(), torch.no_grad():  # a default device is not meant here
            error = _error(parts, device, dtype)
    except Exception as failure:
        text = " ".join(str(failure).split())
        return Verdict(trusted=False, detail=f"{type(failure).__name__}: {text:.200}")
    detail = f"off by {error:.1e} of the output's scale, {TOLERANCE[dtype]:g} is allowed"
    trusted = error <= TOLERANCE[dtype]  # not so for NaN
    if trusted:
        _keep(file, key, detail)
    return Verdict(trusted=trusted, detail=detail)


def _parts() -> dict[Task, nn.Module]:
    """What does either task, without memory, so that nobody's random numbers are drawn."""
    tasks: tuple[Task, ...] = ("encode", "decode")
    with torch.device("meta"):
        return {task: kind(**numbers) for task in tasks for kind, numbers in [built(task, NETWORK)]}


def _error(parts: dict[Task, nn.Module], device: str, dtype: str) -> float:
    """How far encoder and decoder in the engine are from modules in float32 or wider, the larger one."""
    if device == "cpu" and dtype != "float64":
        import llvmlite  # noqa: F401  # where the compiler is missing, torch would do its work, slowly
    generator = torch.Generator().manual_seed(0)
    height, width = (NETWORK.factor * length for length in LATENTS)
    shapes = {"encode": (3, height, width), "decode": (4, *LATENTS)}
    kind = getattr(torch, dtype)
    wide = torch.promote_types(kind, torch.float32)
    errors = []
    for task, part in parts.items():
        x = torch.randn(FRAMES, *shapes[task], generator=generator, dtype=wide)
        network = _filled(part.to(wide), generator)
        expected = network(x, num_frames=FRAMES) if task == "decode" else network(x)
        made = plan(
            task, NETWORK, num_frames=FRAMES, height=height, width=width, dtype=dtype, device=device, workers=2
        )  # fmt: skip
        found = run(network.to(device, kind), x.to(device, kind), made, lambda amount: None)
        errors.append(float((found.to("cpu", wide) - expected).abs().max() / expected.abs().max()))
    return max(errors, key=lambda error: (error != error, error))


def _filled(part: nn.Module, generator: torch.Generator) -> nn.Module:
    """A part with weights as a training leaves them."""
    network = part.to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = shift + values / fan**0.5
    return network.eval()


def _key(device: str, dtype: str) -> dict[str, Any]:
    """What a success holds for."""
    return {
        "device": describe(device),
        "dtype": dtype,
        "engine": hashlib.sha256(_sources()).hexdigest(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }


def _sources() -> bytes:
    """The engine's own code."""
    return b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))


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
    return f"{machine.name}, {machine.lanes} floats in a register ({features})"


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
            check = verdict(device, dtype)
            found[f"{device} {dtype}"] = {
                "kernels": "of torch" if kernels == "torch" else f"native, products in {kernels}",
                "self-check": ("passed" if check.trusted else "failed") + f" ({check.detail})",
            }
    return found


def _folder() -> Path:
    return cache_folder() / "temporal-vae" / "self-checks"


def _read(file: Path) -> str | None:
    """What was found, if it was kept."""
    try:
        return str(json.loads(file.read_text())["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(file: Path, key: dict[str, Any], detail: str) -> None:
    """Write it down where that is possible."""
    with suppress(OSError, MediaError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with complete_or_nothing(file) as part:
            part.write_text(json.dumps({**key, "detail": detail}))
