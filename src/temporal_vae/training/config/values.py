"""The kinds of values in a configuration, with their ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WrapValidator

from temporal_vae.amounts import parse_memory
from temporal_vae.errors import InputError


def _number(value: Any) -> Any:
    """YAML takes `1e4` for text and `yes` for true: the one is a number here, the other is not."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    try:
        return float(value) if isinstance(value, str) and "e" in value.lower() else value
    except ValueError:
        return value


def _size(value: Any, check: Callable[[Any], int | tuple[int, int]]) -> int | tuple[int, int]:
    try:
        return check(value)
    except ValidationError:
        raise ValueError("must be a whole number of at least 1, or two: [height, width]") from None


def _amount(value: Any) -> str:
    try:
        parse_memory(value)
    except InputError:
        raise ValueError("must be an amount of memory, such as 1GiB or 500MB") from None
    return str(value)


def _filled(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must have at least one entry")
    return values


FILLED = AfterValidator(_filled)

Number = Annotated[int, Field(ge=0), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Size = Annotated[Count | tuple[Count, Count], WrapValidator(_size)]
Real = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Chance = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
Text = Annotated[str, Field(min_length=1)]
Memory = Annotated[str, BeforeValidator(_amount)]
Penalty = Literal["l1", "l2", "charbonnier"]
