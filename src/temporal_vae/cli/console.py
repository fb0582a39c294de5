"""What a command shows: a progress bar on a terminal, tables for people, JSON for machines."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show how much is done and the time left on standard error, if that is a terminal.

    Yields:
        A function to call with the work done and all of it, or `None`; from any thread.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_fields(title: str, fields: dict[str, str]) -> None:
    """Print names and values to standard output, a line each."""
    widest = max(map(len, fields), default=0)
    click.echo(title)
    for name, value in fields.items():
        click.echo(f"  {name:{widest}}  {value}")


def print_json(value: Any) -> None:
    """Print a JSON object."""
    click.echo(json.dumps(value, indent=2))


def command_line() -> str:
    """What the user typed, as a shell takes it; the home folder, which the shell filled in, is `~` again."""
    return " ".join(["temporal-vae", *map(_word, sys.argv[1:])])


def _word(argument: str) -> str:
    home = f"{Path.home()}/"
    if argument.startswith(home):
        return "~/" + shlex.quote(argument.removeprefix(home))
    return shlex.quote(argument)
