"""DoRA's two parts of a changed weight: a low-rank change of direction, and the length of every row.

    T ≈ d · V / ‖V‖ by rows,  V = W + up·down

The direction of a row does not depend on its length, so what has to be of low rank is diag(c)·T − W, with any
c. The fit alternates: the best factors for c, then the best c (a projection of each row of V on that of T).
Neither step makes the error larger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# The steps end when c moves less than this.
_STEPS, _STILL = 60, 1e-6

Factors = tuple[Tensor, Tensor]


def fit_directions(
    weight: Tensor, tuned: Tensor, factorize: Callable[[Tensor], Factors]
) -> tuple[Tensor, Tensor, Tensor]:
    """(up (o, r), down (r, c), d (o,)) for ``tuned`` T and ``weight`` W, both (o, c); see this module.

    ``factorize`` gives the factors of a matrix, of the rank that is wanted.
    """
    lengths = tuned.square().sum(1).clamp_min(torch.finfo(tuned.dtype).tiny)
    scales = first_scales(weight, tuned)
    up, down = factorize(scales[:, None] * tuned - weight)
    for _ in range(_STEPS):
        # ⟨W + up·down, T⟩ of each row without forming V.
        better = ((weight * tuned).sum(1) + (up * (tuned @ down.T)).sum(1)) / lengths
        moved = float((better - scales).abs().max())
        scales = better
        if moved < _STILL:
            break
        up, down = factorize(scales[:, None] * tuned - weight)
    combined = torch.addmm(weight, up, down)
    magnitude = (combined * tuned).sum(1) / torch.linalg.vector_norm(combined, dim=1).clamp_min(1e-30)
    return up, down, magnitude


def first_scales(weight: Tensor, tuned: Tensor) -> Tensor:
    """c (o,) that brings each row of ``tuned`` nearest to that of ``weight``."""
    lengths = tuned.square().sum(1).clamp_min(torch.finfo(tuned.dtype).tiny)
    return (weight * tuned).sum(1) / lengths
