"""The configuration of a run: typed values with defaults, read from YAML, checked in plain words, written back."""

from temporal_vae.training.config.fields import (
    Source,
    TrainConfig,
    Validation,
    make_config,
    read_config,
    to_yaml,
)

__all__ = ["Source", "TrainConfig", "Validation", "make_config", "read_config", "to_yaml"]
