"""The same weights and the same input for every contestant, each in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.trials import PICTURES, PUBLISHED, Trial
from temporal_vae.engine import SVD

if TYPE_CHECKING:
    from torch import Tensor, nn

_PUBLISHED_CONFIG = {
    "block_out_channels": SVD.widths,
    "down_block_types": ("DownEncoderBlock2D",) * len(SVD.widths),
    "layers_per_block": SVD.layers,
}
_PICTURES_CONFIG = {**_PUBLISHED_CONFIG, "up_block_types": ("UpDecoderBlock2D",) * len(SVD.widths)}
_SHOWN_CONFIG = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "up_block_types",
)  # fmt: skip


def load_model(model_class: Any, trial: Trial, dtype: str) -> Any:
    """Build or load the model of `trial` as `model_class`, ours or that of diffusers, in eval mode."""
    import torch

    from temporal_vae.checkpoints.loading import EMBEDDED

    torch_dtype = getattr(torch, dtype)
    if trial.model in (PUBLISHED, PICTURES):
        model = model_class(**(_PICTURES_CONFIG if trial.pictures else _PUBLISHED_CONFIG))
        randomise(model)
    else:
        source = EMBEDDED if trial.model == "embedded" else Path(trial.model)
        model = model_class.from_pretrained(source, torch_dtype=torch_dtype)
    return model.to(torch_dtype).eval()


def shape_config(model: Any) -> dict[str, Any]:
    """What of a model's configuration decides how much there is to compute."""
    return {key: model.config[key] for key in _SHOWN_CONFIG if key in model.config}


def make_input(trial: Trial, config: Any, dtype: str) -> Tensor:
    """Return latents to decode or frames to encode: seeded, and exact in bfloat16, so that no type rounds them."""
    import torch

    random = torch.Generator().manual_seed(1)
    case = trial.case
    if trial.job == "decode":
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        shape = (case.frames, config["latent_channels"], case.height // factor, case.width // factor)
        values = torch.randn(shape, generator=random)
    else:
        values = torch.rand(case.frames, config["in_channels"], case.height, case.width, generator=random)
        values = values * 2 - 1
    return values.to(torch.bfloat16).to(getattr(torch, dtype))


def randomise(model: nn.Module) -> None:
    """Seeded values for every parameter, by name; weights keep the variance of what passes through them."""
    import torch

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            mean = 1.0 if parameter.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, spread, generator=random)
