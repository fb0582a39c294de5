"""The command line as the tests use it."""

import sys

import pytest

from temporal_vae import cli


def run(*words: object) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["temporal-vae", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return stop.value.code
