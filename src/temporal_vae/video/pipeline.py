"""Whole videos through the autoencoder: file to latents, latents to file, and both at once.

Everything streams: frames are read, encoded, decoded and written clip by clip, so memory depends on the size of a
clip and not on the length of the video. The next clip is read and the last one written while one is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from temporal_vae.amounts import MemoryLimit
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.media.audio import Audio
from temporal_vae.media.frames import Clip, clip_starts, exact
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.outputs import check_apart, check_writable
from temporal_vae.streams import stream
from temporal_vae.video.arguments import Output, Selection
from temporal_vae.video.beside import ByProducts
from temporal_vae.video.coder import CLIP_FRAMES, Coder
from temporal_vae.video.latents import (
    LatentInfo,
    LatentWriter,
    ModelIdentity,
    check_latent_target,
)
from temporal_vae.video.plain_latents import open_latents
from temporal_vae.video.report import Report, peak_memory
from temporal_vae.video.report.facts import call_text
from temporal_vae.video.stitcher import Stitcher
from temporal_vae.video.work import Progress

Item = TypeVar("Item")


def encode_video(
    source: str | Path,
    target: str | Path,
    *,
    vae: Autoencoder | None = None,
    memory_limit: MemoryLimit = None,
    progress: Progress | None = None,
    coder_type: Callable[..., Coder] = Coder,
    **selection: Unpack[Selection],
) -> LatentInfo:
    """Encode a video into a latent file.

    Args:
        source: a video, an image, a folder or a glob of images.
        target: the latent file, `*.safetensors`.
        vae: the model; the embedded one by default.
        memory_limit: bytes that the model may take above its weights, or an amount as `"4GiB"`; the same pixels. By
            default that of `vae.enable_tiling`, or else what is free. See `docs/memory.md` for what comes on top.
        progress: told how far the work is, see `Progress`.
        coder_type: makes what computes, such as a `Coder` that shares its work with other ranks.
        **selection: what part is read, see `Selection`.

    Returns:
        The metadata that was written.

    Raises:
        MediaError: a source that cannot be read.
        LatentFileError: a target that cannot be written.
        MemoryLimitError: a limit that is too small; nothing is written then.
    """
    check_latent_target(target)
    vae = vae or AutoencoderKLTemporalDecoder.from_embedded()
    with VideoReader(source, **selection) as reader:
        check_apart([target], reader.files)
        coder = coder_type(vae, reader.height, reader.width, memory_limit=memory_limit, progress=progress)
        together = coder.together
        if reader.expected_frames is not None:
            coder.work.expect(coder.encode_work(reader.expected_frames))

        def encode(clip: Clip) -> tuple[Tensor, Tensor, tuple[Fraction, ...]]:
            posterior = coder.encode(clip.frames)
            return posterior.mean.cpu(), posterior.logvar.cpu(), clip.timestamps

        with (
            LatentWriter(target, _describe(reader, selection, vae)) as writer,
            coder.work.reported(),
            closing(stream(encode, reader.clips(together))) as encoded,
        ):
            for mean, logvar, timestamps in encoded:
                writer.write(mean, logvar, timestamps)
            writer.info = replace(writer.info, last_duration=reader.last_duration)
    return writer.info


def decode_video(
    source: str | Path,
    target: str | Path,
    *,
    vae: Autoencoder | None = None,
    clip_frames: int | None = CLIP_FRAMES,
    overlap: int = 0,
    sample_seed: int | None = None,
    scaled: bool = False,
    fps: Fraction | float | str | None = None,
    audio_from: str | Path | None = None,
    memory_limit: MemoryLimit = None,
    progress: Progress | None = None,
    coder_type: Callable[..., Coder] = Coder,
    **output: Unpack[Output],
) -> LatentInfo:
    """Decode latents into a video; those of a latent file into one of the size, rate and time stamps of its source.

    Args:
        source: a latent file; or the latents of another program as a single tensor, in safetensors or `.npy`: `(c, h,
            w)`, `(t, c, h, w)`, `(c, t, h, w)`, `(1, c, t, h, w)` or `(1, t, c, h, w)`.
        target: the video, or a folder for PNG images.
        vae: the model that encoded; the embedded one by default.
        clip_frames: frames that are decoded as one clip; `None` for the whole video. It changes the pixels. Of no
            meaning where the model is an image autoencoder, which decodes each frame by itself.
        overlap: frames that neighbouring clips share and cross-fade over.
        sample_seed: decode a sample of the posterior, drawn with this seed, rather than its mean.
        scaled: a single tensor holds the latents of a diffusion model, which are scaled and shifted; undo that.
        fps: frames per second of a single tensor; 24 by default.
        audio_from: a video whose sound is written too.
        memory_limit: bytes that the model may take above its weights, or an amount as `"4GiB"`; the same pixels. By
            default that of `vae.enable_tiling`, or else what is free. See `docs/memory.md` for what comes on top.
        progress: told how far the work is, see `Progress`.
        coder_type: makes what computes, such as a `Coder` that shares its work with other ranks.
        **output: how the video is written, see `Output`.

    Returns:
        The metadata of the latents.

    Raises:
        InputError: an overlap of clips for an image autoencoder; `scaled` or `fps` of a latent file, which says both.
        LatentFileError: a source that is damaged, was made by another model, or holds no such latents.
        MediaError: a target that cannot be written.
        MemoryLimitError: a limit that is too small; nothing is written then.
    """
    check_writable(target)
    vae = vae or AutoencoderKLTemporalDecoder.from_embedded()
    rate = None if fps is None else exact(fps, "fps")
    with open_latents(source, vae=vae, scaled=scaled, fps=rate, sampled=sample_seed is not None) as reader:
        check_apart([target], [source])
        info = reader.info
        coder = coder_type(vae, info.height, info.width, memory_limit=memory_limit, progress=progress)
        clip_frames = coder.clip_frames(clip_frames, overlap)
        cut = clip_starts(len(reader), clip_frames, overlap)
        coder.work.expect(sum(coder.decode_work(stop - start) for start, stop in cut))

        def decode(latents: list[tuple[range, Tensor, Tensor]]) -> list[Clip]:
            drawn = [_draw(mean, logvar, numbers, sample_seed) for numbers, mean, logvar in latents]
            stamps = [info.timestamps[numbers.start : numbers.stop] for numbers, _, _ in latents]
            return [
                Clip(frames=frames, timestamps=times, rate=info.rate)
                for frames, times in zip(coder.decode_clips(drawn), stamps, strict=True)
            ]

        as_shown = {key: getattr(info, key) for key in ("rate", "color", "pixel_aspect", "time_base")}
        with (
            VideoWriter(target, audio_from=audio_from, **as_shown, **output) as writer,
            coder.work.reported(),
            closing(
                stream(decode, _some(reader.clips(clip_frames, overlap), coder.clips_together))
            ) as decoded,
        ):
            stitcher = Stitcher(overlap)
            for clip in chain.from_iterable(decoded):
                for piece in stitcher.push(clip):
                    writer.write(piece.frames, piece.timestamps)
            for piece in stitcher.finish():
                writer.write(piece.frames, piece.timestamps)
            writer.finish(info.last_duration)
    return info


def reconstruct_video(
    source: str | Path,
    target: str | Path,
    *,
    vae: Autoencoder | None = None,
    clip_frames: int | None = CLIP_FRAMES,
    overlap: int = 0,
    compare: bool = False,
    charts: bool = False,
    report: str | Path | None = None,
    command: str | None = None,
    latents: str | Path | None = None,
    source_copy: str | Path | None = None,
    codec: str | None = None,
    crf: int = 18,
    audio: Audio = True,
    memory_limit: MemoryLimit = None,
    progress: Progress | None = None,
    coder_type: Callable[..., Coder] = Coder,
    **selection: Unpack[Selection],
) -> Report:
    """Encode and decode a video, and measure how good the result is.

    Args:
        source: a video, an image, a folder or a glob of images.
        target: the video, or a folder for PNG images. `TARGET.metrics.json` is written beside it.
        vae: the model; the embedded one by default.
        clip_frames: frames that are decoded as one clip; `None` for the whole video. It changes the pixels. Of no
            meaning where the model is an image autoencoder, which decodes each frame by itself.
        overlap: frames that neighbouring clips share and cross-fade over.
        compare: write a side-by-side video and a contact sheet too.
        charts: write `TARGET.charts.svg` and `TARGET.charts.png` too: the figures over time.
        report: an HTML file that shows all of it, and needs no other file; needs the extra `report`.
        command: what the report says it was made by; this call by default, nothing if empty.
        latents: a latent file, for what was decoded.
        source_copy: a video of the frames as they were read, to be shown beside the result.
        codec: how the video is written, see `Output`.
        crf: see `Output`.
        audio: see `Output`.
        memory_limit: bytes that the model may take above its weights, or an amount as `"4GiB"`; the same pixels. By
            default that of `vae.enable_tiling`, or else what is free. See `docs/memory.md` for what comes on top.
        progress: told how far the work is, see `Progress`.
        coder_type: makes what computes, such as a `Coder` that shares its work with other ranks.
        **selection: what part is read, see `Selection`.

    Returns:
        Quality, time and memory.

    Raises:
        InputError: an overlap of clips for an image autoencoder; a report where its extra is not installed.
        MediaError: a source that cannot be read or a target that cannot be written.
        MemoryLimitError: a limit that is too small; nothing is written then.
    """
    command = call_text(reconstruct_video, locals()) if command is None else command
    check_writable(target)
    target, started = Path(target), perf_counter()
    beside = ByProducts(
        target, compare=compare, charts=charts, page=report, latents=latents, source_copy=source_copy
    )
    vae = vae or AutoencoderKLTemporalDecoder.from_embedded()
    model_clock = _Stopwatch()
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source, **selection))
        check_apart([target, *beside.paths], reader.files)
        coder = coder_type(vae, reader.height, reader.width, memory_limit=memory_limit, progress=progress)
        clip_frames = coder.clip_frames(clip_frames, overlap)
        if reader.expected_frames is not None:
            coder.work.expect(_reconstruction_work(coder, reader.expected_frames, clip_frames, overlap))
        shown = _as_shown(reader, selection)
        stack.enter_context(beside.opened(reader, shown, partial(_describe, reader, selection, vae)))
        writer = stack.enter_context(
            VideoWriter(target, codec=codec, crf=crf, audio_from=source, audio=audio, **shown)
        )

        def reconstruct(clip: Clip) -> tuple[Clip, Clip, tuple[Tensor, Tensor]]:
            beside.note_plans(coder, len(clip))
            with model_clock:
                mean, logvar = coder.encode_clip(clip.frames)
                return clip, clip.replace(coder.decode(mean)), (mean, logvar)

        def finish(original: Clip, result: Clip) -> None:
            writer.write(result.frames, result.timestamps)
            beside.write(original, result)

        stack.enter_context(coder.work.reported())
        clips = reader.clips(clip_frames, overlap)
        reconstructed = stack.enter_context(closing(stream(reconstruct, clips)))
        originals, results = Stitcher(overlap), Stitcher(overlap)
        for clip, result, posterior in reconstructed:
            beside.keep(*posterior, clip.timestamps, overlap)
            for pieces in zip(originals.push(clip), results.push(result), strict=True):
                finish(*pieces)
        for pieces in zip(originals.finish(), results.finish(), strict=True):
            finish(*pieces)
        # Whatever can fail does so before the first of the outputs appears.
        writer.finish(reader.last_duration)
        found = Report(
            source=str(source),
            target=str(target),
            model=ModelIdentity.of(vae).name,
            dtype=str(vae.dtype).removeprefix("torch."),
            device=str(vae.device),
            width=reader.width,
            height=reader.height,
            clip_frames=clip_frames if vae.network.temporal else 1,
            overlap=overlap,
            quality=beside.quality,
            model_seconds=model_clock.seconds,
            total_seconds=perf_counter() - started,
            peak_memory=peak_memory(vae.device),
        )
        beside.finish(found, vae, command, reader.last_duration)
    return found


def _reconstruction_work(coder: Coder, frames: int, clip_frames: int | None, overlap: int) -> int:
    lengths = [stop - start for start, stop in clip_starts(frames, clip_frames, overlap)]
    return coder.encode_work(sum(lengths)) + sum(map(coder.decode_work, lengths))


def _describe(reader: VideoReader, selection: Selection, vae: Autoencoder) -> LatentInfo:
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
        "color": reader.color,
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


def _some(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Lists of `count` items; the last may be shorter."""
    rest = iter(items)
    while some := list(islice(rest, count)):
        yield some


def _draw(mean: Tensor, logvar: Tensor, numbers: range, seed: int | None) -> Tensor:
    """The mean of the posterior, or a sample of it where there is a seed.

    The noise of a frame follows from the seed and the frame's number: all clips that share it see the same.
    """
    if seed is None:
        return mean
    noise = np.empty(mean.shape, dtype=np.float32)
    for number, one in zip(numbers, noise, strict=True):
        key = np.array(
            [seed % 2**64, number], dtype=np.uint64
        )  # a counter's key: no two frames share numbers
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=one)
    return mean + torch.exp(0.5 * logvar.float()) * torch.from_numpy(noise)


def _sha256(path: Path) -> str:
    """Hash of a file; empty for a folder or a pattern."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
