"""Workers: results in order, slots that nobody else has, one thread each, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lycoris_algos.ops.workers import Workers, one_thread


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_no_more_are_ahead_than_there_are_slots(threads: int) -> None:
    begun, taken = [], []

    def work(piece: int, slot: list[int]) -> int:
        begun.append(piece)
        slot.append(piece)
        time.sleep(0.002 * (piece % 3))
        assert slot == [piece], "the slot is this piece's alone"
        return piece * piece

    with Workers() as workers:
        assert workers.count == threads
        slots: list[list[int]] = [[] for _ in range(workers.count + 1)]
        for piece, result in workers.results(work, range(20), slots):
            assert result == piece * piece
            assert len(begun) <= len(taken) + len(slots)
            (slot,) = (slot for slot in slots if slot == [piece])
            slot.clear()
            taken.append(piece)
    assert taken == list(range(20))


def test_a_worker_has_one_thread_of_pytorch_and_the_modes_of_who_made_it(threads: int) -> None:
    def work(_: int, __: int) -> tuple[int, bool, bool, str]:
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        return torch.get_num_threads(), *modes, threading.current_thread().name

    def seen() -> set[tuple[int, bool, bool]]:
        with Workers() as workers:
            results = [result for _, result in workers.results(work, range(8), range(3))]
        assert threading.current_thread().name not in {result[3] for result in results}
        return {result[:3] for result in results}

    assert seen() == {(1, False, True)}
    with torch.no_grad():
        assert seen() == {(1, False, False)}
    with torch.inference_mode():
        assert seen() == {(1, True, False)}
    assert torch.get_num_threads() == threads


def test_the_first_failure_in_order_is_raised_and_the_rest_is_dropped(threads: int) -> None:
    begun = []

    def work(piece: int, _: int) -> int:
        begun.append(piece)
        if piece == 2:
            time.sleep(0.01)
        if piece in (2, 3):
            raise ValueError(f"piece {piece}")
        return piece

    taken = []

    def run() -> None:
        with Workers() as workers:
            for piece, _ in workers.results(work, range(100), range(4)):
                taken.append(piece)

    with pytest.raises(ValueError, match="piece 2"):
        run()
    assert taken == [0, 1]
    assert len(begun) <= 6
    assert torch.get_num_threads() == threads
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("lycoris")]
    assert alive == []


def test_a_block_of_one_thread_ends_as_it_began(threads: int) -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="in it"), one_thread():
        raise ValueError("in it")
    assert torch.get_num_threads() == threads
