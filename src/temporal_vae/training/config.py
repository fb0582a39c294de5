"""The configuration of a training run: a tree of typed values with defaults, read from YAML, checked, and written back.

Files may leave out everything that has a default. `temporal-vae train CONFIG.yaml optimizer.learning_rate=1e-4` sets
single values on top of a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from temporal_vae.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Penalty = Literal["l1", "l2", "charbonnier"]

_STRICT = ConfigDict(extra="forbid", strict=False)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network to begin anew; the values are those of `AutoencoderKLTemporalDecoder`."""

    __pydantic_config__ = _STRICT

    block_out_channels: tuple[Count, ...] = (96, 96, 96)
    layers_per_block: Count = 1
    latent_channels: Count = 8


@dataclass(frozen=True, kw_only=True)
class LinearStart:
    """A linear autoencoder, trained first and planted in the network (`training/linear.py`)."""

    __pydantic_config__ = _STRICT

    crops: Count = 1024
    size: Count = 48  # height and width of a crop, in pixels
    batch: Count = 8
    steps: Count = 4000
    learning_rate: Positive = 3e-3
    logvar: float = -8.0  # of the posterior: noise of 0.018 on latents of unit deviation


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where the weights begin: those of a model, or a new network."""

    __pydantic_config__ = _STRICT

    start: str | None = "embedded"  # `embedded`, a folder, a hub id, or an original .safetensors file
    subfolder: str | None = None
    new: Architecture | None = None  # in place of `start`
    linear_start: LinearStart | None = None  # of a new network
    keep_constants: bool = (
        False  # of a network that once had a linear start: true without saying where it has one now
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Videos and images, or rendered scenes."""

    __pydantic_config__ = _STRICT

    path: str | None = None
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

    flip: Share = 0.5  # left and right
    reverse: Share = 0.0  # in time
    zoom: Share = 0.0  # a window up to 1.6 times as large, scaled down, changing slowly over the clip
    pan: Share = 0.0  # a window that moves over the frames; still pictures always do
    color: Share = 0.0  # saturation, channel order and gains changed: colours that footage lacks


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where clips come from."""

    __pydantic_config__ = _STRICT

    sources: tuple[Source, ...] = ()
    rates: tuple[
        Positive, ...
    ] = ()  # frames per second to read at, one drawn for each clip; none: the file's
    augmentation: Augmentation = field(default_factory=Augmentation)
    workers: Number = 1  # processes that read clips; 0 reads in the main one
    cache: str = "1GiB"  # decoded videos that each worker keeps


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A make of batches; every step draws one make and one length."""

    __pydantic_config__ = _STRICT

    frames: Count = 8  # of one process, in clips of one length
    lengths: tuple[Count, ...] = (1, 2, 4, 8)  # of a clip, each a divisor of `frames`
    size: Count | tuple[Count, Count] = 64  # of a crop in pixels: a square, or height and width
    area: Count | None = (
        None  # in place of crops: whole frames of about so many pixels, in buckets of one aspect
    )
    weight: Positive = 1.0  # odds of a step to use it
    first_step: Number = 0
    last_step: Count | None = None  # steps from here on do not use it


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of the losses; zero switches one off. Formulas and sources: `training/losses.py`."""

    __pydantic_config__ = _STRICT

    l1: Weight = 0.0
    l2: Weight = 0.0
    charbonnier: Weight = 1.0
    charbonnier_scale: Positive = (
        0.05  # errors below it count squared, above it absolutely; frames are in [-1, 1]
    )
    ms_ssim: Weight = 0.0
    motion: Weight = 0.5  # on differences of neighbouring frames: flicker
    motion_penalty: Penalty = "charbonnier"
    lpips: Weight = 0.0  # needs the package lpips
    kl: Weight = 1e-6  # per latent number


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A discriminator that learns beside the decoder (hinge loss)."""

    __pydantic_config__ = _STRICT

    kind: Literal["2d", "3d"] = "3d"
    weight: Positive = 0.1
    adaptive: bool = True  # scale the weight by the ratio of gradients at the decoder's last layer
    first_step: Number = 0  # steps before it have no adversary
    width: Count = 64
    layers: Count = 3
    learning_rate: Positive = 1e-4


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and its schedule: a warm-up, a constant rate, and half a cosine down at the end."""

    __pydantic_config__ = _STRICT

    learning_rate: Positive = 1e-4
    final_learning_rate: Weight = 1e-5
    warm_up: Number = 100  # steps
    decay: Number | None = None  # steps at the end over which the rate falls; none: all after the warm-up
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Weight = 0.0
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
    size: Count | None = None  # of the shorter side, in pixels; none: as it is


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a run."""

    __pydantic_config__ = _STRICT

    output: str = "runs/train"
    model: Model = field(default_factory=Model)
    train: str = "full"
    """What learns: `full`, `decoder` (the encoder stays), `temporal` (temporal blocks, `mix_factor`, `time_conv_out`),
    or a regular expression over parameter names."""
    steps: Count = 1000
    data: Data = field(default_factory=Data)
    batches: tuple[Batch, ...] = (Batch(),)
    losses: Losses = field(default_factory=Losses)
    adversary: Adversary | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    ema: Share = 0.999  # of the averaged weights, which are validated and shipped; 0 is no averaging
    sample_posterior: bool = True  # decode a sample rather than the mean
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Number = 0
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    validation: Validation = field(default_factory=Validation)

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
        values = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"{file}: cannot be read ({reason}); name a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is no YAML ({' '.join(str(error).split())}); mend it") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__} where names and values belong")
    for text in overrides:
        _override(values, text)
    return make_config(values, str(file))


def make_config(values: dict[str, Any], name: str = "configuration") -> TrainConfig:
    """Check plain values, as YAML holds them, and return the configuration; `ConfigError` says what is wrong where."""
    try:
        return TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
        reason = str(first["msg"]).removeprefix("Value error, ")
        value = f"={first['input']!r}" if where and isinstance(first["input"], (str, int, float)) else ""
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(
            f"{name}: {where}{value}: {_explain(first['type'], reason, first['loc'])}{more}"
        ) from error


def to_yaml(config: TrainConfig) -> str:
    """All values of a configuration as YAML that `read_config` reads."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, width=100)


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Names of the values that differ and must not when a run goes on."""
    first, second = _flat(asdict(one)), _flat(asdict(other))
    names = dict.fromkeys((*first, *second))
    return [name for name in names if first.get(name) != second.get(name) and name not in FREE]


def _contradiction(config: TrainConfig) -> str | None:
    """What two values of a configuration say that cannot both be, in a sentence."""
    if config.model.new is not None and config.model.start not in (None, "embedded"):
        return f"model.start={config.model.start!r} and model.new exclude each other; give one"
    if config.model.new is None and config.model.start is None:
        return "model: give start (weights to go on from) or new (a network to begin)"
    if config.model.linear_start is not None and config.model.new is None:
        return "model.linear_start is for a new network; give model.new too"
    for source in (*config.data.sources, *config.validation.sources):
        if (source.path is None) == (source.scenes == 0):
            return "sources: each has either a path or a number of scenes"
    for batch in config.batches:
        for length in batch.lengths:
            if batch.frames % length:
                return (
                    f"batches: clips of {length} frames do not make batches of {batch.frames}; use divisors"
                )
    if not config.batches or not all(
        any(_used(batch, step) for batch in config.batches) for step in _edges(config)
    ):
        return "batches: some steps have none; let first_step and last_step leave no gap"
    if config.train not in MODES:
        try:
            re.compile(config.train)
        except re.error as error:
            return f"train={config.train!r}: neither {', '.join(MODES)} nor a regular expression ({error})"
    return None


MODES = ("full", "decoder", "temporal")


def _edges(config: TrainConfig) -> list[int]:
    """The steps at which the set of batch makes can change."""
    steps = {
        0,
        *(batch.first_step for batch in config.batches),
        *(batch.last_step or 0 for batch in config.batches),
    }
    return [step for step in steps if step < config.steps]


def _used(batch: Batch, step: int) -> bool:
    return batch.first_step <= step and (batch.last_step is None or step < batch.last_step)


def batches_of(config: TrainConfig, step: int) -> list[Batch]:
    """The makes that step number `step` may use."""
    return [batch for batch in config.batches if _used(batch, step)]


def _override(values: dict[str, Any], text: str) -> None:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise ConfigError(f"{text!r}: write NAME=VALUE, such as optimizer.learning_rate=1e-4")
    *path, leaf = name.split(".")
    node: Any = values
    for part in path:
        node = (
            node.get(part)
            if isinstance(node, dict) and node.get(part) is not None
            else _grow(node, part, text)
        )
    if not isinstance(node, dict):
        raise ConfigError(f"{text!r}: {'.'.join(path)} is a list; give it in the file")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: {value!r} is no value ({' '.join(str(error).split())})") from error


def _grow(node: Any, part: str, text: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(f"{text!r}: {part} lies within a list or a value; give it in the file")
    node[part] = {}
    child: dict[str, Any] = node[part]
    return child


def _is_branch(part: int | str) -> bool:
    """Whether a part of an error's location names an alternative of a type and not a place in the file."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool"))


def _explain(kind: str, reason: str, location: Sequence[int | str]) -> str:
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        tree = (
            TrainConfig,
            Model,
            Architecture,
            LinearStart,
            Data,
            Source,
            Augmentation,
            Batch,
            Losses,
            Adversary,
        )
        kinds = (*tree, Optimizer, Checkpoints, Validation)
        names = {item.name for kind_ in kinds for item in fields(kind_)}
        close = get_close_matches(str(location[-1]), names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown name; {hint}`temporal-vae train --defaults` shows all there are"
    return reason[:1].lower() + reason[1:]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
