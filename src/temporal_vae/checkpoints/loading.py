"""Strict loading of weights: safetensors only, every tensor present, none too many, all of the right shape."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from temporal_vae.errors import CheckpointError, InputError, TemporalVaeError, first_names, one_line

# A pipeline saves and loads parts from libraries it knows, by a base class that the library offers: tell it of ours.
LOADABLE_CLASSES["temporal_vae"] = {ModelMixin.__name__: ["save_pretrained", "from_pretrained"]}

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the small model that ships with the package."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
UNSAFE = "pickle files can run code when they are loaded; convert the weights to safetensors"
AGAIN = "save or download the model again"
_WEIGHTS = "diffusion_pytorch_model"


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
        # diffusers warns of what is refused below
        with without("Some weights of ", "An error occurred while trying to fetch"):
            model, info = load(source, **options)
    except TemporalVaeError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        fault = (
            "cannot be loaded"
            if Path(source).is_dir()
            else "no such folder, and no model of the hub by that name"
        )
        remedy = "check name, subfolder, variant and connection"
        raise CheckpointError(f"{source}: {fault} ({one_line(error)}); {remedy}") from error
    shapes = [
        f"{name} is {list(found)} but the model has {list(own)}"
        for name, found, own in info["mismatched_keys"]
    ]
    faults = list_faults(("missing", info["missing_keys"]), ("not of this model", info["unexpected_keys"]))
    if shapes and not allow_mismatch:
        faults.append(f"{len(shapes)} of another shape ({first_names(shapes)})")
    if faults:
        raise CheckpointError(
            f"{source}: the weights do not fit the configuration: {'; '.join(faults)}; "
            "use the config.json that was saved with them"
        )
    return model, info


def share_parameters(source: nn.Module, target: nn.Module) -> None:
    """Put the very parameters and buffers of `source` into `target`, a model of the same configuration."""
    parameters = {plain_name(name): parameter for name, parameter in source.named_parameters()}
    own = dict(target.named_parameters())
    modules = {
        plain_name(name): layer for name, layer in source.named_modules()
    }  # what is inside of a wrapper comes last
    layers = {name for name, layer in modules.items() if _replaced(layer, target, name)}
    faults = list_faults(
        ("missing", [name for name in own if name not in parameters]),
        ("not of this model", [name for name in parameters if name not in own]),
        (
            "of another shape",
            [name for name in own if name in parameters and parameters[name].shape != own[name].shape],
        ),
        ("in a layer of another kind", [name for name in own if name.rpartition(".")[0] in layers]),
        ("offloaded", [name for name in parameters if parameters[name].is_meta]),
    )
    if faults:
        raise CheckpointError(
            f"{type(source).__name__}: its weights are not those of its configuration: {'; '.join(faults)}; "
            "unload adapters, unfuse projections and remove offloading first"
        )
    buffers = {plain_name(name): buffer for name, buffer in source.named_buffers()}
    for name, values in (parameters | buffers).items():
        module, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(module), leaf, values)


def unwrapped(module: nn.Module, kind: type[nn.Module]) -> Any:
    """The model of a kind that is inside of what `torch.compile` or a parallel run has wrapped."""
    given = type(module).__name__
    while not isinstance(module, kind):
        inside = [getattr(module, name, None) for name in ("_orig_mod", "module")]
        wrapped = next((inner for inner in inside if isinstance(inner, nn.Module)), None)
        if wrapped is None:
            raise InputError(
                f"from_module: a {given} is no {kind.__name__}, and holds none; pass `pipe.vae` of a pipeline with one"
            )
        module = wrapped
    return module


def plain_name(name: str) -> str:
    """The name of a part, whether `torch.compile` has wrapped what it lies in or not."""
    return ".".join(word for word in name.split(".") if word != "_orig_mod")


def _replaced(layer: nn.Module, target: nn.Module, name: str) -> bool:
    """Tell whether `target` has a layer of torch under this name, and `source` one that computes something else."""
    own = dict(target.named_modules()).get(name)
    return isinstance(own, (nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.Linear)) and not isinstance(
        own, type(layer)
    )


@contextmanager
def without(*beginnings: str) -> Iterator[None]:
    """Drop messages of diffusers that begin so: what they say is said otherwise."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginnings)

    loggers = [
        logging.getLogger(f"diffusers.{name}") for name in ("models.modeling_utils", "configuration_utils")
    ]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _check_source(source: str | Path, options: dict[str, Any]) -> None:
    """Refuse what is no folder of whole safetensors files, before a model is built; a hub id passes."""
    if options.get("use_safetensors") is False:
        raise CheckpointError(f"{source}: use_safetensors=False asks for a pickle file; {UNSAFE}")
    path = Path(source)
    if path.is_dir():
        _check_folder(path / (options.get("subfolder") or ""), options.get("variant"))
    elif path.suffix in PICKLES and path.is_file():
        raise CheckpointError(f"{path}: is a pickle file; {UNSAFE}")
    elif path.is_file():
        raise CheckpointError(f"{path}: is a file; pass the folder that holds config.json and the weights")
    elif path.is_absolute() or str(source).startswith((".", "~")) or len(path.parts) != 2:
        raise CheckpointError(f"{source}: no such folder; pass a folder that holds config.json, or a hub id")


def _check_folder(folder: Path, variant: str | None) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; pass the subfolder that holds config.json")
    files = {file.name for file in folder.iterdir()}
    mark = f".{variant}" if variant else ""
    weights = f"{_WEIGHTS}{mark}.safetensors"
    indices = {f"{_WEIGHTS}.safetensors.index{mark}.json", f"{_WEIGHTS}.safetensors{mark}.index.json"}
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles and not any(name.endswith(".safetensors") for name in files):
        raise CheckpointError(f"{folder}: holds only {first_names(pickles)}; {UNSAFE}")
    for name in ("config.json", weights):
        if name not in files and not (name == weights and indices & files):
            # Callers of diffusers look for its words, which name the pickle file it tries last.
            raise CheckpointError(
                f"{folder}: holds no {name} (Error no file named {_WEIGHTS}{mark}.bin found in directory {folder}); "
                "pass the folder that save_pretrained wrote, and its variant"
            )
    read_object(folder / "config.json")
    if indices & files:
        _check_shards(folder / min(indices & files))
    else:
        _tensor_names(folder / weights)


def _check_shards(index: Path) -> None:
    try:
        shards: dict[str, str] = read_object(index)["weight_map"]
        files = {index.parent / shard for shard in shards.values()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is no list of tensors and their files; {AGAIN}") from error
    absent = sorted(file.name for file in files if not file.is_file())
    if absent:
        raise CheckpointError(
            f"{index}: lists {len(absent)} of {len(files)} files that are not there ({first_names(absent)}); {AGAIN}"
        )
    found = {file.name: _tensor_names(file) for file in files}
    lacking = sorted(name for name, shard in shards.items() if name not in found[shard])
    if lacking:
        raise CheckpointError(
            f"{index}: lists tensors that are not in their files ({first_names(lacking)}); {AGAIN}"
        )


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise `CheckpointError` for anything else."""
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: is no JSON ({one_line(error)}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: holds a {type(content).__name__} where a JSON object belongs; {AGAIN}"
        )
    return content


def _tensor_names(file: Path) -> set[str]:
    return set(open_tensors(file).keys())


def stored_dtype(folder: Path, variant: str | None = None) -> torch.dtype | None:
    """Type of the first tensor in a model's folder, which is that of all; None where no file is named as it should."""
    dots = 2 if variant else 1  # other variants may lie in the same folder
    found = folder.glob(f"{_WEIGHTS}*.safetensors")
    files = sorted(file for file in found if file.name.count(".") == dots and (variant or "") in file.name)
    if not files:
        return None
    tensors = open_tensors(files[0])
    return tensors.get_tensor(min(tensors.keys())).dtype


def open_tensors(file: Path, framework: str = "pt") -> Any:
    """Open a safetensors file, which reads its header alone; raise `CheckpointError` where it is damaged."""
    try:
        return safe_open(file, framework=framework)  # the header tells the length of the file
    except (SafetensorError, OSError) as error:
        with file.open("rb") as head:
            pointer = head.read(24).startswith(b"version https://git-lfs")
        fault = (
            "is a git-lfs pointer; run `git lfs pull`" if pointer else f"is damaged or incomplete; {AGAIN}"
        )
        raise CheckpointError(f"{file}: {fault} ({one_line(error)})") from error


def check_finite(what: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` for weights that are NaN or infinite: whatever they touch is lost."""
    bad = nonfinite(tensors)
    if bad:
        raise CheckpointError(
            f"{what}: {len(bad)} of {len(tensors)} tensors hold NaN or infinite values ({first_names(bad)}); download "
            "or save the weights again, or pass allow_nonfinite (--allow-nonfinite)"
        )


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinite values."""
    return sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())


def list_faults(*kinds: tuple[str, Sequence[str]]) -> list[str]:
    """One phrase for each kind of tensors that there are: how many, and the names of a few."""
    return [f"{len(names)} {kind} ({first_names(sorted(names))})" for kind, names in kinds if names]


def _says_something(record: logging.LogRecord) -> bool:
    """Whether this is not the warning of each `.to(dtype)` that modules should stay in float32, none of them."""
    return "should be kept in float32: []" not in record.getMessage()


logging.getLogger("diffusers.models.modeling_utils").addFilter(_says_something)
