"""An image autoencoder made a temporal one, whose frames are those of the image decoder until it is trained.

The temporal branch of each block adds nothing: its last convolution is zero, the ones before it are random, so that
gradients reach it. The last convolution over time passes its frame on. What the image decoder has and the temporal
decoder has not is `post_quant_conv`, a 1x1 convolution before `conv_in`. Its matrix P and bias p fold into `conv_in`:

    conv_in(P z + p) = (W P) * z + (b + sum of the taps of W, times p)

with one exception. `conv_in` pads P z + p with zeros, the folded one pads z: in the outermost row and column of the
latents, the taps that fall outside the picture add W p that is not there. No weights avoid that: at z = 0 the folded
convolution gives the same value everywhere, the image decoder does not. The way around it is to move the latents:
with z' = z + d and P d = p, `conv_in(P z + p)` is `(W P) * z' + b`, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL as PublishedKL
from diffusers.utils import logging
from torch import Tensor, nn
from torch.nn.utils import skip_init

from temporal_vae.autoencoders.image import AutoencoderKL
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.convert import check_layers, identity, lacks_encoder
from temporal_vae.checkpoints.loading import (
    check_finite,
    list_faults,
    read_object,
    stored_dtype,
)
from temporal_vae.checkpoints.names import POST_QUANT_CONV, QUANT_CONV, is_temporal, network_name
from temporal_vae.checkpoints.single_file import common_dtype
from temporal_vae.errors import CheckpointError, InputError
from temporal_vae.model.blocks import GROUPS
from temporal_vae.model.checks import DOWN_BLOCK

logger = logging.get_logger(__name__)

_FIXED = {"act_fn": "silu", "norm_num_groups": GROUPS}
_KEPT = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "scaling_factor",
    "force_upcast",
)
_DROPPED = ("shift_factor", "latents_mean", "latents_std")
_BORDER = (
    "%s: post_quant_conv has a bias, which the padding of the decoder does not see: frames differ from those of the "
    "image decoder, most of all at their border (by %.2g on the worst of %d latents tried; others may differ more); "
    "shift_latents makes them equal"
)
_LARGEST_CONDITION = 1e4  # of a post_quant_conv whose inverse is taken
_SIZES = (8, 16)  # height and width of the latents that the border is measured with
_DEVIATIONS = (0.25, 1.0, 4.0)  # of these latents; and 1 / scaling_factor, that of a trained model's


@dataclass(frozen=True, kw_only=True)
class Inflated:
    """A temporal autoencoder made of an image autoencoder.

    Attributes:
        vae: the model, in eval mode.
        difference: largest difference of decoded frames from those of the image decoder, both in float32; values are
            about [-1, 1]. Measured on random latents of several deviations and sizes: others may differ more. 0 where
            `post_quant_conv` has no bias.
        latent_shift: what was added to each channel of the latents; empty where they are those of the image model.
    """

    vae: AutoencoderKLTemporalDecoder
    difference: float
    latent_shift: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Image:
    """An image autoencoder: its configuration, its tensors under the names of ours, and its `post_quant_conv`."""

    name: str
    config: Mapping[str, Any]
    state: dict[str, Tensor]
    post: dict[str, Tensor] | None


@torch.no_grad()
def inflate(
    source: PublishedKL | str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    seed: int = 0,
    shift_latents: bool = False,
    scaling_factor: float | None = None,
    ema: bool = False,
    allow_nonfinite: bool = False,
) -> Inflated:
    """Make a temporal autoencoder of an image autoencoder, ready to be trained.

    Args:
        source: an `AutoencoderKL`, of diffusers or ours, its folder or hub id, or an original (LDM, sgm) file.
        subfolder: folder of the autoencoder inside `source`.
        variant: of the files of the folder, such as `fp16`.
        seed: of the random temporal convolutions.
        shift_latents: move the latents, so that frames equal those of the image decoder at their border, too. Latents
            of the image model then need `latent_shift` added before they are decoded here.
        scaling_factor: what latents are multiplied with for a diffusion model. An autoencoder alone in a file does not
            tell it; see `AutoencoderKL.from_single_file`.
        ema: of an original file, take the moving averages of its trainer (`model_ema.*`).
        allow_nonfinite: take weights that are NaN or infinite, too.

    Raises:
        CheckpointError: weights that cannot be loaded.
        InputError: a network that the temporal autoencoder has no place for, or latents that cannot be shifted.
    """
    image = _read(source, subfolder, variant, ema, scaling_factor)
    if not allow_nonfinite:
        check_finite(image.name, image.state | (image.post or {}))
    config = _configuration(image)
    if scaling_factor is not None:
        config["scaling_factor"] = scaling_factor
    vae = _new_model(config, seed)
    _put(vae, image)
    post = _float64(image.post)
    shift = _shift(vae, post, image.name) if shift_latents and post is not None else ()
    difference = _fold(vae, post) if post is not None else 0.0
    if difference:
        logger.warning(_BORDER, image.name, difference, len(_SIZES) * (len(_DEVIATIONS) + 1))
    dtype = common_dtype(image.state.values())
    return Inflated(vae=vae.to(dtype).eval(), difference=difference, latent_shift=shift)


def _read(
    source: PublishedKL | str | Path,
    subfolder: str | None,
    variant: str | None,
    ema: bool,
    scaling_factor: float | None,
) -> _Image:
    if isinstance(source, PublishedKL):
        return _from_module(source, type(source).__name__)
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"inflate: a {type(source).__name__} is no AutoencoderKL; pass one, its folder or a safetensors file"
        )
    if Path(source).is_file():
        known = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
        # Values that are not finite are looked for below, in all sources.
        model = AutoencoderKL.from_single_file(source, ema=ema, allow_nonfinite=True, **known)
        if lacks_encoder(model):
            raise CheckpointError(
                f"{source}: there is no encoder in it; pass a file with encoder and decoder"
            )
        return _from_module(model, str(source))
    if ema:
        raise InputError(f"{source}: ema is for an original file, which may hold averages; leave it out")
    folder = Path(source) / (subfolder or "")
    if (folder / "config.json").is_file():
        kind = read_object(folder / "config.json").get("_class_name", AutoencoderKL.__name__)
        if kind != AutoencoderKL.__name__:
            raise CheckpointError(
                f"{folder}: holds a model of class {kind}; only AutoencoderKL can be inflated"
            )
    dtype = stored_dtype(folder, variant)
    model = AutoencoderKL.from_pretrained(source, subfolder=subfolder, variant=variant, torch_dtype=dtype)
    return _from_module(model, str(source))


def _from_module(module: PublishedKL, name: str) -> _Image:
    return _image(name, module.config, {network_name(key): t for key, t in module.state_dict().items()})


def _image(name: str, config: Mapping[str, Any], state: dict[str, Tensor]) -> _Image:
    post = {key: state.pop(key) for key in POST_QUANT_CONV if key in state}
    return _Image(name=name, config=config, state=state, post=post or None)


def _rests(name: str) -> bool:
    """Whether a tensor belongs to a block that the temporal decoder holds and does not run."""
    head, _, rest = name.partition("decoder.mid_block.resnets.")
    return not head and int(rest.partition(".")[0]) > 1


def _configuration(image: _Image) -> dict[str, Any]:
    """The configuration of the temporal autoencoder; `InputError` for a network that it has no place for."""
    config = image.config
    for key, only in _FIXED.items():
        if config.get(key, only) != only:
            raise InputError(
                f"{image.name}: has {key}={config[key]!r}; the temporal autoencoder has {only!r} only"
            )
    for key, only in (("down_block_types", DOWN_BLOCK), ("up_block_types", "UpDecoderBlock2D")):
        others = sorted({kind for kind in config.get(key, ()) if kind != only})
        if others:
            raise InputError(
                f"{image.name}: {key} holds {others[0]!r}; the temporal autoencoder has {only!r} only"
            )
    check_layers(image.name, config["layers_per_block"], error=InputError)
    for key in _DROPPED:
        if config.get(key) is not None:
            logger.warning(
                "%s: %s=%s has no place in the temporal autoencoder's configuration; whoever scales latents has to "
                "apply it",
                image.name,
                key,
                config[key],
            )
    kept = {key: config[key] for key in _KEPT if key in config}
    size = config.get("sample_size", 32)
    return kept | {"sample_size": size if isinstance(size, int) else max(size)}


def _new_model(config: Mapping[str, Any], seed: int) -> AutoencoderKLTemporalDecoder:
    """A float32 model whose temporal layers do nothing, the first of their convolutions random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLTemporalDecoder(**config)
    for name, parameter in vae.decoder.named_parameters():
        if ".temporal_res_block.conv2." in name:
            parameter.zero_()
    last = vae.decoder.time_conv_out
    _bias(last).zero_()
    last.weight.zero_()[:, :, 1, 0, 0] = torch.eye(last.out_channels)
    return vae


def _put(vae: AutoencoderKLTemporalDecoder, image: _Image) -> None:
    """Copy an image autoencoder's tensors; what it goes without does nothing."""
    state = vae.state_dict()
    own = {name for name in state if not is_temporal(name) and not _rests(name)}
    attentions = {name for name in own if ".attentions." in name}
    absent = own - image.state.keys() - set(QUANT_CONV)
    if attentions <= absent:
        absent -= attentions
        for name in attentions:
            if ".to_out." in name:
                state[name].zero_()
    faults = list_faults(("missing", list(absent)), ("not of this model", list(image.state.keys() - own)))
    if faults:
        raise CheckpointError(
            f"{image.name}: its tensors are not those of its configuration: {'; '.join(faults)}; "
            "unload adapters and unfuse projections first"
        )
    given = identity(2 * vae.config.latent_channels, torch.float32) | image.state
    for name, tensor in given.items():
        state[name].copy_(tensor)


def _shift(vae: AutoencoderKLTemporalDecoder, post: nn.Conv2d, name: str) -> tuple[float, ...]:
    """Add d to the latents, with P d = p, and take p out of `post`; returns d."""
    matrix, offset = post.weight.flatten(1), _bias(post)
    condition = float(torch.linalg.cond(matrix))
    if not condition < _LARGEST_CONDITION:
        raise InputError(
            f"{name}: shift_latents: its post_quant_conv can't be inverted (condition number {condition:.2g}, at most "
            f"{_LARGEST_CONDITION:.0e}); keep the latents where they are"
        )
    shift = torch.linalg.solve(matrix, offset)
    _bias(vae.quant_conv)[: len(shift)] += shift
    offset.zero_()
    return tuple(shift.tolist())


def _fold(vae: AutoencoderKLTemporalDecoder, post: nn.Conv2d) -> float:
    """Fold `post_quant_conv` into `conv_in`; returns the largest difference that its bias makes to frames."""
    conv = vae.decoder.conv_in
    folded: nn.Conv2d = skip_init(nn.Conv2d, conv.in_channels, conv.out_channels, 3, padding=1)
    weight = conv.weight.double()
    folded.weight.copy_(torch.einsum("ochw,ci->oihw", weight, post.weight.flatten(1)))
    _bias(folded).copy_(_bias(conv) + torch.einsum("ochw,c->o", weight, _bias(post)))
    if not _bias(post).any():
        vae.decoder.conv_in = folded
        return 0.0
    tried = _tried_latents(vae)
    exact = _decode_with(nn.Sequential(post.float(), conv), vae, tried)
    found = _decode_with(folded, vae, tried)
    return max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))


def _tried_latents(vae: AutoencoderKLTemporalDecoder) -> list[Tensor]:
    """Latents to compare decoders on: how far the border is off depends on their deviation, up or down."""
    noise, channels = torch.Generator().manual_seed(0), vae.config.latent_channels
    deviations = (*_DEVIATIONS, 1 / vae.config.scaling_factor)
    return [
        deviation * torch.randn(1, channels, size, size, generator=noise)
        for size in _SIZES
        for deviation in deviations
    ]


def _decode_with(
    conv_in: nn.Module, vae: AutoencoderKLTemporalDecoder, latents: list[Tensor]
) -> list[Tensor]:
    """Put another first layer into the decoder, and decode."""
    vae.decoder.conv_in = conv_in  # type: ignore[assignment]
    return [vae.decoder(z) for z in latents]


def _float64(post: Mapping[str, Tensor] | None) -> nn.Conv2d | None:
    """`post_quant_conv` as a layer of its own."""
    if post is None:
        return None
    weight, bias = (post[name] for name in POST_QUANT_CONV)
    layer: nn.Conv2d = skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], 1, dtype=torch.float64)
    layer.weight.copy_(weight)
    _bias(layer).copy_(bias)
    return layer


def _bias(layer: nn.Conv2d | nn.Conv3d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
