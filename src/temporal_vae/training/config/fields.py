"""The configuration of a training run: a tree of typed values with defaults, read from YAML, checked, and written back.

Files may leave out everything that has a default. `temporal-vae train CONFIG.yaml optimizer.learning_rate=1e-4` sets
single values on top of a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from temporal_vae.errors import ConfigError
from temporal_vae.training.config.mistakes import explain, explain_yaml
from temporal_vae.training.config.overrides import override
from temporal_vae.training.config.values import (
    FILLED,
    Chance,
    Count,
    Memory,
    Number,
    Penalty,
    Positive,
    Real,
    Share,
    Size,
    Text,
    Weight,
)

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network to begin anew; the names are those of `AutoencoderKLTemporalDecoder`."""

    __pydantic_config__ = _STRICT

    block_out_channels: Annotated[tuple[Count, ...], FILLED] = (96, 96, 96)
    """Channels on each level, multiples of 32; every level but the first halves height and width."""
    layers_per_block: Count = 1  # residual blocks on each level
    latent_channels: Count = 8  # numbers in each place of a latent


@dataclass(frozen=True, kw_only=True)
class LinearStart:
    """A linear autoencoder, trained first and planted in the network (`training/linear.py`)."""

    __pydantic_config__ = _STRICT

    crops: Count = 1024  # of the run's data, which it learns from
    size: Count = 48  # height and width of a crop, in pixels
    batch: Count = 8  # crops of a step
    steps: Count = 4000  # until it is planted
    learning_rate: Positive = 3e-3  # the highest, of a schedule that rises and falls
    logvar: Real = -8.0  # of the posterior: noise of 0.018 on latents of unit deviation


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where the weights begin: those of a model, or a new network."""

    __pydantic_config__ = _STRICT

    start: Text | None = "embedded"  # `embedded`, a folder, a hub id, or an original .safetensors file
    subfolder: str | None = None  # of `start`, where the model lies
    new: Architecture | None = None  # in place of `start`
    linear_start: LinearStart | None = None  # of a new network
    # Of a network that once had a linear start; one that has it now does so without saying.
    keep_constants: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Videos and images, or rendered scenes."""

    __pydantic_config__ = _STRICT

    path: Text | None = None
    """A file, a folder, a glob, a manifest (.csv, .jsonl), or `package:NAME/FILE`, a file that an installed package
    carries. `$VARIABLES` are expanded."""
    scenes: Number = 0  # in place of `path`: how many different ones
    weight: Positive = 1.0  # odds of a clip to come from here
    sides: tuple[Count, ...] = ()  # scale the shorter side to one of these, in pixels; none: as it is
    exclude: tuple[str, ...] = ()  # file names or patterns to leave out


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a clip on its way; every value is a probability."""

    __pydantic_config__ = _STRICT

    flip: Chance = 0.5  # left and right
    reverse: Chance = 0.0  # in time
    zoom: Chance = 0.0  # a window up to 1.6 times as large, scaled down, changing slowly over the clip
    pan: Chance = 0.0  # a window that moves over the frames; still pictures always do
    color: Chance = 0.0  # saturation, channel order and gains changed: colours that footage lacks


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where clips come from."""

    __pydantic_config__ = _STRICT

    sources: tuple[Source, ...] = ()  # what to learn from
    # Frames per second to read at, one drawn for each clip; none: the file's.
    rates: tuple[Positive, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)  # what may happen to a clip
    workers: Number = 1  # processes that read clips; 0 reads in the main one
    cache: Memory = "1GiB"  # decoded videos that each worker keeps


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A make of batches; every step draws one make and one length."""

    __pydantic_config__ = _STRICT

    frames: Count = 8  # of one process, in clips of one length
    # Of a clip, each a divisor of `frames`.
    lengths: Annotated[tuple[Count, ...], FILLED] = (1, 2, 4, 8)
    size: Size = 64  # of a crop in pixels: a square, or height and width
    # In place of crops: whole frames of about so many pixels, in buckets of one aspect.
    area: Count | None = None
    weight: Positive = 1.0  # odds of a step to use it
    first_step: Number = 0  # steps before do not use it
    last_step: Count | None = None  # steps from here on do not use it


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of the losses; zero switches one off. Formulas and sources: `training/losses.py`."""

    __pydantic_config__ = _STRICT

    l1: Weight = 0.0  # absolute errors of pixels
    l2: Weight = 0.0  # squared errors of pixels
    charbonnier: Weight = 1.0  # squared where they are small, absolute where they are large
    charbonnier_scale: Positive = 0.05  # the error at which it changes over; frames are in [-1, 1]
    ms_ssim: Weight = 0.0  # structure, on several scales
    motion: Weight = 0.5  # on differences of neighbouring frames: flicker
    motion_penalty: Penalty = "charbonnier"  # how they count: l1, l2 or charbonnier
    lpips: Weight = 0.0  # needs the package lpips
    kl: Weight = 1e-6  # per latent number


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A discriminator that learns beside the decoder (hinge loss)."""

    __pydantic_config__ = _STRICT

    kind: Literal["2d", "3d"] = "3d"  # judges frames, or clips
    weight: Positive = 0.1  # of its loss
    adaptive: bool = True  # scale the weight by the ratio of gradients at the decoder's last layer
    first_step: Number = 0  # steps before it have no adversary
    width: Count = 64  # channels of its first layer
    layers: Count = 3  # of it that halve height and width
    learning_rate: Positive = 1e-4  # of its own optimizer


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and its schedule: a warm-up, a constant rate, and half a cosine down at the end."""

    __pydantic_config__ = _STRICT

    learning_rate: Positive = 1e-4  # after the warm-up
    final_learning_rate: Weight = 1e-5  # at the last step
    warm_up: Number = 100  # steps
    decay: Number | None = None  # steps at the end over which the rate falls; none: all after the warm-up
    betas: tuple[Share, Share] = (0.9, 0.99)  # of the averages of gradients and of their squares
    weight_decay: Weight = 0.0  # of AdamW
    gradient_norm: Positive = 1.0  # larger gradients are scaled down to it
    accumulate: Count = 1  # batches per step


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the state of a run is written, and how many are kept."""

    __pydantic_config__ = _STRICT

    every: Count = 200  # steps
    keep: Count = 2  # the last so many; the best one stays too
    bad_steps: Count = 20  # steps in a row with a loss that is not finite, after which the run gives up


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What is reconstructed from time to time by the averaged weights."""

    __pydantic_config__ = _STRICT

    sources: tuple[Source, ...] = ()  # of each file the beginning; no sources, no validation
    every: Count = 1000  # steps
    frames: Count = 8  # of a video
    start: Weight = 0.0  # seconds that are skipped first, of videos
    size: Count | None = None  # of the shorter side, in pixels; none: as it is


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a run."""

    __pydantic_config__ = _STRICT

    output: Text = "runs/train"  # folder of the run
    model: Model = field(default_factory=Model)  # where the weights begin
    train: Text = "full"
    """What learns: `full`, `decoder` (the encoder stays), `temporal` (temporal blocks, `mix_factor`, `time_conv_out`),
    or a regular expression over parameter names."""
    steps: Count = 1000  # of the optimizer, over all sittings
    data: Data = field(default_factory=Data)  # where clips come from
    batches: Annotated[tuple[Batch, ...], FILLED] = (Batch(),)  # makes of batches
    losses: Losses = field(default_factory=Losses)  # their weights
    adversary: Adversary | None = None  # a discriminator; none: no adversarial loss
    optimizer: Optimizer = field(default_factory=Optimizer)  # and its schedule
    ema: Share = 0.999  # of the averaged weights, which are validated and shipped; 0 is no averaging
    sample_posterior: bool = True  # decode a sample rather than the mean
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the work; weights are float32
    gradient_checkpointing: bool = False  # less memory, a third more work
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    seed: Number = 0  # of weights, batches and noise
    checkpoints: Checkpoints = field(default_factory=Checkpoints)  # when, and how many
    validation: Validation = field(default_factory=Validation)  # on what, and when

    def __post_init__(self) -> None:
        problem = _contradiction(self)
        if problem:
            raise ValueError(problem)


FREE = (
    "output",
    "steps",
    "data.workers",
    "data.cache",
    "device",
    "checkpoints.every",
    "checkpoints.keep",
    "checkpoints.bad_steps",
    "validation.every",
)
"""What may change when a run goes on: a longer run, other watching; everything else would be another run."""


def read_config(file: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file; `overrides` are texts `a.b=value`, set on top.

    Raises:
        ConfigError: no such file, no YAML, unknown names, values of another type or out of range.
    """
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"{file}: cannot be read ({reason}); name a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is no YAML ({explain_yaml(error)}); mend it") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file}: holds a {type(values).__name__} where names with values belong, such as steps: 1000"
        )
    for text in overrides:
        override(values, text)
    return make_config(values, str(file))


def make_config(values: dict[str, Any], name: str = "configuration") -> TrainConfig:
    """Check plain values, as YAML holds them, and return the configuration; `ConfigError` says what is wrong where."""
    try:
        return TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain(error, TrainConfig)}") from error


def to_yaml(config: TrainConfig) -> str:
    """All values of a configuration as YAML that `read_config` reads."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, width=100)


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Names of the values that differ and must not when a run goes on."""
    first, second = _flat(asdict(one)), _flat(asdict(other))
    names = dict.fromkeys((*first, *second))
    return [name for name in names if first.get(name) != second.get(name) and name not in FREE]


def batches_of(config: TrainConfig, step: int) -> list[Batch]:
    """The makes that step number `step` may use."""
    return [batch for batch in config.batches if _used(batch, step)]


def _contradiction(config: TrainConfig) -> str | None:
    """What two values of a configuration say that cannot both be, in a sentence."""
    lists = {"data": config.data.sources, "validation": config.validation.sources}
    for name, sources in lists.items():
        for number, source in enumerate(sources):
            if (source.path is None) == (source.scenes == 0):
                return f"{name}.sources.{number}: give either a path or a number of scenes"
    losses = config.losses
    if not any((losses.l1, losses.l2, losses.charbonnier, losses.ms_ssim, losses.motion, losses.lpips)):
        return "losses: nothing compares a result with its source; let one besides kl be above 0"
    if config.train not in MODES:
        try:
            re.compile(config.train)
        except re.error as error:
            return f"train={config.train!r}: neither {', '.join(MODES)} nor a regular expression ({error})"
    return _contradiction_of_model(config.model) or _contradiction_of_batches(config)


MODES = ("full", "decoder", "temporal")


def _contradiction_of_model(model: Model) -> str | None:
    if model.new is not None and model.start not in (None, "embedded"):
        return f"model.start={model.start!r} and model.new exclude each other; give one"
    if model.new is None and model.start is None:
        return "model: give start (weights to go on from) or new (a network to begin)"
    if model.linear_start is None:
        return None
    if model.new is None:
        return "model.linear_start is for a new network; give model.new too"
    widths = model.new.block_out_channels
    if len({*widths}) > 1 or widths[0] < 96 or model.new.latent_channels > 32:
        return (
            "model.linear_start needs a model.new of the same width on every level, at least 96, and with at most 32 "
            "latent channels"
        )
    factor = 2 ** (len(widths) - 1)
    if model.linear_start.size % factor:
        return f"model.linear_start.size={model.linear_start.size}: must be a multiple of {factor}, the levels halve it"
    return None


def _contradiction_of_batches(config: TrainConfig) -> str | None:
    for number, batch in enumerate(config.batches):
        for length in batch.lengths:
            if batch.frames % length:
                return (
                    f"batches.{number}: clips of {length} frames do not make batches of {batch.frames}; "
                    "let lengths be divisors of frames"
                )
        if batch.last_step is not None and batch.last_step <= batch.first_step:
            return f"batches.{number}: last_step={batch.last_step} is not after first_step={batch.first_step}"
    for step in _edges(config):
        if not batches_of(config, step):
            return f"batches: there is none for step {step}; let first_step and last_step leave no gap"
    return None


def _edges(config: TrainConfig) -> list[int]:
    """The steps at which the set of batch makes can change."""
    changes = {0}
    for batch in config.batches:
        changes |= {batch.first_step, batch.last_step or 0}
    return sorted(step for step in changes if step < config.steps)


def _used(batch: Batch, step: int) -> bool:
    return batch.first_step <= step and (batch.last_step is None or step < batch.last_step)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
