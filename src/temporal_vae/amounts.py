"""Amounts of memory as people write them."""

from __future__ import annotations

import re
from typing import TypeAlias

from temporal_vae.errors import InputError

MemoryLimit: TypeAlias = int | str | None
"""Bytes above the loaded model, or an amount as `"4GiB"`; None where none is set."""

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def parse_memory(amount: int | str) -> int:
    """Bytes of an amount as a user writes it: `4GiB`, `512 MB`, `1.5g`, or a number of bytes.

    Raises:
        InputError: something else, or nothing at all.
    """
    match = _AMOUNT.fullmatch(str(amount)) if isinstance(amount, (int, str)) else None
    nbytes = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    if nbytes < 1 or isinstance(amount, bool):
        raise InputError(
            f"memory limit {amount!r}: write bytes or an amount with a unit above zero, for example 4GiB or 500MB"
        )
    return nbytes
