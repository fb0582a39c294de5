"""Winograd: a convolution by three taps with half or a quarter of its multiplications.

`F(m, r)` computes `m` outputs of an `r`-tap filter from `m + r - 1` inputs with `m + r - 1` multiplications instead of
`m * r` (Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016): `y = A.T @ ((G @ g) * (B.T @ d))`. In two dimensions it is applied along rows and columns.

The identity is exact; how much float rounding it adds depends on the points at which polynomials are evaluated. The
usual points 0, ±1, ±2 lose more than a digit: 8e-6 of the output's scale on a 3x3 convolution of 128 channels. With
0, ±3/4, ±3/2 it is 1.6e-6, and a whole decoder comes out as close to a float64 computation as with plain convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import floor, log2, prod

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Winograd:
    """The matrices of `F(outputs, taps)`."""

    outputs: int  # m
    taps: int  # r
    points: int  # m + r - 1, the multiplications
    at: tuple[Fraction, ...]  # the finite points
    input: Matrix  # B.T, (points, points)
    filter: Matrix  # G, (points, taps)
    output: Matrix  # A.T, (outputs, points)


@lru_cache(maxsize=8)
def winograd(outputs: int, taps: int, at: tuple[Fraction, ...]) -> Winograd:
    """`F(outputs, taps)` from its finite evaluation points; the first point is infinity (Toom and Cook)."""
    count = outputs + taps - 1
    if len(set(at)) != count - 1:
        raise ValueError(f"F({outputs}, {taps}) wants {count - 1} different points, not {at}")
    others = [[q for q in at if q != p] for p in at]
    weights = [prod((p - q for q in rest), start=Fraction(1)) for p, rest in zip(at, others, strict=True)]
    filter_rows = [[Fraction(int(j == taps - 1)) for j in range(taps)]]
    filter_rows += [[p**j / weight for j in range(taps)] for p, weight in zip(at, weights, strict=True)]
    input_rows = [_polynomial(list(at)), *([*_polynomial(rest), Fraction(0)] for rest in others)]
    output_columns = [[Fraction(int(j == outputs - 1)) for j in range(outputs)]]
    output_columns += [[p**j for j in range(outputs)] for p in at]
    # A power of two moves from the input's rows to the filter's without any rounding: both stay near one.
    powers = [Fraction(2) ** floor(log2(max(map(abs, row))) + 0.5) for row in input_rows]
    scaled = [[x / power for x in row] for row, power in zip(input_rows, powers, strict=True)]
    filters = [[x * power for x in row] for row, power in zip(filter_rows, powers, strict=True)]
    return Winograd(
        outputs=outputs,
        taps=taps,
        points=count,
        at=at,
        input=_matrix(scaled),
        filter=_matrix(filters),
        output=_matrix(zip(*output_columns, strict=True)),
    )


def shortened(full: Winograd, outputs: int) -> Winograd:
    """Fewer outputs, from the first points of `full` and with its very filters: it needs no weights of its own.

    The filters of a point differ by a factor only, whatever other points there are; the input takes it over.
    """
    short = winograd(outputs, full.taps, full.at[: outputs + full.taps - 2])
    filters = full.filter[: short.points]
    factors = [
        next(a / b for a, b in zip(mine, theirs, strict=True) if b)
        for mine, theirs in zip(short.filter, filters, strict=True)
    ]
    rows = [[x * factor for x in row] for row, factor in zip(short.input, factors, strict=True)]
    return replace(short, input=_matrix(rows), filter=filters)


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of `(x - roots[0]) * (x - roots[1]) * ...`, the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        raised = [Fraction(0), *coefficients]
        coefficients = [
            high - root * low for high, low in zip(raised, [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients


def _matrix(rows: Iterable[Iterable[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


F43 = winograd(4, 3, (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)))
F11 = Winograd(  # a product with no neighbours: 1x1 convolutions, and clips of one frame
    outputs=1,
    taps=1,
    points=1,
    at=(),
    input=((Fraction(1),),),
    filter=((Fraction(1),),),
    output=((Fraction(1),),),
)
