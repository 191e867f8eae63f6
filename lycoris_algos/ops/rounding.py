"""Rounding to fewer bits, to the nearest or at random, and what the new dtype cannot hold.

Rounding to the nearest loses a small change altogether: in fp8 (e4m3) two neighbours are 12 % apart, and a
change of less than half of that leaves most weights as they were. At random, a number between two neighbours
becomes the upper one with a probability of its distance from the lower one, in steps of 2⁻¹⁶ of the gap, so
that the mean of many roundings is the number itself. The randomness comes from a CPU generator whose seed the
caller derives from names, so the result is the same on every computer.

Numbers beyond the largest of a dtype become infinite, or that largest, without a word from PyTorch. So
whoever rounds shows each block to ``Extremes`` while it is in the cache, which costs no second pass over the
memory.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

# dtype -> (explicit bits of its mantissa, its smallest normal number)
_FORMATS = {
    torch.float16: (10, 2.0**-14),
    torch.bfloat16: (7, 2.0**-126),
    torch.float8_e4m3fn: (3, 2.0**-6),
    torch.float8_e5m2: (2, 2.0**-14),
}

#: The dtypes that ``stochastic`` rounds to.
STOCHASTIC = frozenset((torch.float8_e4m3fn, torch.float8_e5m2))

# Elements at a time: the four working copies of a block stay in the cache, and PyTorch starts no second
# thread for so few, which would cost more than it saves.
_BLOCK = 1 << 15
_EXPONENT = 0x7F800000
# Elements rounded to the nearest at a time: the block is still in the cache when it is looked at.
_NEAREST_BLOCK = 1 << 18


def overflow_threshold(dtype: torch.dtype) -> float:
    """The magnitude from which on a number rounds to none of ``dtype``: half a gap above its largest."""
    limits = torch.finfo(dtype)
    return limits.max + limits.eps * 2.0 ** (math.frexp(limits.max)[1] - 2)


def beyond(largest: float, dtype: torch.dtype) -> str:
    """What a tensor does whose numbers go up to ``largest``, more than ``dtype`` holds, in words."""
    kind = str(dtype).removeprefix("torch.")
    return f"reaches {largest:g}, beyond the largest number of {kind}, {torch.finfo(dtype).max:g}"


def count_broken(values: Tensor) -> int:
    """How many of ``values`` (any shape and floating dtype) are NaN or infinite. Waits for a GPU."""
    if not values.numel():
        return 0
    wide = values.float() if values.element_size() == 1 else values  # float8 has no order
    # The fastest pass that there is, and it passes on what is broken: only then is every element looked at.
    if bool(torch.stack(torch.aminmax(wide)).isfinite().all()):
        return 0
    return wide.numel() - int(wide.isfinite().sum())


class Extremes:
    """How far the numbers reach that were shown to it, block by block, before they were rounded."""

    def __init__(self) -> None:
        # One number: many small tensors that outlive a block keep what lies below them in the allocator.
        self._reach: Tensor | None = None

    def see(self, block: Tensor) -> None:
        """Takes note of ``block`` (any shape, a dtype that is computed in). Does not wait for a GPU."""
        if block.numel():
            reach = torch.stack(torch.aminmax(block)).abs_().amax()
            self._reach = reach if self._reach is None else torch.maximum(self._reach, reach)

    @property
    def largest(self) -> float:
        """The largest magnitude so far, NaN if anything was not a number. Waits for a GPU."""
        return 0.0 if self._reach is None else float(self._reach)


@torch.no_grad()
def nearest(values: Tensor, into: Tensor, extremes: Extremes) -> Tensor:
    """``values`` rounded to the nearest number of the dtype of ``into`` (as large, contiguous); ``into``.

    Both are on the CPU. ``extremes`` sees what is rounded.
    """
    blocks = zip(
        torch.split(values.reshape(-1), _NEAREST_BLOCK),
        torch.split(into.view(-1), _NEAREST_BLOCK),
        strict=True,
    )
    for block, target in blocks:
        extremes.see(block)
        target.copy_(block)
    return into


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose numbers depend on ``seed`` and ``name`` only."""
    # PyTorch's CPU generator takes only 32 bits of a seed.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


@torch.no_grad()
def stochastic(
    values: Tensor, dtype: torch.dtype, generator: torch.Generator, extremes: Extremes | None = None
) -> Tensor:
    """``values`` (any floating dtype and device) rounded at random to ``dtype``, one of ``STOCHASTIC``.

    The result is on the CPU. Numbers that ``dtype`` can hold are kept, numbers beyond its largest become
    that, and NaN stays NaN; ``extremes`` sees them before.
    """
    mantissa, smallest = _FORMATS[dtype]
    largest = torch.finfo(dtype).max
    source = values.to("cpu", torch.float32).reshape(-1)
    result = torch.empty(values.shape, dtype=dtype)
    target = result.view(-1)
    words = torch.empty(_BLOCK // 4, dtype=torch.int64)
    noise, gap, rounded = (torch.empty(_BLOCK) for _ in range(3))
    # Where a block ends decides which draws it gets, so this is part of the result.
    blocks = zip(torch.split(source, _BLOCK), torch.split(target, _BLOCK), strict=True)
    for block, into in blocks:
        count = block.numel()
        if extremes is not None:
            extremes.see(block)
        # Every draw of 64 bits is four numbers of 16, from -2¹⁵ to 2¹⁵-1.
        words.random_(-(1 << 63), None, generator=generator)
        noise.copy_(words.view(torch.int16))
        # The distance of two neighbours: a power of two, which stops shrinking at the smallest normal number.
        own_gap = gap[:count]
        torch.bitwise_and(block.view(torch.int32), _EXPONENT, out=own_gap.view(torch.int32))
        own_gap.clamp_(smallest, largest).mul_(2.0**-mantissa)
        own = torch.div(block, own_gap, out=rounded[:count])
        own.add_(noise[:count], alpha=2.0**-16).add_(0.5 + 2.0**-17).floor_().mul_(own_gap)
        into.copy_(own.clamp_(-largest, largest))
    return result


@torch.no_grad()
def moved(stored: Tensor, change: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What rounding ``stored`` + ``change`` to ``dtype`` does to numbers that were ``stored`` in it.

    Both are float32 of one shape. Answers what each becomes when it is rounded to the nearest, and the
    chance that it becomes another one when it is rounded at random. A change of 0 moves nothing.
    """
    bits, smallest = _FORMATS[dtype]
    wanted = stored + change
    # frexp: |x| = f·2^e with ½ ≤ f < 1, so that neighbours around x are 2^(e - 1 - bits) apart.
    exponent = torch.frexp(wanted).exponent.clamp_min(math.frexp(smallest)[1])
    gap = torch.ldexp(torch.ones_like(wanted), exponent - 1 - bits)
    lower = torch.floor(wanted / gap) * gap
    upper = (wanted - lower) / gap  # the chance of the neighbour above
    stays = torch.where(stored == lower, 1 - upper, torch.where(stored == lower + gap, upper, 0.0))
    return wanted.to(dtype).to(wanted.dtype), 1 - stays
