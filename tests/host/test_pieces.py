"""Files that fuse what a model keeps apart, or keep apart what it fuses; and names with several meanings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor

ATTENTION = "diffusion_model.blocks.0.self_attn."
PARTS = ("q", "k", "v")
QKV_NAMES = (
    "lora_unet_blocks_0_self_attn_qkv",
    "diffusion_model.blocks.0.self_attn.qkv",
    "lycoris_blocks_0_attn1_to_qkv",
    "transformer.blocks.0.attn1.to_qkv",
    "base_model.model.blocks.0.self_attn.in_proj",
)


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    families.forget()


def fused_weight(model: Any) -> Tensor:
    return torch.cat([tiny.parameter(model, f"{ATTENTION}{part}.weight") for part in PARTS])


def roundings(algo: str) -> float:
    """T-LoRA starts from a singular value decomposition, which is done in float32; BOFT has many stages."""
    return {"tlora": 40.0, "boft": 8.0}.get(algo, 4.0)


# ---- fused files onto split weights -----------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "full", "dora", "glora", "ia3", "oft", "tlora"])
def test_a_fused_layer_reaches_all_pieces(algo: str, wan: Any, apply: Any) -> None:
    whole = fused_weight(wan).clone()
    tensors = tiny.make(algo, whole)

    patched, _, report = apply.files(wan, {QKV_NAMES[0]: tensors}, strength=0.7)

    assert "1 of 1 layers applied" in report
    expected = tiny.changed(whole, (tensors, 0.7)).split(128)
    with tiny.loaded(patched) as now:
        for part, own in zip(PARTS, expected, strict=True):
            tiny.assert_weight(now(f"{ATTENTION}{part}.weight"), own, f"{algo} {part}", steps=roundings(algo))
    assert torch.equal(fused_weight(wan), whole)


@pytest.mark.parametrize("layer", QKV_NAMES)
def test_every_spelling_of_a_fused_layer(layer: str, wan: Any, apply: Any) -> None:
    patched, _, report = apply.files(wan, {layer: tiny.make("lora", fused_weight(wan))})
    assert "1 of 1 layers applied" in report
    assert set(patched.patches) == {f"{ATTENTION}{part}.weight" for part in PARTS}


def test_keys_and_values_together(wan: Any, apply: Any) -> None:
    path = "diffusion_model.blocks.1.cross_attn."
    whole = torch.cat([tiny.parameter(wan, f"{path}{part}.weight") for part in "kv"])
    tensors = tiny.make("lokr", whole)

    patched, _, _ = apply.files(wan, {"transformer.blocks.1.attn2.to_kv": tensors})

    expected = tiny.changed(whole, (tensors, 1.0)).split(128)
    with tiny.loaded(patched) as now:
        for part, own in zip("kv", expected, strict=True):
            tiny.assert_weight(now(f"{path}{part}.weight"), own, part)
    assert len(patched.patches) == 2


def test_the_bias_is_cut_the_same_way(wan: Any, apply: Any) -> None:
    biases = [tiny.parameter(wan, f"{ATTENTION}{part}.bias").clone() for part in PARTS]
    tensors = {**tiny.make("lora", fused_weight(wan)), "diff_b": torch.randn(384)}

    patched, _, _ = apply.files(wan, {QKV_NAMES[0]: tensors})

    with tiny.loaded(patched) as now:
        for part, bias, change in zip(PARTS, biases, tensors["diff_b"].split(128), strict=True):
            tiny.assert_weight(now(f"{ATTENTION}{part}.bias"), bias.double() + change.double(), part)


@pytest.mark.parametrize(
    ("algo", "more", "reason"),
    [
        ("boft", {}, "BOFT mixes all rows of a layer, which this model stores in pieces"),
        ("lora", {"dora_scale": torch.ones(1, 128)}, "DoRA on the input axis takes norms over all rows"),
    ],
)
def test_what_needs_its_siblings_is_refused_by_name(
    algo: str, more: dict[str, Tensor], reason: str, wan: Any, apply: Any
) -> None:
    tensors = {**tiny.make(algo, fused_weight(wan)), **more}
    model, _, report = apply.files(wan, {QKV_NAMES[0]: tensors}, on_unmatched="report only")
    assert model is wan
    assert QKV_NAMES[0] in report
    assert reason in report


def test_pieces_stack_with_others(wan: Any, apply: Any) -> None:
    """A file with a layer for all three and one with a layer for the keys, in both orders."""
    whole = fused_weight(wan).clone()
    keys = whole[128:256]
    fused, alone = tiny.make("dora", whole), tiny.make("dora", keys, "alone")
    one, two = {QKV_NAMES[0]: fused}, {"lora_unet_blocks_0_self_attn_k": alone}

    first, _, _ = apply.files(wan, one, two)
    second, _, _ = apply.files(wan, two, one)

    with tiny.loaded(first) as now:
        middle = tiny.changed(whole, (fused, 1.0))[128:256]
        tiny.assert_weight(now(f"{ATTENTION}k.weight"), tiny.changed(middle, (alone, 1.0)), steps=6)
    with tiny.loaded(second) as now:
        start = whole.double()
        start[128:256] = tiny.changed(keys, (alone, 1.0))
        expected = tiny.changed(start, (fused, 1.0))[128:256]
        tiny.assert_weight(now(f"{ATTENTION}k.weight"), expected, steps=6)


# ---- split files onto fused weights -----------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "dora", "glora", "oft", "boft", "ia3", "tlora"])
@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("add_q_proj", "add_k_proj", "add_v_proj"), "double_blocks.0.txt_attn.qkv"),
        (("to_q", "to_k", "to_v"), "double_blocks.0.img_attn.qkv"),
    ],
)
def test_split_layers_meet_in_one_weight(
    names: tuple[str, ...], key: str, algo: str, hyvid: Any, apply: Any
) -> None:
    key = f"diffusion_model.{key}.weight"
    whole = tiny.parameter(hyvid, key).clone()
    parts = dict(zip(names, whole.split(128), strict=True))
    tensors = {name: tiny.make(algo, part, name) for name, part in parts.items()}

    patched, _, report = apply.files(
        hyvid,
        {f"lora_transformer_transformer_blocks_0_attn_{name}": own for name, own in tensors.items()},
        strength=0.6,
    )

    assert "3 of 3 layers applied" in report
    expected = torch.cat([tiny.changed(part, (tensors[name], 0.6)) for name, part in parts.items()])
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), expected, algo, steps=roundings(algo))


def test_the_four_parts_of_a_single_block(hyvid: Any, apply: Any) -> None:
    key = "diffusion_model.single_blocks.0.linear1.weight"
    whole = tiny.parameter(hyvid, key).clone()
    sizes = (128, 128, 128, whole.shape[0] - 384)
    names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    parts = dict(zip(names, whole.split(sizes), strict=True))
    tensors = {name: tiny.make("lokr", part, name) for name, part in parts.items()}

    patched, _, _ = apply.files(
        hyvid, {f"transformer.single_transformer_blocks.0.{name}": own for name, own in tensors.items()}
    )

    expected = torch.cat([tiny.changed(part, (tensors[name], 1.0)) for name, part in parts.items()])
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), expected)


def test_the_output_norm_of_diffusers_is_turned_around(hyvid: Any, apply: Any) -> None:
    key = "diffusion_model.final_layer.adaLN_modulation.1.weight"
    weight = tiny.parameter(hyvid, key).clone()
    tensors = tiny.make("lora", weight)

    patched, _, _ = apply.files(hyvid, {"lycoris_norm_out_linear": tensors})

    delta = tiny.changed(weight, (tensors, 1.0)) - weight.double()
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), weight.double() + torch.cat(tuple(reversed(delta.chunk(2)))))


# ---- names with several meanings --------------------------------------------------------------------------


def subject(title: str) -> families.Subject:
    return next(found for found in families.SUBJECTS if found.title == title)


@pytest.fixture
def targets(pack: ModuleType, host: Callable[[str], ModuleType]) -> Callable[[str], Any]:
    """The names that a model of ``families`` answers to, by its title."""

    def get(title: str) -> Any:
        chosen = subject(title)
        loaded = families.load(chosen)
        return host("keymap").known_layers(*((None, loaded) if chosen.text else (loaded, None)))

    return get


@pytest.fixture
def place(
    pack: ModuleType, host: Callable[[str], ModuleType], targets: Callable[[str], Any]
) -> Callable[..., dict[str, list[Any]]]:
    """{layer: targets of weights and biases} of {layer: tensors} on a model, by its title."""
    import sys

    library = sys.modules[f"{pack.__name__}.lycoris_algos"]

    def find(title: str, layers: dict[str, dict[str, Tensor]]) -> dict[str, list[Any]]:
        tensors = {f"{layer}.{suffix}": v for layer, own in layers.items() for suffix, v in own.items()}
        adapters = library.from_tensors(tensors)
        found = host("matching").match(adapters, targets(title))
        placed: dict[str, list[Any]] = {item.key: [item.reason] for item in found.unmatched}
        for layer, made in found.placed.items():
            placed[layer] = [target for item in made.made for target, _ in item.changes]
        return placed

    return find


def norm(size: int) -> dict[str, Tensor]:
    return {"w_norm": torch.ones(size), "b_norm": torch.ones(size)}


def lora(outputs: int, inputs: int) -> dict[str, Tensor]:
    return {"lora_up.weight": torch.ones(outputs, 1), "lora_down.weight": torch.ones(1, inputs)}


@pytest.mark.parametrize(("number", "encoder", "size"), [(1, "clip_l", 768), (2, "clip_g", 1280)])
def test_norms_and_embeddings_of_two_encoders(
    number: int, encoder: str, size: int, place: Callable[..., dict[str, list[Any]]]
) -> None:
    kohya = f"lora_te{number}_text_model_"
    diffusers = f"text_encoder{'' if number == 1 else f'_{number}'}.text_model."
    path = f"{encoder}.transformer.text_model."
    found = place(
        "CLIP of SDXL",
        {
            f"{kohya}encoder_layers_3_layer_norm1": norm(size),
            f"{diffusers}final_layer_norm": norm(size),
            f"{kohya}embeddings_token_embedding": lora(49408, size),
            f"{diffusers}embeddings.position_embedding": {"diff": torch.ones(77, size)},
            f"{kohya}encoder_layers_0_mlp_fc2": {**lora(size, 4 * size), "diff_b": torch.ones(size)},
        },
    )
    norm_1, last = f"{path}encoder.layers.3.layer_norm1", f"{path}final_layer_norm"
    fc2 = f"{path}encoder.layers.0.mlp.fc2"
    assert found == {
        f"{kohya}encoder_layers_3_layer_norm1": [f"{norm_1}.weight", f"{norm_1}.bias"],
        f"{diffusers}final_layer_norm": [f"{last}.weight", f"{last}.bias"],
        f"{kohya}embeddings_token_embedding": [f"{path}embeddings.token_embedding.weight"],
        f"{diffusers}embeddings.position_embedding": [f"{path}embeddings.position_embedding.weight"],
        f"{kohya}encoder_layers_0_mlp_fc2": [f"{fc2}.weight", f"{fc2}.bias"],
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_number_of_t5_depends_on_who_counted(
    number: int, place: Callable[..., dict[str, list[Any]]]
) -> None:
    layer = f"lora_te{number}_encoder_block_7_layer_0_SelfAttention_q"
    found = place("CLIP of Flux", {layer: lora(4096, 4096)})
    assert found == {layer: ["t5xxl.transformer.encoder.block.7.layer.0.SelfAttention.q.weight"]}


@pytest.mark.parametrize("name", ["lora_te1_", "lora_te2_", "lora_te_", "text_encoder_2.", "lycoris_"])
def test_shapes_decide_between_two_encoders_of_the_same_layers(
    name: str, place: Callable[..., dict[str, list[Any]]]
) -> None:
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    layer = name + (path if name.endswith(".") else path.replace(".", "_"))
    for size, encoder in ((768, "clip_l"), (1280, "clip_g")):
        found = place("CLIP of SDXL", {layer: lora(size, size)})
        assert found == {layer: [f"{encoder}.transformer.{path}.weight"]}


def test_an_encoder_that_is_not_there(place: Callable[..., dict[str, list[Any]]]) -> None:
    layer = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    ((reason,),) = place("CLIP of SD 1.5 (real)", {layer: lora(1280, 1280)}).values()
    assert "1280×1280" in reason
    assert "768×768" in reason
    layer = "lora_te2_text_model_encoder_layers_30_self_attn_q_proj"
    ((reason,),) = place("CLIP of SD 1.5 (real)", {layer: lora(1280, 1280)}).values()
    assert "has no such layer" in reason


def own_key(title: str, key: str) -> str:
    """The parameter ``key`` as this host has it."""
    return tiny.own_key(families.load(subject(title)), f"diffusion_model.{key}")


def test_norms_of_transformers_under_diffusers_names(place: Callable[..., dict[str, list[Any]]]) -> None:
    block = "transformer.transformer_blocks.0.attn."
    names = {
        "norm_q": "img_attn.norm.query_norm",
        "norm_k": "img_attn.norm.key_norm",
        "norm_added_q": "txt_attn.norm.query_norm",
        "norm_added_k": "txt_attn.norm.key_norm",
    }
    found = place("HunyuanVideo (tiny)", {block + name: {"diff": torch.ones(128)} for name in names})
    assert found == {
        block + name: [own_key("HunyuanVideo (tiny)", f"double_blocks.0.{own}.scale")]
        for name, own in names.items()
    }


def test_the_norm_before_wans_cross_attention(place: Callable[..., dict[str, list[Any]]]) -> None:
    """diffusers counts it as the second, Alibaba as the third."""
    key = "diffusion_model.blocks.0.norm3"
    for layer in ("transformer.blocks.0.norm2", "lora_unet_blocks_0_norm3"):
        found = place("Wan 2.1 (tiny)", {layer: norm(128)})
        assert found == {layer: [f"{key}.weight", f"{key}.bias"]}


def test_bfls_control_adapter(place: Callable[..., dict[str, list[Any]]]) -> None:
    scale = "double_blocks.0.img_attn.norm.query_norm.scale"
    found = place(
        "Flux",
        {
            "img_in": {
                "lora_A.weight": torch.ones(2, 128),
                "lora_B.weight": torch.ones(3072, 2),
                "lora_B.bias": torch.ones(3072),
            },
            "double_blocks.0.img_attn.norm.query_norm": {"scale": torch.ones(128)},
        },
    )
    assert found == {
        "img_in": ["diffusion_model.img_in.weight", "diffusion_model.img_in.bias"],
        scale: [own_key("Flux", scale)],
    }
