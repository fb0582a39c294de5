"""The model at work on one video: frames in, frames out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging
from torch import Tensor

from temporal_vae import engine
from temporal_vae.amounts import MemoryLimit, parse_memory
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.errors import InputError
from temporal_vae.media.frames import Frames, crop_to, pad_to_multiple
from temporal_vae.video.latents import ENCODING, encoder_weights
from temporal_vae.video.work import Progress, Work

CLIP_FRAMES = 25  # the clip length Stable Video Diffusion was tuned for

_MOST_TOGETHER = 25  # frames of one call of the encoder, and pictures of one of an image decoder
_TOGETHER_ELSEWHERE = 4  # where the engine does not run, and nothing is planned

logger = logging.get_logger(__name__)


class Coder:
    """Encodes and decodes frames of one size, padded to the model's factor and cropped back.

    Args:
        vae: the model. It is not changed: others may use it at the same time.
        height: of the frames, in pixels.
        width: of the frames.
        memory_limit: bytes above the loaded model, or an amount as `"4GiB"`; None is the model's own.
        progress: told how far the work is, within `work.reported()`.

    Attributes:
        work: what is done. Its unit is that of `encode_work` and `decode_work`.
        clips_together: how many clips `decode_clips` takes at once to best effect.

    Raises:
        InputError: a limit that cannot be read.
    """

    def __init__(
        self,
        vae: Autoencoder,
        height: int,
        width: int,
        *,
        memory_limit: MemoryLimit = None,
        progress: Progress | None = None,
    ) -> None:
        self.work = Work(progress)
        self.clips_together = 1
        self._vae = vae
        self._limit = vae.memory_limit if memory_limit is None else parse_memory(memory_limit)
        # Elsewhere modules run, and of a plan only the arithmetic counts.
        self._plans = vae.device.type in engine.DEVICES
        self._shown = height, width
        factor = vae.spatial_factor
        self._padded = height + -height % factor, width + -width % factor

    @cached_property
    def _encoder(self) -> Autoencoder:
        """The model to encode with, made when it is first asked for: who only decodes needs none."""
        return as_encoder(self._vae)

    @property
    def together(self) -> int:
        """How many frames the engine encodes together: calls of so many cost the least.

        Raises:
            MemoryLimitError: not even one frame can be encoded within the limit.
        """
        plan = self._plan("encode", _MOST_TOGETHER)
        return plan.frames if self._plans else _TOGETHER_ELSEWHERE

    def clip_frames(self, asked: int | None, overlap: int) -> int | None:
        """How many frames are decoded at a time: a clip, or as many pictures as cost the least.

        Args:
            asked: length of a clip; None for all frames.
            overlap: frames that clips share.

        Raises:
            InputError: an overlap of pictures, which an image autoencoder decodes each by itself.
            MemoryLimitError: not even one frame can be decoded within the limit.
        """
        name = type(self._vae).__name__
        if self._vae.network.temporal:
            return asked
        if overlap:
            raise InputError(
                f"overlap={overlap}: {name} is an image autoencoder and decodes each frame by itself; leave it out"
            )
        if asked not in (None, 1, CLIP_FRAMES):
            logger.warning("clip_frames=%s has no meaning: %s decodes each frame by itself", asked, name)
        return self._plan("decode", _MOST_TOGETHER).frames if self._plans else _TOGETHER_ELSEWHERE

    def encode_work(self, frames: int) -> int:
        """Multiply-adds to encode so many frames; raises as `together`."""
        plan = self._plan("encode", self.together)
        return plan.work // plan.batch * frames

    def decode_work(self, frames: int) -> int:
        """Multiply-adds to decode a clip of so many frames, or so many pictures.

        Raises:
            MemoryLimitError: the clip cannot be decoded within the limit.
        """
        return self._plan("decode", frames).work

    def plans(self, frames: int) -> tuple[engine.Plan, ...]:
        """How a clip of so many frames is encoded and decoded; nothing where the engine does not plan.

        Raises:
            MemoryLimitError: as `together` and `decode_work`.
        """
        together = min(frames, self.together)
        return (self._plan("encode", together), self._plan("decode", frames)) if self._plans else ()

    @torch.inference_mode()
    def encode(self, frames: Frames) -> DiagonalGaussianDistribution:
        """Posterior of frames `(t, h, w, 3)`."""
        vae = self._encoder
        x = to_tensor(pad_to_multiple(frames, vae.spatial_factor))
        with self.work.call(self.encode_work(len(frames))):
            return vae.encode(x.to(vae.device, vae.dtype), memory_limit=self._limit).latent_dist

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Frames `(t, h, w, 3)` of a clip of latents `(t, z, h/f, w/f)`, or of pictures."""
        vae, count = self._vae, len(latents)
        length = {"num_frames": count} if vae.network.temporal else {}
        with self.work.call(self.decode_work(count)):
            x = vae.decode(latents.to(vae.device, vae.dtype), **length, memory_limit=self._limit).sample
        return crop_to(to_frames(x), *self._shown)

    def decode_clips(self, latents: Sequence[Tensor]) -> list[Frames]:
        """Frames of several clips, as `decode`."""
        return [self.decode(clip) for clip in latents]

    def encode_clip(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `(t, z, h/f, w/f)` of frames `(t, h, w, 3)`, as many at a time as cost the least."""
        step = self.together
        posteriors = [self.encode(frames[i : i + step]) for i in range(0, len(frames), step)]
        return torch.cat([one.mean for one in posteriors]), torch.cat([one.logvar for one in posteriors])

    def reconstruct(self, frames: Frames) -> Frames:
        """Encode frames `(t, h, w, 3)` and decode the mean of their latents as one clip."""
        return self.decode(self.encode_clip(frames)[0])

    def _plan(self, task: engine.Task, frames: int) -> engine.Plan:
        vae, (height, width) = self._encoder if task == "encode" else self._vae, self._padded
        if not self._plans:
            return engine.plan(task, vae.network, num_frames=frames, height=height, width=width, workers=1)
        planner = vae.plan_encode if task == "encode" else vae.plan_decode
        return planner(num_frames=frames, height=height, width=width, memory_limit=self._limit)


_encoders: WeakKeyDictionary[Autoencoder, tuple[list[tuple[int, int]], Autoencoder]] = WeakKeyDictionary()
"""Of models in float16, those to encode with, and which weights they were cast from."""


def as_encoder(vae: Autoencoder) -> Autoencoder:
    """The model to encode with: where a float16 model asks for `force_upcast`, its encoder is cast to float32, once."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        return vae
    parameters = encoder_weights(vae)
    weights = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
    kept, upcast = _encoders.get(vae, (None, vae))
    if kept != weights:
        upcast = copy(vae)
        upcast._modules = dict(vae._modules)
        for name in ENCODING:
            if (part := getattr(vae, name)) is not None:
                setattr(upcast, name, deepcopy(part).float())
        _encoders[vae] = weights, upcast
    return upcast


def to_tensor(frames: Frames) -> Tensor:
    """Uint8 frames `(t, h, w, 3)` as float32 `(t, 3, h, w)` in [-1, 1], channels-last in memory."""
    x = torch.empty(frames.shape)
    for values, frame in zip(x, frames, strict=True):
        values.copy_(torch.from_numpy(frame.astype(np.float32))).div_(127.5).sub_(1)
    return x.permute(0, 3, 1, 2)


def to_frames(x: Tensor) -> Frames:
    """What the model returned, `(t, 3, h, w)` about [-1, 1] on any device, as uint8 frames `(t, h, w, 3)`."""
    frames = np.empty((len(x), *x.shape[2:], x.shape[1]), np.uint8)
    for frame, values in zip(frames, x, strict=True):
        levels = values.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        frame[:] = levels.permute(1, 2, 0).cpu().numpy()
    return frames
