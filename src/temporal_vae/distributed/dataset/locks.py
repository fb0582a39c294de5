"""One driver writes to a dataset at a time, or several ranks of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from temporal_vae.distributed.dataset.share import Share
from temporal_vae.errors import InputError, file_name
from temporal_vae.outputs import writing

_DRIVER = ".driver.lock"
_PATIENCE = 5  # seconds: ranks look for a moment whether there is a driver, one after the other


@contextmanager
def only_driver(folder: Path, share: Share, shown: str) -> Iterator[None]:
    """Hold the lock of a dataset within the block. It goes with the process, however that ends.

    Args:
        folder: where the ledger is.
        share: several ranks may hold it together, each its own.
        shown: the dataset, for messages.

    Raises:
        InputError: another run holds it.
        MediaError: the folder can't be made or written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    busy = InputError(
        f"{file_name(shown)}: another run is writing there; wait until it ends, or name another folder"
    )
    with ExitStack() as held:

        def take(name: str, patience: float = 0) -> FileLock:
            lock = FileLock(folder / name)
            with writing(folder / name):
                try:
                    lock.acquire(timeout=patience)
                except Timeout:
                    raise busy from None
            held.callback(lock.release)
            return lock

        own = f".rank-{share.rank}-of-{share.ranks}.lock" if share.ranks > 1 else _DRIVER
        take(own)
        if share.ranks > 1:
            take(_DRIVER, _PATIENCE).release()
        for other in sorted(folder.glob(".rank-*-of-*.lock")):
            if not other.name.endswith(f"-of-{share.ranks}.lock") or share.ranks == 1:
                take(other.name, _PATIENCE).release()
        yield
