"""When the engine may stand in for the modules.

The engine reads weights and computes by itself what the modules would compute. Where somebody replaced a module, hooked
it, or wants gradients or a traced graph, only the modules know what is meant: then they run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from temporal_vae.model import blocks, decoder, encoder

_KNOWN = {
    nn.Conv2d,
    nn.GroupNorm,
    nn.ModuleList,
    blocks.TemporalConv,
    blocks.SpatialResBlock,
    blocks.TemporalResBlock,
    blocks.SpatioTemporalResBlock,
    blocks.TimeMixer,
    blocks.Downsample,
    blocks.Upsample,
    decoder.MidBlockTemporalDecoder,
    decoder.UpBlockTemporalDecoder,
    decoder.TemporalDecoder,
    encoder.UNetMidBlock2D,
    encoder.DownEncoderBlock2D,
    encoder.Encoder,
}
_KNOWN_IN_ATTENTION = {Attention, nn.GroupNorm, nn.Linear, nn.Dropout, nn.ModuleList}
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def wanted(part: nn.Module, x: Tensor) -> bool:
    """Whether a call in this situation is one for the engine at all: not while gradients or graphs are recorded."""
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in part.parameters())):
        return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled(x.device.type)
        or type(x) is not Tensor
        or x.device.type not in ("cpu", "cuda")
    )


def obstacle(part: nn.Module, x: Tensor) -> str | None:
    """What keeps the engine from seeing through an encoder or decoder, in a few words; None if nothing does."""
    if any(getattr(torch_module, name, None) for name in _GLOBAL_HOOKS):
        return "hooks on all modules"
    for name, module in _visible(part):
        if type(module) not in _KNOWN and not isinstance(module, Attention):
            return f"{name} is a {type(module).__name__}"
        reason = _hidden(module, x, parameters=not isinstance(module, Attention))
        if reason is not None:
            return f"{name}{reason}"
    return None


def is_plain(attention: Attention, x: Tensor) -> bool:
    """Whether an attention is the one of the network with the processor it comes with, so that the engine knows it."""
    return (
        type(attention.processor) is AttnProcessor2_0
        and not attention.fused_projections
        and attention.heads == 1
        and all(
            type(module) in _KNOWN_IN_ATTENTION
            and _hidden(module, x, parameters=True) is None
            and not (isinstance(module, nn.Dropout) and module.p)
            for module in attention.modules()
        )
    )


def _hidden(module: nn.Module, x: Tensor, *, parameters: bool) -> str | None:
    """What makes a module more than its class and its parameters; the end of a sentence that begins with its name."""
    if module._forward_hooks or module._forward_pre_hooks:
        return " has hooks"
    if "forward" in vars(module):
        return " has a forward of its own"
    if parametrize.is_parametrized(module):
        return " is parametrised"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f" pads with {module.padding_mode}"
    for key, parameter in module.named_parameters(recurse=False) if parameters else ():
        if type(parameter) not in (nn.Parameter, Tensor):
            return f".{key} is a {type(parameter).__name__}"
        if parameter.dtype != x.dtype or parameter.device != x.device:
            return f".{key} is {parameter.dtype} on {parameter.device}"
    return None


def _visible(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules that the engine reads itself. Attention runs as it is: what is inside is its own affair."""
    for name, module in part.named_modules():
        if not any(isinstance(parent, Attention) for parent in _parents(part, name)):
            yield name or "the model", module


def _parents(part: nn.Module, name: str) -> Iterator[nn.Module]:
    path = name.split(".")
    for depth in range(1, len(path)):
        yield part.get_submodule(".".join(path[:depth]))
