"""Shards that are on the disk and in no ledger: their worker or driver died between the one and the other."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath

from temporal_vae.distributed.dataset.ledger import Ledger
from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.shards import (
    Format,
    ShardInfo,
    inspect_shard,
    list_shards,
    read_shard,
    write_shard,
)
from temporal_vae.distributed.dataset.share import Share
from temporal_vae.errors import LatentFileError

logger = logging.getLogger(__name__)


def reconcile(place: Place, ledger: Ledger, format: Format, share: Share) -> int:
    """Let a ledger tell what is on the disk.

    Clips that lie in shards which no ledger knows are entered, and what is there a second time is removed. Clips whose
    shards somebody removed are forgotten, and so done again.

    Args:
        place: folder of the dataset.
        ledger: of this rank, and those of others.
        format: of the shards.
        share: which rank this is; of several, each looks at other shards and changes its own ledger only.

    Returns:
        How many clips were entered.

    Raises:
        MediaError: the place can't be read or written.
    """
    names = list_shards(place, format)
    if format == "files":
        there = {PurePosixPath(name).stem for name in names}
        ledger.forget_clips(set(ledger.committed(format)) - there, format, everywhere=share.ranks == 1)
    else:
        ledger.forget_shards(ledger.shards(format) - set(names), format, everywhere=share.ranks == 1)
    committed, shards = set(ledger.committed(format)), ledger.shards(format)

    def is_known(name: str) -> bool:
        return PurePosixPath(name).stem in committed if format == "files" else name in shards

    entered = 0
    for name in names:
        if share.is_ours(name) and not is_known(name):
            info = _fresh(place, name, format, committed)
            if info is not None:
                entered += ledger.commit(info, ())
                committed |= set(info.places)
    return entered


def _fresh(place: Place, name: str, format: Format, committed: set[str]) -> ShardInfo | None:
    """A shard of those clips of a shard that are not done; the others, or all of a damaged one, are removed."""
    try:
        info, _ = inspect_shard(place, name, format)
    except LatentFileError as error:
        logger.warning("%s; it is removed, and its clips are encoded anew", error)
        place.remove(name)
        return None
    fresh = set(info.places) - committed
    if fresh == set(info.places):
        return info
    kept = [record for record in read_shard(place, name, format) if record.identity in fresh]
    remainder = write_shard(place, format, kept) if kept else None
    place.remove(name)
    return remainder


def clean(place: Place, format: Format) -> None:
    """Remove what processes of this machine that are no more left half-written."""
    folders = [f"clips/{number:02x}" for number in range(256)] if format == "files" else ["shards"]
    for folder in ("", *folders):
        place.clean(folder)
