"""Shapes and numbers of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .._draft import DTYPES, Draft
from ._keys import halves
from ._registry import mutation, on_tensor, pick

_NUMBERS = (
    float("nan"),
    float("inf"),
    -float("inf"),
    1e308,
    -1e308,
    3e38,
    1e30,
    65504.0,
    -3e38,
    1e-40,
    5e-324,
    -1.0,
    0.0,
    -0.0,
    2.0**31,
    -(2.0**63),
    0.1,
)


@mutation
@on_tensor
def transposed(tensor: Tensor, which: int) -> Tensor:
    """Its dimensions in another order."""
    order = list(range(tensor.dim()))
    for place in range(len(order)):
        which, other = divmod(which, len(order))
        order[place], order[other] = order[other], order[place]
    return tensor.permute(order)


@mutation
@on_tensor
def another_rank(tensor: Tensor, which: int) -> Tensor:
    """More dimensions of size 1, or all of them in one."""
    if which % 5 == 0:
        return tensor.reshape(-1)
    for _ in range(1 + which // 5 % 3):
        tensor = tensor.unsqueeze((0, -1, tensor.dim() // 2, 1 if tensor.dim() else 0)[which % 4])
    return tensor.reshape(*tensor.shape, *(1,) * 60) if which % 97 == 0 else tensor


@mutation
@on_tensor
def reshaped(tensor: Tensor, which: int) -> Tensor:
    """As many numbers in another shape."""
    count = tensor.numel()
    factors = [n for n in range(1, min(count, 200) + 1) if count % n == 0] or [1]
    first = pick(factors, which)
    rest = count // first
    second = pick([n for n in factors if rest % n == 0] or [1], which // 7)
    return tensor.reshape(first, second, rest // second) if which % 3 == 0 else tensor.reshape(first, rest)


@mutation
@on_tensor
def empty(tensor: Tensor, which: int) -> Tensor:
    """A dimension of size 0."""
    shape = list(tensor.shape) or [1]
    shape[which % len(shape)] = 0
    if which % 11 == 0:
        shape = [0, 2**40]
    return tensor.new_empty(shape)


@mutation
@on_tensor
def another_size(tensor: Tensor, which: int) -> Tensor:
    """A dimension that is shorter, or longer by repetition; a number that becomes several."""
    if not tensor.dim():
        return tensor.repeat(1 + which % 3)
    axis = which % tensor.dim()
    size = tensor.shape[axis]
    if which // 5 % 2 and size > 1:
        return tensor.narrow(axis, 0, 1 + which // 10 % (size - 1))
    times = [1] * tensor.dim()
    times[axis] = 2 + which // 10 % 2
    return tensor.repeat(times)


@mutation
@on_tensor
def a_number(tensor: Tensor, which: int) -> Tensor:
    """One number, which no training makes."""
    if not tensor.numel():
        return tensor
    changed = tensor.clone()
    value = pick(_NUMBERS, which)
    flat, place = changed.reshape(-1), which // len(_NUMBERS) % tensor.numel()
    flat[place : place + 1] = _as(tensor.dtype, value)
    return changed


@mutation
@on_tensor
def all_numbers(tensor: Tensor, which: int) -> Tensor:
    """All its numbers the same, or times something."""
    value = pick(_NUMBERS, which // 2)
    if which % 2 or not tensor.dtype.is_floating_point:
        return _as(tensor.dtype, value)[0].expand(tensor.shape).clone()
    return (tensor.double() * value).to(tensor.dtype)


def _as(dtype: torch.dtype, value: float) -> Tensor:
    """``value`` as far as ``dtype`` can hold it."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.tensor([value], dtype=torch.float64).to(dtype)
    whole = int(value) if abs(value) < 2**60 else 2**60  # False for NaN
    least, most = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return torch.tensor([min(max(whole, least), most)]).to(dtype)


@mutation
@on_tensor
def another_dtype(tensor: Tensor, which: int) -> Tensor:
    """Its numbers in another type."""
    real = tensor.real if tensor.is_complex() else tensor
    wide = real.double().nan_to_num() if real.is_floating_point() else real
    return wide.to(pick(DTYPES, which))


@mutation
@on_tensor
def other_bits(tensor: Tensor, which: int) -> Tensor:
    """Its bytes read as another type of the same size."""
    same = [dtype for dtype in DTYPES if dtype.itemsize == tensor.dtype.itemsize and dtype is not torch.bool]
    return tensor.view(pick(same, which)) if same and tensor.dtype is not torch.bool else tensor


@mutation
def alpha(draft: Draft, where: int, which: int) -> None:
    """A layer's alpha, or another of its numbers; one that has none gets one."""
    numbers = [place for place, (name, _) in enumerate(draft.tensors) if name.endswith(("alpha", "scale"))]
    dtype = pick((torch.float32, torch.float64, torch.float16, torch.bfloat16), which // len(_NUMBERS))
    value = _as(dtype, pick(_NUMBERS, which))[0]
    if numbers:
        place = pick(numbers, where)
        draft.tensors[place] = (draft.tensors[place][0], value)
    elif draft.tensors:
        layer = halves(pick(draft.tensors, where)[0])[0]
        draft.tensors.append((f"{layer}.{pick(('alpha', 'scale'), which // 3)}", value))


@mutation
def enlarging(draft: Draft, where: int, which: int) -> None:
    """A weight that is to grow: ``reshape_weight`` in a layer."""
    if draft.tensors:
        layer = halves(pick(draft.tensors, where)[0])[0]
        shapes = (
            [24, 16],
            [12, 8, 3, 3],
            [24, 2**24],
            [2**40, 2**40],
            [-1, 4],
            [0, 0],
            [1] * 9,
            [48, 16],
            [],
        )
        shape = torch.tensor(pick(shapes, which), dtype=pick((torch.int64, torch.float32), which // 9))
        draft.tensors.append((f"{layer}.reshape_weight", shape))


@mutation
def odd_strides(draft: Draft, where: int, which: int) -> None:
    """A tensor as a view: of one number, of a larger tensor, or with its axes in another order in memory."""
    if draft.tensors:
        place = where % len(draft.tensors)
        name, tensor = draft.tensors[place]
        if which % 3 == 0 and tensor.numel():
            tensor = tensor.reshape(-1)[0].expand(tensor.shape)
        elif which % 3 == 1 and tensor.dim():
            tensor = torch.cat((tensor, tensor)).narrow(0, which % (len(tensor) + 1), len(tensor))
        else:
            tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() else tensor
        draft.tensors[place] = (name, tensor)
