"""The `temporal-vae` command. Its modules import the heavy libraries inside the commands, so `--help` is quick.

Exit codes: 0 done, 1 an error with a message of one line, 2 wrong usage, 3 done but for videos or clips of a dataset
that were left out; 130, 143 and 129 interrupted, by Ctrl-C, SIGTERM and SIGHUP.
"""

import sys

import click

from temporal_vae import __version__, interrupts
from temporal_vae.cli.checkpoints import convert, export, inflate, push
from temporal_vae.cli.dataset import decode_dataset, encode_dataset
from temporal_vae.cli.info import info
from temporal_vae.cli.plan import plan
from temporal_vae.cli.serve import serve
from temporal_vae.cli.train import train
from temporal_vae.cli.video import decode, encode, reconstruct
from temporal_vae.errors import TemporalVaeError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="temporal-vae")
def commands() -> None:
    """Video to latents and back, with the autoencoder of Stable Video Diffusion."""


for command in (
    *(encode, decode, reconstruct, encode_dataset, decode_dataset),
    *(convert, inflate, export, push, info, plan, serve, train),
):
    commands.add_command(command)


def main(command: click.Command = commands, name: str = "temporal-vae") -> None:
    """Run a command line and exit."""
    try:
        sys.exit(command.main(prog_name=name, standalone_mode=False) or 0)
    except (click.Abort, KeyboardInterrupt):
        _fail(interrupts.MESSAGE, interrupts.exit_code() or 130)
    except Exception as error:
        if code := interrupts.exit_code():  # what an interrupt became inside of some library
            _fail(interrupts.MESSAGE, code)
        if isinstance(error, click.ClickException):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and not isinstance(error, TemporalVaeError):
            _fail(f"{error.filename or 'temporal-vae'}: {error.strerror or error}", 1)
        if not isinstance(error, TemporalVaeError):
            raise
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"temporal-vae: {' '.join(message.split())}", err=True)
    sys.exit(code)
