"""What is asked of a run, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypedDict

from temporal_vae.amounts import MemoryLimit, parse_memory
from temporal_vae.distributed.dataset.encode_job import ClipTask
from temporal_vae.distributed.dataset.executors import Executor
from temporal_vae.distributed.dataset.settings import Settings
from temporal_vae.distributed.dataset.shards import FORMATS, Format
from temporal_vae.errors import InputError, MediaError, MemoryLimitError

CLIPS_PER_SHARD = 64


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: `probe`, when it reads through what it does not know, or `encode`.
        done: files or clips that are over; those that were done before are not counted.
        total: alike.
        failed: how many of those could not be done.
        video_seconds: of the clips done.
        seconds: since the phase began.
    """

    phase: str
    done: int
    total: int
    failed: int = 0
    video_seconds: float = 0.0
    seconds: float = 0.0


Watch = Callable[[Progress], None]


@contextmanager
def kept_so_far() -> Iterator[None]:
    """Within the block, an error of the disk or of memory says that what is done is kept."""
    try:
        yield
    except (MediaError, MemoryLimitError) as error:
        raise type(error)(f"{error} (what is done is kept: run again to go on)") from error


class How(TypedDict, total=False):
    """Who encodes, with which model, and what becomes of it.

    Attributes:
        model: a folder, a hub id, or `embedded`, the default.
        subfolder: of the autoencoder inside the model.
        device: to compute on; `auto`, the default, is a GPU where there is one.
        format: of shards: `tar` for WebDataset, `parquet`, or `files`, one for each clip.
        memory_limit: bytes that each worker may take above the loaded model, or an amount as `"4GiB"`.
        clips_per_shard: at most; fewer at first, where there are few for each worker, and where they take long.
        ledger: file of the ledger; by default in `dest`, or in this user's cache where `dest` is no local folder.
        executor: who encodes; by default processes of this machine.
        fail_fast: whether the first video or clip that fails ends the run.
        retry_quarantined: whether what failed before is tried again.
    """

    model: str
    subfolder: str | None
    device: str
    format: Format
    memory_limit: MemoryLimit
    clips_per_shard: int
    ledger: Path | None
    executor: Executor | None
    fail_fast: bool
    retry_quarantined: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be encoded, where to, and how: see `How`.

    Raises:
        InputError: a value out of range.
    """

    source: str | Path
    dest: str | Path
    settings: Settings = field(default_factory=Settings)
    model: str = "embedded"
    subfolder: str | None = None
    device: str = "auto"
    format: Format = "tar"
    memory_limit: MemoryLimit = None
    clips_per_shard: int = CLIPS_PER_SHARD
    ledger: Path | None = None
    executor: Executor | None = None
    fail_fast: bool = False
    retry_quarantined: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format={self.format!r}: choose {', '.join(FORMATS)}")
        if self.clips_per_shard < 1:
            raise InputError(f"clips_per_shard={self.clips_per_shard}: at least 1")
        if self.memory_limit is not None:
            parse_memory(self.memory_limit)


class Tally:
    """Counts what becomes of clips, and tells how far that is.

    Args:
        watch: who is told.
        tasks: the clips, by identity.

    Attributes:
        done, failed: identities of clips.
    """

    def __init__(self, watch: Watch, tasks: dict[str, ClipTask]) -> None:
        self._watch, self._tasks, self._began = watch, tasks, monotonic()
        self._video_seconds = 0.0
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._tell()

    @property
    def now(self) -> Progress:
        """How far it is."""
        return Progress(
            phase="encode",
            done=len(self.done) + len(self.failed),
            total=len(self._tasks),
            failed=len(self.failed),
            video_seconds=self._video_seconds,
            seconds=monotonic() - self._began,
        )

    def add(self, done: Collection[str], failed: Collection[str]) -> None:
        """Count clips; those that come back a second time count once."""
        fresh = [self._tasks[each] for each in done if each in self._tasks and each not in self.done]
        self._video_seconds += sum(float(task.frames / task.rate) for task in fresh)
        self.done.update(task.identity for task in fresh)
        self.failed = (self.failed | set(failed)) - self.done
        self._tell()

    def _tell(self) -> None:
        self._watch(self.now)
