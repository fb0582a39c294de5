"""Options that several commands share, the values they take, and the model that they name."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from temporal_vae import engine
from temporal_vae.amounts import parse_memory
from temporal_vae.errors import InputError

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder

Command = TypeVar("Command", bound=Callable[..., Any])


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """`WIDTH` or `WIDTHxHEIGHT`, in pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse to `(width, height)`; no height keeps the aspect."""
        width, _, height = str(value).lower().partition("x")
        try:
            size = int(width), int(height) if height else None
        except ValueError:
            size = (0, None)
        if size[0] < 1 or (size[1] is not None and size[1] < 1):
            self.fail(f"{value!r} is no size in pixels; write 320 or 320x180 (width x height)", param, ctx)
        return size


class PictureType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """`HEIGHTxWIDTH`, in pixels."""

    name = "picture"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse to `(height, width)`."""
        parts = value if isinstance(value, tuple) else str(value).lower().split("x")
        try:
            height, width = map(int, parts)
        except ValueError:
            height = width = 0
        if min(height, width) < 1:
            self.fail(f"{value!r} is no size in pixels; write 576x1024 (height x width)", param, ctx)
        return height, width


class MemoryType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """An amount of memory: `4GiB`, `500MB`."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse to a number of bytes."""
        try:
            return parse_memory(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class ClipFramesType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A whole number of frames, or `all`."""

    name = "frames"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse to a number, or to `None` for `all`."""
        if value in (None, "all"):
            return None
        try:
            frames = int(value)
        except ValueError:
            frames = 0
        if frames < 1:
            self.fail(
                f"{value!r} is no length of a clip; write a number of frames from 1 up, or all", param, ctx
            )
        return frames


class RateType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Frames per second: `24`, `23.976` or `24000/1001`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse to a fraction."""
        try:
            rate = Fraction(value)
        except (ValueError, ZeroDivisionError):
            rate = Fraction(0)
        if rate <= 0:
            self.fail(f"{value!r} is no frame rate; write 24, 23.976 or 24000/1001", param, ctx)
        return rate


class ColorType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A colour by name or as `#rrggbb`."""

    name = "color"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that the reader will understand it."""
        from temporal_vae.media.color import parse_background

        try:
            parse_background(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return value


def together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator of several options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


rate_option = click.option("--fps", type=RateType(), help="Resample to this many frames per second.")

quality_option = click.option(
    "--crf",
    type=click.IntRange(0, 51),
    default=18,
    show_default=True,
    help="Quality of H.264, 0 (best) to 51.",
)

reading_options = together(
    click.option(
        "--background",
        type=ColorType(),
        default="black",
        show_default=True,
        help="Colour behind transparent pixels.",
    ),
    click.option(
        "--hdr",
        type=click.Choice(("map", "keep")),
        default="map",
        show_default=True,
        help="Show PQ and HLG as BT.709, or keep their signals.",
    ),
    click.option(
        "--damaged",
        type=click.Choice(("error", "keep")),
        default="error",
        show_default=True,
        help="Refuse a damaged file, or keep what can be decoded and count what is lost.",
    ),
    click.option(
        "--deinterlace",
        type=click.Choice(("auto", "never")),
        default="auto",
        show_default=True,
        help="Make frames of fields (bwdif) where frames are flagged as interlaced.",
    ),
)

selection_options = together(
    click.option("--start", type=click.FloatRange(min=0), help="Seconds to skip at the beginning."),
    click.option("--frames", type=click.IntRange(min=1), help="The most frames to read."),
    rate_option,
    click.option(
        "--size",
        type=SizeType(),
        help="Scale to WIDTH or WIDTHxHEIGHT pixels, as video tools write it: 1024x576 is a wide image.",
    ),
    reading_options,
)

cut_options = together(
    click.option(
        "--clip-frames",
        type=ClipFramesType(),
        default="25",
        show_default=True,
        help="Frames decoded as one clip, or `all`. It changes the pixels: a clip is decoded as a whole. Image "
        "autoencoders decode each frame by itself.",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Frames that neighbouring clips share and cross-fade over.",
    ),
)

output_options = together(
    click.option(
        "--codec",
        type=click.Choice(("h264", "ffv1", "png", "gif")),
        help="Of the video; by default that of OUT's suffix: .mp4 h264, .mkv ffv1, .gif gif, a folder png. One picture "
        "goes to .png, .jpg or .webp.",
    ),
    quality_option,
)

memory_option = click.option(
    "--memory-limit",
    type=MemoryType(),
    metavar="AMOUNT",
    help="What the model may take above its weights, such as 4GiB or 500MB. The pixels stay the same.",
)


def takes_audio(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of sound; it is called with `audio` as `VideoWriter` takes it."""

    @click.option(
        "--audio",
        type=click.Choice(("auto", "copy")),
        default="auto",
        show_default=True,
        help="Sound that OUT can't hold is coded anew by auto (AAC; FLAC in .mkv), refused by copy.",
    )
    @click.option("--no-audio", is_flag=True, help="Leave the sound out.")
    @wraps(command)
    def run(audio: str, no_audio: bool, **arguments: Any) -> None:
        command(audio=False if no_audio else "copy" if audio == "copy" else True, **arguments)

    return run


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")


DTYPES = tuple(name for name in engine.DTYPES if name != "float64")


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="To compute on: cpu, cuda, cuda:1, mps. auto: a CUDA GPU where there is one, else the CPU.",
)


model_options = together(
    click.option(
        "--model", default="embedded", show_default=True, help="Folder, Hugging Face id, or `embedded`."
    ),
    click.option("--subfolder", help="Folder of the autoencoder inside the model, such as vae."),
    click.option(
        "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="To compute in."
    ),
    device_option,
)


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a model; it is called with the loaded one as `vae`."""

    @model_options
    @wraps(command)
    def load_and_run(model: str, subfolder: str | None, dtype: str, device: str, **arguments: Any) -> None:
        command(vae=load_model(model, subfolder, dtype, device), **arguments)

    return load_and_run


def best_device() -> str:
    """The device to compute on where none is named: a CUDA GPU if there is one, or else the CPU."""
    from temporal_vae.engine.resources import best_device

    return best_device()


def load_model(
    model: str, subfolder: str | None = None, dtype: str = "float32", device: str = "cpu"
) -> Autoencoder:
    """Load `model`, of clips or of pictures, in a dtype on a device, ready for inference.

    Raises:
        CheckpointError: a model that cannot be loaded.
        InputError: a device that this machine does not have.
    """
    from temporal_vae.autoencoders.loading import load_named

    return load_named(model, subfolder, dtype=dtype, device=device)
