"""What can go wrong, as types.

Every message is one line: the value or file, what was allowed, and what to do.

    TemporalVaeError
    ├── ConfigError        a configuration that cannot be built                  (also a ValueError)
    ├── InputError         a tensor or argument a call cannot work with          (also a ValueError)
    ├── CheckpointError    weights that cannot be loaded into a model            (also a ValueError, OSError)
    ├── MediaError         a video or image that cannot be read or written       (also a ValueError)
    ├── LatentFileError    a latent file that is damaged or of another model     (also a ValueError)
    ├── MemoryLimitError   a memory limit, or a disk to spill to, that is too small (also a ValueError)
    ├── TrainingError      a training that cannot go on                          (also a RuntimeError)
    └── RankError          another rank that died, failed or stands still         (also a RuntimeError)

The command line prints the message of a `TemporalVaeError` on one line and exits with 1; wrong usage
(unknown option, malformed value) exits with 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "CheckpointError",
    "ConfigError",
    "InputError",
    "LatentFileError",
    "MediaError",
    "MemoryLimitError",
    "RankError",
    "TemporalVaeError",
    "TrainingError",
]


NAMED = 3  # things that a message names before it only counts


class TemporalVaeError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(TemporalVaeError, ValueError):
    """A configuration that cannot be built into a model."""


class InputError(TemporalVaeError, ValueError):
    """A tensor or argument of the wrong shape, type or range."""


class CheckpointError(TemporalVaeError, ValueError, OSError):
    """A checkpoint that is missing, unsafe, or does not fit the model.

    An `OSError` too, because that is what code written for diffusers catches around `from_pretrained`.
    """


class MediaError(TemporalVaeError, ValueError):
    """A video or image file that cannot be opened, decoded or written."""


class LatentFileError(TemporalVaeError, ValueError):
    """A latent file that is damaged, of an unknown version, or of another model."""


class MemoryLimitError(TemporalVaeError, ValueError):
    """A memory limit under which the work cannot be done, or a disk without room for what would be spilled."""


class TrainingError(TemporalVaeError, RuntimeError):
    """A training run that cannot go on; its last checkpoint is intact."""


class RankError(TemporalVaeError, RuntimeError):
    """Another rank that died, failed or stands still, so that what it shares cannot be computed.

    Attributes:
        rank: which one, of the group.
    """

    def __init__(self, message: str, *, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def file_name(path: str | Path) -> str:
    """A path as messages show it: as the user wrote it, on one line."""
    return " ".join(str(path).splitlines())


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def first_names(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
