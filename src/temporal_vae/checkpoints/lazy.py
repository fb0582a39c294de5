"""Tensors by name, in a file or at hand.

Those of a safetensors file are read one by one: the file is not mapped, so that it may be larger than the memory.

The format: eight bytes with the length of a JSON header, little-endian, the header, the bytes of the tensors.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from temporal_vae.checkpoints.loading import open_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that tensors may have to be read, by the names of the format."""


_COUNTS = {"I64": torch.int64}  # such as the batches that a norm has seen


class Tensors(Protocol):
    """What is asked of a file, or of a state dict."""

    names: frozenset[str]

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of a type that is computed in."""

    def is_count(self, name: str) -> bool:
        """Whether a tensor is of whole numbers."""

    def read(self, name: str) -> Tensor:
        """The tensor itself."""


class TensorsAtHand:
    """The tensors of a state dict, none of them copied."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.names = frozenset(tensors)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""
        return list(self._tensors[name].shape)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of a type that is computed in."""
        return self._tensors[name].dtype in DTYPES.values()

    def is_count(self, name: str) -> bool:
        """Whether a tensor is of whole numbers."""
        return self._tensors[name].dtype in _COUNTS.values()

    def read(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._tensors[name].detach()


class LazyTensors:
    """The tensors of a file.

    Attributes:
        names: of all tensors.

    Raises:
        CheckpointError: a damaged file.
    """

    def __init__(self, path: Path) -> None:
        open_tensors(
            path, framework="np"
        )  # checks the header; that of torch would map the file to be written to
        self._path = path
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._header = json.loads(file.read(length))
        self._header.pop("__metadata__", None)
        self._start = 8 + length
        self.names = frozenset(self._header)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""
        return list(self._header[name]["shape"])

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of a type that can be read."""
        return self._header[name]["dtype"] in DTYPES

    def is_count(self, name: str) -> bool:
        """Whether a tensor is of whole numbers that can be read."""
        return self._header[name]["dtype"] in _COUNTS

    def read(self, name: str) -> Tensor:
        """Read a tensor."""
        begin, end = self._header[name]["data_offsets"]
        with self._path.open("rb") as file:
            file.seek(self._start + begin)
            data = bytearray(file.read(end - begin))
        dtype = (DTYPES | _COUNTS)[self._header[name]["dtype"]]
        return torch.frombuffer(data, dtype=dtype).reshape(self.shape(name))
