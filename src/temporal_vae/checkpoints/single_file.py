"""A safetensors file that holds an autoencoder: where its parts are, what they are called, what network they make.

The file may be a whole original checkpoint, an autoencoder alone under original names, or one under those of diffusers.
Only the header is read until tensors are asked for, and then only those of the autoencoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from temporal_vae.checkpoints.lazy import LazyTensors, Tensors
from temporal_vae.checkpoints.loading import AGAIN, PICKLES, UNSAFE, check_finite, list_faults
from temporal_vae.checkpoints.names import POST_QUANT_CONV, QUANT_CONV, image_name, old_name, sgm_name
from temporal_vae.errors import CheckpointError, first_names
from temporal_vae.model.checks import DOWN_BLOCK, IMAGE_BLOCKS

EncoderHome = Literal["conditioner", "first_stage"]

_ENCODER = ("encoder.", "quant_conv.")
_HOMES = ("first_stage_model.", "vae.", "")
_BEFORE = r"(?:(?:state_dict|module|_orig_mod|model)\.)*"
"""What trainers, DataParallel and torch.compile put before every name."""
_HOME = re.compile(rf"({_BEFORE}((?:first_stage_model\.|vae\.)?){_BEFORE})decoder\.conv_in\.weight")
_WRAPPED = re.compile(
    rf"({_BEFORE}conditioner\.embedders\.(\d+)\.encoder\.)(?:encoder\.(?:conv_|norm_|down\.|mid\.)|quant_conv\.).*"
)
_AVERAGES = "model_ema."
"""Before the names, without their dots, of the moving averages that the original trainer keeps."""
_BLOCKS = {
    "sgm": re.compile(r"decoder\.up\.(\d+)\.block\.(\d+)\.conv1\.weight"),
    "diffusers": re.compile(
        r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(?:spatial_res_block\.)?conv1\.weight"
    ),
}
_ENCODER_BLOCKS = {
    "sgm": re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight"),
    "diffusers": re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight"),
}
_TEMPORAL = re.compile(r"decoder\..*(time_stack|time_mix_conv|temporal_res_block|time_conv_out)")


class SingleFile:
    """An autoencoder in a file.

    The conditioner of a video model wraps an image autoencoder of its own, whose encoder and `quant_conv` are those of
    the folders that diffusers publishes; the first stage has the temporal decoder, and sometimes an encoder without
    `quant_conv`. Where both encoders are there, that of the conditioner is taken.

    Args:
        path: a safetensors file; what is read is called so.
        tensors: what is read instead of the file, a state dict for example.
        encoder: whose encoder to take, `conditioner` or `first_stage`; None takes what is there.
        ema: take the moving averages of the original trainer, `model_ema.*`, of all tensors that have one.
        allow_nonfinite: read NaN and infinite values.

    Attributes:
        layout: whose names the tensors have, `sgm` or `diffusers`.
        decoder_home, encoder_home: prefix of the names of either part; no encoder is None.
        temporal: whether the decoder has temporal layers.
        normalised: whether there are the running mean and variance by which pipelines of FLUX.2 normalise latents.
        ignored: how many tensors of the file `read` left there.
        left_out: those beside the autoencoder's own of which a user is told, in a few words; empty if there are none.

    Raises:
        CheckpointError: no such file, a pickle, a damaged file, or none with a decoder in it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tensors: Tensors | None = None,
        encoder: EncoderHome | None = None,
        ema: bool = False,
        allow_nonfinite: bool = False,
    ) -> None:
        self.path = Path(path)
        if tensors is None:
            _check_file(self.path)
            tensors = LazyTensors(self.path)
        self._tensors = tensors
        self._names = self._tensors.names
        self._allow_nonfinite = allow_nonfinite
        found = [match for match in map(_HOME.fullmatch, sorted(self._names)) if match]
        homes = [match[1] for match in sorted(found, key=lambda match: _HOMES.index(match[2]))]
        if not homes:
            raise CheckpointError(
                f"{self.path}: holds no autoencoder: no decoder.conv_in.weight, bare or under "
                f"{' or '.join(filter(None, _HOMES))}; pass a file with one in it"
            )
        self.decoder_home = homes[0]
        self.encoder_home = self._find_encoder(encoder)
        bare = [name.removeprefix(homes[0]) for name in self._names if name.startswith(homes[0])]
        old = f"{homes[0]}decoder.up.0.block.0.conv1.weight" in self._names
        self.layout: Literal["sgm", "diffusers"] = "sgm" if old else "diffusers"
        self.temporal = any(_TEMPORAL.match(name) for name in bare)
        self.normalised = any(name.endswith("bn.running_mean") for name in bare)
        self._widths, self._layers = self._find_levels(bare, _BLOCKS[self.layout])
        if self.layout == "diffusers":
            self._widths = self._widths[::-1]
        self.ignored, self.left_out = 0, ""
        self._averages = {name for name in self._names if name.startswith(f"{self.decoder_home}{_AVERAGES}")}
        self._ema = ema
        if ema and not self._averages:
            raise CheckpointError(
                f"{self.path}: holds no averages: nothing under {self.decoder_home}{_AVERAGES}; take the weights "
                "themselves, without ema"
            )

    def has(self, name: str) -> bool:
        """Whether the network's tensor `name` is in the file."""
        home = self.encoder_home if name.startswith(_ENCODER) else self.decoder_home
        return home is not None and self._key(name) in self._names

    def config(self) -> dict[str, Any]:
        """What shapes tell of the network, as keyword arguments of the model."""
        return {
            "in_channels": 3 if self.encoder_home is None else self._shape("encoder.conv_in.weight")[1],
            "out_channels": self._shape("decoder.conv_out.weight")[0],
            "down_block_types": (DOWN_BLOCK,) * len(self._widths),
            "block_out_channels": tuple(self._widths),
            "layers_per_block": self._layers,
            "latent_channels": self._shape("decoder.conv_in.weight")[1],
        }

    def image_config(self) -> dict[str, Any]:
        """What shapes tell of the network of an image autoencoder, as keyword arguments of the model."""
        found, levels = self.config(), range(len(self._widths))
        if self.encoder_home is not None:
            bare = [n.removeprefix(self.encoder_home) for n in self._names if n.startswith(self.encoder_home)]
            widths, _ = self._find_levels(bare, _ENCODER_BLOCKS[self.layout])
            if widths != self._widths:
                found |= {
                    "block_out_channels": tuple(widths),
                    "decoder_block_out_channels": tuple(self._widths),
                }
        kinds = {
            "down_block_types": [f"encoder.down_blocks.{level}" for level in levels],
            "up_block_types": [f"decoder.up_blocks.{level}" for level in levels],
        }
        for key, blocks in kinds.items():
            plain, attending = IMAGE_BLOCKS[key]
            found[key] = tuple(
                attending if self.has(f"{block}.attentions.0.to_q.weight") else plain for block in blocks
            )
        return found | {
            "use_quant_conv": self.has(QUANT_CONV[0]),
            "use_post_quant_conv": self.has(POST_QUANT_CONV[0]),
            "mid_block_add_attention": self.has("decoder.mid_block.attentions.0.to_q.weight"),
        }

    def is_of(self, *marks: str) -> bool:
        """Whether any tensor of the file, of what else a whole checkpoint holds, has one of these in its name."""
        return any(mark in name for name in self._names for mark in marks)

    def values(self, name: str) -> list[float]:
        """Numbers that lie beside the autoencoder."""
        numbers: list[float] = self._tensors.read(name).flatten().tolist()
        return numbers

    def read(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the tensors of a network, under its own names.

        Args:
            wanted: the network's tensors, of which only the shapes are used.

        Raises:
            CheckpointError: tensors that are missing, unknown, of another shape, of a type that is not computed in,
                or that hold NaN or infinite values.
        """
        keys = {name: self._averaged(self._key(name)) for name in wanted}
        found = {name: key for name, key in keys.items() if key in self._names}
        shapes = {name: self._tensors.shape(key) for name, key in found.items()}
        self.ignored = len(self._names) - len(found)
        unknown, numbers = self._beside({self._key(name) for name in wanted})
        self.left_out = self._said(keys, numbers)
        faults = list_faults(
            ("missing", [key for name, key in keys.items() if name not in found]),
            ("not of this model", unknown),
            (
                "of another shape",
                [
                    f"{keys[name]} is {shapes[name]} but the model has {list(like.shape)}"
                    for name, like in wanted.items()
                    if name in shapes and shapes[name] not in _fitting(like)
                ],
            ),
            ("no floats", [key for name, key in found.items() if not self._holds(key, wanted[name])]),
        )
        if faults:
            raise CheckpointError(
                f"{self.path}: its tensors do not make a model: {'; '.join(faults)}; "
                "pass the configuration that belongs to it, or download the file again"
            )
        tensors = {key: self._tensors.read(key) for key in found.values()}
        if not self._allow_nonfinite:
            check_finite(self.path, tensors)
        return {name: tensors[key].reshape(wanted[name].shape) for name, key in keys.items()}

    def _holds(self, key: str, like: Tensor) -> bool:
        """Whether a tensor is of a type that can be read for one of the network."""
        tensors = self._tensors
        return tensors.is_float(key) if like.is_floating_point() else tensors.is_count(key)

    def _averaged(self, key: str) -> str:
        """The name of a tensor's average where that is asked for and there, else its own."""
        average = f"{self.decoder_home}{_AVERAGES}{key.removeprefix(self.decoder_home).replace('.', '')}"
        return average if self._ema and average in self._averages else key

    def _said(self, keys: Mapping[str, str], numbers: list[str]) -> str:
        """What is to be said of averages and of numbers that are no weights."""
        taken = len(self._averages.intersection(keys.values()))
        said = []
        if self._ema:
            said.append(f"took the averages of {taken} of {len(keys)} tensors")
        elif self._averages:
            said.append(
                f"left out {len(self._averages)} averages ({self.decoder_home}{_AVERAGES}*), which ema takes"
            )
        if numbers:
            said.append(f"left out {first_names(sorted(numbers))}: no weights")
        return "; ".join(said)

    def _find_encoder(self, asked: EncoderHome | None) -> str | None:
        # One that is there in part is an error, and not a reason to take the other.
        wrapped = sorted((int(m[2]), m[1]) for m in map(_WRAPPED.fullmatch, self._names) if m)
        own = any(name.startswith(f"{self.decoder_home}encoder.") for name in self._names)
        homes = {
            "conditioner": wrapped[0][1] if wrapped else None,
            "first_stage": self.decoder_home if own else None,
        }
        if asked is not None and homes[asked] is None:
            there = [name for name, home in homes.items() if home is not None]
            raise CheckpointError(
                f"{self.path}: there is no encoder in the {asked}; there is {' and '.join(there) or 'none at all'}"
            )
        return homes[asked] if asked else homes["conditioner"] or homes["first_stage"]

    def _find_levels(self, names: Iterable[str], blocks_of: re.Pattern[str]) -> tuple[list[int], int]:
        """Width of each level in the order of their names, and how many residual blocks come after the first."""
        blocks = {
            (int(match[1]), int(match[2])): name for name in names if (match := blocks_of.fullmatch(name))
        }
        levels = 1 + max((level for level, _ in blocks), default=-1)
        absent = [str(level) for level in range(levels) if (level, 0) not in blocks]
        if not levels or absent:
            raise CheckpointError(
                f"{self.path}: its {'encoder' if blocks_of in _ENCODER_BLOCKS.values() else 'decoder'} lacks "
                f"{'level ' + first_names(absent) if absent else 'all levels'}; {AGAIN}"
            )
        widths = [self._shape(blocks[level, 0])[0] for level in range(levels)]
        return widths, max(block for _, block in blocks)

    def _shape(self, name: str) -> list[int]:
        home = self.encoder_home if name.startswith("encoder.") else self.decoder_home
        if f"{home}{name}" not in self._names:
            raise CheckpointError(f"{self.path}: lacks {home}{name}; {AGAIN}")
        return self._tensors.shape(f"{home}{name}")

    def _key(self, name: str) -> str:
        """Name in the file of the network's tensor `name`."""
        home = self.encoder_home if name.startswith(_ENCODER) else self.decoder_home
        if name in (*QUANT_CONV, *POST_QUANT_CONV):  # those of FLUX.2 lie within the parts
            inside = f"{home}{'encoder' if name in QUANT_CONV else 'decoder'}.{name}"
            return inside if inside in self._names else f"{home}{name}"
        if self.layout == "sgm":
            return f"{home}{sgm_name(name, len(self._widths))}"
        name = name if self.temporal else image_name(name)
        return old if (old := f"{home}{old_name(name)}") in self._names else f"{home}{name}"

    def _beside(self, known: set[str]) -> tuple[list[str], list[str]]:
        """Tensors beside those of the autoencoder, where nothing else belongs: unknown ones, and single numbers."""
        trained = ("loss.", _AVERAGES)  # left from training
        spare: dict[str, tuple[str, ...]] = {self.decoder_home: trained}
        if self.encoder_home is not None and self.encoder_home != self.decoder_home:
            spare[self.decoder_home] += _ENCODER  # the encoder that was not chosen
            spare[self.encoder_home] = (
                *trained,
                "decoder.",
                "post_quant_conv.",
            )  # the rest of what is wrapped
        beside = {
            name
            for name in self._names - known
            for home, parts in spare.items()
            if name.startswith(home) and not name.startswith(tuple(home + part for part in parts))
        }
        numbers = {name for name in beside if self._is_number(name)}
        return list(beside - numbers), list(numbers)

    def _is_number(self, name: str) -> bool:
        """Whether a tensor is a count or a setting of a trainer, such as `global_step`."""
        shape = self._tensors.shape(name)
        return not shape or (shape == [1] and not self._tensors.is_float(name))


def _check_file(path: Path) -> None:
    """Refuse what is no safetensors file before it is opened."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{path}: is a pickle file; {UNSAFE}")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; load it with from_pretrained")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; pass a safetensors file on this machine")


def _fitting(like: Tensor) -> tuple[list[int], list[int]]:
    """Shapes that a tensor may have in the file: original attentions keep their matrices as 1x1 convolutions."""
    shape = list(like.shape)
    return shape, [*shape, 1, 1] if like.ndim == 2 else shape


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The type of all tensors; float32 where they differ."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
