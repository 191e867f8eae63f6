"""What turns the outputs or the inputs of a layer: OFT in its forms, and BOFT."""

from __future__ import annotations

import math

import numpy as np

from ._registry import Arrays, oracle


def _skew(blocks: np.ndarray, alpha: np.ndarray | None, outputs: int) -> np.ndarray:
    """B − Bᵀ of every block (…, b, b), shrunk as one if its norm is above alpha·outputs; 0 is no bound."""
    flat = blocks.reshape(-1, *blocks.shape[-2:])
    turns = np.stack([block - block.T for block in flat])
    bound = 0.0 if alpha is None else float(alpha.reshape(())) * outputs
    norm = math.sqrt((turns * turns).sum())
    if bound > 0 and norm + 1e-8 > bound:
        turns = turns * bound / (norm + 1e-8)
    return turns.reshape(blocks.shape)


def _cayley(turns: np.ndarray) -> np.ndarray:
    """(I + Q)(I − Q)⁻¹ of every block, by the inverse itself."""
    one = np.eye(turns.shape[-1])
    flat = turns.reshape(-1, *turns.shape[-2:])
    return np.stack([(one + q) @ np.linalg.inv(one - q) for q in flat]).reshape(turns.shape)


def _diagonal(rotations: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """W'[n·b + m] = Σ_k R[n, k, m]·W[n·b + k]."""
    turned = np.zeros(weight.shape)
    size = rotations.shape[1]
    for n, rotation in enumerate(rotations):
        for m in range(size):
            for k in range(size):
                turned[n * size + m] += rotation[k, m] * weight[n * size + k]
    return turned


def _rescaled(tensors: Arrays, turned: np.ndarray) -> np.ndarray:
    if "rescale" not in tensors:
        return turned
    return np.stack([s * row for s, row in zip(tensors["rescale"].reshape(-1), turned, strict=True)])


@oracle("oft_diag", "oft_diag")
def _oft_diag(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    return _diagonal(tensors["oft_diag"], weight) - weight


@oracle("oft", "oft_blocks", "rescale", "alpha")
def _oft(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    turns = _skew(tensors["oft_blocks"], tensors.get("alpha"), weight.shape[0])
    return _rescaled(tensors, _diagonal(_cayley(turns), weight)) - weight


@oracle("oft_split", *(f"oft_blocks.{part}" for part in range(4)), "alpha")
def _oft_split(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    changes, first = [], 0
    for blocks in (tensors[f"oft_blocks.{part}"] for part in range(len(tensors.keys() - {"alpha"}))):
        last = first + blocks.shape[0] * blocks.shape[1]
        own = {"oft_blocks": blocks, **{name: tensors[name] for name in tensors if name == "alpha"}}
        changes.append(_oft(own, weight[first:last]))
        first = last
    return np.concatenate(changes)


def butterfly(stages: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Stage t turns rows that lie 2^t·b/2 apart, together with those that lie between them."""
    outputs, size = weight.shape[0], stages.shape[-1]
    for stage, rotations in enumerate(stages):
        half = 2**stage * size // 2
        # Pairs (row, row + half), all pairs of one stretch of 2·half rows before those of the next.
        order = [
            stretch + offset + side
            for stretch in range(0, outputs, 2 * half)
            for offset in range(half)
            for side in (0, half)
        ]
        turned = np.zeros(weight.shape)
        for n, rotation in enumerate(rotations):
            own = order[n * size : (n + 1) * size]
            for j in range(size):
                for k in range(size):
                    turned[own[j]] += rotation[j, k] * weight[own[k]]
        weight = turned
    return weight


@oracle("boft_diag", "oft_diag", "rescale")
def _boft_diag(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    return _rescaled(tensors, butterfly(tensors["oft_diag"], weight)) - weight


@oracle("boft", "oft_blocks", "rescale", "alpha")
def _boft(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    turns = _skew(tensors["oft_blocks"], tensors.get("alpha"), weight.shape[0])
    return _rescaled(tensors, butterfly(_cayley(turns), weight)) - weight


@oracle("oft_v2", "oft_R.weight", "oft_R.scaled_oft", "oft_R.peft")
def _oft_v2(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    triangles = tensors["oft_R.weight"]
    size = next(b for b in range(2, 99) if b * (b - 1) // 2 == triangles.shape[1])
    if "oft_R.scaled_oft" in tensors and float(tensors["oft_R.scaled_oft"].reshape(())):
        triangles = triangles / (2 * math.sqrt(size - 1))
    peft = float(tensors["oft_R.peft"].reshape(())) if "oft_R.peft" in tensors else 0
    matrix = weight.reshape(weight.shape[0], -1)
    turned = np.zeros(matrix.shape)
    for n in range(matrix.shape[1] // size):
        values = iter(triangles[n if len(triangles) > 1 else 0])
        q = np.zeros((size, size))
        for row in range(size):
            for column in range(row + 1, size):
                q[row, column] = next(values)
                q[column, row] = -q[row, column]
        rotation = np.eye(size) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
        if peft == 3:
            rotation += q @ q @ q @ q
        elif peft == 2:
            rotation = (np.eye(size) - q) @ np.linalg.inv(np.eye(size) + q)
        own = slice(n * size, (n + 1) * size)
        # A Linear turns its inputs, y = W(R·x) in PEFT's rows; OneTrainer turns a kernel the other way.
        turned[:, own] = matrix[:, own] @ (rotation.T if weight.ndim == 2 or peft else rotation)
    return (turned - matrix).reshape(weight.shape)


@oracle("boft_inputs", "boft_R", "boft_s")
def _boft_inputs(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    matrix = weight.reshape(weight.shape[0], -1)
    blocks, inputs = tensors["boft_R"], matrix.shape[1]
    size = blocks.shape[-1]
    whole = np.eye(inputs)
    for stage, own in enumerate(blocks):
        # PEFT's permutation: of every stretch of 2^(stage + 1) runs of size/2 inputs, the even runs go first.
        # At stage 0 that is no change, and the size may be odd.
        permutation = np.eye(inputs)
        if stage:
            run, stretch = size // 2, 2 ** (stage + 1)
            order = [
                start + place
                for start in range(0, inputs // run, stretch)
                for place in (*range(0, stretch, 2), *range(1, stretch, 2))
            ]
            permutation = np.concatenate([permutation[source * run : (source + 1) * run] for source in order])
        diagonal = np.zeros((inputs, inputs))
        for n, a in enumerate(own):
            q = (a - a.T) / 2
            turned = (np.eye(size) - q) @ np.linalg.inv(np.eye(size) + q)
            diagonal[n * size : (n + 1) * size, n * size : (n + 1) * size] = turned
        whole = permutation @ diagonal @ permutation.T @ whole
    scaled = (whole @ matrix.T).T * tensors["boft_s"].reshape(-1, 1)
    return (scaled - matrix).reshape(weight.shape)
