"""What only PEFT trains: HRA and MiSS."""

from __future__ import annotations

import numpy as np

from ._registry import Arrays, oracle


@oracle("hra", "hra_u")
def _hra(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    matrix = weight.reshape(weight.shape[0], -1)
    reflected = matrix.copy()
    for u in tensors["hra_u"].T:
        u = u / np.sqrt((u * u).sum())
        reflected = reflected - 2 * np.outer(reflected @ u, u)
    return (reflected - matrix).reshape(weight.shape)


@oracle("miss", "miss_block", "miss_block.mini")
def _miss(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    block = tensors["miss_block"]
    change = np.empty(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            change[row, column] = block[column % block.shape[0], row % block.shape[1]]
    return change


@oracle("miss_bat", "miss_block")
def _miss_bat(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    change = np.empty(weight.shape)
    for number, block in enumerate(tensors["miss_block"]):
        size = len(block)
        rows = slice(number * size, (number + 1) * size)
        for first in range(0, weight.shape[1], size):
            columns = slice(first, first + size)
            change[rows, columns] = weight[rows, columns] @ block + block
    return change
