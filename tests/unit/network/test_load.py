"""``load``: what becomes of every key of an adapter file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import same_bits
from safetensors.torch import save_file
from samples import CASES
from torch import Tensor

from lycoris_algos import (
    AdapterSet,
    BadValueError,
    LycorisError,
    ShapeMismatchError,
    UnknownAdapterError,
    from_tensors,
    load,
)

ONE = torch.ones(2, 2)


def sample(name: str) -> dict[str, Tensor]:
    return next(case for case in CASES if case.name == name).stored(torch.float32)


def at(layer: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{layer}.{suffix}": value for suffix, value in tensors.items()}


LORA = at("lora_unet_a", sample("lora-linear"))
LOKR = at("lora_unet_b", sample("lokr-linear"))


def reasons(adapters: AdapterSet) -> dict[str, str]:
    assert len({item.key for item in adapters.unmatched}) == len(adapters.unmatched), "listed twice"
    return {item.key: item.reason for item in adapters.unmatched}


# ---- a sound file -------------------------------------------------------------------------------------


def test_a_file_as_its_trainer_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({**LORA, **LOKR}, path, {"ss_network_dim": "4", "ss_tag_frequency": "{}"})
    adapters = load(path)
    assert adapters.name == "mine.safetensors"
    assert adapters.dialect == "kohya"
    assert adapters.metadata == {"ss_network_dim": "4", "ss_tag_frequency": "{}"}
    assert adapters.unmatched == ()
    assert list(adapters) == ["lora_unet_a", "lora_unet_b"]
    assert adapters["lora_unet_a"].titles == ("LoRA",)
    assert adapters["lora_unet_b"].titles == ("LoKr",)
    assert adapters.size_bytes == sum(adapter.size_bytes for adapter in adapters.values())
    for key, value in {**LORA, **LOKR}.items():
        layer, _, suffix = key.partition(".")
        assert same_bits(adapters[layer].to_tensors()[suffix], value)
    assert len(adapters) == 2
    with pytest.raises(KeyError):
        adapters["lora_unet_c"]


def test_loading_keeps_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(LORA, path)
    adapters = load(str(path))
    kept = {suffix: value.clone() for suffix, value in adapters["lora_unet_a"].to_tensors().items()}
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()
    assert all(
        same_bits(adapters["lora_unet_a"].to_tensors()[suffix], value) for suffix, value in kept.items()
    )


def test_a_pytorch_file(tmp_path: Path) -> None:
    for suffix in (".pt", ".ckpt", ".bin"):
        path = tmp_path / f"old{suffix}"
        torch.save({**LORA, "ss_network_dim": 4}, path)
        adapters = load(path)
        assert list(adapters) == ["lora_unet_a"]
        assert adapters.name == path.name
        assert adapters.metadata == {"ss_network_dim": "4"}
        assert same_bits(
            adapters["lora_unet_a"].to_tensors()["lora_up.weight"], LORA["lora_unet_a.lora_up.weight"]
        )


def test_a_pytorch_file_that_wraps_its_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": LORA, "epoch": 3}, tmp_path / "old.pt")
    assert list(load(tmp_path / "old.pt")) == ["lora_unet_a"]


def test_names_in_the_generic_dialect() -> None:
    lora = sample("lora-linear")
    renamed = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}
    stored = at(
        "diffusion_model.blocks.0.attn", {renamed.get(name, name): value for name, value in lora.items()}
    )
    adapters = from_tensors(stored)
    assert adapters.dialect == "comfy"
    assert adapters["diffusion_model.blocks.0.attn"].to_tensors()["lora_up.weight"] is lora["lora_up.weight"]
    assert (
        adapters["diffusion_model.blocks.0.attn"].to_tensors()["lora_down.weight"] is lora["lora_down.weight"]
    )


def test_a_bias_beside_a_core_and_alone() -> None:
    stored = {**LORA, "lora_unet_a.diff_b": torch.ones(24), "lora_unet_n.diff_b": torch.ones(3)}
    adapters = from_tensors(stored)
    assert adapters.unmatched == ()
    assert adapters["lora_unet_a"].bias is not None
    assert adapters["lora_unet_n"].algorithm is None


# ---- what cannot be used is listed --------------------------------------------------------------------


def test_an_unknown_tensor_takes_its_whole_layer_with_it() -> None:
    adapters = from_tensors({**LORA, **LOKR, "lora_unet_a.mystery": ONE})
    assert list(adapters) == ["lora_unet_b"]
    found = reasons(adapters)
    assert found.keys() == {*LORA, "lora_unet_a.mystery"}
    assert all("'mystery'" in reason and "no known algorithm" in reason for reason in found.values())


def test_an_unknown_tensor_of_a_dotted_layer_takes_it_too() -> None:
    stored = at("diffusion_model.blocks.0.attn", sample("lora-linear"))
    adapters = from_tensors({**stored, **LOKR, "diffusion_model.blocks.0.attn.deep.mystery": ONE})
    assert list(adapters) == ["lora_unet_b"]
    assert reasons(adapters).keys() == {*stored, "diffusion_model.blocks.0.attn.deep.mystery"}


def test_unused_keys_are_called_what_the_file_calls_them() -> None:
    stored = {
        "diffusion_model.q.lora_A.weight": torch.ones(4, 8),
        "diffusion_model.q.lora_B.weight": torch.ones(8, 4),
        "diffusion_model.q.mystery": ONE,
    }
    assert reasons(from_tensors({**stored, **LOKR})).keys() == stored.keys()


def test_tensors_of_no_layer_are_listed_alone() -> None:
    strangers = {"bundle.name.clip_l": torch.ones(1, 768), "step": torch.ones(1)}
    adapters = from_tensors({**LORA, **strangers})
    assert list(adapters) == ["lora_unet_a"]
    assert reasons(adapters).keys() == strangers.keys()
    assert all("no known algorithm" in reason for reason in reasons(adapters).values())


def test_a_stray_alpha_is_listed_and_costs_nothing_else() -> None:
    stray = {"lora_unet_n.alpha": torch.tensor(1.0), "lora_unet_m.alpha": torch.tensor(1.0)}
    adapters = from_tensors({**LORA, **stray, "lora_unet_n.w_norm": torch.ones(3)})
    assert list(adapters) == ["lora_unet_a", "lora_unet_n"]
    assert reasons(adapters).keys() == stray.keys()
    assert all("alpha" in reason for reason in reasons(adapters).values())


def test_a_second_magnitude_is_not_lost() -> None:
    stored = {
        "diffusion_model.q.lora_A.weight": torch.ones(2, 4),
        "diffusion_model.q.lora_B.weight": torch.ones(4, 2),
        "diffusion_model.q.lora_magnitude_vector.weight": torch.full((4,), 2.0),
        "diffusion_model.q.magnitude": torch.full((4,), 3.0),
    }
    adapters = from_tensors({**stored, **LOKR})
    used = adapters["diffusion_model.q"].to_tensors() if "diffusion_model.q" in adapters else {}
    assert len(used) + len(adapters.unmatched) == len(stored)


def test_a_tensor_in_two_spellings_is_not_mixed() -> None:
    # Two LoRAs under one name. Whichever wins, a pair must come from one of them, and the rest is listed.
    first = {"lora_A.weight": torch.full((2, 4), 1.0), "lora_B.weight": torch.full((4, 2), 1.0)}
    second = {"lora_down.weight": torch.full((2, 4), 2.0), "lora_up.weight": torch.full((4, 2), 2.0)}
    pieces = [*first.items(), *second.items()]
    for order in ((0, 1, 2, 3), (0, 3, 2, 1), (2, 1, 0, 3)):
        stored = {f"diffusion_model.q.{pieces[n][0]}": pieces[n][1] for n in order}
        adapters = from_tensors({**stored, **LOKR})
        listed = reasons(adapters)
        used = adapters["diffusion_model.q"].to_tensors().values() if "diffusion_model.q" in adapters else ()
        assert len(listed) + len(used) == 4
        assert all("second" in listed[key] or not used for key in listed)
        assert len({float(value.flatten()[0]) for value in used}) <= 1, f"mixed in the order {order}"


# ---- a damaged layer is an error ----------------------------------------------------------------------

DAMAGED = (
    ("half of a LoRA", {"lora_up.weight": None}, UnknownAdapterError, "'lora_up.weight' is missing"),
    ("ranks that differ", {"lora_up.weight": torch.ones(24, 3)}, ShapeMismatchError, "the rank differs"),
    ("NaN", {"lora_up.weight": torch.full((24, 4), float("nan"))}, BadValueError, "NaN"),
    ("NaN in alpha", {"alpha": torch.tensor(float("nan"))}, BadValueError, "'alpha' is nan"),
    ("whole numbers", {"lora_up.weight": torch.ones(24, 4, dtype=torch.int8)}, BadValueError, "torch.int8"),
    ("an empty tensor", {"lora_up.weight": torch.ones(0, 4)}, ShapeMismatchError, "non-empty"),
)


@pytest.mark.parametrize(("spoiled", "kind", "words"), [d[1:] for d in DAMAGED], ids=[d[0] for d in DAMAGED])
def test_the_error_names_file_and_layer(
    spoiled: dict[str, Tensor | None], kind: type[LycorisError], words: str, tmp_path: Path
) -> None:
    stored = {**LORA, **at("lora_unet_bad", {**sample("lora-linear"), **spoiled})}
    save_file(
        {key: value for key, value in stored.items() if value is not None}, tmp_path / "bad.safetensors"
    )
    with pytest.raises(kind) as caught:
        load(tmp_path / "bad.safetensors")
    message = str(caught.value)
    assert message.startswith("file 'bad.safetensors', layer 'lora_unet_bad': ")
    assert words in message
    assert message.count("bad.safetensors") == 1


def test_two_cores_in_one_layer_are_an_error() -> None:
    with pytest.raises(UnknownAdapterError, match="layer 'x'"):
        from_tensors({**at("x", sample("lora-linear")), **at("x", sample("lokr-linear"))})


# ---- no key is lost -----------------------------------------------------------------------------------

T = torch.ones(1, 1)
WHOLE: tuple[dict[str, Tensor], ...] = (
    {"lora_up.weight": T, "lora_down.weight": T, "alpha": torch.tensor(1.0)},
    {"lora_up.weight": T, "lora_down.weight": T, "lora_mid.weight": torch.ones(1, 1, 1), "diff_b": T[0]},
    {"hada_w1_a": T, "hada_w1_b": T, "hada_w2_a": T, "hada_w2_b": T},
    {"lokr_w1": T, "lokr_w2_a": T, "lokr_w2_b": T, "alpha": torch.tensor(1.0)},
    {"lokr_w1_a": T, "lokr_w1_b": T, "lokr_w2": T, "diff": T},
    {"w_norm": T[0], "b_norm": T[0]},
    {"diff_b": T[0]},
    {"lora_up.weight": T, "lora_down.weight": T, "dora_scale": T},
    {"lora_up.weight": T, "lora_down.weight": T, "lora_magnitude_vector": T[0], "scale": torch.tensor(1.0)},
    {"weight": T[0], "on_input": torch.tensor(1.0)},
)
SPELLINGS: tuple[dict[str, str], ...] = (
    {},
    {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"},
    {"lora_up.weight": "lora_B.default.weight", "lora_down.weight": "lora_A.default.weight"},
    {"lora_magnitude_vector": "magnitude"},
)
LAYERS = st.sampled_from(
    (
        "lora_unet_a",
        "lora_unet_a_b",
        "lycoris_x",
        "diffusion_model.a",
        "diffusion_model.a.b",
        "a.b.c",
        "alpha",
    )
)
EXTRAS = st.sampled_from(
    (
        "mystery",
        "lora_magic.weight",
        "deep.mystery",
        "alpha.mystery",
        "alpha",
        "scale",
        "lora_up",
        "magnitude",
    )
)
STRANGERS = st.sampled_from(
    ("step", "bundle_emb.x.y", "model.diffusion_model.in.weight", "lora_unet_zz.mystery")
)


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file in some order, and which layer each of its keys was made for."""
    stored: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for layer in draw(st.lists(LAYERS, min_size=1, max_size=4, unique=True)):
        spelling = draw(st.sampled_from(SPELLINGS))
        for suffix, value in draw(st.sampled_from(WHOLE)).items():
            stored[f"{layer}.{spelling.get(suffix, suffix)}"] = value.clone()
        if draw(st.integers(0, 2)) == 0:
            stored.setdefault(f"{layer}.{draw(EXTRAS)}", torch.ones(1))
        owners |= {key: layer for key in stored if key not in owners}
    for key in draw(st.lists(STRANGERS, max_size=2)):
        stored.setdefault(key, torch.ones(2))
    return {key: stored[key] for key in draw(st.permutations(list(stored)))}, owners


@given(files())
def test_every_key_is_used_or_listed(file: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    stored, owners = file
    try:
        adapters = from_tensors(stored)
    except LycorisError:  # no adapter in it, or a layer whose tensors contradict each other
        return
    listed = reasons(adapters)
    assert all(listed.values()), "a key is listed without a reason"
    assert listed.keys() <= stored.keys(), "a key is listed that the file does not have"
    used = [value for adapter in adapters.values() for value in adapter.to_tensors().values()]
    assert len(used) + len(listed) == len(stored)
    for key, value in stored.items():
        if value.dim() > 0 and not key.endswith((".alpha", ".scale")):  # those become numbers
            assert any(value is other for other in used) != (key in listed), key
    for key in listed:  # a layer is used whole or not at all, but a stray alpha belongs to nothing
        if key in owners and not key.endswith(".alpha"):
            assert owners[key] not in adapters, key
