"""Every number of the embedded model's training in one place."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of steps on batches of one make."""

    steps: int
    frames: int  # in a batch
    clip_lengths: tuple[int, ...]  # each a divisor of `frames`; every batch draws one
    size: int  # height and width of a window, in pixels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what, and how."""

    # The network
    block_out_channels: tuple[int, ...] = (96, 96, 96)
    layers_per_block: int = 1
    latent_channels: int = 8

    # What a training clip is drawn from
    odds: dict[str, float] = field(
        default_factory=lambda: {"scene": 0.15, "photograph": 0.4, "footage": 0.45}
    )

    # The linear start
    linear_crops: int = 1024
    linear_size: int = 48
    linear_batch: int = 8
    linear_steps: int = 4000
    linear_learning_rate: float = 3e-3
    logvar: float = -8.0  # of the posterior: noise of 0.018 on latents of unit deviation

    # The full network
    phases: tuple[Phase, ...] = (
        Phase(steps=600, frames=8, clip_lengths=(1, 2, 4), size=64),
        Phase(steps=250, frames=4, clip_lengths=(1, 2, 4), size=96),
        Phase(steps=50, frames=8, clip_lengths=(8,), size=96),
    )
    learning_rate: float = 1.5e-4  # 6e-4 undoes the linear start: minus 3 dB after 60 steps
    final_learning_rate: float = 1e-5
    warm_up: int = 100
    gradient_norm: float = 1.0
    ema: float = 0.995
    charbonnier: float = 0.05  # errors below it count squared, above it absolutely; frames are in [-1, 1]
    motion_weight: float = 0.5  # of the loss on differences of neighbouring frames
    kl_weight: float = 1e-6  # per latent number

    save_every: int = 50
    validate_every: int = 200
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> Phase:
        """The phase that step number `step` belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise ValueError(f"step {step} past the last phase")


EMBEDDED = Recipe()
"""How the model in `checkpoints/embedded` was made."""
