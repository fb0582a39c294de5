"""The identities of Winograd filtering, exactly: in fractions, against the convolution itself."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temporal_vae.engine.kernels.winograd import F11, F43, shortened, winograd

numbers = st.fractions(min_value=-9, max_value=9, max_denominator=64)
points = st.lists(
    st.fractions(min_value=-4, max_value=4, max_denominator=8), min_size=1, max_size=7, unique=True
)


def times(matrix, vector):
    return [sum((a * b for a, b in zip(row, vector, strict=True)), start=Fraction(0)) for row in matrix]


def direct(inputs, taps):
    """What a convolution layer computes: `y[i] = sum(x[i + j] * taps[j])`."""
    return [
        sum((inputs[i + j] * tap for j, tap in enumerate(taps)), start=Fraction(0))
        for i in range(len(inputs) - len(taps) + 1)
    ]


def by_winograd(f, inputs, taps):
    product = [a * b for a, b in zip(times(f.filter, taps), times(f.input, inputs), strict=True)]
    return times(f.output, product)


@given(st.lists(numbers, min_size=6, max_size=6), st.lists(numbers, min_size=3, max_size=3))
def test_four_outputs_of_three_taps(inputs, taps):
    assert by_winograd(F43, inputs, taps) == direct(inputs, taps)
    assert (F43.outputs, F43.taps, F43.points) == (4, 3, 6)


@given(st.data(), st.integers(1, 3))
def test_fewer_outputs_with_the_same_filters(data, outputs):
    f = shortened(F43, outputs)
    assert f.points == outputs + 2
    assert f.filter == F43.filter[: f.points]
    inputs, taps = (data.draw(st.lists(numbers, min_size=n, max_size=n)) for n in (f.points, 3))
    assert by_winograd(f, inputs, taps) == direct(inputs, taps)


@given(st.data(), points, st.integers(1, 5))
def test_any_points_and_any_number_of_taps(data, at, taps):
    outputs = len(at) + 2 - taps
    if outputs < 1:
        return
    f = winograd(outputs, taps, tuple(at))
    inputs = data.draw(st.lists(numbers, min_size=f.points, max_size=f.points))
    weights = data.draw(st.lists(numbers, min_size=taps, max_size=taps))
    assert by_winograd(f, inputs, weights) == direct(inputs, weights)


def test_two_dimensions():
    """Rows, then columns: four by four outputs from six by six inputs."""
    inputs = [[Fraction(7 * i * i - 3 * j, 2 + i + j) for j in range(6)] for i in range(6)]
    taps = [[Fraction(i - 2 * j, 3) for j in range(3)] for i in range(3)]

    def both(matrix, values):
        rows = [times(matrix, row) for row in values]
        columns = [times(matrix, column) for column in zip(*rows, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]

    left, right = both(F43.filter, taps), both(F43.input, inputs)
    product = [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]
    expected = [
        [sum(inputs[y + i][x + j] * taps[i][j] for i in range(3) for j in range(3)) for x in range(4)]
        for y in range(4)
    ]
    assert both(F43.output, product) == expected


def test_the_trivial_one():
    assert by_winograd(F11, [Fraction(3)], [Fraction(5)]) == [15]


def test_rows_stay_near_one():
    for matrix in (F43.input, F43.filter):
        largest = [max(abs(x) for x in row) for row in matrix]
        assert Fraction(1, 16) <= min(largest)
        assert max(largest) <= 4


@pytest.mark.parametrize("at", [(0, 1), (0, 1, 1, -1, 2), (0, 1, 2, 3, 4, 5)])
def test_wrong_points(at):
    with pytest.raises(ValueError, match="wants 5 different points"):
        winograd(4, 3, tuple(map(Fraction, at)))
