"""The functions that run when the network runs, as they were when this module was imported.

Tools replace them at run time, on classes and in modules: `Conv2d._conv_forward` for pictures without seams,
`scaled_dot_product_attention` for a faster kernel. What the engine computes is what the originals compute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from temporal_vae.model import blocks, decoder, encoder, image_decoder

_NETWORK = (blocks, decoder, encoder, image_decoder)
_PACKAGES = ("torch", "diffusers", "temporal_vae")

# What the interpreter and torch look up on the class of a module on the way to its numbers.
_CALLED = {
    "__call__",
    "_wrapped_call_impl",
    "_call_impl",
    "_slow_forward",
    "_compiled_call_impl",
    "__getattr__",
    "__getattribute__",
    "__iter__",
    "__len__",
    "__bool__",
    "__getitem__",
    "_get_abs_string_index",
    "forward",
    "_conv_forward",
}

Place = tuple[str, Mapping[str, Any], str, Any]  # where in words, the namespace, the name, what was there


def _own_classes() -> Iterator[type[nn.Module]]:
    for module in _NETWORK:
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, nn.Module)
                and value.__module__ == module.__name__
            ):
                yield value


CLASSES = frozenset(
    [nn.Conv2d, nn.GroupNorm, nn.Linear, nn.SiLU, nn.Dropout, nn.ModuleList, Attention, *_own_classes()]
)
"""Those whose forward the engine knows; no other may be part of the network."""


def replaced() -> str | None:
    """Which function of the network is no longer the original one, in words; None if all are."""
    return _FOREIGN or _changed(_RUNNING)


def rebuilt() -> str | None:
    """Which constructor of the network is somebody's own, so that what it makes now is no measure.

    torch replaces some itself, when it compiles.
    """
    return _foreign(_on_classes(["__init__", "__new__", "__setattr__"]))


def _changed(places: Iterable[Place]) -> str | None:
    for home, namespace, name, value in places:
        if namespace.get(name) is not value:
            return f"{home}.{name} was replaced"
    return None


def _foreign(places: Iterable[Place]) -> str | None:
    """Which of these functions comes from neither torch, diffusers nor this package."""
    for home, _, name, value in places:
        function = value.fget if isinstance(value, property) else value
        known = isinstance(function, FunctionType | BuiltinFunctionType | ModuleType | type | None)
        package = function.__globals__["__name__"] if isinstance(function, FunctionType) else "torch"
        if not known or package.split(".")[0] not in _PACKAGES:
            return f"{home}.{name} was replaced"
    return None


def _bases() -> list[type]:
    found = {base: None for kind in (*CLASSES, AttnProcessor2_0) for base in kind.__mro__}
    return [base for base in found if base.__module__.split(".")[0] in _PACKAGES]


def _on_classes(names: Iterable[str]) -> list[Place]:
    return [(base.__name__, vars(base), name, vars(base).get(name)) for base in _bases() for name in names]


def _methods() -> set[str]:
    """Names of all methods and properties of the network's own classes, and of what torch calls."""
    own = (item for kind in _own_classes() for item in vars(kind).items())
    named = {name for name, value in own if isinstance(value, FunctionType | property)}
    return (named | _CALLED) - {"__init__"}


def _in_modules() -> list[Place]:
    """Functions in modules: those of the network, and those of torch that its forwards name, or that these name."""
    forwards = [
        vars(base).get(name) for base in _bases() for name in ("forward", "_conv_forward", "__call__")
    ]
    own = [value for module in _NETWORK for value in vars(module).values()]
    named = _named([*forwards, *own])
    named |= _named(vars(F).get(name) for name in named)
    places = [(module, name) for module in (F, torch, torch._C._nn) for name in sorted(named)]
    places += [(module, name) for module in _NETWORK for name in vars(module)]
    callables = FunctionType | BuiltinFunctionType
    found: list[Place] = [
        (module.__name__, vars(module), name, vars(module)[name])
        for module, name in places
        if isinstance(vars(module).get(name), callables)
    ]
    homes = {base.__module__: vars(sys.modules[base.__module__]) for base in _bases()}
    return found + [(home, namespace, "F", F) for home, namespace in homes.items() if "F" in namespace]


def _named(functions: Iterable[Any]) -> set[str]:
    """All names in the code of some functions."""
    waiting = [function.__code__ for function in functions if isinstance(function, FunctionType)]
    found: set[str] = set()
    while waiting:
        code = waiting.pop()
        found.update(code.co_names)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


_RUNNING = [*_on_classes(sorted(_methods())), *_in_modules()]
_FOREIGN = _foreign(_RUNNING)  # replaced before this module was imported
