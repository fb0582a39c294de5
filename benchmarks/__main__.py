"""`make bench`, or `python -m benchmarks`: ours and its peers, timed in turn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.trials import DTYPES, JOBS, PICTURES, PUBLISHED, Case, Trial
from temporal_vae.cli import main
from temporal_vae.cli.console import print_json
from temporal_vae.cli.options import MemoryType, json_option
from temporal_vae.engine import cores
from temporal_vae.errors import InputError, TemporalVaeError
from temporal_vae.interrupts import be_careful, handled

_CASES = ("8x256x256", "14x320x512")
_SMALL_CASES = ("1x64x64", "2x128x128", "4x64x96", "14x64x64", "1x256x256")  # where little is computed
_PICTURE_CASES = ("1x512x512", "4x512x512")
_TRAINING_CASES = ("8x64x64",)  # a step of training holds every activation


class CaseType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """`FRAMESxHEIGHTxWIDTH`."""

    name = "case"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse to a `Case`."""
        try:
            return value if isinstance(value, Case) else Case.parse(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option(
    "--job",
    "jobs",
    type=click.Choice(JOBS),
    multiple=True,
    help="Default: decode, encode, train and train-temporal.",
)
@click.option(
    "--case",
    "cases",
    type=CaseType(),
    multiple=True,
    metavar="TxHxW",
    help=f"Default: {_CASES[0]}; {_TRAINING_CASES[0]} to train.",
)
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Default: float32.")
@click.option("--small", is_flag=True, help=f"{', '.join(_SMALL_CASES)}; decode and encode.")
@click.option("--full", is_flag=True, help=f"Both {' and '.join(_CASES)}, in both types.")
@click.option(
    "--contestant",
    "contestants",
    type=click.Choice(list(CONTESTANTS)),
    multiple=True,
    help="Default: all that this machine has.",
)
@click.option(
    "--model",
    default=PUBLISHED,
    show_default=True,
    help=f"`published`, `{PICTURES}`, `embedded`, or a folder.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of each contestant. Default: all cores.")
@click.option("--memory-limit", type=MemoryType(), help="For temporal-vae only, such as 2GiB.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures as JSON.")
@json_option
def bench(
    jobs: tuple[str, ...],
    cases: tuple[Case, ...],
    dtypes: tuple[str, ...],
    small: bool,
    full: bool,
    contestants: tuple[str, ...],
    model: str,
    rounds: int,
    threads: int | None,
    memory_limit: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Time this package beside its peers.

    The peers are diffusers (eager, compiled, with other allocators), OpenVINO and ONNX Runtime, on this machine.
    Each contestant lives in a process of its own and rests while another computes. Results are compared with those of
    diffusers in float32 before anything is timed; whoever is wrong, or cannot run, gets a reason in place of times.
    `published` is the configuration of Stable Video Diffusion with seeded random weights, `sdxl` that of SDXL's image
    autoencoder, for which frames are pictures.
    """
    be_careful()
    known = (PUBLISHED, PICTURES, "embedded")
    if model not in known and not Path(model).is_dir():
        raise InputError(f"--model {model}: no such folder; name one, or {', '.join(known)}")
    if model == PICTURES and any(job.startswith("train") for job in jobs):
        raise InputError(f"--model {model}: pictures are decoded and encoded only; leave out --job train")
    trials = [
        Trial(
            job=job,
            case=case,
            dtype=dtype,
            model=model,
            threads=threads or cores(),
            memory_limit=memory_limit,
        )
        for job in jobs or JOBS[: 2 if small or model == PICTURES else 4]
        for case in cases or _cases(job, model, small, full)
        for dtype in dtypes or DTYPES[: 2 if full else 1]
    ]
    races = _run(trials, contestants, rounds, output, as_json)
    refused = [
        f"{race['job']} {race['case']} {race['dtype']}: {row['reason']}"
        for race in races
        for row in race["contestants"]
        if row["name"] == OURS and "reason" in row
    ]
    if refused:
        raise TemporalVaeError(f"temporal-vae has no times for {'; '.join(refused)}")


def _cases(job: str, model: str, small: bool, full: bool) -> list[Case]:
    """The clips of a job for which none are named."""
    texts = _SMALL_CASES if small else _CASES[: 2 if full else 1]
    if model == PICTURES and not small:
        texts = _PICTURE_CASES
    if job.startswith("train"):
        texts = _TRAINING_CASES
    return [Case.parse(text) for text in texts]


def _run(
    trials: list[Trial], contestants: tuple[str, ...], rounds: int, output: Path | None, as_json: bool
) -> list[dict[str, Any]]:
    """Run the races; the record on disk grows with each, so that a long run that breaks off leaves its figures."""
    import json

    from benchmarks.protocol import run_races
    from benchmarks.results import circumstances, describe, print_race

    if output and not os.access(output.parent, os.W_OK):
        raise InputError(f"--output {output}: cannot write there; name a file in a folder that you can write")
    record = {**circumstances(rounds), "races": (races := [])}
    for race in run_races(
        trials, contestants=contestants, rounds=rounds, say=lambda text: click.echo(text, err=True)
    ):
        races.append(describe(race))
        if not as_json:
            print_race(races[-1])
        if output:
            output.write_text(json.dumps(record, indent=2) + "\n")
    if as_json:
        print_json(record)
    return races


if __name__ == "__main__":
    with handled():
        main(bench, "python -m benchmarks")
