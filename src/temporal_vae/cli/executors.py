"""Commands that work in processes of this machine, on a Ray cluster, or as one of several ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from temporal_vae.cli.options import together

if TYPE_CHECKING:
    from temporal_vae.distributed.dataset.executors import Executor

_options = together(
    click.option(
        "--executor",
        type=click.Choice(("local", "ray")),
        help="Processes of this machine (the default), or a Ray cluster.",
    ),
    click.option(
        "--workers",
        "--concurrency",
        type=click.IntRange(min=0),
        help="How many, of Ray at the most; by default by the cores or GPUs. 0: in this process.",
    ),
    click.option(
        "--address",
        help="Of an existing Ray cluster, host:port or auto; by default one of this machine is started.",
    ),
    click.option(
        "--gpus", type=click.FloatRange(min=0), help="Of each worker of Ray, also 0.5; by --device."
    ),
    click.option(
        "--rank", type=click.IntRange(min=0), help="Of this process, of several that do a share each."
    ),
    click.option("--world-size", type=click.IntRange(min=1), help="How many such processes there are."),
)


def takes_executor(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say who works; it is called with an `executor`, and takes a `device`."""

    @_options
    @wraps(command)
    def choose_and_run(
        executor: str | None,
        workers: int | None,
        address: str | None,
        gpus: float | None,
        rank: int | None,
        world_size: int | None,
        **arguments: Any,
    ) -> None:
        chosen = _executor(executor, workers, address, gpus, rank, world_size, arguments["device"])
        command(executor=chosen, **arguments)

    return choose_and_run


def _executor(
    name: str | None,
    workers: int | None,
    address: str | None,
    gpus: float | None,
    rank: int | None,
    world_size: int | None,
    device: str,
) -> Executor:
    """Who works, by the options; torchrun's ranks where nobody is named."""
    from temporal_vae.distributed.dataset.executors.local import LocalExecutor, default_workers
    from temporal_vae.distributed.dataset.executors.ranks import RankExecutor, rank_of_launcher

    if (rank is None) != (world_size is None):
        raise click.UsageError("--rank and --world-size go together.")
    if rank is not None and world_size is not None:
        if name is not None or workers is not None:
            raise click.UsageError("--rank: a rank works by itself; leave out --executor and --workers.")
        if rank >= world_size:
            raise click.BadParameter(f"{rank} of {world_size}: ranks count from 0", param_hint="--rank")
        return RankExecutor(rank=rank, world_size=world_size)
    if name == "ray":
        from temporal_vae.distributed.dataset.executors.ray import RayExecutor

        return RayExecutor(address=address, concurrency=workers, gpus=gpus)
    if address is not None or gpus is not None:
        raise click.UsageError("--address and --gpus are of a Ray cluster: name --executor ray.")
    if name is None and (launched := rank_of_launcher()) is not None:
        if workers is not None:
            raise click.UsageError("--workers: a rank of torchrun works by itself; leave it out.")
        return launched
    if workers == 0:
        return RankExecutor(rank=0, world_size=1)
    return LocalExecutor(workers=workers or default_workers(device))
