"""What a server was told: which limits hold, and who may speak to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server. What exceeds one is refused before memory is taken for it.

    Attributes:
        memory_limit: bytes above the loaded model for everything that the server does. Half of it is for what is
            computed, a quarter for the tensors of all requests that wait or are answered, a quarter for the frames
            of the job that runs.
        body_limit: bytes of what a client sends.
        queue: requests that may be in hand at once; the next is told to come again later.
        seconds: how long a request may take, its wait included.
        jobs: jobs that may wait or run at once.
        job_seconds: how long a job may run.
        results_seconds: how long the results of a job are kept.
        results_limit: bytes of the files of all jobs, sources included.
        folder: where a folder for the files of jobs is made, and removed at the end.
        token: what clients must show; None lets everybody in.
        hosts: names under which the server is reached; None for any.
        origins: other sites whose pages may send requests.
    """

    memory_limit: int
    body_limit: int = 256 * MIB
    queue: int = 8
    seconds: float = 600
    jobs: int = 4
    job_seconds: float = 3600
    results_seconds: float = 3600
    results_limit: int = 4 * GIB
    folder: Path = field(default_factory=lambda: Path(gettempdir()))
    token: str | None = None
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()

    @property
    def compute_limit(self) -> int:
        """Bytes that the engine may take."""
        return self.memory_limit // 2

    @property
    def held_limit(self) -> int:
        """Bytes that requests which wait or are answered may hold, all together."""
        return self.memory_limit // 4

    @property
    def frames_limit(self) -> int:
        """Bytes that the frames of the job that runs may take."""
        return self.memory_limit // 4
