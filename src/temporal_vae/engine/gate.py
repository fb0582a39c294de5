"""When the engine may stand in for the modules.

The engine reads weights and computes by itself what the modules would compute. That is right for the network as it was
built, run by the functions that came with it, on plain numbers. Where anything else is there, or where gradients,
graphs or derivatives are recorded, only the modules know what is meant: then they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.utils._device import DeviceContext

from temporal_vae.engine import originals
from temporal_vae.engine.geometry import ITEMSIZE, VECTOR
from temporal_vae.engine.networks import Network
from temporal_vae.engine.schedule import Task
from temporal_vae.engine.structure import Unknown, attentions_of, difference, known
from temporal_vae.model import Decoder, Encoder, TemporalDecoder

_TYPES = tuple(getattr(torch, name) for name in ITEMSIZE)
_OUTSIDE = "call it outside of that"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the modules run instead of the engine, and what to do about it, in words."""

    text: str
    remedy: str
    ordinary: bool  # how people work: nobody need be told, but where a memory limit is set


def reason(
    part: nn.Module, x: Tensor, kind: Callable[..., nn.Module], numbers: Mapping[str, Any]
) -> Reason | None:
    """Why a part of the model must compute `x` by itself; None if the engine may.

    Args:
        part: the encoder or decoder that is there.
        x: what it is called with.
        kind: the class that should be there.
        numbers: what it is built with by the configuration.
    """
    found = _situation()
    if found is not None:
        return found
    with torch._C.DisableTorchFunction():  # a default device watches every look at a tensor
        found = _input(x)
        if found is not None:
            return found
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in part.parameters())):
            remedy = "if you want none, call it within torch.no_grad() or torch.inference_mode()"
            return Reason("gradients are recorded", remedy, ordinary=True)
    if any(width % VECTOR for width in numbers["block_out_channels"]):
        remedy = f"build it with multiples of {VECTOR}"
        return Reason(f"its levels are {numbers['block_out_channels']} channels wide", remedy, ordinary=True)
    obstacle = _obstacle(part, x, kind, numbers)
    if obstacle is not None:
        return Reason(obstacle, "only the network as it was built can be limited", ordinary=False)
    attentions = attentions_of(part, known(kind, **numbers))
    if any(map(_is_foreign, attentions)):  # one that looks from frame to frame must see them all
        remedy = "set_attn_processor with one of diffusers"
        return Reason("attention has a processor of its own", remedy, ordinary=True)
    if (_modes() or torch.is_grad_enabled()) and not all(map(is_plain, attentions)):
        remedy = "compute without gradients and without a default device"
        return Reason("attention has another processor than it comes with", remedy, ordinary=True)
    return None


def built(task: Task, network: Network) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of the part that does a task, and what its constructor takes from a configuration."""
    numbers: dict[str, Any] = {
        "latent_channels": network.latent_channels,
        "layers_per_block": network.layers,
    }
    if task == "decode" and network.temporal:
        numbers |= {"out_channels": network.out_channels, "block_out_channels": network.widths}
        return TemporalDecoder, numbers
    numbers |= {"groups": network.groups, "mid_attention": network.mid_attention}
    if task == "encode":
        numbers |= {"in_channels": network.in_channels, "block_out_channels": network.widths}
        return Encoder, numbers | {"attentions": network.attentions}
    widths = network.decoder_widths or network.widths
    numbers |= {"out_channels": network.out_channels, "block_out_channels": widths}
    return Decoder, numbers | {"attentions": network.decoder_attentions}


def is_plain(attention: Attention) -> bool:
    """Whether an attention has the processor that it comes with, so that the engine knows it."""
    return type(attention.processor) is AttnProcessor2_0 and not attention.fused_projections


def _is_foreign(attention: Attention) -> bool:
    """Whether the processor is not one of diffusers, which all look at each frame by itself."""
    return not type(attention.processor).__module__.startswith("diffusers.")


def _modes() -> list[Any]:
    return torch.overrides._get_current_function_mode_stack() if torch._C._len_torch_function_stack() else []


def _situation() -> Reason | None:
    """What the caller does beside computing numbers."""
    transforms = forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
    watched = torch._C._len_torch_dispatch_stack() > 0
    return _first(
        (torch._C._get_tracing_state() is not None, "it is traced", "trace without a memory limit"),
        (transforms, "a function transform is at work (torch.func, forward-mode derivatives)", _OUTSIDE),
        (
            watched or any(type(mode) is not DeviceContext for mode in _modes()),
            "a mode watches the operations of torch",
            _OUTSIDE,
        ),
    )


def _input(x: Tensor) -> Reason | None:
    """What makes an input one for the modules."""
    device = x.device.type
    known = device in ("cpu", "cuda")
    return _first(
        (
            known and torch.is_autocast_enabled(device),
            "autocast is on",
            "convert the model with vae.to(dtype) instead",
        ),
        (type(x) not in (Tensor, nn.Parameter), f"the input is a {type(x).__name__}", "pass a plain tensor"),
        (x.layout != torch.strided, f"the input is {x.layout}", "pass a plain tensor"),
        (not known, f"the device is {device}", "take a CPU or a CUDA device"),
        (x.dtype not in _TYPES, f"the type is {x.dtype}", "take float32, float16, bfloat16 or float64"),
    )


def _first(*cases: tuple[bool, str, str]) -> Reason | None:
    """The first case that is true."""
    return next((Reason(text, remedy, ordinary=True) for holds, text, remedy in cases if holds), None)


def _obstacle(
    part: nn.Module, x: Tensor, kind: Callable[..., nn.Module], numbers: Mapping[str, Any]
) -> str | None:
    """What keeps the engine from seeing through a part, in words; None if nothing does."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "there are hooks on all modules"
    try:
        network = known(kind, **numbers)
    except Unknown as unknown:
        return str(unknown)
    with torch._C.DisableTorchFunction():
        return originals.replaced() or difference(part, network, x)
