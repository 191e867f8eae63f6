"""How a dimension is cut into two factors."""

from __future__ import annotations

import pytest

from lycoris_algos.ops.divisors import divisor, factorization, power2factorization


@pytest.mark.parametrize(
    ("dimension", "factor", "expected"),
    [
        (127, -1, (1, 127)),
        (128, -1, (8, 16)),
        (250, -1, (10, 25)),
        (360, 4, (4, 90)),
        (360, 16, (15, 24)),
        (512, 64, (8, 64)),  # the factor itself divides, and the smaller of both comes first
        (1024, -1, (32, 32)),
        (7, 3, (1, 7)),
        (1, 8, (1, 1)),
    ],
)
def test_factors_are_the_nearest_below(dimension: int, factor: int, expected: tuple[int, int]) -> None:
    assert factorization(dimension, factor) == expected


@pytest.mark.parametrize("dimension", range(1, 400))
@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 8, 16, 48])
def test_factors_multiply_to_the_dimension(dimension: int, factor: int) -> None:
    first, second = factorization(dimension, factor)
    assert first * second == dimension
    assert first <= second
    assert factor < 0 or first <= factor
    assert divisor(dimension, factor) == (factor if factor > 0 and dimension % factor == 0 else first)
    size, count = power2factorization(dimension, factor)
    possible = [m for m in range(2, (dimension if factor < 0 else factor) + 1, 2) if dimension % m == 0]
    possible = [m for m in possible if (dimension // m) & (dimension // m - 1) == 0]
    assert (size, count) == ((max(possible), dimension // max(possible)) if possible else (None, 0))
