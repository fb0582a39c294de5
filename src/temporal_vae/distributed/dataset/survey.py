"""What is found of all files of a source: read anew only where it is not known, or the file is another one by now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from temporal_vae.distributed.dataset.ledger import Ledger
from temporal_vae.distributed.dataset.probing import Found, Unreadable, probe, probe_all
from temporal_vae.distributed.dataset.reading import stamp_of
from temporal_vae.distributed.dataset.share import Share
from temporal_vae.errors import MediaError

_KEPT_EVERY = 5  # seconds
_PATIENCE, _LEAST = 10, 0.1  # ledgers are read again after so many times what that took, or so many seconds


def survey(
    paths: Iterable[str],
    reading: dict[str, str],
    ledger: Ledger,
    *,
    workers: int,
    share: Share,
    fail_fast: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Found]:
    """What is found of each file.

    Args:
        paths: the files.
        reading: options of `VideoReader`.
        ledger: what is known, and where what is new is entered.
        workers: processes that read.
        share: which rank this is.
        fail_fast: a file that can't be read is an error.
        told: called with how many files are done, and of how many.

    Raises:
        MediaError: the ledger can't be written; or, with `fail_fast`, a file can't be read.
    """
    listed = list(dict.fromkeys(paths))
    found: dict[str, Found] = {}
    known = _Known(ledger, reading)
    for chunk in share.first(listed):
        unknown = []
        for path in chunk:
            stamp, kept = _stamp(path), known.of(path)
            if stamp is None:
                found[path] = probe(path, reading)
            elif kept is not None and kept.stamp == stamp:
                found[path] = kept
            else:
                unknown.append(path)
        told(len(found), len(listed))
        _refuse(found.values() if fail_fast else ())
        for path, each in _kept(probe_all(unknown, reading, workers=workers), reading, ledger):
            found[path] = each
            told(len(found), len(listed))
            _refuse([each] if fail_fast else ())
    return found


class _Known:
    """What ledgers hold, read again now and then, as other ranks enter what they find.

    That takes a tenth of the time at most, however many files there are.
    """

    def __init__(self, ledger: Ledger, reading: dict[str, str]) -> None:
        self._ledger, self._reading = ledger, reading
        self._read()

    def of(self, path: str) -> Found | None:
        """What is known of a file."""
        if path not in self._found and monotonic() - self._last > _PATIENCE * self._took:
            self._read()
        return self._found.get(path)

    def _read(self) -> None:
        began = monotonic()
        self._found = self._ledger.probes(self._reading)
        self._last = monotonic()
        self._took = max(self._last - began, _LEAST)


def _kept(
    probes: Iterator[tuple[str, Found]], reading: dict[str, str], ledger: Ledger
) -> Iterator[tuple[str, Found]]:
    """Probes as they come, entered in the ledger every few seconds and at the end, whatever the end is."""
    fresh: dict[str, Found] = {}
    last = monotonic()
    try:
        for path, each in probes:
            fresh[path] = each
            if monotonic() - last > _KEPT_EVERY:
                ledger.keep_probes(reading, fresh)
                fresh, last = {}, monotonic()
            yield path, each
    finally:
        ledger.keep_probes(reading, fresh)


def _stamp(path: str) -> str | None:
    """The stamp of a file; None where there is none."""
    try:
        return stamp_of(path)
    except (OSError, ValueError):
        return None


def _refuse(found: Iterable[Found]) -> None:
    for each in found:
        if isinstance(each, Unreadable):
            raise MediaError(each.reason)
