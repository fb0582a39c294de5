"""How many clips a batch holds: few at first, later as many as take about half a minute.

What is in flight when a run is killed is done again, so a run that is killed again and again must come further each
time, however slow the model is; and a run that is not killed should not leave a shard for each clip.
"""

from __future__ import annotations

from time import monotonic

SECONDS = 30.0  # that a batch takes, about
_EACH = 2  # batches of a size for each worker, before there are larger ones


class Pace:
    """Says how large the next batch is.

    Args:
        workers: that encode at the same time.
        most: clips of a batch.
    """

    def __init__(self, workers: int, most: int) -> None:
        self._workers, self._most = workers, most
        self._given = self._done = 0
        self._began: float | None = None

    def next(self, left: int) -> int:
        """Clips of the next batch, where so many are left."""
        self._began = self._began or monotonic()
        ramp = 2 ** min(self._given // (_EACH * self._workers), 20)
        self._given += 1
        fair = -(-left // self._workers)
        size = min(self._most, ramp, fair)
        if self._done:
            each = (monotonic() - self._began) * self._workers / self._done
            size = min(size, int(SECONDS / each))
        return max(1, size)

    def done(self, clips: int) -> None:
        """So many have come back."""
        self._done += clips
