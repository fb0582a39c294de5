"""A model's folder to the Hugging Face hub: configuration, weights and card, in one commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the library it talks HTTP with

from temporal_vae import __version__
from temporal_vae.checkpoints.card import default_card
from temporal_vae.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder

__all__ = ["push"]

_CARD = "README.md"
_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.json")


def push(
    vae: Autoencoder,
    folder: str | Path,
    repo_id: str,
    *,
    card: str | None = None,
    message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """Upload the folder that a model was loaded from or saved to; its files go as they are.

    The card is `card`, else `README.md` of the folder, else the one that the repository has, else a
    `default_card`. For a subfolder, where the repository's card is about more than this model, none is made up.

    Args:
        vae: the model, which the default card describes.
        folder: its `config.json`, weights and card; other files stay behind.
        repo_id: `name` or `owner/name`; made if it is missing.
        card: the text of a card, with front matter.
        message: of the commit.
        private: whether a new repository is private; None is the owner's default.
        token: of the hub; by default the one that `hf auth login` stored or `HF_TOKEN` holds.
        create_pr: open a pull request instead of committing.
        subfolder: where in the repository the files go.

    Returns:
        The commit; as a string, its address.

    Raises:
        CheckpointError: no such name, no token, no connection, a refusal of the hub, or a public repository where a
            private one was asked for.
    """
    if token is None and get_token() is None:
        raise CheckpointError(f"{repo_id}: no token of the hub; run `hf auth login` or set HF_TOKEN first")
    api = HfApi(token=token, library_name="temporal-vae", library_version=__version__)
    with _on_one_line(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise CheckpointError(
                f"{repo_id}: exists and is public; make it private on the hub first, or push to another name"
            )
        files: dict[str, Path | bytes] = {
            file.name: file for pattern in _FILES for file in sorted(Path(folder).glob(pattern))
        }
        text = _card(
            vae, Path(folder), card, repo_id, missing=not subfolder and not api.file_exists(repo_id, _CARD)
        )
        if text is not None:
            files[_CARD] = text.encode()
        return api.create_commit(
            repo_id,
            [
                CommitOperationAdd(
                    path_in_repo=f"{subfolder}/{name}" if subfolder else name, path_or_fileobj=file
                )
                for name, file in files.items()
            ],
            commit_message=message or f"Upload {type(vae).__name__}",
            create_pr=create_pr,
        )


def _card(vae: Autoencoder, folder: Path, given: str | None, repo_id: str, *, missing: bool) -> str | None:
    """The card to upload; None leaves the repository's own."""
    if given is not None:
        return given
    if (folder / _CARD).is_file():
        return (folder / _CARD).read_text(encoding="utf-8")
    return default_card(vae, repo_id) if missing else None


@contextmanager
def _on_one_line(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises, on many lines, into an error of one."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise CheckpointError(
            f"{repo_id}: cannot be pushed to the hub ({one_line(error)}); check name, token and connection"
        ) from error
