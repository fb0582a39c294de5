"""What an encoder or decoder looks like that the engine can stand in for: as the builder makes it, in every detail.

The builder is asked once for each configuration, for a network without memory; every call compares with it what is
there: classes, names, hyperparameters, shapes, and functions that stand in the way of those of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine import originals

# Attributes of every module that decide what it computes; the others (buffers, hooks of gradients, whether it trains)
# do not.
_DECIDE = ("_forward_hooks", "_forward_pre_hooks")
# What an attention may have besides: it is then called as it is, one frame at a time.
_PROCESSING = ("processor", "fused_projections")
_ADDED = ("processor", "to_qkv")
# Set on instances by `enable_gradient_checkpointing`; without gradients it changes nothing.
_HARMLESS = ("gradient_checkpointing", "checkpoint")


class Unknown(Exception):
    """There is nothing to compare with; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One module of the network: what it must be, and where it is found."""

    parent: int  # its position among all, -1 for the first
    name: str
    path: str
    kind: type[nn.Module]
    attributes: frozenset[str]
    values: dict[str, Any]
    parameters: tuple[tuple[str, tuple[int, ...] | None], ...]
    children: tuple[str, ...]

    def difference(self, module: object, x: Tensor) -> str | None:
        """How a module differs, for a computation with `x`; the end of a sentence that begins with its path."""
        if type(module) is not self.kind:
            return f" is {_article(module)}"
        found = vars(module)
        if not _holds(found, self.values):
            return _which(found, self.values)
        if found.keys() != self.attributes:
            for name in found.keys() - self.attributes:
                if _shadows(module, name):
                    return f" has a {name} of its own"
        children = found["_modules"]
        if tuple(children) != self.children and not self._may_hold(children):
            return f" holds {', '.join(children) or 'nothing'} instead of {', '.join(self.children) or 'nothing'}"
        parameters = found["_parameters"]
        if len(parameters) != len(self.parameters):
            return f" has the parameters {', '.join(parameters) or 'none'}"
        for name, shape in self.parameters:
            reason = _unlike(parameters.get(name), shape, x)
            if reason is not None:
                return f".{name} {reason}"
        return None

    def _may_hold(self, children: dict[str, Any]) -> bool:
        fixed = tuple(name for name in children if name not in _ADDED)
        fused = children.get("to_qkv")
        plain = type(fused) is nn.Linear and not (fused._forward_hooks or fused._forward_pre_hooks)
        return self.kind is Attention and fixed == self.children and (fused is None or plain)


def difference(part: nn.Module, network: Sequence[Expected], x: Tensor) -> str | None:
    """The first thing in which an encoder or decoder differs from what the engine knows, in words."""
    found: list[Any] = []
    for expected in network:
        module = part if expected.parent < 0 else found[expected.parent]._modules[expected.name]
        reason = expected.difference(module, x)
        if reason is not None:
            return (expected.path or "it") + reason
        found.append(module)
    return None


def attentions_of(part: nn.Module, network: Sequence[Expected]) -> list[Attention]:
    """The attentions of an encoder or decoder that does not differ."""
    return [cast("Attention", part.get_submodule(each.path)) for each in network if each.kind is Attention]


@lru_cache(maxsize=32)
def known(kind: Callable[..., nn.Module], **numbers: Any) -> tuple[Expected, ...]:
    """What the engine knows of an encoder or decoder: as its class builds it from the numbers of a configuration.

    Raises:
        Unknown: a constructor was replaced, so that what it makes now is no measure.
    """
    reason = originals.rebuilt()
    if reason is not None:
        raise Unknown(reason)
    with torch.device("meta"):
        return _described(kind(**numbers))


def _described(network: nn.Module) -> tuple[Expected, ...]:
    positions: dict[str, int] = {}
    found = []
    for path, module in network.named_modules():
        parent, _, name = path.rpartition(".")
        assert type(module) in originals.CLASSES, f"{path}: the engine knows no {type(module).__name__}"
        found.append(
            Expected(
                parent=positions[parent] if path else -1,
                name=name,
                path=path,
                kind=type(module),
                attributes=frozenset(vars(module)),
                values=_values(module),
                parameters=tuple(
                    (key, None if parameter is None else tuple(parameter.shape))
                    for key, parameter in module._parameters.items()
                ),
                children=tuple(module._modules),
            )
        )
        positions[path] = len(positions)
    return tuple(found)


def _values(module: nn.Module) -> dict[str, Any]:
    """The attributes that decide what a module computes."""
    ignored = {*vars(nn.Module()), *(_PROCESSING if isinstance(module, Attention) else ())} - {*_DECIDE}
    return {name: value for name, value in vars(module).items() if name not in ignored}


def _holds(found: dict[str, Any], values: dict[str, Any]) -> bool:
    try:
        return values.items() <= found.items()
    except (RuntimeError, TypeError, ValueError):  # tensors and arrays do not compare as numbers do
        return False


def _which(found: dict[str, Any], values: dict[str, Any]) -> str:
    for name, value in values.items():
        if not _holds(found, {name: value}):
            if name in _DECIDE:
                return " has hooks"
            return f".{name} is {found.get(name, 'missing')!r:.80}, not {value!r:.80}"
    raise AssertionError("no attribute differs")


def _shadows(module: object, name: str) -> bool:
    """Whether an attribute stands in the way of one of the class; other attributes are read by nobody."""
    own, kind = vars(module)[name], type(module)
    if name in _HARMLESS or not hasattr(kind, name):
        return False
    original = getattr(kind, name)
    # Offloading hooks leave the method of the class behind when they are removed.
    bound = getattr(own, "__self__", None) is module and getattr(own, "__func__", None) is original
    return own is not original and not bound


def _unlike(parameter: object, shape: tuple[int, ...] | None, x: Tensor) -> str | None:
    """What is wrong with a parameter; the end of a sentence."""
    if shape is None or parameter is None:
        return None if shape is parameter else "is None" if parameter is None else f"is {_article(parameter)}"
    if not isinstance(parameter, Tensor) or type(parameter) not in (nn.Parameter, Tensor):
        return f"is {_article(parameter)}"
    if parameter.shape != shape:
        return f"has the shape {tuple(parameter.shape)}, not {shape}"
    if parameter.dtype != x.dtype or parameter.device != x.device or parameter.layout != torch.strided:
        return f"is {parameter.dtype}, {parameter.layout} on {parameter.device}"
    return None


def _article(thing: object) -> str:
    name = type(thing).__name__
    return "missing" if thing is None else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
