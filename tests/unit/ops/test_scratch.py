"""Memory that is used again: never for two things at once, and never kept without bound."""

from __future__ import annotations

import threading

import pytest
import torch

from lycoris_algos.ops import scratch as module
from lycoris_algos.ops.scratch import scratch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without buffers."""
    monkeypatch.setattr(module, "_FREE", module._Free())


def address(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    with scratch(shape, dtype, CPU) as buffer:
        assert buffer.shape == shape
        assert buffer.dtype == dtype
        return buffer.data_ptr()


def test_memory_is_used_again() -> None:
    first = address((30, 40))
    assert address((30, 40)) == first
    assert address((5, 7), torch.float64) == first, "a smaller one fits as well"


def test_what_is_in_use_is_not_given_out_again() -> None:
    with scratch((4,), torch.float32, CPU) as outer:
        outer.fill_(1)
        for _ in range(5):
            with scratch((4,), torch.float32, CPU) as inner, scratch((4,), torch.float32, CPU) as innermost:
                inner.fill_(2)
                innermost.fill_(3)
                assert inner.eq(2).all()
        assert outer.eq(1).all()


def test_it_is_given_back_after_an_error() -> None:
    first = address((8,))
    with pytest.raises(ZeroDivisionError), scratch((8,), torch.float32, CPU):
        raise ZeroDivisionError
    assert address((8,)) == first


def test_a_large_one_does_not_stay() -> None:
    numbers = module._LARGEST * torch.get_num_threads() // 4
    address((numbers + 1,))
    assert module._FREE.buffers == []
    address((numbers,))
    assert len(module._FREE.buffers) == 1


def test_few_stay() -> None:
    entered = [scratch((4,), torch.float32, CPU) for _ in range(9)]
    for one in entered:
        one.__enter__()
    for one in entered:
        one.__exit__(None, None, None)
    assert len(module._FREE.buffers) == module._KEPT


def test_each_thread_has_its_own() -> None:
    found: list[int] = []
    with scratch((64,), torch.float32, CPU) as own:
        thread = threading.Thread(target=lambda: found.append(address((64,))))
        thread.start()
        thread.join()
        assert found != [own.data_ptr()]


def test_made_in_inference_mode_and_used_outside() -> None:
    with torch.inference_mode():
        first = address((6,))
    weight = torch.ones(6, requires_grad=True)
    with scratch((6,), torch.float32, CPU) as buffer:
        assert buffer.data_ptr() == first
        (weight * buffer.fill_(2)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.eq(2).all()
