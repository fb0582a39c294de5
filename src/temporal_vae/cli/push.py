"""`temporal-vae push`: a model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from temporal_vae.cli.console import print_json
from temporal_vae.cli.models import load_model
from temporal_vae.cli.options import json_option
from temporal_vae.errors import CheckpointError


@click.command()
@click.argument("model")
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Make a new repository private; refuse one that is public.")
@click.option(
    "--card",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Model card. Default: README.md of MODEL, else the one of the repository, else one from the configuration.",
)
@click.option("--message", help="Of the commit.")
@json_option
def push(
    model: str, repo_id: str, private: bool, card: Path | None, message: str | None, as_json: bool
) -> None:
    """Upload a model to the Hugging Face hub.

    MODEL is a folder or `embedded`; configuration, weights and card go to REPO_ID in one commit. The weights are
    loaded first, so that nothing is uploaded that cannot be used. The token is that of `hf auth login` or HF_TOKEN.
    """
    from temporal_vae.checkpoints import hub
    from temporal_vae.checkpoints.loading import EMBEDDED

    folder = EMBEDDED if model == "embedded" else Path(model)
    if not folder.is_dir():
        raise CheckpointError(
            f"{model}: no such folder; name one that holds config.json and the weights, or embedded"
        )
    commit = hub.push(
        load_model(model),
        folder,
        repo_id,
        card=None if card is None else card.read_text(encoding="utf-8"),
        message=message,
        private=private or None,
    )
    if as_json:
        print_json({"repo_id": commit.repo_url.repo_id, "commit": commit.oid, "url": commit.commit_url})
    else:
        click.echo(commit.commit_url)
