"""What a clip is: a hash of all that its numbers follow from, and of nothing else.

Neither names of files nor captions, shards or the number of workers are in it. So a file that was renamed, or is listed
twice, is found again, and one that changed under its old name is another.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from temporal_vae.distributed.dataset.settings import Settings, digest

if TYPE_CHECKING:
    from temporal_vae.video.latents import ModelIdentity

_DIGITS = 32
_BLOCK = 8  # clips' lengths of a video that stay together, so that it need not be read by all


def model_digest(model: ModelIdentity) -> str:
    """Hash of a model's configuration and of a probe of its encoder. What it is called makes no difference."""
    return digest({"config": model.config, "encoder_probe": model.encoder_probe})


def recipe_of(settings: Settings, model: str) -> str:
    """Hash of the model, given by its digest, and of every setting that changes the numbers of a given clip."""
    return digest({"numbers": settings.numbers(), "model": model})


def settings_digest(settings: Settings, model: str) -> str:
    """Hash of the model, given by its digest, and of all settings: those of one plan."""
    return digest({"settings": settings.to_json(), "model": model})


def identity_of(
    recipe: str,
    *,
    source_sha256: str,
    start: Fraction,
    frames: int,
    fps: Fraction | None,
    box: tuple[Fraction, ...],
    size: tuple[int, int],
) -> str:
    """Identity of a clip, 32 hexadecimal digits.

    Args:
        recipe: see `recipe_of`.
        source_sha256: hash of the source's content.
        start: seconds of the first frame.
        frames: how many.
        fps: to resample to; None keeps the source's frames.
        box: what is encoded of each frame, in pixels: left, top, right, bottom.
        size: `(width, height)` to scale it to.
    """
    span: dict[str, Any] = {"start": str(start), "frames": frames, "fps": None if fps is None else str(fps)}
    picture = {"box": [str(side) for side in box], "size": list(size)}
    return digest({"recipe": recipe, "source": source_sha256, **span, **picture})[:_DIGITS]


def home_of(source_sha256: str, start: Fraction, seconds: Fraction, ranks: int) -> int:
    """Which of several ranks encodes a clip. It follows from the clip alone; neighbours mostly go to the same one.

    Args:
        source_sha256: hash of the source's content.
        start: seconds of the first frame.
        seconds: that a clip lasts.
        ranks: how many there are.
    """
    block = start // (seconds * _BLOCK)
    return int(digest([source_sha256, block])[:_DIGITS], 16) % ranks
