"""What this processor's registers hold, and in which arithmetic the engine multiplies on it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Arithmetic = Literal["torch", "float32", "int16"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the register tiles are cut for."""

    name: str
    features: str
    lanes: int  # float32 per vector register
    rows: int  # rows of a register tile; `rows * columns` accumulators and a few more must fit the registers
    columns: int  # vectors across a register tile
    dots: bool  # adds products of pairs of 16-bit integers to 32-bit ones, twice as many as of float32 at a time


@lru_cache(maxsize=1)
def host() -> Machine | None:
    """This processor, or None where no kernels are made for it."""
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError):  # without the compiler torch does the work; `trust` says so
        return None
    features, name = llvm.get_host_cpu_features(), llvm.get_host_cpu_name()
    text = features.flatten()
    if features.get("avx512f") and features.get("avx512vl") and features.get("avx512bw"):
        dots = bool(features.get("avx512vnni"))
        return Machine(name=name, features=text, lanes=16, rows=12, columns=2, dots=dots)
    if features.get("avx2") and features.get("fma") and features.get("f16c"):
        dots = bool(features.get("avxvnni"))
        return Machine(name=name, features=text, lanes=8, rows=6, columns=2, dots=dots)
    if features.get("neon"):
        return Machine(name=name, features=text, lanes=4, rows=12, columns=2, dots=False)
    return None


def arithmetic(device: str, dtype: str) -> Arithmetic:
    """How convolutions multiply: in torch, or in the engine's own kernels, in float32 or in scaled 16-bit integers.

    Integers serve bfloat16 only: their rounding is smaller than that of its values, but not than that of float16.
    """
    machine = host() if device == "cpu" and dtype != "float64" else None
    if machine is None:
        return "torch"
    return "int16" if dtype == "bfloat16" and machine.dots else "float32"
