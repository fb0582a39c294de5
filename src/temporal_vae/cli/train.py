"""`temporal-vae train`: teach a model from videos and images."""

from __future__ import annotations

import json
from pathlib import Path

import click

from temporal_vae.cli.console import print_json
from temporal_vae.cli.options import json_option
from temporal_vae.cli.ranks import is_first, one_error_of_all
from temporal_vae.namespace import need_extra

_SIGNALLED = 128  # plus the number of the signal: what a shell reports of a command that a signal ended


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.argument("values", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run.")
@click.option("--defaults", is_flag=True, help="Print all names with their defaults as YAML, and end.")
@click.option("--show", is_flag=True, help="Print the configuration as it would be used, and end.")
@click.option(
    "--allow-change",
    multiple=True,
    metavar="NAME",
    help="Go on with another value of NAME than the run in OUTPUT, such as optimizer.learning_rate.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def train(
    config: Path | None,
    values: tuple[str, ...],
    output: Path | None,
    defaults: bool,
    show: bool,
    allow_change: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Train or fine-tune a model.

    CONFIG is a YAML file; NAME=VALUE changes single values of it: optimizer.learning_rate=1e-4. A run that was
    interrupted goes on where it stopped: give the same command again. Ctrl-C, SIGTERM and SIGHUP finish the step in
    hand, save, and exit with 130, 143 or 129. `accelerate launch --num_processes 2 -m temporal_vae train CONFIG`
    trains in several processes.
    """
    need_extra("train", "yaml", "pydantic", "tensorboard")
    from temporal_vae.training.config.fields import TrainConfig, read_config, to_yaml

    if defaults:
        click.echo(to_yaml(TrainConfig()), nl=False)
        return
    if config is None:
        raise click.UsageError("Missing argument 'CONFIG': name a YAML file, or ask for --defaults.")
    quoted = json.dumps(str(output), ensure_ascii=False)  # a folder called 2024 or `null` is text too
    more = (f"output={quoted}",) if output else ()
    with one_error_of_all():
        settings = read_config(config, (*values, *more))
        if show:
            click.echo(to_yaml(settings), nl=False)
            return
        from temporal_vae.training.loop import train as run

        if is_first() and not quiet and not as_json:
            click.echo(to_yaml(settings), err=True)
        outcome = run(settings, quiet=quiet or as_json, allow_change=allow_change)
    if is_first() and as_json:
        print_json(outcome.report)
    if outcome.signal is not None:
        click.get_current_context().exit(_SIGNALLED + outcome.signal)
