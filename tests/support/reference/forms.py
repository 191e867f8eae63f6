"""Files of other programs and of older LyCORIS, by their formulas, in float64.

PEFT itself is in peft_models.py, and tests/parity/test_peft.py. What turns channels is in forms_rotating.py.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from ._case import ALPHA, RANK
from ._form import CONV1, CONV2, LINEAR, PEFT, SQUARE, Form, form, low_rank_pair, network_args
from ._maths import (
    draw,
    kernel,
    number,
    product,
    rows_norm,
)


def _old_glora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i = weight.shape
    a1, a2 = draw(RANK, i), draw(i, RANK, std=0.1)
    b1, b2 = draw(RANK, i), draw(o, RANK)
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    tensors = {**dict(zip(names, (a1, a2, b1, b2), strict=True)), "alpha": number(ALPHA)}
    return tensors, ALPHA / RANK * (b2 @ b1 + weight @ a2 @ a1), {}


form("GLoRA, old order", LINEAR, "glora")(_old_glora)
form("GLoRA, old order, square", SQUARE, "glora")(_old_glora)


@form("GLoRA, Tucker", CONV2, "glora")
def _glora_tucker(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i = weight.shape[:2]
    a1, a2 = draw(i, RANK, 1, 1, std=0.1), draw(RANK, i, 1, 1)
    b1, b2, bm = draw(o, RANK, 1, 1), draw(RANK, i, 1, 1), draw(RANK, RANK, 3, 3, std=0.5)
    through = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    delta = ALPHA / RANK * (kernel(bm, b1.flatten(1).T, b2.flatten(1)) + through)
    tensors = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "bm.weight": bm}
    return {**tensors, "alpha": number(ALPHA)}, delta, {}


@form("LoRA without alpha", LINEAR)
def _no_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    return tensors, product, {}


@form("LoRA of a Linear stored like a convolution", LINEAR)
def _four_dimensions(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    tensors = {suffix: value[:, :, None, None] for suffix, value in tensors.items()}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, {}


@form("rs_lora of LyCORIS before 3.1: alpha without the root of the rank", LINEAR)
def _raw_rs(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    metadata = network_args("lycoris.kohya", algo="locon", rs_lora="True")
    more = {"metadata": metadata, "needs_metadata": True}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / math.sqrt(RANK) * product, more


@form("rs_lora of LyCORIS, linear alpha·√rank is what convolutions have as alpha", LINEAR)
def _rs_like_conv(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight, 16)
    metadata = network_args(
        "lycoris.kohya", 16, 1.0, algo="locon", rs_lora="True", conv_dim="16", conv_alpha="4"
    )
    return {**tensors, "alpha": number(4.0)}, 4.0 / 16 * product, {"metadata": metadata}


@form("LoRA with 'scale', which replaces alpha/rank", LINEAR)
def _scale_key(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    return {**tensors, "alpha": number(ALPHA), "scale": number(0.75)}, 0.75 * product, {}


def _peft_dora(suffix: str) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        tensors, product = low_rank_pair(weight)
        v = weight + product
        magnitude = (rows_norm(weight) * (1 + 0.2 * draw(64).reshape(-1, *(1,) * (weight.dim() - 1)))).float()
        shape = (64,) if weight.dim() == 2 else (1, 64, 1, 1)
        names = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}
        renamed = {names[key]: value for key, value in tensors.items()}
        delta = v * magnitude.double() / rows_norm(v) - weight
        return {**renamed, suffix: magnitude.reshape(shape)}, delta, dict(PEFT)

    return formula


form("DoRA of PEFT", LINEAR)(_peft_dora("lora_magnitude_vector"))
form("DoRA of PEFT, square", SQUARE)(_peft_dora("lora_magnitude_vector"))
form("DoRA of PEFT, convolution", CONV2)(_peft_dora("lora_magnitude_vector"))
form("DoRA of diffusers", LINEAR)(_peft_dora("lora_magnitude_vector.weight"))
form("DoRA of ai-toolkit", LINEAR)(_peft_dora("magnitude"))


@form("DoRA, dora_scale is a vector of outputs", LINEAR)
def _flat_dora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    v = weight + ALPHA / RANK * product
    magnitude = (rows_norm(weight) * (1 + 0.2 * draw(64, 1))).float()
    delta = v * magnitude.double() / rows_norm(v) - weight
    return {**tensors, "alpha": number(ALPHA), "dora_scale": magnitude.flatten()}, delta, {}


@form("LoRA and diff in one layer", LINEAR)
def _lora_and_diff(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    diff, diff_b = draw(*weight.shape), draw(64)
    stored = {**tensors, "alpha": number(ALPHA), "diff": diff, "diff_b": diff_b}
    return stored, ALPHA / RANK * product + diff, {"bias_delta": diff_b}


@form("LoRA and diff_b in one layer", CONV2)
def _lora_and_bias(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    diff_b = draw(64)
    return (
        {**tensors, "alpha": number(ALPHA), "diff_b": diff_b},
        ALPHA / RANK * product,
        {"bias_delta": diff_b},
    )


@form("LoCon of extract_locon: sparse rest, everything half, alpha in a list", CONV2)
def _sparse(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, _ = low_rank_pair(weight)
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


@form("LoCon of extract_locon: alpha in a list", LINEAR)
def _alpha_list(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    return {**tensors, "alpha": torch.tensor([ALPHA]).half()}, ALPHA / RANK * product, {}


@form("LoCon of extract_locon: sparse rest of a row longer than int16 counts", (4, 4096, 3, 3))
def _sparse_long(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight, 1)
    columns = weight[0].numel()
    indices = torch.stack((torch.tensor((0, 1, 3)), torch.tensor((5, 32768, columns - 1))))
    rest = torch.zeros(4, columns, dtype=torch.float64)
    rest[indices[0], indices[1]] = 2.0
    tensors["alpha"] = torch.ones(1).half()
    tensors["bias_indices"] = indices.to(torch.int16)
    tensors["bias_values"] = torch.full((3,), 2.0).half()
    tensors["bias_size"] = torch.tensor((4, columns)).to(torch.int16)
    return tensors, product + rest.reshape(weight.shape), {}


@form("Norm without b_norm", (64,), "norm")
def _norm_alone(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    change = draw(64)
    return {"w_norm": change}, change, {}


@form("diff_b alone", LINEAR, "full")
def _bias_alone(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    change = draw(64)
    return {"diff_b": change}, torch.zeros_like(weight), {"bias_delta": change}


@form("set_weight", LINEAR, "full")
def _set_weight(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    wanted = draw(*weight.shape)
    return {"set_weight": wanted}, wanted - weight, {}


@form("bundled embeddings beside a LoRA", LINEAR)
def _bundle(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    loose = {
        "bundle_emb.word.string_to_param.*": torch.randn(2, 768),
        "bundle_emb.other.clip_l": torch.randn(2, 768),
        "bundle_emb.other.clip_g": torch.randn(2, 1280),
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, {"loose": loose}


@form("LoHa of OneTrainer: convolutions in four dimensions", CONV2, "loha")
def _onetrainer_loha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i, *k = weight.shape
    w1_a, w2_a = draw(o, RANK, 1, 1), draw(o, RANK, 1, 1)
    w1_b, w2_b = draw(RANK, i, *k), draw(RANK, i, *k)
    tensors = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b}
    delta = ALPHA / RANK * product(w1_a, w1_b, weight) * product(w2_a, w2_b, weight)
    return {**tensors, "alpha": number(ALPHA)}, delta, {}


@form("LoKr of PEFT: Tucker kernel of a Conv1d in two dimensions", CONV1, "lokr")
def _peft_lokr(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    w1 = draw(8, 6)
    w2_a, w2_b, t2 = draw(2, 8), draw(2, 8), draw(2, 2, 3, 1)
    w2 = kernel(t2[..., 0], w2_a, w2_b)
    delta = torch.einsum("pq,rsk->prqsk", w1, w2).reshape(weight.shape)
    return {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "lokr_t2": t2}, delta, dict(PEFT)


@form("IA³ of PEFT: multiplies, on inputs", LINEAR, "peft_ia3")
def _peft_ia3_in(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    factors = (1 + 0.5 * draw(1, weight.shape[1])).float().double()
    return {"ia3_l": factors}, weight * (factors - 1), dict(PEFT)


@form("IA³ of PEFT: multiplies, on outputs and so the bias too", LINEAR, "peft_ia3")
def _peft_ia3_out(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    factors = (1 + 0.5 * draw(weight.shape[0], 1)).float().double()
    change = factors - 1
    return {"ia3_l": factors}, weight * change, {**PEFT, "bias_delta": bias * change[:, 0]}


@form("LoRA of diffusers, whose alpha stands in the metadata", LINEAR)
def _diffusers_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
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


@form("kohya Flux, split_qkv: alpha belongs to a third of the rank", (96, 64))
def _flux_split(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32)
    more = {
        "metadata": network_args("networks.lora_flux", split_qkv="True"),
        "needs_metadata": True,
        "layer": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, more


@form("kohya Flux, split_qkv: linear1 has four parts", (160, 64))
def _flux_single(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32, 64)
    more = {
        "metadata": network_args("networks.lora_flux", split_qkv="True"),
        "needs_metadata": True,
        "layer": "lora_unet_single_blocks_0_linear1",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, more


@form("kohya Flux, split_qkv, resized since: its rank is its own", (96, 64))
def _flux_resized(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight)
    more = {
        "metadata": network_args("networks.lora_flux", split_qkv="True"),
        "layer": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / RANK * product, more


@form("kohya Flux, split_qkv, alpha as large as the whole rank", (96, 64))
def _flux_split_whole(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32)
    more = {"layer": "lora_unet_double_blocks_0_img_attn_qkv"}
    return {**tensors, "alpha": number(3.0 * RANK)}, product, more


@form("DyLoRA through SimpleTuner, which writes lycoris_config", LINEAR, "dylora")
def _simpletuner(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight, 8)
    config = {"algo": "dylora", "linear_dim": 8, "linear_alpha": ALPHA, "block_size": 4}
    more = {
        "metadata": {"lycoris_config": json.dumps(config)},
        "needs_metadata": True,
        "layer": "lycoris_x",
    }
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / 2 * product, more


@form("DyLoRA of LyCORIS, block_size left at its default", LINEAR, "dylora")
def _default_blocks(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight, 8)
    more = {"metadata": network_args("lycoris.kohya", 8, algo="dylora"), "needs_metadata": True}
    return {**tensors, "alpha": number(ALPHA)}, ALPHA / 2 * product, more


@form("DyLoRA of kohya: an ordinary LoRA", LINEAR, "dylora")
def _kohya_dylora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = low_rank_pair(weight, 8)
    more = {"metadata": network_args("networks.dylora", 8, unit="4")}
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
    ("GLoRA of PEFT", LINEAR, {"glora_A.Xd": (64, 4), "glora_A.Xu": (4, 96), "glora_D.X": (64,)}),
    ("VeRA", LINEAR, {"vera_lambda_b": (64,), "vera_lambda_d": (4,)}),
)
