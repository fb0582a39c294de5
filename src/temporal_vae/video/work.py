"""How much of a video is done, by what the model really computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from temporal_vae.engine.progress import reporting

Progress = Callable[[int, int | None], None]
"""Called with the work that is done and, where the length of the video is known, with all of it.

Work is counted in multiply-adds of the network. The last call is `(all, all)`. Calls come often, one at a time, and
from the threads that compute; an exception ends the work.
"""


class Work:
    """Adds up what the engine reports of single calls."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._expected: int | None = None
        self._done = self._current = 0

    def expect(self, amount: int) -> None:
        """Say how much there will be."""
        self._expected = amount

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Within this, calls are reported as they go on; at its end all is done."""
        if self._progress is None:
            yield
            return
        with reporting(lambda done, total: self._tell(self._current * min(done, total) // total)):
            yield
        self._expected = self._done
        self._tell(0)

    @contextmanager
    def call(self, amount: int) -> Iterator[None]:
        """Within this, one call of the model does this much."""
        self._current = amount
        yield
        self._done, self._current = self._done + amount, 0
        self._tell(0)

    def _tell(self, more: int) -> None:
        if self._progress is not None:
            # More than was expected where a file holds more frames than its header tells.
            known = self._done + self._current
            self._progress(self._done + more, None if self._expected is None else max(self._expected, known))
