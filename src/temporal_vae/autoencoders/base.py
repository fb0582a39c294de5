"""What all autoencoders have: encoding, memory limits, plans, streams, loading and saving.

Each stands in for the diffusers class of the same name: same weights, same calls, same numbers. The network is in
`model/`; what is computed is computed by `engine`, what is stored by `checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import logging
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from typing_extensions import Self

from temporal_vae import engine
from temporal_vae.amounts import MemoryLimit, parse_memory
from temporal_vae.checkpoints import convert, hub, loading
from temporal_vae.checkpoints.single_file import EncoderHome, SingleFile, common_dtype
from temporal_vae.model.blocks import Checkpoint, Checkpointable
from temporal_vae.model.checks import channels_into, check_frames
from temporal_vae.model.fusion import FusableProjections
from temporal_vae.streams import stream

logger = logging.get_logger(__name__)


class Autoencoder(FusableProjections):
    """An autoencoder that takes the place of one of diffusers."""

    _supports_gradient_checkpointing = True
    clips: ClassVar[bool] = False
    """Whether latents are decoded as clips, rather than each picture by itself."""
    _published: ClassVar[type[nn.Module]]
    encoder: Any
    decoder: Any
    quant_conv: Any  # or None

    def _begin(self, sample_size: int | tuple[int, int]) -> None:
        """Set what diffusers' classes have beside their network."""
        size = sample_size if isinstance(sample_size, int) else sample_size[0]
        self.memory_limit: int | None = None
        # Slicing changes nothing: clips and pictures come a few at a time in any case.
        self.use_tiling = self.use_slicing = False
        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = max(1, size // self.spatial_factor)
        self.tile_overlap_factor = 0.25
        self.hide_fused_projections()

    @property
    def network(self) -> engine.Network:
        """The numbers that the network is built from."""
        return engine.Network.of(self.config)

    @property
    def spatial_factor(self) -> int:
        """Pixels of a frame per latent, along height and along width."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: Tensor, return_dict: bool = True, *, memory_limit: MemoryLimit = None
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode frames into the posterior of their latents, each frame by itself.

        Args:
            x: frames `(n, in_channels, h, w)`, values in [-1, 1], in the dtype and on the device of the model.
            return_dict: return an `AutoencoderKLOutput` rather than a tuple.
            memory_limit: of this call, as in `enable_tiling`; None is the one that was set there.

        Returns:
            `AutoencoderKLOutput(latent_dist)`, or `(latent_dist,)`: a diagonal Gaussian over unscaled latents
            `(n, latent_channels, h/f, w/f)`, log-variance clamped to [-30, 20].

        Raises:
            InputError: wrong rank, channels or type, a frame smaller than `f` pixels, or a limit that cannot be read.
            MemoryLimitError: a limit that is too small; the message says which is not.
        """
        if not torch.compiler.is_compiling():
            check_frames(x, channels=channels_into(self.encoder), smallest=self.spatial_factor)
        moments = engine.encode(self.encoder, x, self.network, memory_limit=self._limit(memory_limit))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def encode_stream(
        self, clips: Iterable[Tensor], *, memory_limit: MemoryLimit = None
    ) -> Generator[DiagonalGaussianDistribution, None, None]:
        """Encode clip after clip of a long video, each as `encode` does, without gradients.

        The next clip is read and the last posterior used while the present clip is computed, in threads that end with
        the iteration (see `streams.stream`); close it (`contextlib.closing`) where it may be left early.

        Args:
            clips: frames `(t, in_channels, h, w)`, values in [-1, 1]; `t` and size may change from clip to clip.
            memory_limit: as in `encode`.

        Yields:
            The posterior of each clip, over latents `(t, latent_channels, h/f, w/f)`; what `encode` or `clips` raises
            comes in its place.
        """
        return stream(lambda clip: self.encode(clip, memory_limit=memory_limit).latent_dist, clips)

    def enable_tiling(self, use_tiling: bool = True, *, memory_limit: MemoryLimit = None) -> None:
        """Encode and decode within a memory limit: the same pixels, computed in tiles, without seams or blending.

        Args:
            use_tiling: False is `disable_tiling`: the engine stays within the memory that is free.
            memory_limit: bytes above the loaded model, or an amount as `"4GiB"`; on a GPU, of its memory.

        Raises:
            InputError: an amount that cannot be read. One that is too small is refused when the clip is known, with
                the smallest that works (`MemoryLimitError`).
        """
        self.memory_limit = parse_memory(memory_limit) if use_tiling and memory_limit is not None else None
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Undo `enable_tiling`."""
        self.enable_tiling(False)

    def plan_encode(
        self, *, num_frames: int, height: int, width: int, memory_limit: MemoryLimit = None
    ) -> engine.Plan:
        """How `num_frames` frames of `height` x `width` pixels would be encoded; errors as in `plan_decode`."""
        return self._plan("encode", memory_limit, num_frames=num_frames, height=height, width=width)

    def _plan(self, task: engine.Task, memory_limit: MemoryLimit, **size: int) -> engine.Plan:
        limit = self._limit(memory_limit)
        return engine.plan_like(task, self.network, next(self.parameters()), memory_limit=limit, **size)

    def _limit(self, memory_limit: MemoryLimit) -> int | None:
        """That of a call, or else that of the model, in bytes."""
        return self.memory_limit if memory_limit is None else parse_memory(memory_limit)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Checkpoint | None = None
    ) -> None:
        """As `ModelMixin` does it, for each block of a level rather than for each level."""
        given = (
            {}
            if gradient_checkpointing_func is None
            else {"gradient_checkpointing_func": gradient_checkpointing_func}
        )
        super()._set_gradient_checkpointing(enable, **given)
        function = gradient_checkpointing_func or torch.utils.checkpoint.checkpoint
        for module in self.modules():
            if isinstance(module, Checkpointable):
                module.checkpoint = function if enable else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model from a folder or from a repository of the Hugging Face hub, strictly.

        Args:
            pretrained_model_name_or_path: a folder with `config.json` and safetensors weights, or a hub id.
            **kwargs: those of `diffusers.ModelMixin.from_pretrained`: `subfolder`, `variant`, `torch_dtype`, ...

        Returns:
            The model in eval mode; with `output_loading_info=True` the pair of model and loading report.

        Raises:
            CheckpointError: nothing found, only pickle files, a damaged file, or tensors that do not fit.
            ConfigError: a configuration that cannot be built.
        """
        with_info = kwargs.pop("output_loading_info", False)
        model, info = loading.load_strictly(super().from_pretrained, pretrained_model_name_or_path, kwargs)
        convert.guard_encoder(model)
        return (model, info) if with_info else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Callable[..., None] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save `config.json` and safetensors weights in a folder, as `diffusers.ModelMixin.save_pretrained` does.

        `safe_serialization=False` asks for a pickle file; it is answered with safetensors and a warning.
        `push_to_hub=True` uploads the folder with the card that lies in it, by `checkpoints.push`, to `repo_id` (by
        default the folder's name), with the other keyword arguments of `push_to_hub`.
        """
        if not safe_serialization:
            logger.warning("%s: saved as safetensors; this package writes no pickle files", save_directory)
        files = {"save_function": save_function, "variant": variant, "max_shard_size": max_shard_size}
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, **files, **({} if push_to_hub else kwargs)
        )
        if push_to_hub and is_main_process:
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            message = kwargs.pop("commit_message", None)
            hub.push(self, save_directory, repo_id, message=message, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        **options: Any,
    ) -> str:
        """Upload the model to the Hugging Face hub, with a card; returns the commit, as a string its address.

        A model in memory may have changed, so the card it was loaded with is not taken: pass the text of a `card`, or a
        default one is written where there is none. Errors, and other options (`private`, `token`, `create_pr`,
        `subfolder`), are those of `checkpoints.push`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return hub.push(self, folder, repo_id, message=commit_message, **options)

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        *,
        config: str | Path | Mapping[str, Any] | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        encoder: EncoderHome | None = None,
        ema: bool = False,
        allow_nonfinite: bool = False,
        **options: Any,
    ) -> Self:
        """Load a model from one safetensors file, strictly.

        Args:
            path: a whole original checkpoint (`svd_xt.safetensors`, `sd_xl_base_1.0.safetensors`), an autoencoder
                alone under original names (`ae.safetensors`), or one under the names of this class.
            config: folder, hub id or values that go before what the shapes of the tensors tell.
            subfolder: where in `config` the folder of the autoencoder is.
            torch_dtype: to load in; by default that of the file.
            encoder: of an original video checkpoint that holds two: `conditioner` (the default, and the one in the
                folders that diffusers publishes) or `first_stage`.
            ema: take the moving averages that the original trainer keeps (`model_ema.*`), where there are any.
            allow_nonfinite: load weights that are NaN or infinite, too.
            **options: values of the configuration, such as `scaling_factor`, which no file tells: that of the model
                whose checkpoint this is, or of SD or FLUX for an image autoencoder alone, which is said.

        Returns:
            The model in eval mode. Without encoder in the file it decodes, and `encode` raises `CheckpointError`.

        Raises:
            CheckpointError: a file that is missing, damaged, a pickle, of another class, or does not fit.
            ConfigError: a configuration that cannot be built.
        """
        file = SingleFile(path, encoder=encoder, ema=ema, allow_nonfinite=allow_nonfinite)
        model = convert.load(cls, file, config=config, subfolder=subfolder, options=options)
        return model.to(torch_dtype or common_dtype(model.parameters()))

    @classmethod
    def from_module(cls, module: nn.Module, **options: Any) -> Self:
        """Turn a model that diffusers loaded into one of this class; both hold the very same parameters.

        Args:
            module: a model of the diffusers class of this name, wrapped by `torch.compile` or a parallel run or not.
            **options: values of the configuration that go before those of the module.

        Raises:
            InputError: another kind of module.
            CheckpointError: a model with other layers (LoRA, quantised or fused ones).
        """
        published = loading.unwrapped(module, cls._published)
        config = {**published.config, **options}
        defaults = config.get("_use_default_values", ())
        config["_use_default_values"] = [name for name in defaults if name not in options]
        with torch.device("meta"):
            model: Self = cls.from_config(config)
        loading.share_parameters(published, model)
        processors = published.attn_processors
        model.set_attn_processor({loading.plain_name(name): each for name, each in processors.items()})
        return model.train(published.training)

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Split a configuration for `from_config`; keys that this class does not have are left out, and said once."""
        convert.say_unknown_keys(cls, config_dict)
        with loading.without("The config attributes "):  # diffusers says it every time, and with all values
            split: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = super().extract_init_dict(
                config_dict, **kwargs
            )
        return split
