"""Strict loading of weights: safetensors only, every tensor present, none too many, all of the right shape."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from temporal_vae.errors import CheckpointError, TemporalVaeError

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the small model that ships with the package."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NAMED = 3  # tensors that a message names before it only counts


def load_strictly(
    load: Callable[..., Any], source: str | Path, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Call a diffusers `from_pretrained` and turn whatever does not fit into a `CheckpointError`.

    Args:
        load: the bound `from_pretrained` of the parent class.
        source: folder or hub id.
        options: keyword arguments of the call.

    Returns:
        The model and diffusers' loading report.
    """
    _check_source(source, options)
    allow_mismatch = options.get("ignore_mismatched_sizes", False)
    options = {
        **options,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    try:
        with _quiet():  # diffusers warns of what is refused below
            model, info = load(source, **options)
    except TemporalVaeError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source}: cannot load the model: {_one_line(error)}") from error
    shapes = [
        f"{name} is {list(found)} but the model has {list(own)}"
        for name, found, own in info["mismatched_keys"]
    ]
    faults = _faults(("missing", info["missing_keys"]), ("not of this model", info["unexpected_keys"]))
    if shapes and not allow_mismatch:
        faults.append(f"{len(shapes)} of another shape ({_first(shapes)})")
    if faults:
        raise CheckpointError(
            f"{source}: the weights do not fit the configuration: {'; '.join(faults)}; "
            "use the config.json that was saved with them"
        )
    return model, info


def share_parameters(source: nn.Module, target: nn.Module) -> None:
    """Put the very parameters of `source` into `target`, which has the same names and shapes."""
    parameters = dict(source.named_parameters())
    own = dict(target.named_parameters())
    faults = _faults(
        ("missing", [name for name in own if name not in parameters]),
        ("not of this model", [name for name in parameters if name not in own]),
    )
    if faults:
        raise CheckpointError(
            f"{type(source).__name__}: its parameters are not those of its configuration: {'; '.join(faults)}; "
            "unload adapters and unfuse projections first"
        )
    for name, parameter in parameters.items():
        module, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(module), leaf, parameter)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_source(source: str | Path, options: dict[str, Any]) -> None:
    remedy = "pickle files can run code when they are loaded; convert the weights to safetensors"
    if options.get("use_safetensors") is False:
        raise CheckpointError(f"{source}: use_safetensors=False asks for a pickle file; {remedy}")
    path = Path(source)
    if path.is_file():
        if path.suffix in _PICKLES:
            raise CheckpointError(f"{path}: is a pickle file; {remedy}")
        raise CheckpointError(f"{path}: is a file; pass the folder that holds config.json and the weights")
    if not path.exists() and (
        path.is_absolute() or str(source).startswith((".", "~")) or len(path.parts) > 2
    ):
        raise CheckpointError(f"{source}: no such folder; pass a folder that holds config.json, or a hub id")
    folder = path / (options.get("subfolder") or "")
    if path.is_dir() and not folder.is_dir():
        raise CheckpointError(
            f"{path}: has no folder {options['subfolder']!r}; name the subfolder of the weights"
        )
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(f"{folder}: holds only {_first(pickles)}; {remedy}")
        raise CheckpointError(
            f"{folder}: holds no *.safetensors file; pass the folder that save_pretrained wrote"
        )


def _faults(*kinds: tuple[str, Sequence[str]]) -> list[str]:
    return [f"{len(names)} {kind} ({_first(sorted(names))})" for kind, names in kinds if names]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
