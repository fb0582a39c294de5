"""`AutoencoderKLTemporalDecoder`: configuration, encode, decode, save and load.

The public face of the network in `model/`. It takes the place of the diffusers class of the same name: same
weights, same calls, same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from logging import LogRecord as Record
from logging import getLogger as get_logger
from numbers import Integral
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder as Published
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils import logging
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from temporal_vae.amounts import parse_memory
from temporal_vae.checkpoints.stored import Stored
from temporal_vae.checks import DOWN_BLOCK, check_config, check_frames, check_latents
from temporal_vae.engine import gate, run
from temporal_vae.engine.budget import MIB, Network
from temporal_vae.engine.memory import free_memory
from temporal_vae.engine.plan import Plan, plan_decode, plan_encode
from temporal_vae.engine.progress import counter
from temporal_vae.errors import InputError
from temporal_vae.model.decoder import TemporalDecoder
from temporal_vae.model.encoder import Encoder
from temporal_vae.streams import stream

# A pipeline saves and loads parts from libraries it knows, by a base class that the library offers: tell it of ours.
LOADABLE_CLASSES["temporal_vae"] = {ModelMixin.__name__: ["save_pretrained", "from_pretrained"]}

logger = logging.get_logger(__name__)


class AutoencoderKLTemporalDecoder(Stored):
    """The video autoencoder of Stable Video Diffusion.

    A 2D image encoder, a diagonal Gaussian posterior, and a decoder with temporal residual blocks and a final
    convolution over time. Frames are `(b*t, c, h, w)` with values in [-1, 1], latents
    `(b*t, latent_channels, h/f, w/f)` with `f = 2 ** (len(block_out_channels) - 1)`.

    It derives from the diffusers class so that pipelines and tools that ask for that type accept it; the network
    and everything computed with it is this package's own.

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

    _supports_gradient_checkpointing = True

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
        check_config(
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            scaling_factor=scaling_factor,
            in_channels=in_channels,
            out_channels=out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
        )
        super(Published, self).__init__()  # the parent itself would build its own network
        self.encoder = Encoder(
            in_channels=in_channels,
            latent_channels=latent_channels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
        )
        self.decoder = TemporalDecoder(
            latent_channels=latent_channels,
            out_channels=out_channels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
        )
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self._unfused_processors: dict[str, Any] | None = None
        self._said: set[str] = set()
        self.memory_limit: int | None = None
        self.use_tiling = self.use_slicing = False
        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = max(1, sample_size // self.spatial_factor)
        self.tile_overlap_factor = 0.25
        self.register_state_dict_post_hook(_drop_fused_projections)

    @property
    def spatial_factor(self) -> int:
        """Pixels of a frame per latent, along height and along width."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    # Encode, decode, forward

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode frames into the posterior of their latents, each frame by itself.

        Args:
            x: frames `(n, in_channels, h, w)`, values in [-1, 1], in the dtype and on the device of the model.
            return_dict: return an `AutoencoderKLOutput` rather than a tuple.

        Returns:
            `AutoencoderKLOutput(latent_dist)`, or `(latent_dist,)`: a diagonal Gaussian over unscaled latents
            `(n, latent_channels, h/f, w/f)`, log-variance clamped to [-30, 20].

        Raises:
            InputError: wrong rank, channels or type, or a frame smaller than `f` pixels.
        """
        if not torch.compiler.is_compiling():
            check_frames(x, channels=_channels_into(self.encoder), smallest=self.spatial_factor)
        posterior = DiagonalGaussianDistribution(self.quant_conv(self._encoded(x)))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, z: Tensor, num_frames: int, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode latents of whole clips into frames.

        Args:
            z: unscaled latents `(b*t, latent_channels, h, w)`, the frames of each clip one after the other.
            num_frames: `t`, the length of a clip. It is part of what the latents mean: 25 frames decoded as
                14 and 11 give other pixels.
            return_dict: return a `DecoderOutput` rather than a tuple.

        Returns:
            `DecoderOutput(sample)`, or `(sample,)`: frames `(b*t, out_channels, h*f, w*f)`, about [-1, 1], not
            clamped.

        Raises:
            InputError: wrong rank, channels or type, or a batch that `num_frames` does not divide.
        """
        if not torch.compiler.is_compiling():
            check_latents(z, num_frames, channels=_channels_into(self.decoder))
        frames = self._decoded(z, num_frames)
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        num_frames: int = 1,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode frames.

        Args:
            sample: frames `(b*t, in_channels, h, w)`, values in [-1, 1].
            sample_posterior: decode a sample of the posterior rather than its mode.
            return_dict: return a `DecoderOutput` rather than a tuple.
            generator: source of the posterior sample.
            num_frames: `t`, the length of a clip.

        Returns:
            As `decode`.

        Raises:
            InputError: as `encode` and `decode`.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        frames = self.decode(z, num_frames=num_frames).sample
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    def _encoded(self, x: Tensor) -> Tensor:
        numbers = self._numbers("in_channels", "latent_channels", "block_out_channels", "layers_per_block")
        if not self._runs_in_engine(self.encoder, x, Encoder, numbers):
            return self.encoder(x)
        n, _, height, width = x.shape
        plan = self._planned(x.device, lambda limit: self._plan_encode(x, n, height, width, limit))
        return run.encode(self.encoder, x, plan, counter(plan.work))

    def _decoded(self, z: Tensor, num_frames: int) -> Tensor:
        numbers = self._numbers("latent_channels", "out_channels", "block_out_channels", "layers_per_block")
        if not self._runs_in_engine(self.decoder, z, TemporalDecoder, numbers):
            # As diffusers calls it: one that was put here may be of the published class, or wrap it.
            indicator = torch.zeros(len(z) // num_frames, num_frames, dtype=z.dtype, device=z.device)
            return self.decoder(z, num_frames=num_frames, image_only_indicator=indicator)
        height, width = (self.spatial_factor * size for size in z.shape[-2:])
        clips = len(z) // num_frames
        plan = self._planned(
            z.device, lambda limit: self._plan_decode(z, num_frames, height, width, limit, clips)
        )
        return run.decode(self.decoder, z, plan, counter(plan.work))

    def _numbers(self, *names: str) -> dict[str, Any]:
        """Values of the configuration, as they can be compared."""
        values = {name: self.config[name] for name in names}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    # Streams

    def encode_stream(self, clips: Iterable[Tensor]) -> Generator[DiagonalGaussianDistribution, None, None]:
        """Encode clip after clip of a long video, each as `encode` does, without gradients.

        The next clip is read, in a thread, and the last posterior used while the present clip is computed, in another
        thread. Nothing is read before the first posterior is asked for, and no more than one clip ahead. The threads
        end with the iteration; close it (`contextlib.closing`) where it may be left early.

        Args:
            clips: frames `(t, in_channels, h, w)`, values in [-1, 1]; `t` and size may change from clip to clip.

        Yields:
            The posterior of each clip, over latents `(t, latent_channels, h/f, w/f)`.

        Raises:
            InputError: a clip that `encode` refuses.
            MemoryLimitError: a clip that cannot be encoded within the limit of `enable_tiling`.
            Exception: whatever `clips` raises, as it is.
        """
        return stream(lambda clip: self.encode(clip).latent_dist, clips)

    def decode_stream(self, clips: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Decode clip after clip of a long video, each as a whole, without gradients.

        Clips are read, computed and used at the same time as in `encode_stream`.

        Args:
            clips: unscaled latents `(t, latent_channels, h, w)`, each tensor one clip of `t` frames; `t` and size may
                change from clip to clip.

        Yields:
            The frames of each clip, `(t, out_channels, h*f, w*f)`, about [-1, 1], not clamped.

        Raises:
            InputError: a clip that `decode` refuses.
            MemoryLimitError: a clip that cannot be decoded within the limit of `enable_tiling`.
            Exception: whatever `clips` raises, as it is.
        """

        def decode(clip: Tensor) -> Tensor:
            check_latents(clip, 1, channels=_channels_into(self.decoder))
            return self.decode(clip, num_frames=len(clip)).sample

        return stream(decode, clips)

    # Memory

    def enable_tiling(self, use_tiling: bool = True, *, memory_limit: int | str | None = None) -> None:
        """Encode and decode within a memory limit: the same pixels, computed in tiles.

        What a clip is does not change, nothing is blended, and there are no seams. Without a limit the engine stays
        within the memory that is free.

        Args:
            use_tiling: False is `disable_tiling`.
            memory_limit: bytes above the loaded model, or an amount as `"4GiB"`; on a GPU, of its memory.

        Raises:
            InputError: an amount that cannot be read. One that is too small for a clip is refused when the clip is
                known, with the smallest that works (`MemoryLimitError`).
        """
        self.memory_limit = parse_memory(memory_limit) if use_tiling and memory_limit is not None else None
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Undo `enable_tiling`."""
        self.enable_tiling(False)

    def enable_slicing(self) -> None:
        """Kept for compatibility: the clips of a batch are decoded one after the other in any case."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Undo `enable_slicing`."""
        self.use_slicing = False

    def plan_decode(
        self,
        *,
        num_frames: int,
        height: int,
        width: int,
        memory_limit: int | str | None = None,
        clips: int = 1,
    ) -> Plan:
        """How a clip of `num_frames` frames of `height` x `width` pixels would be decoded; `print` shows it.

        Raises:
            InputError: a size that no latents have, or a limit that cannot be read.
            MemoryLimitError: a limit that is too small; the message says which is not.
        """
        limit = self.memory_limit if memory_limit is None else parse_memory(memory_limit)
        return self._plan_decode(self._example(), num_frames, height, width, limit, clips)

    def plan_encode(
        self, *, num_frames: int, height: int, width: int, memory_limit: int | str | None = None
    ) -> Plan:
        """How `num_frames` frames of `height` x `width` pixels would be encoded; errors as in `plan_decode`."""
        limit = self.memory_limit if memory_limit is None else parse_memory(memory_limit)
        return self._plan_encode(self._example(), num_frames, height, width, limit)

    def _plan_decode(
        self, like: Tensor, num_frames: int, height: int, width: int, limit: int | None, clips: int
    ) -> Plan:
        return plan_decode(
            self._network,
            num_frames=_whole(num_frames),
            height=_whole(height),
            width=_whole(width),
            dtype=str(like.dtype).removeprefix("torch."),
            device=like.device.type,
            memory_limit=limit,
            clips=clips,
            workers=_workers(like.device),
        )

    def _plan_encode(self, like: Tensor, num_frames: int, height: int, width: int, limit: int | None) -> Plan:
        return plan_encode(
            self._network,
            num_frames=_whole(num_frames),
            height=_whole(height),
            width=_whole(width),
            dtype=str(like.dtype).removeprefix("torch."),
            device=like.device.type,
            memory_limit=limit,
            workers=_workers(like.device),
        )

    def _planned(self, device: torch.device, plan: Callable[[int | None], Plan]) -> Plan:
        """The plan under the user's limit, or under what is free; where too little is free, the smallest plan."""
        if self.memory_limit is not None:
            return plan(self.memory_limit)
        unlimited = plan(None)
        if unlimited.peak <= (free := free_memory(device)):
            return unlimited
        return plan(max(free // MIB * MIB, min(rung.peak for rung in unlimited.ladder)))

    @property
    def _network(self) -> Network:
        config = self.config
        return Network(
            channels=max(config.in_channels, config.out_channels),
            latent_channels=config.latent_channels,
            widths=tuple(config.block_out_channels),
            layers=config.layers_per_block,
        )

    def _example(self) -> Tensor:
        return self.quant_conv.weight

    def _runs_in_engine(
        self, part: nn.Module, x: Tensor, kind: type[nn.Module], numbers: Mapping[str, Any]
    ) -> bool:
        """Whether the engine may compute what a part would; if it may not, say once why, where that matters."""
        if torch.compiler.is_compiling():
            return False
        call = "encode" if kind is Encoder else "decode"
        if part is None:  # people free memory so
            raise InputError(f"{call}: the {call}r of this model is None; load the model again to {call}")
        reason = gate.reason(part, x, kind, numbers)
        if reason is None:
            return True
        if self.memory_limit is not None:
            self._say_once(
                f"{call}: the memory limit is not kept, since the plain modules run: {reason.text}; {reason.remedy}"
            )
        elif not reason.ordinary:
            self._say_once(f"{call}: the plain modules run, without the engine: {reason.text}")
        return False

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    # Attention processors

    def fuse_qkv_projections(self) -> None:
        """Compute queries, keys and values of each attention in one product; for inference.

        The state dict stays that of the unfused model. `unfuse_qkv_projections` undoes it.
        """
        if self._unfused_processors is None:
            self._unfused_processors = self.attn_processors
            with torch.no_grad():
                for attention in self._attentions():
                    attention.fuse_projections(fuse=True)
            self.set_attn_processor(FusedAttnProcessor2_0())

    def unfuse_qkv_projections(self) -> None:
        """Undo `fuse_qkv_projections` and bring back the processors that were set before it."""
        if self._unfused_processors is not None:
            self.set_attn_processor(self._unfused_processors)
            self._unfused_processors = None
            for attention in self._attentions():
                del attention.to_qkv
                attention.fused_projections = False

    def _attentions(self) -> list[Any]:
        return [*self.encoder.mid_block.attentions, *self.decoder.mid_block.attentions]

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights, as `torch.nn.Module.load_state_dict` does; fused projections follow."""
        fused = self._unfused_processors is not None
        self.unfuse_qkv_projections()
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if fused:
            self.fuse_qkv_projections()
        return result


def _whole(count: Any) -> Any:
    """A whole number as Python has them, NumPy's too; anything else is left to the planner, which refuses it."""
    return int(count) if isinstance(count, Integral) and not isinstance(count, bool) else count


def _workers(device: torch.device) -> int:
    """Threads that work on tiles: as many as torch would use, and two streams on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 2


def _drop_fused_projections(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Keep the copies that `fuse_qkv_projections` makes out of the state dict."""
    for key in [key for key in state_dict if key.startswith(prefix) and ".to_qkv." in key]:
        del state_dict[key]


def _channels_into(part: nn.Module) -> int | None:
    """How many channels an encoder or decoder takes; None for one that is wrapped so that nobody can tell."""
    channels = getattr(getattr(part, "conv_in", None), "in_channels", None)
    return channels if isinstance(channels, int) else None


def _says_something(record: Record) -> bool:
    """Whether this is not the warning of each `.to(dtype)` that modules should stay in float32, none of them."""
    return "should be kept in float32: []" not in record.getMessage()


get_logger("diffusers.models.modeling_utils").addFilter(_says_something)
