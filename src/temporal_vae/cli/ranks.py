"""Commands that share their work with other ranks when torchrun starts several processes of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temporal_vae.errors import RankError, TemporalVaeError, one_line

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder


def is_first() -> bool:
    """Whether this is the only process, or the first of several that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def number_of_ranks() -> int:
    """How many processes a launcher started, by what it tells them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def one_error_of_all() -> Iterator[None]:
    """Under a launcher of several processes, let the first alone say what went wrong, and the launcher repeat it last.

    torchrun prints at its end what its processes leave in the file that this variable names.
    """
    try:
        yield
    except TemporalVaeError as error:
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            extra = {"py_callstack": str(error), "timestamp": str(int(time.time()))}  # this is what it prints
            text = json.dumps({"message": {"message": str(error), "extraInfo": extra}})
            with suppress(OSError):
                Path(file).write_text(text)
        if not is_first():
            sys.exit(1)
        raise


def shares_its_work(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command share its work where torchrun started several processes; it is called with `coder_type` then.

    The first process reads, writes and shows progress; in the others the command is not called.
    """

    @click.option(
        "--no-shard", is_flag=True, help="Under torchrun, let the first process do all the work by itself."
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        show_default=True,
        help="Under torchrun, seconds that a process may stand still before the others give up.",
    )
    @wraps(command)
    def run(no_shard: bool, timeout: float, **arguments: Any) -> None:
        if number_of_ranks() == 1:
            command(**arguments)
        elif no_shard:
            if is_first():
                command(**arguments)
        else:
            with one_error_of_all():
                _together(command, timeout, arguments)

    return run


def _together(command: Callable[..., None], timeout: float, arguments: dict[str, Any]) -> None:
    import torch.distributed as dist

    from temporal_vae.distributed.clip import video
    from temporal_vae.distributed.clip.ranks import together

    vae: Autoencoder = arguments["vae"]
    limit = arguments["memory_limit"]
    backend = "nccl" if vae.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:  # torch's errors of stores and connections are of this kind
        raise RankError(
            f"the ranks did not all meet within {timeout:g} s ({one_line(error)}); see whether one of them ended, "
            "start again, or allow more time with --timeout"
        ) from error
    with together(timeout=timeout) as ranks:
        video.begin(vae, ranks, limit)
        if ranks.rank == video.LEADER:
            command(coder_type=partial(video.ShardedCoder, ranks=ranks), **arguments)
            video.finish(ranks)
        else:
            video.follow(vae, ranks, limit)
    dist.destroy_process_group()
