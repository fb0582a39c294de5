"""Whole videos through the autoencoder: file to latents, latents to file, and both at once.

Everything streams: frames are read, encoded, decoded and written clip by clip, so memory depends on the size of a
clip and not on the length of the video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any, TypedDict

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from typing_extensions import Unpack

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.metrics import QualityMeter
from temporal_vae.video.comparison import Comparison
from temporal_vae.video.frames import Clip, Frames, crop_to, pad_to_multiple
from temporal_vae.video.latents import LatentInfo, LatentReader, LatentWriter, ModelIdentity
from temporal_vae.video.reader import Size, VideoReader
from temporal_vae.video.report import Report, peak_memory
from temporal_vae.video.stitcher import Stitcher
from temporal_vae.video.tensors import to_frames, to_tensor
from temporal_vae.video.writer import VideoWriter

CLIP_FRAMES = 25  # the clip length Stable Video Diffusion was tuned for
_ENCODED_AT_ONCE = 4  # frames; each is encoded by itself, so this is memory against the overhead of a call

Progress = Callable[[int, int | None], None]
"""Called with the number of frames that are done and, where it is known, the number of all."""


class Selection(TypedDict, total=False):
    """What part of a source is read, and how.

    Attributes:
        start: seconds from the beginning.
        frames: the most frames to read.
        fps: frames per second to resample to.
        size: `(width, height)` in pixels, or the width alone to keep the aspect.
        background: colour behind transparent pixels: a name, `#rrggbb`, or red, green and blue.
    """

    start: float | None
    frames: int | None
    fps: Any
    size: Size | None
    background: str | tuple[int, int, int]


class Output(TypedDict, total=False):
    """How a video is written.

    Attributes:
        codec: `h264`, `ffv1`, `png` or `gif`; by default that of the target's suffix.
        crf: quality of H.264, 0 (best) to 51.
    """

    codec: str | None
    crf: int


def encode_video(
    source: str | Path,
    target: str | Path,
    *,
    vae: AutoencoderKLTemporalDecoder | None = None,
    progress: Progress | None = None,
    **selection: Unpack[Selection],
) -> LatentInfo:
    """Encode a video into a latent file.

    Args:
        source: a video, an image, a folder or a glob of images.
        target: the latent file, `*.safetensors`.
        vae: the model; the embedded one by default.
        progress: called after each piece of work.
        **selection: what part is read, see `Selection`.

    Returns:
        The metadata that was written.

    Raises:
        MediaError: a source that cannot be read.
        LatentFileError: a target that cannot be written.
    """
    vae = vae or AutoencoderKLTemporalDecoder.from_embedded()
    with (
        VideoReader(source, **selection) as reader,
        LatentWriter(target, _describe(reader, selection, vae)) as writer,
        _encoding_precision(vae),
    ):
        for clip in reader.clips(_ENCODED_AT_ONCE):
            posterior = _encode(vae, clip.frames)
            writer.write(posterior.mean, posterior.logvar, clip.timestamps)
            if progress:
                progress(len(writer), reader.expected_frames)
    return writer.info


def decode_video(
    source: str | Path,
    target: str | Path,
    *,
    vae: AutoencoderKLTemporalDecoder | None = None,
    clip_frames: int | None = CLIP_FRAMES,
    overlap: int = 0,
    sample_seed: int | None = None,
    audio_from: str | Path | None = None,
    progress: Progress | None = None,
    **output: Unpack[Output],
) -> LatentInfo:
    """Decode a latent file into a video of the size, rate and time stamps of its source.

    Args:
        source: a latent file.
        target: the video, or a folder for PNG images.
        vae: the model that encoded; the embedded one by default.
        clip_frames: frames that are decoded as one clip; `None` for the whole video. It changes the pixels.
        overlap: frames that neighbouring clips share and cross-fade over.
        sample_seed: decode a sample of the posterior, drawn with this seed, rather than its mean.
        audio_from: a video whose sound is copied.
        progress: called after each clip.
        **output: how the video is written, see `Output`.

    Returns:
        The metadata of the latents.

    Raises:
        LatentFileError: a source that is damaged or was made by another model.
        MediaError: a target that cannot be written.
    """
    vae = vae or AutoencoderKLTemporalDecoder.from_embedded()
    generator = None if sample_seed is None else torch.Generator().manual_seed(sample_seed)
    with LatentReader(source, vae=vae) as reader:
        info = reader.info
        as_shown = {key: getattr(info, key) for key in ("rate", "color", "pixel_aspect", "time_base")}
        with VideoWriter(target, audio_from=audio_from, **as_shown, **output) as writer:
            stitcher = Stitcher(overlap)
            for numbers, mean, logvar in reader.clips(clip_frames, overlap):
                frames = crop_to(_decode(vae, _draw(mean, logvar, generator)), info.height, info.width)
                stamps = info.timestamps[numbers.start : numbers.stop]
                for piece in stitcher.push(Clip(frames=frames, timestamps=stamps, rate=info.rate)):
                    writer.write(piece.frames, piece.timestamps)
                if progress:
                    progress(numbers.stop, len(reader))
            for piece in stitcher.finish():
                writer.write(piece.frames, piece.timestamps)
    return info


def reconstruct_video(
    source: str | Path,
    target: str | Path,
    *,
    vae: AutoencoderKLTemporalDecoder | None = None,
    clip_frames: int | None = CLIP_FRAMES,
    overlap: int = 0,
    compare: bool = False,
    codec: str | None = None,
    crf: int = 18,
    progress: Progress | None = None,
    **selection: Unpack[Selection],
) -> Report:
    """Encode and decode a video, and measure how good the result is.

    Args:
        source: a video, an image, a folder or a glob of images.
        target: the video, or a folder for PNG images. `TARGET.metrics.json` is written beside it.
        vae: the model; the embedded one by default.
        clip_frames: frames that are decoded as one clip; `None` for the whole video. It changes the pixels.
        overlap: frames that neighbouring clips share and cross-fade over.
        compare: write a side-by-side video and a contact sheet too.
        codec: how the video is written, see `Output`.
        crf: see `Output`.
        progress: called after each clip.
        **selection: what part is read, see `Selection`.

    Returns:
        Quality, time and memory.

    Raises:
        MediaError: a source that cannot be read or a target that cannot be written.
    """
    vae = vae or AutoencoderKLTemporalDecoder.from_embedded()
    target, started = Path(target), perf_counter()
    model_clock, quality = _Stopwatch(), QualityMeter()
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source, **selection))
        writer = stack.enter_context(
            VideoWriter(target, codec=codec, crf=crf, audio_from=source, **_as_shown(reader, selection))
        )
        comparison = stack.enter_context(Comparison(target, rate=reader.rate)) if compare else None

        def finish(original: Clip, result: Clip) -> None:
            quality.update(original.frames, result.frames)
            writer.write(result.frames, result.timestamps)
            if comparison:
                comparison.write(original.frames, result.frames, result.timestamps)

        originals, results = Stitcher(overlap), Stitcher(overlap)
        for clip in reader.clips(clip_frames, overlap):
            with model_clock:
                result = clip.replace(reconstruct_clip(vae, clip.frames))
            for pieces in zip(originals.push(clip), results.push(result), strict=True):
                finish(*pieces)
            if progress:
                progress(len(quality.mse) + overlap, reader.expected_frames)
        for pieces in zip(originals.finish(), results.finish(), strict=True):
            finish(*pieces)
    report = Report(
        source=str(source),
        target=str(target),
        model=ModelIdentity.of(vae).name,
        dtype=str(vae.dtype).removeprefix("torch."),
        device=str(vae.device),
        width=reader.width,
        height=reader.height,
        clip_frames=clip_frames,
        overlap=overlap,
        quality=quality,
        model_seconds=model_clock.seconds,
        total_seconds=perf_counter() - started,
        peak_memory=peak_memory(vae.device),
    )
    report.save(target.with_name(f"{target.stem}.metrics.json"))
    return report


def reconstruct_clip(vae: AutoencoderKLTemporalDecoder, frames: Frames) -> Frames:
    """Encode frames `(t, h, w, 3)` and decode the mean of their latents as one clip of the same size."""
    with _encoding_precision(vae):
        parts = [frames[i : i + _ENCODED_AT_ONCE] for i in range(0, len(frames), _ENCODED_AT_ONCE)]
        latents = torch.cat([_encode(vae, part).mode() for part in parts])
    return crop_to(_decode(vae, latents), *frames.shape[1:3])


def _describe(reader: VideoReader, selection: Selection, vae: AutoencoderKLTemporalDecoder) -> LatentInfo:
    source, factor = Path(reader.info.path), vae.spatial_factor
    return LatentInfo(
        model=ModelIdentity.of(vae),
        source_name=source.name,
        source_sha256=_sha256(source),
        height=reader.height,
        width=reader.width,
        padded_height=reader.height + -reader.height % factor,
        padded_width=reader.width + -reader.width % factor,
        **_as_shown(reader, selection),
    )


def _as_shown(reader: VideoReader, selection: Selection) -> dict[str, Any]:
    """What a player needs to show the frames as the source would be shown."""
    size = selection.get("size")
    keeps_aspect = not isinstance(size, tuple) or size[1] is None
    return {
        "rate": reader.rate,
        "color": reader.info.color,
        "pixel_aspect": reader.info.pixel_aspect if keeps_aspect else Fraction(1),
        "time_base": reader.info.time_base if selection.get("fps") is None else 1 / reader.rate,
    }


class _Stopwatch:
    """Adds up the seconds spent in its `with` blocks."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += perf_counter() - self._began


@contextmanager
def _encoding_precision(vae: AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Encode in float32 where a float16 model asks for it by `force_upcast`."""
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(torch.float16)


@torch.inference_mode()
def _encode(vae: AutoencoderKLTemporalDecoder, frames: Frames) -> DiagonalGaussianDistribution:
    """Posterior of frames `(t, h, w, 3)` padded to the model's factor."""
    x = to_tensor(pad_to_multiple(frames, vae.spatial_factor))
    return vae.encode(x.to(vae.device, vae.dtype)).latent_dist


@torch.inference_mode()
def _decode(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Frames:
    """Frames `(t, h*f, w*f, 3)` of a clip of latents `(t, z, h, w)`."""
    return to_frames(vae.decode(latents.to(vae.device, vae.dtype), num_frames=len(latents)).sample)


def _draw(mean: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Tensor:
    """The mean of the posterior, or a sample of it where there is a generator."""
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator)
    return mean + torch.exp(0.5 * logvar.float()) * noise


def _sha256(path: Path) -> str:
    """Hash of a file; empty for a folder or a pattern."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
