"""What a command shows: a progress bar on a terminal, tables for people, JSON for machines."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
