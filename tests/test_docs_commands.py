"""No page names a command or an option that there is not."""

import re
from pathlib import Path

import click
import pytest
from doc_pages import PAGES, blocks, lines, words_of

from temporal_vae.cli import commands

SHOWN = [
    (block.page, line)
    for page in PAGES
    for block in blocks(page)
    if block.info in ("sh", "bash", "console")
    for line in lines(block.code)
    if (block.info != "console" or line.startswith("$ ")) and words_of(line)
]


def parse(words: list[str]) -> click.Context:
    """Read a command line as the command would, and run nothing."""
    with commands.make_context("temporal-vae", list(words)) as context:
        name, command, rest = commands.resolve_command(context, context._protected_args + context.args)
        assert name is not None
        return command.make_context(name, rest, parent=context)


def test_there_are_commands():
    assert len(SHOWN) >= 40
    named = {words_of(line)[0] for _, line in SHOWN}
    assert named >= set(commands.commands)


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=lambda part: part[:60])
def test_commands_parse(page, line):
    words = words_of(line)
    if "--help" in words or "--defaults" in words:
        assert words[0] in {"--help", *commands.commands}
    else:
        assert parse(words).params


def test_what_is_wrong_is_found():
    with pytest.raises(click.NoSuchOption):
        parse(["decode", "in.safetensors", "out.mp4", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["no-such-command"])


ENDS = [
    Path(__file__).parents[1] / "integrations" / "comfyui" / "README.md",
    Path(__file__).parents[1] / "CHANGELOG.md",
]


@pytest.mark.parametrize("page", [*PAGES, *ENDS], ids=lambda page: page.name)
def test_options_in_the_text_are_there(page):
    """`temporal-vae decode --scaled` in a sentence: the command has the option."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for span in re.findall(r"`temporal-vae ([^`]+)`", text):
        name = span.split()[0]
        if name.isupper():  # COMMAND
            continue
        known = {option for param in commands.commands[name].params for option in param.opts} | {"--help"}
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", span)) <= known, span
