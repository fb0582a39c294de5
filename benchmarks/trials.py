"""What is measured: a job on clips of one size, in one type, and how many operations that asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from temporal_vae.engine import Network, plan
from temporal_vae.errors import InputError

JOBS = ("decode", "encode", "train", "train-temporal", "train-checkpointed")
"""The last three are steps of training: of everything, of the temporal layers alone (without gradients of the encoder),
and of everything with gradient checkpointing."""

DTYPES = ("float32", "bfloat16")

PUBLISHED = "published"
"""Name of the model with the configuration of Stable Video Diffusion and seeded random weights."""
PICTURES = "sdxl"
"""Name of the image model with the configuration of SDXL and seeded random weights: frames are pictures."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A clip: frames, and their height and width in pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read `FRAMESxHEIGHTxWIDTH`.

        Raises:
            InputError: anything else.
        """
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise InputError(
                f"case {text!r}: write FRAMESxHEIGHTxWIDTH, three whole numbers such as 8x256x256"
            )
        frames, height, width = map(int, parts)
        return cls(frames=frames, height=height, width=width)

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All that a child process needs to know; it travels as JSON.

    Attributes:
        job: one of `JOBS`.
        case: the clip.
        dtype: one of `DTYPES`.
        model: `published`, `sdxl`, `embedded`, or a folder.
        threads: that each contestant computes with.
        memory_limit: bytes above the model that ours may use, if it is to be limited.
    """

    job: str
    case: Case
    dtype: str
    model: str
    threads: int
    memory_limit: int | None = None

    @property
    def trains(self) -> bool:
        """Whether the job is a training step."""
        return self.job.startswith("train")

    @property
    def pictures(self) -> bool:
        """Whether frames are pictures, each decoded by itself."""
        return self.model == PICTURES

    @property
    def length(self) -> dict[str, int]:
        """What `decode` is told of the length of clips."""
        return {} if self.pictures else {"num_frames": self.case.frames}

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON has."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Trial:
        """Undo `to_dict`."""
        return cls(**{**fields, "case": Case(**fields["case"])})


def nominal_operations(job: str, case: Case, config: Mapping[str, Any]) -> int | None:
    """Operations of `job` on a clip, two per multiply-add; `None` for training, whose count depends on what is kept.

    The count is nominal, that of the engine's schedule: convolutions and matrix products. An engine that folds or skips
    some does not change it, so that a share of the ceiling compares all contestants by the same work. Taps that fall on
    the padding count, norms and activations do not.
    """
    network = Network.of({"down_block_types": (), **config})
    height, width = (length // network.factor * network.factor for length in (case.height, case.width))
    if job == "decode":
        made = plan("decode", network, num_frames=case.frames, height=height, width=width, workers=1)
        return 2 * made.work
    if job == "encode":
        made = plan(
            "encode", network, num_frames=case.frames, height=case.height, width=case.width, workers=1
        )
        latents = height * width // network.factor**2
        return 2 * (
            made.work + case.frames * latents * (2 * network.latent_channels) ** 2
        )  # with `quant_conv`
    return None
