"""Files of other programs and of older LyCORIS that turn channels, by their formulas, in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._case import OFT_SPREAD
from ._form import CONV2, LINEAR, PEFT, Form, form, network_args
from ._maths import (
    butterfly,
    cayley,
    draw,
    neumann,
    number,
    rotate_inputs,
    rotate_outputs,
    skew,
    upper,
)


@form("oft_diag (LyCORIS 2.0: the finished rotation, rescaled)", CONV2, "diag-oft")
def _oft_diag(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    r = cayley(skew(draw(16, 4, 4, std=OFT_SPREAD))) * (1 + 0.2 * draw(16, 4, 1))
    r = r.float().double()
    return {"oft_diag": r}, rotate_outputs(r, weight) - weight, {}


@form("OFT of LyCORIS 2.1: no alpha, rescale is a vector", CONV2, "diag-oft")
def _oft_without_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    blocks, rescale = draw(16, 4, 4, std=OFT_SPREAD), 1 + 0.2 * draw(64)
    rescale = rescale.float().double()
    rotated = rescale.reshape(-1, 1, 1, 1) * rotate_outputs(cayley(skew(blocks)), weight)
    return {"oft_blocks": blocks, "rescale": rescale}, rotated - weight, {}


def _kohya_oft(alpha: float) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        blocks = draw(4, 16, 16, std=OFT_SPREAD)
        q, bound = skew(blocks), float(number(alpha)) * weight.shape[0]
        q = q * ((min(float(q.norm()), bound) + 1e-8) / (float(q.norm()) + 1e-8))
        more = {
            "metadata": network_args("networks.oft", 4, alpha),
            "needs_metadata": not alpha,
            "layer": "oft_unet_x",
        }
        delta = rotate_outputs(cayley(q), weight) - weight
        return {"oft_blocks": blocks, "alpha": number(alpha)}, delta, more

    return formula


form("kohya OFT, constraint holds", LINEAR, "diag-oft")(_kohya_oft(1e-3))
form("kohya OFT, constraint does not matter", LINEAR, "diag-oft")(_kohya_oft(10.0))
form("kohya OFT, alpha 0: nothing turns, where LyCORIS would turn freely", LINEAR, "diag-oft")(
    _kohya_oft(0.0)
)


@form("kohya OFT for Flux: each of q, k, v turned and constrained by itself", (96, 64), "diag-oft")
def _oft_flux(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    alpha, tensors, parts = 0.05, {}, []
    for part, rows in enumerate(weight.split(32)):
        blocks = draw(4, 8, 8, std=OFT_SPREAD * (part + 0.5))
        q, bound = skew(blocks), float(number(alpha)) * 32
        q = q * (min(float(q.norm()), bound) / float(q.norm()))
        tensors[f"oft_blocks.{part}"] = blocks
        parts.append(rotate_outputs(cayley(q), rows))
    more = {
        "metadata": network_args("networks.oft_flux", 4, alpha),
        "layer": "oft_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": number(alpha)}, torch.cat(parts) - weight, more


@form("oft_diag in four dimensions (LyCORIS 2.0: a finished BOFT)", LINEAR, "boft")
def _boft_diag(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    r = cayley(skew(draw(5, 16, 4, 4, std=OFT_SPREAD))).float().double()
    return {"oft_diag": r}, butterfly(r, weight) - weight, {}


def _oft_v2(*, scaled: bool = False, share: bool = False) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        size = 8
        count = weight.shape[1] // size
        vectors = draw(1 if share else count, size * (size - 1) // 2, std=0.1)
        tensors, used = {"oft_R.weight": vectors}, vectors
        if scaled:  # OneTrainer
            tensors["oft_R.scaled_oft"] = torch.ones(())
            used = vectors / (2 * math.sqrt(size - 1))
        r = neumann(upper(used, size)).expand(count, size, size)
        more = {} if scaled else PEFT
        return tensors, rotate_inputs(r, weight) - weight, dict(more)

    return formula


def _boft_of_peft(stages: int, size: int) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        outputs, inputs = weight.shape[0], weight[0].numel()
        raw = draw(stages, inputs // size, size, size, std=OFT_SPREAD)
        scales = 1 + draw(outputs, std=0.1)
        r = cayley(-skew(raw) / 2)
        # PEFT keeps the two sides of a block together where LyCORIS deals them out.
        dealt = r.reshape(stages, -1, 2, size // 2, 2, size // 2).permute(0, 1, 3, 2, 5, 4).reshape(r.shape)
        turned = butterfly(dealt, weight.flatten(1).T).T * scales[:, None]
        stored = scales[:, None] if weight.dim() == 2 else scales[None]
        return {"boft_R": raw, "boft_s": stored}, turned.reshape(weight.shape) - weight, dict(PEFT)

    return formula


form("BOFT of PEFT: rotates inputs, scales outputs", LINEAR, "boft_inputs")(_boft_of_peft(2, 8))
form("BOFT of PEFT, one stage", LINEAR, "boft_inputs")(_boft_of_peft(1, 8))
form("BOFT of PEFT, convolution", CONV2, "boft_inputs")(_boft_of_peft(3, 12))
form("OFT v2 of PEFT: rotates inputs", LINEAR, "oft_v2")(_oft_v2())
form("OFT v2 of PEFT, one block shared", LINEAR, "oft_v2")(_oft_v2(share=True))
form("OFT v2 of OneTrainer, scaled", LINEAR, "oft_v2")(_oft_v2(scaled=True))


@form("BOFT of LyCORIS 2.1: no alpha", CONV2, "boft")
def _boft_without_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    blocks = draw(5, 16, 4, 4, std=OFT_SPREAD)
    return {"oft_blocks": blocks}, butterfly(cayley(skew(blocks)), weight) - weight, {}
