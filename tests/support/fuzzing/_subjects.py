"""Valid files: every sample of every algorithm, in all dialects, and what only some programs write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import baking
import torch
from samples import CASES, Case
from torch import Tensor

from lycoris_algos.formats import dialect_of

from ._draft import Draft

#: Layers as every dialect spells them.
LAYERS = (
    "lora_unet_down_blocks_0_attentions_0_proj_in",
    "diffusion_model.double_blocks.0.img_attn.proj",
    "lycoris_transformer_blocks_0_attn_to_q",
    "unet.down_blocks.0.attentions.0.proj_in",
    "base_model.model.up_blocks.1.resnets.0.conv1",
    "plugin:mid_block.attentions.0.proj_out",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "double_blocks.3.txt_mlp.0",
    "lora_transformer_single_blocks_1_linear1",
    "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "transformer.transformer_blocks.0.attn.to_q",
    "a_layer.of_no.dialect",
)
_STORED = (torch.float32, torch.float16, torch.bfloat16)
_P = "base_model.model."

#: PEFT's configuration by the suffix that such a file has.
CONFIGURATIONS: Mapping[str, dict[str, Any]] = {
    "lora_up.weight": {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "alpha_pattern": {"down_blocks.*to_q": 8, "^x": 2},
        "rank_pattern": {"conv1": 4},
        "init_lora_weights": True,
    },
    "hada_w1_a": {"peft_type": "LOHA", "r": 2, "alpha": 1, "rank_pattern": {}, "alpha_pattern": {"conv1": 3}},
    "lokr_w1": {"peft_type": "LOKR", "r": 2, "alpha": 1, "use_rslora": False},
    "oft_R.weight": {
        "peft_type": "OFT",
        "peft_version": "0.18.0",
        "oft_block_size": 4,
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 5,
        "coft": False,
        "eps": 6e-5,
    },
    "boft_R": {"peft_type": "BOFT", "boft_block_size": 4},
    "hra_u": {"peft_type": "HRA", "r": 2, "apply_GS": True},
    "miss_block": {"peft_type": "MISS", "r": 2, "init_weights": "mini"},
    "ia3_l": {"peft_type": "IA3", "feedforward_modules": ["conv1"]},
}
_KOHYA: Mapping[str, str] = {
    "ss_network_module": "lycoris.kohya",
    "ss_network_dim": "2",
    "ss_network_alpha": "1.0",
    "ss_network_args": json.dumps({"algo": "loha", "block_size": "2", "rs_lora": "True", "conv_dim": 4}),
    "ss_tag_frequency": json.dumps({"10_sks dog": {"sks": 10, "dog": 4}}),
    "ss_dataset_dirs": json.dumps({"10_sks dog": {"n_repeats": 10}}),
    "ss_base_model_version": "sdxl_base_v1-0",
    "modelspec.title": "A title",
    "modelspec.trigger_phrase": "sks, a dog",
    "lycoris_config": json.dumps({"algo": "lokr", "factor": 4, "weight_decompose": True}),
}


def keyed(layer: str, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """{suffix: tensor} of ``layer`` as its dialect calls them."""
    render = dialect_of(layer).render
    return [(render(layer, suffix), value) for suffix, value in tensors.items()]


def _lora(shape: tuple[int, int] = (24, 16), rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return baking.lora(rank, shape, seed)


def _samples() -> Iterator[Draft]:
    """Each sample once; three of four files have a plain LoRA beside it, every sixth is PyTorch's."""
    for number, case in enumerate(CASES):
        # PEFT multiplies the factors of these otherwise, and its files of them are refused.
        odd = case.algos[:1] == ("lokr",) and len(case.shape) == 3
        layer = LAYERS[0 if odd else number % len(LAYERS)]
        tensors = keyed(layer, case.stored(_STORED[number // 3 % 3]))
        if number % 4:
            tensors += keyed(LAYERS[(number + 5) % len(LAYERS)], _lora(seed=number))
        metadata = dict(_KOHYA) if number % 4 == 1 else {}
        yield Draft(f"{case.name} as {layer}", tensors, metadata, torch_file=number % 6 == 5)


def _with_configuration() -> Iterator[Draft]:
    """PEFT's files, with their configuration in each of the places that it is kept in."""
    for suffix, config in CONFIGURATIONS.items():
        cases = [case for case in CASES if case.algos and _is_peft(case, suffix)][:3]
        for number, case in enumerate(cases):
            tensors = {key: value for key, value in case.tensors.items() if key != "alpha"}
            stored = keyed(f"{_P}up_blocks.1.resnets.0.conv1", tensors)
            stored += keyed(f"{_P}down_blocks.0.attentions.0.to_q", tensors)
            text = json.dumps(config)
            place: dict[str, Any] = {"beside": text}
            if number:
                key = ("lora_adapter_metadata", "adapter_config")[number - 1]
                place = {"metadata": {key: text}}
            yield Draft(f"PEFT's {case.name}", stored, **place)


def _is_peft(case: Case, suffix: str) -> bool:
    return suffix in case.tensors and not {"on_input", "rescale", "lora_mid.weight"} & case.tensors.keys()


def _unusual() -> Iterator[Draft]:
    vectors = torch.linspace(-1, 1, 16).reshape(2, 8)
    bundled = {
        "bundle_emb.word.emb_params": vectors,
        "bundle_emb.other.word.clip_l": vectors,
        "bundle_emb.other.word.clip_g": vectors,
        "bundle_emb.third.string_to_param.*": vectors,
        "bundle_emb.fourth.t5_out": vectors,
    }
    yield Draft("a bundle", [*keyed(LAYERS[0], _lora()), *bundled.items()], dict(_KOHYA))
    yield Draft("a bundle, PyTorch's", [*keyed(LAYERS[0], _lora()), *bundled.items()], torch_file=True)
    for torch_file, joint in ((False, ":"), (True, ".")):
        name = f"lora{joint}down_blocks.0.attentions.0.to_q"
        tensors = {"lora_up.weight": torch.ones(24, 2), "lora_down.weight": torch.ones(2, 16)}
        hcp = keyed(name, {**tensors, "scale": torch.tensor(0.5)})
        hcp += keyed(
            f"plugin{joint}mid_block.proj", {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(6, 4)}
        )
        hcp.append((f"base{joint}mid_block.norm.weight", torch.ones(16)))
        yield Draft(f"HCP's, {joint}", hcp, torch_file=torch_file)
    control = {
        "img_in.lora_A.weight": torch.ones(2, 32),
        "img_in.lora_B.weight": torch.ones(24, 2),
        "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16),
    }
    yield Draft("a control adapter", list(control.items()))
    block = {"lora_up.weight": torch.ones(24, 2), "lora_down.weight": torch.ones(2, 16)}
    wan = [
        *keyed("diffusion_model.blocks.0.ffn.0", block),
        ("diffusion_model.blocks.0.diff_m", torch.ones(1, 6, 16)),
    ]
    yield Draft("lightx2v's", wan)
    whole = [
        *keyed(f"{_P}blocks.0.attn.to_q", block),
        (f"{_P}blocks.0.attn.to_q.lora_B.bias", torch.ones(24)),
        (f"{_P}classifier.modules_to_save.default.weight", torch.ones(8, 4)),
        (f"{_P}norm.weight", torch.ones(16)),
        (f"{_P}blocks.1.lora_A.default.weight", torch.ones(2, 16)),
        (f"{_P}blocks.1.lora_B.default.weight", torch.ones(24, 2)),
    ]
    yield Draft("with whole weights", whole, {"adapter_config": json.dumps(CONFIGURATIONS["lora_up.weight"])})
    old = [
        (f"unet.down_blocks.0.attn1.processor.to_{name}_lora.{which}.weight", torch.ones(*shape))
        for name in "qkv"
        for which, shape in (("up", (24, 2)), ("down", (2, 16)))
    ]
    yield Draft("attention processors", old)
    mixed = [pair for number, layer in enumerate(LAYERS) for pair in keyed(layer, _lora(seed=number))]
    yield Draft("all dialects at once", mixed, dict(_KOHYA))


#: Every valid adapter file.
SUBJECTS: list[Draft] = [*_samples(), *_with_configuration(), *_unusual()]


def _models() -> Iterator[Draft]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield Draft(f"a checkpoint in {dtype}", list(baking.base_tensors(dtype).items()), {"format": "pt"})
    base = baking.base_tensors(torch.float32)
    scaled: dict[str, Tensor] = {f"{baking.UNET}scaled_fp8": torch.zeros(2, dtype=baking.FP8)}
    for key, value in base.items():
        if key.endswith("linear.weight"):
            scaled[key] = (value / 0.25).to(baking.FP8)
            scaled[f"{key.removesuffix('weight')}scale_weight"] = torch.tensor(0.25)
        else:
            scaled[key] = value.to(torch.float16) if value.dtype == torch.float32 else value
    yield Draft("a scaled fp8 checkpoint", list(scaled.items()))
    plain = {key: value.to(baking.FP8) if value.dim() == 2 else value for key, value in base.items()}
    yield Draft("an fp8 checkpoint", list(plain.items()))
    alone = {
        key.removeprefix(baking.UNET): value for key, value in base.items() if key.startswith(baking.UNET)
    }
    yield Draft("a diffusion model", list(alone.items()))


#: Every valid model file, for adapters of ``baking.every_block``.
MODELS: list[Draft] = list(_models())
