"""The model at work on one video: frames in, frames out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cached_property

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.engine.plan import DEVICES, Plan, plan_decode, plan_encode
from temporal_vae.video.frames import Frames, crop_to, pad_to_multiple
from temporal_vae.video.tensors import to_frames, to_tensor
from temporal_vae.video.work import Progress, Work

_MOST_TOGETHER = 25  # frames of one call of the encoder
_TOGETHER_ELSEWHERE = 4  # where the engine does not run, and nothing is planned


class Coder:
    """Encodes and decodes frames of one size, padded to the model's factor and cropped back.

    Args:
        vae: the model.
        height: of the frames, in pixels.
        width: of the frames.
        progress: told how far the work is, within `work.reported()`.

    Attributes:
        work: what is done. Its unit is that of `encode_work` and `decode_work`.
    """

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        height: int,
        width: int,
        progress: Progress | None = None,
    ) -> None:
        self.work = Work(progress)
        self._vae = vae
        # Elsewhere modules run, and of a plan only the arithmetic counts.
        self._plans = vae.device.type in DEVICES
        self._shown = height, width
        factor = vae.spatial_factor
        self._padded = {"height": height + -height % factor, "width": width + -width % factor}

    @cached_property
    def _encoder(self) -> AutoencoderKLTemporalDecoder:
        """The model to encode with, made when it is first asked for: who only decodes needs none."""
        return _as_encoder(self._vae)

    @property
    def together(self) -> int:
        """How many frames the engine encodes together: calls of so many cost the least.

        Raises:
            MemoryLimitError: not even one frame can be encoded within the model's limit.
        """
        plan = self._plan_encode(_MOST_TOGETHER)
        return plan.frames if self._plans else _TOGETHER_ELSEWHERE

    def encode_work(self, frames: int) -> int:
        """Multiply-adds to encode so many frames; raises as `together`."""
        plan = self._plan_encode(self.together)
        return plan.work // plan.batch * frames

    def decode_work(self, frames: int) -> int:
        """Multiply-adds to decode a clip of so many frames.

        Raises:
            MemoryLimitError: the clip cannot be decoded within the model's limit.
        """
        if self._plans:
            return self._vae.plan_decode(num_frames=frames, **self._padded).work
        return plan_decode(self._vae._network, num_frames=frames, workers=1, **self._padded).work

    @torch.inference_mode()
    def encode(self, frames: Frames) -> DiagonalGaussianDistribution:
        """Posterior of frames `(t, h, w, 3)`."""
        vae = self._encoder
        x = to_tensor(pad_to_multiple(frames, vae.spatial_factor))
        with self.work.call(self.encode_work(len(frames))):
            return vae.encode(x.to(vae.device, vae.dtype)).latent_dist

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Frames `(t, h, w, 3)` of a clip of latents `(t, z, h/f, w/f)`."""
        latents = latents.to(self._vae.device, self._vae.dtype)
        with self.work.call(self.decode_work(len(latents))):
            x = self._vae.decode(latents, num_frames=len(latents)).sample
        return crop_to(to_frames(x), *self._shown)

    def reconstruct(self, frames: Frames) -> Frames:
        """Encode frames `(t, h, w, 3)` and decode the mean of their latents as one clip."""
        step = self.together
        latents = [self.encode(frames[i : i + step]).mode() for i in range(0, len(frames), step)]
        return self.decode(torch.cat(latents))

    def _plan_encode(self, frames: int) -> Plan:
        if self._plans:
            return self._encoder.plan_encode(num_frames=frames, **self._padded)
        return plan_encode(self._encoder._network, num_frames=frames, workers=1, **self._padded)


def _as_encoder(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKLTemporalDecoder:
    """The model to encode with: its encoder is cast to float32, once, where a float16 model asks for `force_upcast`."""
    if vae.dtype != torch.float16 or not vae.config.force_upcast:
        return vae
    upcast = copy(vae)
    upcast._modules = dict(vae._modules)
    upcast.encoder, upcast.quant_conv = deepcopy(vae.encoder).float(), deepcopy(vae.quant_conv).float()
    return upcast


@contextmanager
def memory_limited(vae: AutoencoderKLTemporalDecoder, memory_limit: int | str | None) -> Iterator[None]:
    """Keep the model within a limit, as `vae.enable_tiling` does; `None` leaves the limit that it has."""
    before = vae.use_tiling, vae.memory_limit
    if memory_limit is not None:
        vae.enable_tiling(memory_limit=memory_limit)
    try:
        yield
    finally:
        vae.enable_tiling(before[0], memory_limit=before[1])
