"""Single values on top of a configuration file: `a.b=value`."""

from __future__ import annotations

from typing import Any

import yaml

from temporal_vae.errors import ConfigError
from temporal_vae.training.config.mistakes import explain_yaml


def override(values: dict[str, Any], text: str) -> None:
    """Set one of `values`, in place; groups that are not there yet are made, places in lists are numbers from 0.

    Raises:
        ConfigError: not of the form `a.b=value`, no YAML, or a place that is not there.
    """
    name, mark, value = text.partition("=")
    *path, leaf = name.split(".")
    if not mark or not all((*path, leaf)):
        raise ConfigError(f"{text!r}: write NAME=VALUE, such as optimizer.learning_rate=1e-4")
    node: Any = values
    for part in path:
        key = _key(node, part, text)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    try:
        node[_key(node, leaf, text)] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{text!r}: {value!r} is no YAML ({explain_yaml(error)}); put text with special signs in quotes"
        ) from error


def _key(node: Any, part: str, text: str) -> str | int:
    """What `part` of a dotted name is in `node`: a name in a group, or a place in a list."""
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    raise ConfigError(
        f"{text!r}: there is no {part} to change; give the whole list or group, or change the file"
    )
