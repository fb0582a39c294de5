"""Between original (LDM, sgm) checkpoints and this package's models, both ways, without changing a bit.

An original first stage has no `quant_conv`: a model read from one gets the identity, and one with the identity is
written without it. The conditioner of an original checkpoint keeps an encoder with `quant_conv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.utils import logging
from safetensors.torch import save_file
from torch import Tensor, nn

from temporal_vae.checkpoints.loading import read_object
from temporal_vae.checkpoints.names import QUANT_CONV, sgm_name
from temporal_vae.checkpoints.single_file import SingleFile, common_dtype
from temporal_vae.errors import CheckpointError, ConfigError, InputError, first_names, one_line

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder

FIRST_STAGE = "first_stage_model."
CONDITIONER = "conditioner.embedders.3.encoder."
"""Where checkpoints of Stable Video Diffusion keep the image autoencoder of the conditioner."""

SCALING_FACTOR = 0.18215
"""Of Stable Diffusion 1.x and 2.x, and of Stable Video Diffusion; no file tells it."""

_SAMPLE_SIZE = 768  # as the published configuration has it

Model = TypeVar("Model", bound="Autoencoder")

logger = logging.get_logger(__name__)


def load(
    model_class: type[Model],
    file: SingleFile,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    subfolder: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Model:
    """Read a model from one safetensors file, with the types that its tensors have there; see `from_single_file`.

    Args:
        model_class: what to make.
        file: the file.
        config: folder, hub id or values that go before what the file tells.
        subfolder: where in `config` the folder of the autoencoder is.
        options: values of the configuration that go before all others.
    """
    beside = file.path.with_name("config.json")
    if config is None and file.layout == "diffusers" and file.path.is_file() and beside.is_file():
        config = read_object(beside)
    given = {**_configuration(model_class, config, subfolder), **(options or {})}
    found = (_video_configuration if model_class.clips else _image_configuration)(model_class, file, given)
    if strange := unknown_keys(model_class, options or {}):
        raise ConfigError(
            f"configuration: unknown keys {', '.join(strange)}; pass what the class's constructor takes"
        )
    with torch.device("meta"):
        model = model_class.from_config({**found, **given})
    model.load_state_dict(_state(file, model), assign=True)
    guard_encoder(model)
    read: Model = model.eval()
    return read


def _video_configuration(
    model_class: type[Autoencoder], file: SingleFile, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a file tells of a video autoencoder."""
    if not file.temporal:
        raise CheckpointError(
            f"{file.path}: is an image autoencoder, without temporal layers; "
            "`temporal-vae inflate` makes a temporal one of it, and AutoencoderKL loads it"
        )
    found = {"scaling_factor": SCALING_FACTOR, "sample_size": _SAMPLE_SIZE, **file.config()}
    if file.layout == "sgm":
        check_layers(file.path, found["layers_per_block"])
    return found


def _image_configuration(
    model_class: type[Autoencoder], file: SingleFile, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a file tells of an image autoencoder, and what is known of the published models."""
    if file.temporal:
        raise CheckpointError(f"{file.path}: has temporal layers; load it with AutoencoderKLTemporalDecoder")
    name = "AutoencoderKLFlux2" if file.normalised else "AutoencoderKL"
    if model_class.__name__ != name:
        raise CheckpointError(
            f"{file.path}: {'has' if file.normalised else 'lacks'} the running mean and variance of FLUX.2 (bn); "
            f"load it with {name}"
        )
    found = file.image_config()
    if file.normalised:
        return found
    kind = next((kind for kind, (marks, _) in _KINDS.items() if file.is_of(*marks)), None)
    if kind is None:
        kind = _BARE.get(found["latent_channels"], _BARE[4])
        if "scaling_factor" not in given:
            logger.warning(
                "%s: does not tell its scaling_factor; that of %s is taken, pass another (of SDXL 0.13025, of SD 3 "
                "1.5305 with shift_factor 0.0609)",
                file.path,
                kind,
            )
    if kind == "Playground 2.5":
        found |= {"latents_mean": file.values("edm_mean"), "latents_std": file.values("edm_std")}
    return _KINDS[kind][1] | found


_KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "Playground 2.5": (("edm_mean",), {"scaling_factor": 0.5, "sample_size": 1024}),
    "SDXL": (("conditioner.embedders.",), {"scaling_factor": 0.13025, "sample_size": 1024}),
    "SD 3": (("joint_blocks.",), {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024}),
    "FLUX": (("double_blocks.",), {"scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024}),
    "SD 1 and 2": (("cond_stage_model.",), {"scaling_factor": SCALING_FACTOR, "sample_size": 512}),
}
"""By what else lies in whole checkpoints, and what the published configurations say."""
_BARE = {4: "SD 1 and 2", 16: "FLUX"}  # by channels of the latents


def save_single_file(model: Autoencoder, path: str | Path, *, bare: bool = False) -> None:
    """Write a model as an original (LDM, sgm) checkpoint.

    An image autoencoder is written as it is. Of one of clips whose `quant_conv` is not the identity, the file holds the
    encoder twice, as those of Stable Video Diffusion do: with `quant_conv` in the conditioner, which is what is read
    back bit for bit, and in the first stage, which has no place for it, with `quant_conv` folded into its last
    convolution. A decoder without encoder is written alone.

    Args:
        model: what to write.
        path: file to write.
        bare: write the first stage alone, without prefix; a `quant_conv` is then only folded, to rounding.

    Raises:
        InputError: a model of one residual block per level, which an original network cannot be, or one with
            adapters.
    """
    state = _own_tensors(model)
    levels = len(model.config.block_out_channels)
    home = "" if bare else FIRST_STAGE
    if not model.clips:
        tensors = {f"{home}{sgm_name(name, levels)}": _as_original(name, state[name]) for name in state}
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
        return
    quant = {name: state.pop(name) for name in QUANT_CONV}
    written = {sgm_name(name, levels): _as_original(name, tensor) for name, tensor in state.items()}
    tensors = {}
    if lacks_encoder(model):
        written = {name: tensor for name, tensor in written.items() if name.startswith("decoder.")}
    elif not _is_identity(quant):
        wrapped = {name: tensor for name, tensor in written.items() if name.startswith("encoder.")} | quant
        if not bare:
            tensors = {f"{CONDITIONER}{name}": tensor.clone() for name, tensor in wrapped.items()}
        written |= _fold_after(written, "encoder.conv_out", quant)
    tensors |= {f"{home}{name}": tensor for name, tensor in written.items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def check_layers(what: str | Path, layers: int, *, error: type[Exception] = CheckpointError) -> None:
    """Refuse networks of one residual block per level, whose middle is another one in diffusers' class."""
    if layers < 2:
        raise error(
            f"{what}: has layers_per_block={layers}; the middle of an image or an original decoder runs two blocks "
            "and an attention, that of AutoencoderKLTemporalDecoder one block then, and nothing can stand for the "
            "rest; use a model of at least 2"
        )


def identity(channels: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The `quant_conv` that does nothing."""
    weight, bias = torch.eye(channels, dtype=dtype)[..., None, None], torch.zeros(channels, dtype=dtype)
    return dict(zip(QUANT_CONV, (weight, bias), strict=True))


def unknown_keys(model_class: type[nn.Module], config: Mapping[str, Any]) -> list[str]:
    """Names in a configuration that are no arguments of the model's constructor."""
    known = {*signature(model_class.__init__).parameters, "quantization_config"}
    return sorted(key for key in config if not key.startswith("_") and key not in known)


def say_unknown_keys(model_class: type[nn.Module], config: Mapping[str, Any]) -> None:
    """Say once which keys of a configuration are left out."""
    unknown = unknown_keys(model_class, config)
    if unknown and unknown not in _said:
        _said.append(unknown)
        logger.warning("configuration: unknown keys are left out: %s", ", ".join(unknown))


_said: list[list[str]] = []  # unknown keys that were warned of


def lacks_encoder(model: nn.Module) -> bool:
    """Whether a model was read from a file without encoder: its encoder is NaN all over."""
    weight = dict(model.named_parameters()).get("encoder.conv_in.weight")
    return weight is not None and not weight.is_meta and bool(weight.isnan().all())


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model, without those of an encoder that it lacks."""
    absent = ("encoder.",) if lacks_encoder(model) else ()
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(absent)}


def guard_encoder(model: nn.Module) -> None:
    """Make an encoder without weights say so when it is used, until it is given some."""
    if lacks_encoder(model):
        model.get_submodule("encoder").register_forward_pre_hook(_Guard(model))


class _Guard:
    """A hook of an encoder, gone once there are weights. An object, so that it is copied and pickled with the model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, encoder: nn.Module, _: Any) -> None:
        if lacks_encoder(self._model):
            raise CheckpointError(
                "encode: the checkpoint of this model has no encoder; take that of another file: "
                "vae.encoder, vae.quant_conv = other.encoder, other.quant_conv"
            )
        hooks = encoder._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is self]:
            del hooks[key]


def _configuration(
    model_class: type[Autoencoder],
    config: str | Path | Mapping[str, Any] | None,
    subfolder: str | None,
) -> dict[str, Any]:
    if config is None:
        return {}
    values = config
    if not isinstance(values, Mapping):
        try:
            values = dict(model_class.load_config(values, subfolder=subfolder))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"config {config}: no configuration there ({one_line(error)}); pass a folder that holds config.json"
            ) from error
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _own_tensors(model: Autoencoder) -> dict[str, Tensor]:
    """The tensors of a model that an original checkpoint can hold."""
    name, layers = type(model).__name__, model.config.layers_per_block
    if model.clips:
        check_layers(name, layers, error=InputError)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        strange = state.keys() ^ type(model).from_config(model.config).state_dict().keys()
    if strange:
        raise InputError(
            f"{name}: {len(strange)} tensors are not those of its configuration ({first_names(sorted(strange))}); "
            "unload adapters first"
        )
    return state


def _state(file: SingleFile, model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model: those of the file, an identity for `quant_conv`, and NaN where there is no encoder."""
    wanted = dict(model.state_dict())
    without_encoder = file.encoder_home is None
    own_quant_conv = any(map(file.has, QUANT_CONV)) or (file.layout == "diffusers" and not without_encoder)
    made = {
        name: wanted.pop(name)
        for name in list(wanted)
        if (name in QUANT_CONV and not own_quant_conv) or (name.startswith("encoder.") and without_encoder)
    }
    counts = [name for name in wanted if name.endswith("num_batches_tracked") and not file.has(name)]
    zeros = {name: torch.zeros_like(wanted.pop(name), device="cpu") for name in counts}
    state = file.read(wanted)
    if file.left_out:
        logger.warning("%s: %s", file.path, file.left_out)
    dtype = common_dtype(tensor for tensor in state.values() if tensor.is_floating_point())
    if without_encoder:
        logger.warning("%s: there is no encoder in it; the model decodes, and encode refuses", file.path)
    state |= {name: torch.full(like.shape, torch.nan, dtype=dtype) for name, like in made.items()}
    if not own_quant_conv and QUANT_CONV[1] in made:
        state |= identity(len(made[QUANT_CONV[1]]), dtype)
    return state | zeros


def _fold_after(tensors: Mapping[str, Tensor], conv: str, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of the convolution `conv` with the 1x1 convolution `last` after it, folded in float64."""
    weight, bias = tensors[f"{conv}.weight"].double(), tensors[f"{conv}.bias"].double()
    matrix, offset = (last[name].double() for name in QUANT_CONV)
    matrix = matrix.flatten(1)
    dtype = tensors[f"{conv}.weight"].dtype
    return {
        f"{conv}.weight": torch.einsum("oi,ichw->ochw", matrix, weight).to(dtype),
        f"{conv}.bias": (matrix @ bias + offset).to(dtype),
    }


def _as_original(name: str, tensor: Tensor) -> Tensor:
    """Attentions of original networks keep their matrices as 1x1 convolutions."""
    return tensor[..., None, None] if ".attentions." in name and tensor.ndim == 2 else tensor


def _is_identity(quant: Mapping[str, Tensor]) -> bool:
    plain = identity(len(quant[QUANT_CONV[1]]), quant[QUANT_CONV[1]].dtype)
    return all(torch.equal(quant[name].float(), plain[name].float()) for name in QUANT_CONV)
