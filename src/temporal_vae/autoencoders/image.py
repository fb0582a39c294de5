"""The image autoencoders of Stable Diffusion 1.x, 2.x, XL and 3, of FLUX and of FLUX.2."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderKL as PublishedKL
from diffusers import AutoencoderKLFlux2 as PublishedFlux2
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from temporal_vae import engine
from temporal_vae.amounts import MemoryLimit
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.model.checks import DOWN_BLOCK, UP_BLOCK, channels_into, check_image_config, check_latents
from temporal_vae.streams import stream

_CHECKED = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "decoder_block_out_channels", "layers_per_block", "act_fn", "latent_channels", "norm_num_groups", "sample_size",
)  # fmt: skip


class ImageAutoencoder(Autoencoder):
    """An image encoder, and a decoder of the same blocks: each picture by itself.

    Pictures are `(n, c, h, w)` with values in [-1, 1], latents `(n, latent_channels, h/f, w/f)` with
    `f = 2 ** (len(block_out_channels) - 1)`.
    """

    post_quant_conv: Any  # or None

    def _build(self) -> None:
        """Make the network of the configuration.

        Raises:
            ConfigError: a value from which none can be built.
        """
        config = self.config
        check_image_config(**{key: config.get(key) for key in _CHECKED})
        encoder, of_encoder = engine.built("encode", self.network)
        decoder, of_decoder = engine.built("decode", self.network)
        self.encoder, self.decoder = encoder(**of_encoder), decoder(**of_decoder)
        channels = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        *,
        memory_limit: MemoryLimit = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents into pictures, each by itself.

        Args:
            z: unscaled latents `(n, latent_channels, h, w)`.
            return_dict: return a `DecoderOutput` rather than a tuple.
            generator: of no use; pipelines pass one to every autoencoder.
            memory_limit: as in `encode`.

        Returns:
            `DecoderOutput(sample)`, or `(sample,)`: pictures `(n, out_channels, h*f, w*f)`, about [-1, 1].

        Raises:
            InputError: wrong rank, channels or type.
            MemoryLimitError: as `encode`.
        """
        if not torch.compiler.is_compiling():
            check_latents(z, 1, channels=channels_into(self.decoder))
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        pictures = engine.decode(self.decoder, z, self.network, memory_limit=self._limit(memory_limit))
        return DecoderOutput(sample=pictures) if return_dict else (pictures,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode pictures `(n, in_channels, h, w)`, values in [-1, 1]; returns and raises as `decode`.

        `sample_posterior` decodes a sample of the posterior, drawn with `generator`, rather than its mode.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        pictures = self.decode(z).sample
        return DecoderOutput(sample=pictures) if return_dict else (pictures,)

    def _encode(self, x: Tensor) -> Tensor:
        """The moments that `encode` makes a posterior of."""
        moments: Tensor = self.encode(x).latent_dist.parameters
        return moments

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode`, by the name that code written for diffusers may call."""
        return self.decode(z, return_dict)

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """`encode`: in diffusers tiles that are blended, here the exact result, whose tiles cannot be told."""
        return self.encode(x, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """`decode`: as `tiled_encode`."""
        return self.decode(z, return_dict)

    def decode_stream(
        self, batches: Iterable[Tensor], *, memory_limit: MemoryLimit = None
    ) -> Generator[Tensor, None, None]:
        """Decode batch after batch of latents `(n, latent_channels, h, w)`, as `encode_stream` encodes them.

        What comes are pictures `(n, out_channels, h*f, w*f)`, about [-1, 1], not clamped.
        """
        return stream(lambda batch: self.decode(batch, memory_limit=memory_limit).sample, batches)

    def plan_decode(
        self, *, height: int, width: int, num_frames: int = 1, memory_limit: MemoryLimit = None
    ) -> engine.Plan:
        """How `num_frames` pictures of `height` x `width` pixels would be decoded; `print` shows it.

        Raises:
            InputError: a size that no latents have, or a limit that cannot be read.
            MemoryLimitError: a limit that is too small; the message says which is not.
        """
        return self._plan("decode", memory_limit, num_frames=num_frames, height=height, width=width)


class AutoencoderKL(ImageAutoencoder, PublishedKL):  # type: ignore[misc]
    """The image autoencoder of Stable Diffusion 1.x, 2.x, XL and 3, and of FLUX.

    It derives from the diffusers class so that pipelines and tools that ask for that type accept it; the network and
    everything computed with it is this package's own. Pictures and latents are those of `ImageAutoencoder`.

    Args:
        in_channels: channels of the pictures that are encoded.
        out_channels: channels of the pictures that are decoded.
        down_block_types: of each level of the encoder, `"DownEncoderBlock2D"`, or `"AttnDownEncoderBlock2D"` for one
            with attentions.
        up_block_types: of each level of the decoder, the smallest first, `"UpDecoderBlock2D"` or
            `"AttnUpDecoderBlock2D"`.
        block_out_channels: width of each level, from the full picture to the smallest; the engine runs multiples of 32,
            others are left to the modules.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        act_fn: `"silu"`, of all published models.
        latent_channels: channels of the latents.
        norm_num_groups: groups of every norm.
        sample_size: height and width the model was trained for; informative.
        scaling_factor: diffusion models work on `(latents - shift_factor) * scaling_factor`; `encode` and `decode`
            work on the unscaled ones.
        shift_factor: see `scaling_factor`; None is 0.
        latents_mean: of each channel, for pipelines that scale by it; not used here.
        latents_std: as `latents_mean`.
        force_upcast: pipelines in float16 run this model in float32 if true. The engine's float16 needs no such thing.
        use_quant_conv: whether a 1x1 convolution makes the moments.
        use_post_quant_conv: whether latents pass a 1x1 convolution before they are decoded.
        mid_block_add_attention: whether there is attention at the lowest resolution.

    Raises:
        ConfigError: a value from which no network can be built.
    """

    _published = PublishedKL

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = (DOWN_BLOCK,),
        up_block_types: tuple[str, ...] = (UP_BLOCK,),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super(PublishedKL, self).__init__()  # the parent itself would build its own network
        self._build()
        self._begin(sample_size)


class AutoencoderKLFlux2(ImageAutoencoder, PublishedFlux2):  # type: ignore[misc]
    """The image autoencoder of FLUX.2, as `AutoencoderKL` is that of the models before it.

    Pipelines normalise patches of its latents by the running mean and variance in `bn`, which this class only carries.

    Args:
        in_channels: as in `AutoencoderKL`, and so are all that are not named here.
        out_channels: see there.
        down_block_types: see there.
        up_block_types: see there.
        block_out_channels: see there.
        decoder_block_out_channels: widths of the decoder where it is narrower than the encoder; as many levels.
        layers_per_block: see there.
        act_fn: see there.
        latent_channels: see there.
        norm_num_groups: see there.
        sample_size: see there.
        use_quant_conv: see there.
        use_post_quant_conv: see there.
        mid_block_add_attention: see there.
        batch_norm_eps: of `bn`.
        batch_norm_momentum: of `bn`.
        patch_size: height and width of the patches, in latents.

    Raises:
        ConfigError: a value from which no network can be built.
    """

    _published = PublishedFlux2

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = (DOWN_BLOCK,) * 4,
        up_block_types: tuple[str, ...] = (UP_BLOCK,) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        decoder_block_out_channels: tuple[int, ...] | None = None,
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 32,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 1024,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        batch_norm_eps: float = 1e-4,
        batch_norm_momentum: float = 0.1,
        patch_size: tuple[int, int] = (2, 2),
    ) -> None:
        super(PublishedFlux2, self).__init__()
        self._build()
        channels = prod(patch_size) * latent_channels
        self.bn = nn.BatchNorm2d(channels, eps=batch_norm_eps, momentum=batch_norm_momentum, affine=False)
        self._begin(sample_size)
