"""What the model does with what clients send: tensors, images and videos out of latents, latents out of pixels.

Each call is planned from its parameters alone, before its body is read: what it holds in memory, what it computes, and
whether the server's limit allows for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from temporal_vae import engine
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.media.frames import Frames
from temporal_vae.media.writer import VideoWriter
from temporal_vae.serve import tensors
from temporal_vae.serve.answers import Answer
from temporal_vae.serve.pictures import open_picture
from temporal_vae.serve.queries import DecodeQuery, EncodeQuery
from temporal_vae.serve.refusals import bad, too_large
from temporal_vae.serve.tensors import TENSOR, Layout
from temporal_vae.video.coder import as_encoder
from temporal_vae.video.scaling import scaled, unscaled

_WARM_UP_FRAMES, _WARM_UP_SIDE = 2, 64
MIME = {"jpg": "image/jpeg", "png": "image/png"}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request before it is computed.

    Attributes:
        body: bytes that it comes with.
        held: bytes that its tensors take while it waits and is answered.
        work: multiply-adds.
        answer: makes the answer of the body, in the thread that computes.
    """

    body: int
    held: int
    work: int
    answer: Callable[[bytearray], Answer]


class Coding:
    """One model and what it may take.

    Args:
        vae: the model.
        memory_limit: bytes that the engine may take above it.
    """

    def __init__(self, vae: Autoencoder, memory_limit: int) -> None:
        self.vae, self._encoder = vae, as_encoder(vae)
        self._limit = memory_limit
        self._itemsize = vae.dtype.itemsize

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Encode and decode a little clip, which compiles the kernels."""
        channels, side = self.vae.config["in_channels"], _WARM_UP_SIDE
        z = self._latents_of(torch.zeros(_WARM_UP_FRAMES, channels, side, side))
        self._frames_of(z, _WARM_UP_FRAMES)

    def decode(self, query: DecodeQuery, *, wants_tensor: bool) -> Call:
        """Plan `POST /decode`.

        Args:
            query: the parameters.
            wants_tensor: whether the client accepts a tensor, which decides what `pil` is.

        Raises:
            Refusal: no such latents, more than one picture for an image, or more than fits the memory limit.
        """
        layout = Layout.of(query.shape)
        self._check_channels("latents", layout, self.vae.config["latent_channels"])
        factor = self.vae.spatial_factor
        height, width = factor * layout.height, factor * layout.width
        _check_size(query, height, width)
        as_image = query.output_type == "pil" and not wants_tensor
        if as_image and layout.count != 1:
            raise bad(
                f"{layout.count} frames do not go into one image; ask for output_type pt or mp4, or pass a processor"
            )
        if query.output_type == "mp4" and layout.clips != 1:
            raise bad(f"{layout.clips} clips do not go into one video; send them one by one")
        pixels = 3 * layout.count * height * width
        levels = query.partial_postprocess or as_image or query.output_type == "mp4"
        self._check_scaling(query)
        body = tensors.nbytes(query.shape, query.dtype)
        plan = self._plan("decode", layout, height, width)
        return Call(
            body=body,
            held=2 * body + pixels * (1 if levels else self._itemsize),
            work=plan.work,
            answer=lambda content: self._decoded(content, query, layout, as_image=as_image),
        )

    def encode(self, query: EncodeQuery) -> Call:
        """Plan `POST /encode` of a tensor.

        Raises:
            Refusal: no such pixels, or more than fits the memory limit.
        """
        shape, dtype = query.shape, query.dtype
        if shape is None or dtype is None:
            raise bad("a tensor comes with shape and dtype, an image with neither")
        layout = Layout.of(shape)
        self._check_channels("pixels", layout, self.vae.config["in_channels"])
        self._check_scaling(query)
        plan = self._plan("encode", layout, layout.height, layout.width)
        body = tensors.nbytes(shape, dtype)
        return Call(
            body=body,
            held=2 * body + self._latents_bytes(layout),
            work=plan.work,
            answer=lambda content: self._encoded(tensors.read(content, shape, dtype), query, layout),
        )

    def encode_picture(self, query: EncodeQuery, content: bytearray) -> Call:
        """Plan `POST /encode` of an image, by its header.

        Raises:
            Refusal: no image, or more than fits the memory limit.
        """
        width, height = open_picture(content).size
        self._check_scaling(query)
        factor = self.vae.spatial_factor
        layout = Layout.of((1, 3, height - height % factor, width - width % factor))
        if not layout.height or not layout.width:
            raise bad(
                f"an image of {width}x{height} is smaller than a latent, {factor}x{factor}; send a larger one"
            )
        plan = self._plan("encode", layout, layout.height, layout.width)
        return Call(
            body=len(content),
            held=len(content) + 16 * width * height * 3 + self._latents_bytes(layout),
            work=plan.work,
            answer=lambda content: self._encoded_picture(content, query),
        )

    def _plan(self, task: engine.Task, layout: Layout, height: int, width: int) -> engine.Plan:
        vae = self.vae if task == "decode" else self._encoder
        what = f"{task}: {layout.count} frames of {height}x{width} (height x width)"
        if min(height, width) < vae.spatial_factor:
            raise bad(
                f"{what} are smaller than a latent, {vae.spatial_factor} pixels a side; send larger ones"
            )
        least = 3 * layout.count * height * width * self._itemsize
        if least > self._limit:  # before planning takes long
            raise too_large(
                f"{what} take more than {engine.readable(least)}, and this server computes within "
                f"{engine.readable(self._limit)}; send less, or start it with more --memory-limit"
            )
        if (
            vae.device.type not in engine.DEVICES
        ):  # modules run there, and of a plan only the arithmetic counts
            return engine.plan(
                task, vae.network, num_frames=layout.count, height=height, width=width, workers=1
            )
        size = {"height": height, "width": width, "memory_limit": self._limit}
        if task == "decode" and vae.network.temporal:
            return vae.plan_decode(num_frames=layout.frames, clips=layout.clips, **size)
        planner = vae.plan_decode if task == "decode" else vae.plan_encode
        return planner(num_frames=layout.count, **size)

    def _check_channels(self, what: str, layout: Layout, expected: int) -> None:
        if layout.channels != expected:
            place = "second of (b, c, t, h, w)" if layout.by_clips else "second of (t, c, h, w)"
            raise bad(
                f"{what} of {layout.channels} channels; this model has {expected}, the {place}: send those of this "
                "model, which GET /info tells of"
            )

    def _check_scaling(self, query: DecodeQuery | EncodeQuery) -> None:
        if query.do_scaling and query.scaling_factor is None and "scaling_factor" not in self.vae.config:
            raise bad(
                f"do_scaling: pipelines of {type(self.vae).__name__} normalise patches of latents, for which it has no "
                "factor; undo that before, and send do_scaling=false"
            )

    def _latents_bytes(self, layout: Layout) -> int:
        area = (layout.height // self.vae.spatial_factor) * (layout.width // self.vae.spatial_factor)
        return 2 * layout.count * self.vae.config["latent_channels"] * area * self._itemsize

    def _frames_of(self, z: Tensor, frames: int) -> Tensor:
        """Latents of clips of so many frames, or of pictures, decoded."""
        vae = self.vae
        length = {"num_frames": frames} if vae.network.temporal else {}
        found: Tensor = vae.decode(z.to(vae.device, vae.dtype), **length, memory_limit=self._limit).sample
        return found

    def _latents_of(self, frames: Tensor) -> Tensor:
        """Frames encoded, to the mean of their latents."""
        vae = self._encoder
        return vae.encode(frames.to(vae.device, vae.dtype), memory_limit=self._limit).latent_dist.mode()

    @torch.inference_mode()
    def _decoded(self, content: bytearray, query: DecodeQuery, layout: Layout, *, as_image: bool) -> Answer:
        z = _unscaled(layout.to_frames(tensors.read(content, query.shape, query.dtype)), query, self.vae)
        x = _finite(self._frames_of(z, layout.frames), "pictures")
        if as_image:
            return _image(to_levels(x)[0], query.image_format)
        if query.output_type == "mp4":
            return _video(to_levels(x), query.fps)
        if query.output_type == "pil":
            return _tensor(_in_unit_range(x))
        return _tensor(torch.from_numpy(to_levels(x)) if query.partial_postprocess else layout.from_frames(x))

    @torch.inference_mode()
    def _encoded(self, x: Tensor, query: EncodeQuery, layout: Layout) -> Answer:
        latents = self._latents_of(layout.to_frames(x))
        scaled_latents = _finite(_scaled(latents, query, self.vae).to(self.vae.dtype), "latents")
        return _tensor(layout.from_frames(scaled_latents))

    def _encoded_picture(self, content: bytearray, query: EncodeQuery) -> Answer:
        """An image as diffusers prepares it, encoded; only now it is known whether a tag behind its pixels turns it."""
        with open_picture(content) as picture:
            rgb = picture.upright()
        pixels = VaeImageProcessor(vae_scale_factor=self.vae.spatial_factor).preprocess(rgb)
        return self._encoded(pixels, query, Layout.of(pixels.shape))


def to_levels(x: Tensor) -> Frames:
    """Frames about [-1, 1] `(n, 3, h, w)` as uint8 `(n, h, w, 3)`, rounded as diffusers does."""
    levels = np.empty((len(x), *x.shape[2:], 3), np.uint8)
    for level, frame in zip(levels, x, strict=True):
        unit = _in_unit_range(frame.float()) * 255
        level[:] = unit.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return levels


def _in_unit_range(x: Tensor) -> Tensor:
    """From about [-1, 1] to [0, 1], in place."""
    return x.mul_(0.5).add_(0.5).clamp_(0, 1)


def _finite(x: Tensor, what: str) -> Tensor:
    """Nobody gets black pictures for want of a word.

    Raises:
        Refusal: values that overflowed.
    """
    if not tensors.is_finite(x):
        kind = str(x.dtype).removeprefix("torch.")
        raise bad(
            f"the {what} hold values that are not finite: what was sent is larger than this model takes in {kind}, "
            "or its scaling_factor or shift_factor are wrong; look at its range"
        )
    return x


def _unscaled(z: Tensor, query: DecodeQuery, vae: Autoencoder) -> Tensor:
    """Latents of a diffusion model as the autoencoder takes them, as far as the client asks for it."""
    if query.scaling_factor is None and query.do_scaling:
        return unscaled(z, vae, query.shift_factor)
    if query.scaling_factor is not None:
        z = z.float() / query.scaling_factor
    return z if query.shift_factor is None else z.float() + query.shift_factor


def _scaled(latents: Tensor, query: EncodeQuery, vae: Autoencoder) -> Tensor:
    """The other way round."""
    if query.scaling_factor is None and query.do_scaling:
        return scaled(latents, vae, query.shift_factor)
    if query.shift_factor is not None:
        latents = latents.float() - query.shift_factor
    return latents if query.scaling_factor is None else latents.float() * query.scaling_factor


def _check_size(query: DecodeQuery, height: int, width: int) -> None:
    """Whoever tells the size of the pictures must mean those that come out."""
    for name, told, found in (("height", query.height, height), ("width", query.width, width)):
        if told not in (None, found):
            raise bad(
                f"{name}={told}: latents of this shape make pictures of {height}x{width} (height x width); "
                "leave it out"
            )


def _tensor(x: Tensor) -> Answer:
    return Answer(tensors.content(x), TENSOR, tensors.headers(x))


def _image(levels: Frames, image_format: str) -> Answer:
    buffer = BytesIO()
    how = {"format": "JPEG", "quality": 95} if image_format == "jpg" else {"format": "PNG"}
    Image.fromarray(levels).save(buffer, **how)
    return Answer(buffer.getvalue(), MIME[image_format])


def _video(levels: Frames, fps: float) -> Answer:
    rate = Fraction(fps).limit_denominator(1001)
    with TemporaryDirectory(prefix="temporal-vae-") as folder:
        target = Path(folder) / "video.mp4"
        with VideoWriter(target, rate=rate) as writer:
            writer.write(levels, [number / rate for number in range(len(levels))])
            writer.finish(1 / rate)
        return Answer(target.read_bytes(), "video/mp4")
