"""The video autoencoder of Stable Video Diffusion: configuration, decoding, the embedded model."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder as Published
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from typing_extensions import Self

from temporal_vae import engine
from temporal_vae.amounts import MemoryLimit
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.checkpoints import loading
from temporal_vae.model.checks import DOWN_BLOCK, channels_into, check_config, check_latents
from temporal_vae.model.decoder import TemporalDecoder
from temporal_vae.model.encoder import Encoder
from temporal_vae.streams import stream


class AutoencoderKLTemporalDecoder(Autoencoder, Published):  # type: ignore[misc]
    """The video autoencoder of Stable Video Diffusion: an image encoder, and a decoder with temporal layers.

    Frames are `(b*t, c, h, w)` with values in [-1, 1], latents `(b*t, latent_channels, h/f, w/f)` with
    `f = 2 ** (len(block_out_channels) - 1)`. It derives from the diffusers class so that pipelines and tools that ask
    for that type accept it; the network and everything computed with it is this package's own.

    Args:
        in_channels: channels of the frames that are encoded.
        out_channels: channels of the frames that are decoded.
        down_block_types: `"DownEncoderBlock2D"` once per level.
        block_out_channels: width of each level, from the full picture to the smallest; multiples of 32. With
            fewer than 64 every norm is an instance norm, which erases what a picture's mean carries.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        sample_size: height and width the model was trained for; informative.
        scaling_factor: `1 / std` of the latents over the training data. Diffusion models work on
            `latents * scaling_factor`; `encode` and `decode` work on the unscaled ones.
        force_upcast: a pipeline in float16 runs `encode` in float32 if true.

    Raises:
        ConfigError: a value from which no network can be built.
    """

    clips = True
    _published = Published
    encoder: Encoder
    decoder: TemporalDecoder
    quant_conv: nn.Conv2d

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = (DOWN_BLOCK,),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        force_upcast: bool = True,
    ) -> None:
        numbers: dict[str, Any] = {
            "latent_channels": latent_channels,
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
        }
        check_config(
            down_block_types=down_block_types,
            scaling_factor=scaling_factor,
            in_channels=in_channels,
            out_channels=out_channels,
            **numbers,
        )
        super(Published, self).__init__()  # the parent itself would build its own network
        self.encoder = Encoder(in_channels=in_channels, **numbers)
        self.decoder = TemporalDecoder(out_channels=out_channels, **numbers)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self._begin(sample_size)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self, z: Tensor, num_frames: int, return_dict: bool = True, *, memory_limit: MemoryLimit = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents of whole clips into frames.

        Args:
            z: unscaled latents `(b*t, latent_channels, h, w)`, the frames of each clip one after the other.
            num_frames: `t`, the length of a clip: 25 frames decoded as 14 and 11 give other pixels.
            return_dict: return a `DecoderOutput` rather than a tuple.
            memory_limit: as in `encode`.

        Returns:
            `DecoderOutput(sample)`, or `(sample,)`: frames `(b*t, out_channels, h*f, w*f)`, about [-1, 1].

        Raises:
            InputError: wrong rank, channels or type, or a batch that `num_frames` does not divide.
            MemoryLimitError: as `encode`.
        """
        if not torch.compiler.is_compiling():
            check_latents(z, num_frames, channels=channels_into(self.decoder))
        limit = self._limit(memory_limit)
        frames = engine.decode(self.decoder, z, self.network, num_frames=num_frames, memory_limit=limit)
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        num_frames: int = 1,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode frames `(b*t, in_channels, h, w)`, values in [-1, 1]; returns and raises as `decode`.

        `sample_posterior` decodes a sample of the posterior, drawn with `generator`, rather than its mode.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        frames = self.decode(z, num_frames=num_frames).sample
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    def decode_stream(
        self, clips: Iterable[Tensor], *, memory_limit: MemoryLimit = None
    ) -> Generator[Tensor, None, None]:
        """Decode clip after clip of a long video, each as a whole, as `encode_stream` encodes them.

        `clips` are unscaled latents `(t, latent_channels, h, w)`, each tensor one clip of `t` frames; what comes are
        frames `(t, out_channels, h*f, w*f)`, about [-1, 1], not clamped.
        """

        def decode(clip: Tensor) -> Tensor:
            check_latents(clip, 1, channels=channels_into(self.decoder))
            return self.decode(clip, num_frames=len(clip), memory_limit=memory_limit).sample

        return stream(decode, clips)

    def plan_decode(
        self,
        *,
        num_frames: int,
        height: int,
        width: int,
        memory_limit: MemoryLimit = None,
        clips: int = 1,
    ) -> engine.Plan:
        """How clips of `num_frames` frames of `height` x `width` pixels would be decoded; `print` shows it.

        Raises:
            InputError: a size that no latents have, or a limit that cannot be read.
            MemoryLimitError: a limit that is too small; the message says which is not.
        """
        return self._plan(
            "decode", memory_limit, num_frames=num_frames, height=height, width=width, clips=clips
        )

    @classmethod
    def from_embedded(cls, torch_dtype: torch.dtype = torch.float32) -> Self:
        """Load the small model that ships with the package (see its card, `checkpoints/embedded/README.md`)."""
        model: Self = cls.from_pretrained(loading.EMBEDDED, torch_dtype=torch_dtype)
        return model
