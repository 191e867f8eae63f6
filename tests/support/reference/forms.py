"""Files of other programs and of older LyCORIS, by their formulas, in float64.

A form is a function that draws tensors for a weight and a bias, and returns (tensors, ΔW, what else a
``Reference`` needs to know). PEFT itself is in peft_models.py, and tests/parity/test_peft.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._case import ALPHA, OFT_SPREAD, RANK, Case, Reference
from ._maths import (
    butterfly,
    cayley,
    draw,
    kernel,
    neumann,
    number,
    product,
    rotate_inputs,
    rotate_outputs,
    rows_norm,
    skew,
    upper,
)

Form = Callable[[Tensor, Tensor], tuple[dict[str, Tensor], Tensor, dict[str, Any]]]
FORMS: list[Case] = []
_LINEAR, _SQUARE = (64, 96), (64, 64)
_CONV1, _CONV2 = (64, 48, 3), (64, 48, 3, 3)


def _form(name: str, shape: tuple[int, ...], algo: str = "lora") -> Callable[[Form], Form]:
    def register(formula: Form) -> Form:
        def make() -> Reference:
            weight, bias = torch.randn(shape), torch.randn(shape[0])
            tensors, delta, more = formula(weight.double(), bias.double())
            stored = {
                suffix: value if value.dtype != torch.float64 else value.float()
                for suffix, value in tensors.items()
            }
            return Reference(name, stored, weight, bias, delta.reshape(shape), **more)

        FORMS.append(Case(name, algo, make))
        return formula

    return register


def _lora(weight: Tensor, rank: int = RANK) -> tuple[dict[str, Tensor], Tensor]:
    """Factors under kohya's names without an alpha, and up·down."""
    ones = (1,) * (weight.dim() - 2)
    up, down = draw(weight.shape[0], rank, *ones), draw(rank, *weight.shape[1:])
    return {"lora_up.weight": up, "lora_down.weight": down}, product(up, down, weight)


def _args(module: str, dim: int = RANK, alpha: float = ALPHA, **arguments: str) -> dict[str, str]:
    return {
        "ss_network_module": module,
        "ss_network_dim": str(dim),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
    }


_PEFT = {"layer": "base_model.model.x"}


def _old_glora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i = weight.shape
    a1, a2 = draw(RANK, i), draw(i, RANK, std=0.1)
    b1, b2 = draw(RANK, i), draw(o, RANK)
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    tensors = {**dict(zip(names, (a1, a2, b1, b2), strict=True)), "alpha": number(ALPHA)}
    return tensors, ALPHA / RANK * (b2 @ b1 + weight @ a2 @ a1), {}


_form("GLoRA, old order", _LINEAR, "glora")(_old_glora)
_form("GLoRA, old order, square", _SQUARE, "glora")(_old_glora)


@_form("GLoRA, Tucker", _CONV2, "glora")
def _glora_tucker(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i = weight.shape[:2]
    a1, a2 = draw(i, RANK, 1, 1, std=0.1), draw(RANK, i, 1, 1)
    b1, b2, bm = draw(o, RANK, 1, 1), draw(RANK, i, 1, 1), draw(RANK, RANK, 3, 3, std=0.5)
    through = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    delta = ALPHA / RANK * (kernel(bm, b1.flatten(1).T, b2.flatten(1)) + through)
    tensors = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "bm.weight": bm}
    return {**tensors, "alpha": number(ALPHA)}, delta, {}


@_form("oft_diag (LyCORIS 2.0: the finished rotation, rescaled)", _CONV2, "diag-oft")
def _oft_diag(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    r = cayley(skew(draw(16, 4, 4, std=OFT_SPREAD))) * (1 + 0.2 * draw(16, 4, 1))
    r = r.float().double()
    return {"oft_diag": r}, rotate_outputs(r, weight) - weight, {}


@_form("OFT of LyCORIS 2.1: no alpha, rescale is a vector", _CONV2, "diag-oft")
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
            "metadata": _args("networks.oft", 4, alpha),
            "needs_metadata": not alpha,
            "layer": "oft_unet_x",
        }
        delta = rotate_outputs(cayley(q), weight) - weight
        return {"oft_blocks": blocks, "alpha": number(alpha)}, delta, more

    return formula


_form("kohya OFT, constraint holds", _LINEAR, "diag-oft")(_kohya_oft(1e-3))
_form("kohya OFT, constraint does not matter", _LINEAR, "diag-oft")(_kohya_oft(10.0))
_form("kohya OFT, alpha 0: nothing turns, where LyCORIS would turn freely", _LINEAR, "diag-oft")(
    _kohya_oft(0.0)
)


@_form("kohya OFT for Flux: each of q, k, v turned and constrained by itself", (96, 64), "diag-oft")
def _oft_flux(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    alpha, tensors, parts = 0.05, {}, []
    for part, rows in enumerate(weight.split(32)):
        blocks = draw(4, 8, 8, std=OFT_SPREAD * (part + 0.5))
        q, bound = skew(blocks), float(number(alpha)) * 32
        q = q * (min(float(q.norm()), bound) / float(q.norm()))
        tensors[f"oft_blocks.{part}"] = blocks
        parts.append(rotate_outputs(cayley(q), rows))
    more = {
        "metadata": _args("networks.oft_flux", 4, alpha),
        "layer": "oft_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": number(alpha)}, torch.cat(parts) - weight, more


@_form("oft_diag in four dimensions (LyCORIS 2.0: a finished BOFT)", _LINEAR, "boft")
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
        more = {} if scaled else _PEFT
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
        return {"boft_R": raw, "boft_s": stored}, turned.reshape(weight.shape) - weight, dict(_PEFT)

    return formula


_form("BOFT of PEFT: rotates inputs, scales outputs", _LINEAR, "boft_inputs")(_boft_of_peft(2, 8))
_form("BOFT of PEFT, one stage", _LINEAR, "boft_inputs")(_boft_of_peft(1, 8))
_form("BOFT of PEFT, convolution", _CONV2, "boft_inputs")(_boft_of_peft(3, 12))
_form("OFT v2 of PEFT: rotates inputs", _LINEAR, "oft_v2")(_oft_v2())
_form("OFT v2 of PEFT, one block shared", _LINEAR, "oft_v2")(_oft_v2(share=True))
_form("OFT v2 of OneTrainer, scaled", _LINEAR, "oft_v2")(_oft_v2(scaled=True))


@_form("BOFT of LyCORIS 2.1: no alpha", _CONV2, "boft")
def _boft_without_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    blocks = draw(5, 16, 4, 4, std=OFT_SPREAD)
    return {"oft_blocks": blocks}, butterfly(cayley(skew(blocks)), weight) - weight, {}


@_form("LoRA without alpha", _LINEAR)
def _no_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    return tensors, product, {}


@_form("LoRA of a Linear stored like a convolution", _LINEAR)
def _four_dimensions(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    tensors = {suffix: value[:, :, None, None] for suffix, value in tensors.items()}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, {}


@_form("rs_lora of LyCORIS before 3.1: alpha without the root of the rank", _LINEAR)
def _raw_rs(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    metadata = _args("lycoris.kohya", algo="locon", rs_lora="True")
    more = {"metadata": metadata, "needs_metadata": True}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / math.sqrt(RANK) * product, more


@_form("rs_lora of LyCORIS, linear alpha·√rank is what convolutions have as alpha", _LINEAR)
def _rs_like_conv(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 16)
    metadata = _args("lycoris.kohya", 16, 1.0, algo="locon", rs_lora="True", conv_dim="16", conv_alpha="4")
    return {**tensors, "alpha": number(4.0)}, 4.0 / 16 * product, {"metadata": metadata}


@_form("LoRA with 'scale', which replaces alpha/rank", _LINEAR)
def _scale_key(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    return {**tensors, "alpha": number(ALPHA), "scale": number(0.75)}, 0.75 * product, {}


def _peft_dora(suffix: str) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        tensors, product = _lora(weight)
        v = weight + product
        magnitude = (rows_norm(weight) * (1 + 0.2 * draw(64).reshape(-1, *(1,) * (weight.dim() - 1)))).float()
        shape = (64,) if weight.dim() == 2 else (1, 64, 1, 1)
        names = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}
        renamed = {names[key]: value for key, value in tensors.items()}
        delta = v * magnitude.double() / rows_norm(v) - weight
        return {**renamed, suffix: magnitude.reshape(shape)}, delta, dict(_PEFT)

    return formula


_form("DoRA of PEFT", _LINEAR)(_peft_dora("lora_magnitude_vector"))
_form("DoRA of PEFT, square", _SQUARE)(_peft_dora("lora_magnitude_vector"))
_form("DoRA of PEFT, convolution", _CONV2)(_peft_dora("lora_magnitude_vector"))
_form("DoRA of diffusers", _LINEAR)(_peft_dora("lora_magnitude_vector.weight"))
_form("DoRA of ai-toolkit", _LINEAR)(_peft_dora("magnitude"))


@_form("DoRA, dora_scale is a vector of outputs", _LINEAR)
def _flat_dora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    v = weight + ALPHA / RANK * product
    magnitude = (rows_norm(weight) * (1 + 0.2 * draw(64, 1))).float()
    delta = v * magnitude.double() / rows_norm(v) - weight
    return {**tensors, "alpha": number(ALPHA), "dora_scale": magnitude.flatten()}, delta, {}


@_form("LoRA and diff in one layer", _LINEAR)
def _lora_and_diff(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    diff, diff_b = draw(*weight.shape), draw(64)
    stored = {**tensors, "alpha": number(ALPHA), "diff": diff, "diff_b": diff_b}
    return stored, ALPHA / RANK * product + diff, {"bias_delta": diff_b}


@_form("LoRA and diff_b in one layer", _CONV2)
def _lora_and_bias(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    diff_b = draw(64)
    return (
        {**tensors, "alpha": number(ALPHA), "diff_b": diff_b},
        ALPHA / RANK * product,
        {"bias_delta": diff_b},
    )


@_form("LoCon of extract_locon: sparse rest, everything half, alpha in a list", _CONV2)
def _sparse(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, _ = _lora(weight)
    tensors = {suffix: value.half() for suffix, value in tensors.items()}
    rows, columns = weight.shape[0], weight[0].numel()
    places = torch.randperm(rows * columns)[:500].sort().values
    indices = torch.stack((places // columns, places % columns))
    values = draw(500).half()
    rest = torch.zeros(rows, columns, dtype=torch.float64)
    rest[indices[0], indices[1]] = values.double()
    up, down = (tensors[suffix].double() for suffix in ("lora_up.weight", "lora_down.weight"))
    tensors["alpha"] = torch.tensor([float(RANK)]).half()
    tensors["bias_indices"] = indices.to(torch.int16)
    tensors["bias_values"] = values
    tensors["bias_size"] = torch.tensor((rows, columns), dtype=torch.int16)
    return tensors, product(up, down, weight) + rest.reshape(weight.shape), {}


@_form("LoCon of extract_locon: alpha in a list", _LINEAR)
def _alpha_list(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    return {**tensors, "alpha": torch.tensor([ALPHA]).half()}, ALPHA / RANK * product, {}


@_form("LoCon of extract_locon: sparse rest of a row longer than int16 counts", (4, 4096, 3, 3))
def _sparse_long(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 1)
    columns = weight[0].numel()
    indices = torch.stack((torch.tensor((0, 1, 3)), torch.tensor((5, 32768, columns - 1))))
    rest = torch.zeros(4, columns, dtype=torch.float64)
    rest[indices[0], indices[1]] = 2.0
    tensors["alpha"] = torch.ones(1).half()
    tensors["bias_indices"] = indices.to(torch.int16)
    tensors["bias_values"] = torch.full((3,), 2.0).half()
    tensors["bias_size"] = torch.tensor((4, columns)).to(torch.int16)
    return tensors, product + rest.reshape(weight.shape), {}


@_form("Norm without b_norm", (64,), "norm")
def _norm_alone(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    change = draw(64)
    return {"w_norm": change}, change, {}


@_form("diff_b alone", _LINEAR, "full")
def _bias_alone(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    change = draw(64)
    return {"diff_b": change}, torch.zeros_like(weight), {"bias_delta": change}


@_form("set_weight", _LINEAR, "full")
def _set_weight(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    wanted = draw(*weight.shape)
    return {"set_weight": wanted}, wanted - weight, {}


@_form("bundled embeddings beside a LoRA", _LINEAR)
def _bundle(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    loose = {
        "bundle_emb.word.string_to_param.*": torch.randn(2, 768),
        "bundle_emb.other.clip_l": torch.randn(2, 768),
        "bundle_emb.other.clip_g": torch.randn(2, 1280),
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, {"loose": loose}


@_form("LoHa of OneTrainer: convolutions in four dimensions", _CONV2, "loha")
def _onetrainer_loha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i, *k = weight.shape
    w1_a, w2_a = draw(o, RANK, 1, 1), draw(o, RANK, 1, 1)
    w1_b, w2_b = draw(RANK, i, *k), draw(RANK, i, *k)
    tensors = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b}
    delta = ALPHA / RANK * product(w1_a, w1_b, weight) * product(w2_a, w2_b, weight)
    return {**tensors, "alpha": number(ALPHA)}, delta, {}


@_form("LoKr of PEFT: Tucker kernel of a Conv1d in two dimensions", _CONV1, "lokr")
def _peft_lokr(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    w1 = draw(8, 6)
    w2_a, w2_b, t2 = draw(2, 8), draw(2, 8), draw(2, 2, 3, 1)
    w2 = kernel(t2[..., 0], w2_a, w2_b)
    delta = torch.einsum("pq,rsk->prqsk", w1, w2).reshape(weight.shape)
    return {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "lokr_t2": t2}, delta, dict(_PEFT)


@_form("IA³ of PEFT: multiplies, on inputs", _LINEAR, "peft_ia3")
def _peft_ia3_in(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    factors = (1 + 0.5 * draw(1, weight.shape[1])).float().double()
    return {"ia3_l": factors}, weight * (factors - 1), dict(_PEFT)


@_form("IA³ of PEFT: multiplies, on outputs and so the bias too", _LINEAR, "peft_ia3")
def _peft_ia3_out(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    factors = (1 + 0.5 * draw(weight.shape[0], 1)).float().double()
    change = factors - 1
    return {"ia3_l": factors}, weight * change, {**_PEFT, "bias_delta": bias * change[:, 0]}


@_form("LoRA of diffusers, whose alpha stands in the metadata", _LINEAR)
def _diffusers_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    config = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.use_rslora": False}
    more = {
        "metadata": {"format": "pt", "lora_adapter_metadata": json.dumps(config)},
        "needs_metadata": True,
        "layer": "transformer.x",
    }
    renamed = {"lora_B.weight": tensors["lora_up.weight"], "lora_A.weight": tensors["lora_down.weight"]}
    return renamed, ALPHA / RANK * product, more


def _flux_blocks(*rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """The LoRA of q, k, v … in one: a block-sparse up, the downs under each other."""
    ups, downs = [draw(o, RANK) for o in rows], [draw(RANK, 64) for _ in rows]
    up, down = torch.block_diag(*ups), torch.cat(downs)
    product = torch.cat([u @ d for u, d in zip(ups, downs, strict=True)])
    return {"lora_up.weight": up, "lora_down.weight": down}, product


@_form("kohya Flux, split_qkv: alpha belongs to a third of the rank", (96, 64))
def _flux_split(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32)
    more = {
        "metadata": _args("networks.lora_flux", split_qkv="True"),
        "needs_metadata": True,
        "layer": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, more


@_form("kohya Flux, split_qkv: linear1 has four parts", (160, 64))
def _flux_single(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32, 64)
    more = {
        "metadata": _args("networks.lora_flux", split_qkv="True"),
        "needs_metadata": True,
        "layer": "lora_unet_single_blocks_0_linear1",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, more


@_form("kohya Flux, split_qkv, resized since: its rank is its own", (96, 64))
def _flux_resized(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    more = {
        "metadata": _args("networks.lora_flux", split_qkv="True"),
        "layer": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, more


@_form("kohya Flux, split_qkv, alpha as large as the whole rank", (96, 64))
def _flux_split_whole(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32)
    more = {"layer": "lora_unet_double_blocks_0_img_attn_qkv"}
    return {**tensors, "alpha": number(3.0 * RANK)}, product, more


@_form("DyLoRA through SimpleTuner, which writes lycoris_config", _LINEAR, "dylora")
def _simpletuner(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 8)
    config = {"algo": "dylora", "linear_dim": 8, "linear_alpha": ALPHA, "block_size": 4}
    more = {
        "metadata": {"lycoris_config": json.dumps(config)},
        "needs_metadata": True,
        "layer": "lycoris_x",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / 2 * product, more


@_form("DyLoRA of LyCORIS, block_size left at its default", _LINEAR, "dylora")
def _default_blocks(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 8)
    more = {"metadata": _args("lycoris.kohya", 8, algo="dylora"), "needs_metadata": True}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / 2 * product, more


@_form("DyLoRA of kohya: an ordinary LoRA", _LINEAR, "dylora")
def _kohya_dylora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 8)
    more = {"metadata": _args("networks.dylora", 8, unit="4")}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / 8 * product, more


#: How programs spell a LoRA's up and down, after the name of the layer; ComfyUI's Load LoRA reads them all.
SPELLINGS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)

#: Files of formats that are told apart but not computed: they must be refused, with the reason.
FOREIGN: tuple[tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]], ...] = (
    ("GLoRA of PEFT", _LINEAR, {"glora_A.Xd": (64, 4), "glora_A.Xu": (4, 96), "glora_D.X": (64,)}),
    ("VeRA", _LINEAR, {"vera_lambda_b": (64,), "vera_lambda_d": (4,)}),
)
