"""How a dimension is cut into two factors, as LyCORIS cuts it."""

from __future__ import annotations

import math


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """(m, n) with m·n = ``dimension`` and m ≤ n: m is ``factor`` where that divides, else below it.

    −1 (any negative number) asks for the most equal two. A ``factor`` above the root gives n instead.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    most = math.isqrt(dimension) if factor < 0 else min(factor, math.isqrt(dimension))
    first = next((size for size in range(most, 1, -1) if dimension % size == 0), 1)
    return first, dimension // first


def divisor(size: int, factor: int) -> int:
    """``factor`` itself where it divides ``size``, also above the root; else as ``factorization`` cuts it."""
    return factor if factor > 0 and size % factor == 0 else factorization(size, factor)[0]


def power2factorization(dimension: int, factor: int = -1) -> tuple[int | None, int]:
    """(m, n) with m·n = ``dimension``, n a power of two and m even, as large as ``factor`` allows.

    −1 allows any. (None, 0) where there are none: an odd dimension, or a factor below every such m.
    """
    most = dimension if factor == -1 else min(factor, dimension)
    for size in range(most - most % 2, 1, -2):
        if dimension % size == 0 and (dimension // size).bit_count() == 1:
            return size, dimension // size
    return None, 0
