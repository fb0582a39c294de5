"""How a model is loaded, saved and uploaded: strictly, and without pickle files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder as Published
from diffusers.utils import logging
from torch import nn
from typing_extensions import Self

from temporal_vae.checkpoints import convert, hub, loading
from temporal_vae.checkpoints.single_file import EncoderHome, SingleFile, common_dtype
from temporal_vae.errors import InputError

logger = logging.get_logger(__name__)


class Stored(Published):  # type: ignore[misc]
    """The side of `AutoencoderKLTemporalDecoder` that faces files and the hub.

    It derives from the diffusers class so that pipelines and tools that ask for that type accept it; nothing of that
    class's network is built.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model from a folder or from a repository of the Hugging Face hub, strictly.

        Args:
            pretrained_model_name_or_path: a folder with `config.json` and safetensors weights, or a hub id.
            **kwargs: those of `diffusers.ModelMixin.from_pretrained`: `subfolder`, `variant`, `torch_dtype`,
                `low_cpu_mem_usage`, `device_map`, `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Returns:
            The model in eval mode; with `output_loading_info=True` the pair of model and loading report.

        Raises:
            CheckpointError: nothing found, only pickle files, a damaged file, or tensors that are missing, extra
                or of another shape.
            ConfigError: a configuration that cannot be built.
        """
        with_info = kwargs.pop("output_loading_info", False)
        load = super().from_pretrained
        model, info = loading.load_strictly(load, pretrained_model_name_or_path, kwargs)
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
        `push_to_hub=True` uploads the folder with the card that lies in it, by `checkpoints.hub.push`, which takes
        `repo_id` (by default the folder's name) and the other keyword arguments of `push_to_hub`.
        """
        if not safe_serialization:
            logger.warning("%s: saved as safetensors; this package writes no pickle files", save_directory)
        super().save_pretrained(
            save_directory,
            is_main_process=is_main_process,
            save_function=save_function,
            variant=variant,
            max_shard_size=max_shard_size,
            **({} if push_to_hub else kwargs),
        )
        if push_to_hub and is_main_process:
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            message = kwargs.pop("commit_message", None)
            hub.push(self, save_directory, repo_id, message=message, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        card: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, with a card.

        A model in memory may have changed since it was loaded, so the card it was loaded with is not taken: pass the
        text of a `card`, or `checkpoints.card.default_card` is written where the repository has none.

        Args:
            repo_id: `name` or `owner/name`; made if it is missing.
            commit_message: of the commit.
            private: whether a new repository is private; None is the owner's default.
            token: of the hub; by default the one that `hf auth login` stored or `HF_TOKEN` holds.
            create_pr: open a pull request instead of committing.
            safe_serialization: False is answered as in `save_pretrained`.
            variant: of the name of the weights, as in `save_pretrained`.
            subfolder: where in the repository the model goes.
            card: a text in Markdown, with front matter.

        Returns:
            The commit; as a string, its address.

        Raises:
            CheckpointError: no such name, no token, no connection, or a refusal of the hub.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return hub.push(
                self,
                folder,
                repo_id,
                card=card,
                message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
                subfolder=subfolder,
            )

    @classmethod
    def from_embedded(cls, torch_dtype: torch.dtype = torch.float32) -> Self:
        """Load the small model that ships with the package (see its card, `checkpoints/embedded/README.md`)."""
        model: Self = cls.from_pretrained(loading.EMBEDDED, torch_dtype=torch_dtype)
        return model

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
            path: a whole original checkpoint (`svd_xt.safetensors`), of which only the autoencoder is read; an
                autoencoder alone under original names; or one under the names of this class.
            config: folder, hub id or values that go before what the shapes of the tensors tell.
            subfolder: where in `config` the folder of the autoencoder is.
            torch_dtype: to load in; by default that of the file.
            encoder: which one of an original checkpoint that holds two: `conditioner` (the default, and the one in
                the folders that diffusers publishes) or `first_stage`.
            ema: take the moving averages that the original trainer keeps (`model_ema.*`), where there are any.
            allow_nonfinite: load weights that are NaN or infinite, too.
            **options: values of the configuration, such as `scaling_factor`, which no file tells (0.18215).

        Returns:
            The model in eval mode. Without encoder in the file it decodes, and `encode` raises `CheckpointError`.

        Raises:
            CheckpointError: no such file, a pickle, a damaged file, an image autoencoder, or tensors that are missing,
                extra, of another shape, or not finite.
            ConfigError: a configuration that cannot be built.
        """
        file = SingleFile(path, encoder=encoder, ema=ema, allow_nonfinite=allow_nonfinite)
        model = convert.load(cls, file, config=config, subfolder=subfolder, options=options)
        return model.to(torch_dtype or common_dtype(model.parameters()))

    @classmethod
    def from_module(cls, module: nn.Module) -> Self:
        """Turn a model that diffusers loaded into one of this class, without copying a weight.

        Both models then hold the very same parameters: what one trains or moves in place, the other sees.

        Args:
            module: a `diffusers.AutoencoderKLTemporalDecoder`, or one that `torch.compile` or a parallel run has
                wrapped; what was compiled is compiled no more.

        Raises:
            InputError: another kind of module.
            CheckpointError: a model whose layers were replaced or added to (LoRA, quantised or fused layers).
        """
        given = type(module).__name__
        while not isinstance(module, Published):
            inside = [getattr(module, name, None) for name in ("_orig_mod", "module")]
            wrapped = next((inner for inner in inside if isinstance(inner, nn.Module)), None)
            if wrapped is None:
                raise InputError(
                    f"from_module: a {given} is no AutoencoderKLTemporalDecoder, and holds none; pass `pipe.vae` of an "
                    "SVD-family pipeline"
                )
            module = wrapped
        with torch.device("meta"):
            model: Self = cls.from_config(module.config)
        loading.share_parameters(module, model)
        processors = module.attn_processors
        model.set_attn_processor({loading.plain_name(name): each for name, each in processors.items()})
        return model.train(module.training)

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Split a configuration for `from_config`; keys that this class does not have are left out, and said once."""
        unknown = convert.unknown_keys(cls, config_dict)
        if unknown and unknown not in _said:
            _said.append(unknown)
            logger.warning("configuration: unknown keys are left out: %s", ", ".join(unknown))
        with loading.without("The config attributes "):  # diffusers says it every time, and with all values
            split: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = super().extract_init_dict(
                config_dict, **kwargs
            )
        return split


_said: list[list[str]] = []  # unknown keys that were warned of
