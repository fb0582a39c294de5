"""Which model made a reconstruction, on which machine, and by which call."""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Callable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from torch import Tensor

from temporal_vae import __version__, engine
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.video.latents import ModelIdentity

_CPU_INFO = Path("/proc/cpuinfo")


def model_facts(vae: Autoencoder) -> dict[str, str]:
    """Name, class, size and hashes of a model, for people."""
    identity = ModelIdentity.of(vae)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    return {
        "Name": identity.name,
        "Class": type(vae).__name__,
        "Parameters": f"{parameters:,}",
        "Computed in": f"{str(vae.dtype).removeprefix('torch.')} on {vae.device}",
        "SHA-256 of the weights": weights_sha256(vae) or "unknown: they are quantised, or not in memory",
        "SHA-256 of the configuration": identity.config_sha256,
    }


def machine_facts(device: torch.device) -> dict[str, str]:
    """Processor, memory and versions, for people."""
    gpu = {"GPU": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "Processor": processor_name(),
        "Cores": f"{engine.cores()}, of which torch uses {torch.get_num_threads()}",
        "Memory": engine.readable(psutil.virtual_memory().total),
        **gpu,
        "System": platform.platform(),
        "Python": platform.python_version(),
        "temporal-vae": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # no Linux, or a kind that says it otherwise
        return platform.processor() or platform.machine()


def weights_sha256(vae: Autoencoder) -> str | None:
    """Hash of the names, types, shapes and values of a model's parameters and buffers, as they are computed with.

    None where values are not plain numbers in memory.
    """
    digest = hashlib.sha256()
    for name, values in sorted(vae.state_dict().items()):
        if type(values) is not Tensor or values.device.type == "meta":
            return None
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def call_text(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """A call of a function as Python, without arguments that are as they would be anyway.

    Args:
        function: what was called.
        given: all arguments by name; those of `**options` under that name.
    """
    words = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = given[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            words += [f"{key}={_text(option)}" for key, option in value.items()]
        elif parameter.default is parameter.empty:
            words.append(_text(value))
        elif value is not parameter.default and value != parameter.default:
            words.append(f"{name}={_text(value)}")
    return f"{function.__name__}({', '.join(words)})"


def _text(value: Any) -> str:
    """A value as it would be written; what can't be, such as a model, is left out."""
    if isinstance(value, Path):
        return repr(str(value))
    if value is None or isinstance(value, (str, Number, tuple)):
        return repr(value)
    return "…"
