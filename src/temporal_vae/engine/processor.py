"""What this processor's registers hold, and in which arithmetic the engine multiplies on it. No torch."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from temporal_vae.errors import InputError

Arithmetic = Literal["torch", "float32", "int16", "bfloat16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Machine:
    """What the register tiles are cut for. Compared by identity, as kernels are looked up by it all the time."""

    kernels: str  # the set of them
    name: str
    features: str  # for the compiler
    lanes: int  # float32 per vector register
    rows: int  # rows of a register tile; `rows * columns` accumulators and a few more must fit the registers
    columns: int  # vectors across a register tile
    dots: bool = False  # has products of pairs of 16-bit integers, at twice the rate of float32
    pairs: bool = False  # has products of pairs of bfloat16, at twice the rate of float32
    tiles: bool = False  # has products of tiles of 16 by 32 bfloat16 (AMX), at sixteen times the rate


KERNELS = ("neon", "avx2", "avx512", "vnni", "bf16", "amx")
"""Sets of kernels, each for processors that can do more than those for the one before it."""

VARIABLE = "TEMPORAL_VAE_KERNELS"
"""Environment variable: the best set of kernels to use, such as `avx2`, for comparisons and to look for faults."""


@lru_cache(maxsize=1)
def host() -> Machine | None:
    """This processor, or None where no kernels are made for it.

    Raises:
        InputError: `TEMPORAL_VAE_KERNELS` names a set that this processor can't run.
    """
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError):  # without the compiler torch does the work; `trust` says so
        return None
    features, name = dict(llvm.get_host_cpu_features()), llvm.get_host_cpu_name()
    able = _able(features)
    best = os.environ.get(VARIABLE) or (able[-1] if able else None)
    if best is None:
        return None
    if best not in able:
        raise InputError(f"{VARIABLE}={best}: this processor runs {', '.join(able) or 'none'}")
    text = _features(features, best)
    if best == "neon":
        return Machine(kernels=best, name=name, features=text, lanes=4, rows=12, columns=2, dots=False)
    if best == "avx2":
        dots = bool(features.get("avxvnni")) and os.environ.get(VARIABLE) is None
        return Machine(kernels=best, name=name, features=text, lanes=8, rows=6, columns=2, dots=dots)
    return Machine(
        kernels=best,
        name=name,
        features=text,
        lanes=16,
        rows=12,
        columns=2,
        dots=bool(features.get("avx512vnni")) and best != "avx512",
        pairs=best in ("bf16", "amx"),
        tiles=best == "amx",
    )


def _able(features: Mapping[str, bool]) -> list[str]:
    """The sets of kernels that a processor with these features runs."""

    def has(*names: str) -> bool:
        return all(features.get(name) for name in names)

    wide = has("avx512f", "avx512vl", "avx512bw")
    tiles = wide and has("avx512bf16", "amx-tile", "amx-bf16") and _may_use_tiles()
    found = {
        "neon": has("neon"),
        "avx2": has("avx2", "fma", "f16c"),
        "avx512": wide,
        "vnni": wide and has("avx512vnni"),
        "bf16": wide and has("avx512bf16"),
        "amx": tiles,
    }
    return [name for name in KERNELS if found[name]]


def _features(features: Mapping[str, bool], kernels: str) -> str:
    """What the compiler may use."""
    kept = {
        name: has and not (kernels == "avx2" and name.startswith(("avx512", "amx", "avx10")))
        for name, has in features.items()
    }
    return ",".join(f"{'+' if has else '-'}{name}" for name, has in kept.items())


def arithmetic(device: str, dtype: str) -> Arithmetic:
    """How convolutions multiply: in torch, or in the engine's own kernels.

    Those multiply in float32; activations in bfloat16 in tiles of bfloat16 where the processor has them, or else in
    scaled 16-bit integers, whose rounding is smaller than that of bfloat16, but not than that of float16.
    """
    machine = host() if device == "cpu" and dtype != "float64" else None
    if machine is None:
        return "torch"
    if dtype != "bfloat16":
        return "float32"
    return "bfloat16" if machine.tiles else "int16" if machine.dots else "float32"


def multiplies_pairs(dtype: str) -> bool:
    """Whether products of activations that are not filtered are those of pairs of bfloat16."""
    machine = host()
    return machine is not None and machine.pairs and dtype == "bfloat16"


FEW = {("float32", 9): 1024, ("float32", 3): 768, ("int16", 9): 1024, ("int16", 3): 768}
"""Pixels of all frames, by arithmetic and taps, below which filtering saves less than its weights cost."""


def filters(arithmetic: Arithmetic, pixels: int, taps: int, *, pairs: bool) -> bool:
    """Whether a convolution of so many pixels is done by Winograd filtering rather than directly.

    With one tap there is nothing to filter, but products of integers are a kind of it.
    """
    if taps == 1:
        return arithmetic == "int16" and not pairs
    return pixels >= FEW.get((arithmetic, taps), pixels + 1)


def torch_is_fast(device: str, dtype: str) -> bool:
    """Whether torch multiplies activations of a dtype about as fast as the processor can."""
    return device == "cpu" and (dtype in ("float32", "float64") or multiplies_pairs(dtype))


def attends(device: str, dtype: str) -> bool:
    """Whether attention over activations of a dtype is done by the engine's own kernel, in float32.

    torch multiplies tiles of bfloat16; in pairs of them it was no faster than in float32 (Zen 5).
    """
    machine = host()
    in_tiles = machine is not None and machine.tiles and dtype == "bfloat16"
    return arithmetic(device, dtype) != "torch" and not in_tiles


def attention_type(device: str, dtype: str) -> str:
    """The type in which attention over activations of a dtype is computed: one that it is fast in."""
    slow = attends(device, dtype) or not torch_is_fast(device, dtype)
    return "float32" if device == "cpu" and slow else dtype


_ARCH_REQ_XCOMP_PERM, _XTILEDATA = 0x1023, 18
_ARCH_PRCTL = 158  # on x86-64


def _may_use_tiles() -> bool:
    """Ask Linux for the registers of AMX, which a process does not have from the start."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0
