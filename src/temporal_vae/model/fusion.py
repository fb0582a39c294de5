"""Queries, keys and values of attentions in one product, and back; checkpoints do not show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class FusableProjections(ModelMixin):  # type: ignore[misc]
    """An autoencoder whose attentions can be fused; for inference. Its state dict stays that of the unfused model."""

    _unfused_processors: dict[str, Any] | None = None  # those that were set before

    def fuse_qkv_projections(self) -> None:
        """Compute queries, keys and values of each attention in one product. `unfuse_qkv_projections` undoes it."""
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

    def hide_fused_projections(self) -> None:
        """Keep them out of the state dict."""
        self.register_state_dict_post_hook(_drop_fused_projections)

    def _attentions(self) -> list[Any]:
        return [part for part in self.modules() if hasattr(part, "fuse_projections")]


def _drop_fused_projections(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    for key in [key for key in state_dict if key.startswith(prefix) and ".to_qkv." in key]:
        del state_dict[key]
