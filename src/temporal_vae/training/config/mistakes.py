"""What is wrong with a configuration, said in the words of the file and not of the checker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import ValidationError

_LIST = "must be a list in brackets, [...]"
_TEXT = "must be text; put it in quotes"
_NUMBER, _WHOLE = "must be a number", "must be a whole number"
_RULES = {
    "dataclass_type": "must be a group, {{name: value}}",
    "tuple_type": _LIST,
    "string_type": _TEXT,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE + " of fewer digits",
    "int_from_float": _WHOLE,
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must not be empty",
    "invalid_key": "is no name; names are text, such as steps",
}
"""By pydantic's kinds of error; its own words, where a kind is not here."""

_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_OWN = "Value error, "  # how pydantic begins messages that our own checks raised


def explain(error: ValidationError, tree: type) -> str:
    """The first mistake on one line: where, the value, what is allowed.

    Args:
        error: what pydantic found.
        tree: the dataclass that was to be made; its names are suggested where one is unknown.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] in _UNKNOWN:
        return f"{place}: {_unknown(first['loc'], tree)}{more}"
    rule = _RULES.get(first["type"])
    reason = rule.format(**first.get("ctx", {})) if rule else str(first["msg"]).removeprefix(_OWN)
    if not place:  # of several values: the reason names them
        return reason + more
    if first["input"] is None:
        return f"{place}: is empty; {reason.partition(';')[0]}{more}"
    shown = isinstance(first["input"], (str, int, float)) and first["type"] != "invalid_key"
    value = f"={first['input']!r}" if shown else ""
    return f"{place}{value}: {reason}{more}"


def explain_yaml(error: yaml.YAMLError) -> str:
    """Why a text is no YAML, on one line, and on which line of it."""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable")
    mark = getattr(error, "problem_mark", None)
    return " ".join(problem.split()) + (f", line {mark.line + 1}" if mark else "")


def _unknown(location: Sequence[int | str], tree: type) -> str:
    *path, leaf = [str(part) for part in location if not isinstance(part, int)]
    known = list(_names(tree))
    beside = [name[-1] for name in known if name[:-1] == tuple(path)]
    meant = get_close_matches(leaf, beside, n=1)
    if not meant:
        elsewhere = [name for name in known if name[-1] == leaf]
        nearest = min(map(len, elsewhere), default=0)
        meant = [".".join(name) for name in elsewhere if len(name) == nearest][:3]
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    return f"unknown name; {hint}`temporal-vae train --defaults` shows all there are"


def _names(tree: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of a dataclass and of those within it, as paths."""
    hints = get_type_hints(tree)
    for item in fields(tree):
        yield (*prefix, item.name)
        for inner in _dataclasses_in(hints[item.name]):
            yield from _names(inner, (*prefix, item.name))


def _dataclasses_in(hint: Any) -> Iterator[Any]:
    if is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses_in(part)
