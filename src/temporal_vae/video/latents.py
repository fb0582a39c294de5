"""Latent files: the posterior of every frame of a video, and all it takes to restore the video as it was.

A latent file is safetensors: tensors `mean` and `logvar`, `(t, z, h, w)`, unscaled, and a JSON text of metadata
under the key `temporal_vae`. It is written and read as a stream, so memory does not grow with the video.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import lcm
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.checkpoints.lazy import DTYPES
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.errors import LatentFileError, MediaError
from temporal_vae.media.frames import Color, clip_starts
from temporal_vae.outputs import check_readable, check_writable, complete_or_nothing, writing

FORMAT_VERSION = 1
METADATA_KEY = "temporal_vae"
"""Where a latent file describes itself."""
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_OF_ALL = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "scaling_factor",
)  # fmt: skip
_OF_IMAGES = (
    "down_block_types", "up_block_types", "decoder_block_out_channels", "norm_num_groups", "shift_factor",
    "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
)  # fmt: skip
ENCODING = ("encoder", "quant_conv")
"""Parts of a model that encode; there may be no `quant_conv`."""
_PROBED = 4  # values of each tensor that a probe holds
_PROBE_TOLERANCE = 2**-7  # relative; rounding to bfloat16 moves a weight by 2**-9 at most


def encoder_weights(vae: Autoencoder) -> list[Tensor]:
    """The parameters of what encodes."""
    parts = (getattr(vae, name) for name in ENCODING)
    return [weight for part in parts if part is not None for weight in part.parameters()]


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model made some latents.

    Attributes:
        name: folder, hub id or `embedded`; for people.
        config: the configuration, without the keys that only inform.
        encoder_probe: a few values of every encoder tensor. Compared within the rounding of half precision, so
            that the same weights in another dtype, or with a fine-tuned decoder, are the same model.
    """

    name: str
    config: dict[str, Any]
    encoder_probe: list[float]

    @classmethod
    def of(cls, vae: Autoencoder) -> ModelIdentity:
        """Identify a loaded model."""
        keys = _OF_ALL if vae.network.temporal else (*_OF_ALL, *_OF_IMAGES)
        values = {key: vae.config[key] for key in keys if key in vae.config}
        config: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }
        if not vae.network.temporal:
            config["class"] = type(vae).__name__
        probe = [
            value
            for tensor in encoder_weights(vae)
            for value in tensor.detach().flatten()[:_PROBED].float().tolist()
        ]
        return cls(name=_model_name(vae), config=config, encoder_probe=probe)

    @property
    def config_sha256(self) -> str:
        """Hash of the configuration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def made_by(self, other: ModelIdentity) -> bool:
        """Whether this model can decode latents of `other`; without encoder it is known by its configuration alone."""
        if self.config_sha256 != other.config_sha256 or len(self.encoder_probe) != len(other.encoder_probe):
            return False
        own, theirs = torch.tensor(self.encoder_probe), torch.tensor(other.encoder_probe)
        if own.isnan().any():
            return True
        return torch.allclose(own, theirs, rtol=_PROBE_TOLERANCE, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class LatentInfo:
    """The metadata of a latent file.

    Attributes:
        model: which model made the latents.
        source_name: file name of the video.
        source_sha256: hash of the video's bytes; empty where the source is not one file.
        rate: nominal frames per second.
        height, width: size of the source's frames in pixels.
        padded_height, padded_width: the size that was encoded, a multiple of the model's factor.
        color: colour description of the source.
        pixel_aspect: width of a pixel over its height.
        time_base: seconds of which every time stamp of the source is a whole multiple.
        timestamps: seconds of each frame.
        last_duration: seconds for which the last frame is shown; `None` for one frame of the rate.
    """

    model: ModelIdentity
    source_name: str
    source_sha256: str
    rate: Fraction
    height: int
    width: int
    padded_height: int
    padded_width: int
    color: Color
    pixel_aspect: Fraction
    time_base: Fraction
    timestamps: tuple[Fraction, ...] = ()
    last_duration: Fraction | None = None

    def to_json(self) -> str:
        """Metadata as the JSON text of the file; fractions as `"num/den"`, time stamps over one denominator."""
        tick = Fraction(1, lcm(*(stamp.denominator for stamp in self.timestamps)))
        fields = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "config_sha256": self.model.config_sha256,
            "timestamps": {"tick": str(tick), "ticks": [int(stamp / tick) for stamp in self.timestamps]},
        }
        return json.dumps(fields, default=str)

    @classmethod
    def from_json(cls, text: str) -> LatentInfo:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: anything else.
        """
        try:
            info = cls._read(json.loads(text))
        except (AttributeError, ArithmeticError, RecursionError) as error:  # of values of another kind
            raise ValueError("holds damaged metadata") from error
        info._check()
        return info

    @classmethod
    def _read(cls, fields: dict[str, Any]) -> LatentInfo:
        if (version := fields.pop("format_version")) != FORMAT_VERSION:
            raise ValueError(f"is of format version {version}; this release reads version {FORMAT_VERSION}")
        config_sha256 = fields.pop("config_sha256")
        stamps = fields.pop("timestamps")
        model = ModelIdentity(**fields.pop("model"))
        if model.config_sha256 != config_sha256:
            raise ValueError("holds a configuration that does not match its hash")
        return cls(
            model=model,
            color=Color(**fields.pop("color")),
            timestamps=tuple(count * Fraction(stamps["tick"]) for count in stamps["ticks"]),
            rate=Fraction(fields.pop("rate")),
            pixel_aspect=Fraction(fields.pop("pixel_aspect")),
            time_base=Fraction(fields.pop("time_base")),
            last_duration=None if (last := fields.pop("last_duration", None)) is None else Fraction(last),
            **fields,
        )

    def _check(self) -> None:
        """Raise `ValueError` for values that no video has."""
        sizes = (self.height, self.width, self.padded_height, self.padded_width)
        fine = (
            all(type(size) is int and size > 0 for size in sizes),
            self.height <= self.padded_height and self.width <= self.padded_width,
            min(self.rate, self.pixel_aspect, self.time_base, self.last_duration or 1) > 0,
            all(before < after for before, after in pairwise(self.timestamps)),
            all(isinstance(text, str) for text in (self.source_name, self.source_sha256, self.model.name)),
            isinstance(self.model.encoder_probe, list)
            and all(isinstance(value, int | float) for value in self.model.encoder_probe),
            all(value is None or isinstance(value, str) for value in asdict(self.color).values()),
        )
        if not all(fine):
            raise ValueError("holds damaged metadata")


def check_latent_target(target: str | Path) -> None:
    """Raise `LatentFileError` where `target` could not be written, or is no name of a latent file."""
    with refusing(Path(target)):
        check_writable(target)
    if Path(target).suffix != ".safetensors":
        raise LatentFileError(f"{target}: latent files are safetensors; name it *.safetensors")


class LatentWriter:
    """Writes a latent file as a stream. The file appears under its name when the `with` block ends well.

    Args:
        target: the file to write, `.safetensors`.
        info: metadata; its time stamps are those of the frames that are written.

    Raises:
        LatentFileError: a target that cannot be written.
    """

    def __init__(self, target: str | Path, info: LatentInfo) -> None:
        self.target = Path(target)
        self.info = info
        self._timestamps: list[Fraction] = []
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._open = ExitStack()
        check_latent_target(target)

    def __enter__(self) -> LatentWriter:
        # The header of safetensors comes first and holds the length, so each tensor waits in a file of its own.
        with refusing(self.target):
            self._parts: dict[str, IO[bytes]] = {
                name: self._open.enter_context(tempfile.TemporaryFile(dir=self.target.resolve().parent))  # noqa: SIM115
                for name in ("mean", "logvar")
            }
        return self

    def __len__(self) -> int:
        """Frames written so far."""
        return len(self._timestamps)

    def write(self, mean: Tensor, logvar: Tensor, timestamps: Sequence[Fraction]) -> None:
        """Append frames: `(t, z, h, w)` each, and their time stamps in seconds."""
        self._shape, self._dtype = tuple(mean.shape[1:]), mean.dtype
        self._timestamps += timestamps
        for part, tensor in zip(self._parts.values(), (mean, logvar), strict=True):
            with refusing(self.target):
                part.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if kind is None:
                self._assemble()

    def _assemble(self) -> None:
        if not self._timestamps:
            raise LatentFileError(f"{self.target}: there are no frames to write")
        self.info = replace(self.info, timestamps=tuple(self._timestamps))
        header: dict[str, Any] = {"__metadata__": {METADATA_KEY: self.info.to_json()}}
        offset = 0
        for name, part in self._parts.items():
            size = part.tell()
            header[name] = {
                "dtype": _DTYPE_NAMES[self._dtype],
                "shape": [len(self._timestamps), *self._shape],
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
        target = self.target
        with refusing(target), complete_or_nothing(target) as temporary, temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in self._parts.values():
                part.seek(0)
                shutil.copyfileobj(part, file)


class LatentReader:
    """Reads a latent file as a stream; a context manager.

    Attributes:
        info: the metadata.

    Raises:
        LatentFileError: a file that is missing, damaged, of another version or kind, or made by another model.
    """

    def __init__(self, source: str | Path, *, vae: Autoencoder | None = None) -> None:
        """Open `source` and check it; with `vae`, refuse latents that another model made."""
        self.source = Path(source)
        with refusing(self.source):
            check_readable(source)
        try:
            self._file: Any = safe_open(str(self.source), framework="pt")
            self.info = LatentInfo.from_json((self._file.metadata() or {})[METADATA_KEY])
            self._tensors = {name: self._file.get_slice(name) for name in ("mean", "logvar")}
            self._check_shapes()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise LatentFileError(f"{self.source}: {_reason(error)}; encode the video again") from error
        if vae is not None:
            self._check_model(ModelIdentity.of(vae))

    def _check_shapes(self) -> None:
        if strange := {str(tensor.get_dtype()) for tensor in self._tensors.values()} - {
            *_DTYPE_NAMES.values()
        }:
            raise ValueError(f"holds tensors of type {', '.join(sorted(strange))}")
        mean, logvar = (tuple(tensor.get_shape()) for tensor in self._tensors.values())
        if mean != logvar or len(mean) != 4 or mean[0] != len(self.info.timestamps):
            raise ValueError(
                f"holds mean {mean} and logvar {logvar} for {len(self.info.timestamps)} time stamps, which do not match"
            )

    def _check_model(self, identity: ModelIdentity) -> None:
        if not identity.made_by(self.info.model):
            raise LatentFileError(
                f"{self.source}: made by model {self.info.model.name!r} "
                f"(config {self.info.model.config_sha256[:8]}), not by {identity.name!r} "
                f"(config {identity.config_sha256[:8]}); decode with the model that encoded"
            )

    def __len__(self) -> int:
        return len(self.info.timestamps)

    def __enter__(self) -> LatentReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(None, None, None)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(t, z, h, w)`."""
        return tuple(self._tensors["mean"].get_shape())

    @property
    def dtype(self) -> str:
        """Type of the numbers, as safetensors names it: `F32`, `BF16`, `F16` or `F64`."""
        return str(self._tensors["mean"].get_dtype())

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of frames `start` to `stop` (exclusive), `(t, z, h, w)` each."""
        return self._tensors["mean"][start:stop], self._tensors["logvar"][start:stop]

    def clips(self, clip_frames: int | None, overlap: int = 0) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Frame numbers, mean and log-variance of successive clips; `None` frames for one clip of all."""
        for start, stop in clip_starts(len(self), clip_frames, overlap):
            yield range(start, stop), *self.read(start, stop)


@contextmanager
def refusing(target: Path) -> Iterator[None]:
    """Say what the system or the checks of a target say as `LatentFileError`."""
    try:
        with writing(target):
            yield
    except MediaError as error:
        raise LatentFileError(str(error)) from error


def _model_name(vae: Autoencoder) -> str:
    name = vae.config.get("_name_or_path") or "unnamed"
    return "embedded" if Path(name) == EMBEDDED else str(name)


def _reason(error: BaseException) -> str:
    if isinstance(error, SafetensorError):
        return f"is no complete safetensors file ({error})"
    if isinstance(error, KeyError):
        return f"is no latent file of this package ({error} is missing)"
    return " ".join(str(error).split())
