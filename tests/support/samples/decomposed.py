"""DoRA: a magnitude on either axis, on every kind of algorithm and extra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ._case import LAYERS, Case, Draw, alpha, samples


def _lora(draw: Draw, shape: tuple[int, ...]) -> dict[str, Tensor]:
    ones = (1,) * (len(shape) - 2)
    return {
        "lora_up.weight": draw(shape[0], 4, *ones),
        "lora_down.weight": draw(4, *shape[1:]),
        "alpha": alpha(2),
    }


def _magnitudes(draw: Draw, shape: tuple[int, ...], axis: int) -> Tensor:
    """One for each channel of ``axis``, around the norms that the weights of the samples have."""
    count = shape[axis]
    norm = (0.25 * Tensor([*shape]).prod() / count).sqrt()
    sizes = [count if dim == axis else 1 for dim in range(len(shape))]
    return norm * (1 + draw(*sizes).abs())


def _both(shape: tuple[int, ...], axis: int) -> dict[str, Any]:
    """What is said of an OFT under a DoRA: see rotating.py, but for a DoRA that counts inputs too."""
    return {"also_fits": lambda other: other[: axis + 1] == shape[: axis + 1]}


@samples("dora")
def _dora(draw: Draw) -> Iterator[Case]:
    for kind, shape in LAYERS.items():
        for axis, side in enumerate(("output", "input")):
            tensors = {**_lora(draw, shape), "dora_scale": _magnitudes(draw, shape, axis)}
            yield Case(f"{kind}-{side}", ("lora", "dora"), tensors, shape)
    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    vector = {**_lora(draw, linear), "dora_scale": _magnitudes(draw, linear, 0).flatten()}
    yield Case("linear-vector", ("lora", "dora"), vector, linear)
    loha = {"hada_w1_a": draw(24, 3), "hada_w1_b": draw(3, 16), "hada_w2_a": draw(24, 3)}
    loha |= {"hada_w2_b": draw(3, 16), "alpha": alpha(2), "dora_scale": _magnitudes(draw, linear, 0)}
    yield Case("linear-output", ("loha", "dora"), loha, linear)
    lokr = {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 18), "alpha": alpha(1)}
    yield Case("conv2d_3x3-input", ("lokr", "dora"), {**lokr, "dora_scale": _magnitudes(draw, conv, 1)}, conv)
    full = {"diff": draw(*conv), "diff_b": draw(12), "dora_scale": _magnitudes(draw, conv, 0)}
    yield Case("conv2d_3x3-output", ("full", "dora"), full, conv, ("full_bias",))
    # Whatever is added belongs to the direction, in every order: V is W and all of it.
    both = {**_lora(draw, linear), "diff": draw(*linear), "dora_scale": _magnitudes(draw, linear, 1)}
    yield Case("linear-input", ("lora", "full", "dora"), both, linear)
    glora = {"a1.weight": draw(8, 3, 1, 1), "a2.weight": draw(3, 8, 1, 1), "b1.weight": draw(12, 3, 1, 1)}
    glora |= {"b2.weight": draw(3, 8, 3, 3), "alpha": alpha(2), "dora_scale": _magnitudes(draw, conv, 0)}
    yield Case("conv2d_3x3-output", ("glora", "dora"), glora, conv)
    # Cores whose rows depend on other rows, under norms that do and that do not.
    for axis, side in enumerate(("output", "input")):
        oft = {"oft_blocks": draw(6, 4, 4), "alpha": alpha(0), "dora_scale": _magnitudes(draw, linear, axis)}
        yield Case(f"linear-{side}", ("oft", "dora"), oft, linear, **_both(linear, axis))
        boft = {"oft_blocks": draw(2, 2, 6, 6), "dora_scale": _magnitudes(draw, conv, axis)}
        yield Case(f"conv2d_3x3-{side}", ("boft", "dora"), boft, conv, **_both(conv, axis))


@samples("dora_vector")
def _dora_vector(draw: Draw) -> Iterator[Case]:
    linear, conv, square = LAYERS["linear"], LAYERS["conv2d_3x3"], (16, 16)
    # PEFT and ai-toolkit; on a square weight the axis does not show in the shape.
    for name, shape in (("linear", linear), ("square", square)):
        tensors = {**_lora(draw, shape), "lora_magnitude_vector": _magnitudes(draw, shape, 0).flatten()}
        yield Case(name, ("lora", "dora_vector"), tensors, shape)
    # PEFT stores that of a convolution like a bias of its output.
    stored = _magnitudes(draw, conv, 0).reshape(1, 12, 1, 1)
    tensors = {**_lora(draw, conv), "lora_magnitude_vector": stored}
    yield Case("conv2d_3x3", ("lora", "dora_vector"), tensors, conv)
    full = {"diff": draw(*linear), "lora_magnitude_vector": _magnitudes(draw, linear, 0).flatten()}
    yield Case("linear", ("full", "dora_vector"), full, linear)
