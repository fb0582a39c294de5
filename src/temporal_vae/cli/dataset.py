"""`temporal-vae encode-dataset` and `decode-dataset`: folders of videos to datasets of latents and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temporal_vae import interrupts
from temporal_vae.cli.console import print_json
from temporal_vae.cli.executors import takes_executor
from temporal_vae.cli.options import (
    DTYPES,
    ClipFramesType,
    SizeType,
    json_option,
    memory_option,
    model_options,
    quality_option,
    rate_option,
    reading_options,
    together,
)

if TYPE_CHECKING:
    from temporal_vae.distributed.dataset.executors import Executor
    from temporal_vae.distributed.dataset.request import Watch
    from temporal_vae.distributed.dataset.run import Run
    from temporal_vae.distributed.dataset.settings import Settings
    from temporal_vae.distributed.dataset.summary import Summary

failure_options = together(
    click.option("--fail-fast", is_flag=True, help="Let the first that fails end the run."),
    click.option("--retry-quarantined", is_flag=True, help="Try again what failed before."),
)

_CUTTING = ("clip_frames", "stride", "fps", "pick", "clips", "short", "multiple")
_STORING = ("dtype", "latent_dtype", "sample", "background", "hdr", "damaged", "deinterlace")


@click.command("encode-dataset")
@click.argument("source")
@click.argument("dest")
@click.option(
    "--clip-frames", type=click.IntRange(min=1), default=25, show_default=True, help="Frames of a clip."
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Frames from the start of a clip to that of the next; --clip-frames.",
)
@rate_option
@click.option(
    "--pick",
    type=click.Choice(("all", "head", "uniform")),
    default="all",
    show_default=True,
    help="Which clips of a video: all, the first ones, or some that are spread evenly.",
)
@click.option(
    "--clips", type=click.IntRange(min=1), default=1, show_default=True, help="How many, of head and uniform."
)
@click.option(
    "--short",
    type=click.Choice(("drop", "keep")),
    default="drop",
    show_default=True,
    help="Fewer frames than a clip has: leave them out, or make a shorter clip of them.",
)
@click.option(
    "--area",
    type=SizeType(),
    metavar="PIXELS",
    help="About so many pixels (65536 or 256x256), in the bucket of the nearest aspect: scaled to cover it, and cut "
    "evenly.",
)
@click.option(
    "--size", type=SizeType(), help="WIDTHxHEIGHT of all clips: scaled to cover it, and cut evenly."
)
@click.option(
    "--multiple",
    type=click.IntRange(min=1),
    help="Sides of buckets are multiples of it; 8 to 64, by the area.",
)
@click.option(
    "--sample", type=int, metavar="SEED", help="Store a sample of each posterior, not mean and log-variance."
)
@click.option("--latent-dtype", type=click.Choice(DTYPES), help="To store in; by default that of --dtype.")
@reading_options
@model_options
@memory_option
@click.option(
    "--format",
    type=click.Choice(("tar", "parquet", "files")),
    default="tar",
    show_default=True,
    help="WebDataset shards, Parquet, or a safetensors file for each clip.",
)
@click.option("--clips-per-shard", type=click.IntRange(min=1), default=64, show_default=True, help="At most.")
@takes_executor
@click.option(
    "--ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to keep the ledger; by default in DEST.",
)
@click.option("--dry-run", is_flag=True, help="Show what there is to do, and end.")
@failure_options
@json_option
def encode_dataset(
    source: str,
    dest: str,
    area: tuple[int, int | None] | None,
    size: tuple[int, int | None] | None,
    executor: Executor,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn videos into a dataset of latents.

    SOURCE is a folder, a pattern such as 'videos/**/*.mp4', or a manifest (CSV, JSONL, Parquet) with path, perhaps
    start and end in seconds, and any further columns, which are carried along. Every video is read through once, and
    cut into clips; the plan is shown. A run that was interrupted goes on where it stopped: give the same command again.

    Exits with 0 where all that is listed is there, and with 3 where something was left out: quarantine.jsonl in DEST
    says what and why.
    """
    from temporal_vae.distributed.dataset.request import Request
    from temporal_vae.distributed.dataset.run import Run

    settings = _settings(area, size, {name: options.pop(name) for name in (*_CUTTING, *_STORING)})
    request = Request(source=source, dest=dest, settings=settings, executor=executor, **options)
    interrupts.be_careful()  # there are processes to end
    with _progress() as watch, Run(request, watch) as run:
        if dry_run and as_json:
            print_json(run.plan.to_json() | {"missing": len(run.missing)})
        if not as_json and not executor.share.rank:
            _show_plan(run)
        if dry_run:
            return
        summary = run.encode()
    if as_json:
        print_json(summary.to_json())
    else:
        _show_summary(summary)
    click.get_current_context().exit(summary.exit_code)


@click.command("decode-dataset")
@click.argument("source")
@click.argument("dest")
@click.option(
    "--codec",
    type=click.Choice(("h264", "ffv1", "gif")),
    default="h264",
    show_default=True,
    help="Of the videos: .mp4, .mkv (without loss) or .gif.",
)
@quality_option
@click.option("--sample", type=int, metavar="SEED", help="Decode a sample of each posterior, not its mean.")
@click.option(
    "--clip-frames",
    type=ClipFramesType(),
    default="25",
    show_default=True,
    help="Frames of a latent file that are decoded as one clip, or `all`. It changes the pixels.",
)
@click.option(
    "--settings",
    metavar="HASH",
    help="Of several that SOURCE was encoded with: 8 digits or more, as in its dataset.json.",
)
@model_options
@memory_option
@takes_executor
@failure_options
@json_option
def decode_dataset(source: str, dest: str, executor: Executor, as_json: bool, **options: Any) -> None:
    """Turn a dataset of latents back into videos.

    SOURCE is what encode-dataset wrote, or a folder of latent files of encode. DEST gets a video of each clip, or of
    each latent file, and index.parquet, which says which is of what. A run that was interrupted goes on where it
    stopped: give the same command again.

    Exits with 0 where all videos are there, and with 3 where something was left out: quarantine.jsonl in DEST says what
    and why.
    """
    from temporal_vae.distributed.dataset.decoding import decode_dataset as run

    interrupts.be_careful()  # there are processes to end
    with _progress() as watch:
        summary = run(source, dest, executor=executor, progress=watch, **options)
    if as_json:
        print_json(summary.to_json())
    else:
        words = f"{summary.decoded:,} videos decoded, {summary.found:,} were there"
        words += f", {summary.waiting:,} are of other ranks" if summary.waiting else ""
        click.echo(f"{dest}/{summary.folder}: {words}; {summary.left_out or 'nothing'} left out")
    click.get_current_context().exit(summary.exit_code)


def _settings(
    area: tuple[int, int | None] | None, size: tuple[int, int | None] | None, values: dict[str, Any]
) -> Settings:
    from temporal_vae.distributed.dataset.settings import Settings

    if size is not None and size[1] is None:
        raise click.BadParameter(f"{size[0]} is no size of clips; write WIDTHxHEIGHT", param_hint="--size")
    if area is not None and size is not None:
        raise click.UsageError("--area and --size exclude each other: choose buckets or one size.")
    pixels = None if area is None else area[0] * (area[1] or 1)
    return Settings(area=pixels, size=None if size is None else (size[0], size[1] or 0), **values)


def _show_plan(run: Run) -> None:
    click.echo(str(run.plan))
    there = len(run.plan.clips) - len(run.missing)
    click.echo(f"{'to do':14}{len(run.missing):,} clips, {there:,} are done or fall to others")


def _show_summary(summary: Summary) -> None:
    words = f"{summary.encoded:,} clips encoded, {summary.found:,} were there"
    words += f", {summary.waiting:,} are of other ranks" if summary.waiting else ""
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in summary.left_out.items() if count)
    click.echo(f"{summary.dest}: {words}; {left_out or 'nothing'} left out")
    if summary.encoded:
        click.echo(
            f"  {summary.clips_per_second:.2f} clips/s, {summary.video_seconds_per_second:.2f} s of video/s, "
            f"{summary.seconds:.1f} s in all"
        )


@contextmanager
def _progress() -> Iterator[Watch]:
    """Show clips and seconds of video per second, failures and the time left, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from temporal_vae.distributed.dataset.request import Progress as Now

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda now: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def watch(now: Now) -> None:
            if now.phase not in tasks:
                tasks[now.phase] = bar.add_task(now.phase, total=now.total, speed="")
            bar.update(tasks[now.phase], completed=now.done, total=now.total, speed=_speed(now))

        yield watch


def _speed(now: Any) -> str:
    if now.phase == "probe" or not now.seconds or not now.done:
        return ""
    failed = f", {now.failed} failed" if now.failed else ""
    return f"{now.done / now.seconds:.2f} clips/s, {now.video_seconds / now.seconds:.1f} s/s{failed}"
