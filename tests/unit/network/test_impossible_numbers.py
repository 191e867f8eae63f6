"""Numbers that no training uses, in files, configurations and strengths: refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lycoris_algos
from lycoris_algos.errors import BadValueError, LycorisError, ShapeMismatchError
from lycoris_algos.network import StackEntry

LORA = {"a.lora_up.weight": torch.ones(24, 2), "a.lora_down.weight": torch.ones(2, 16)}
PEFT = {
    "base_model.model.a.to_q.lora_A.weight": torch.ones(2, 16),
    "base_model.model.a.to_q.lora_B.weight": torch.ones(24, 2),
}
LOKR = {"base_model.model.a.lokr_w1": torch.ones(4, 4), "base_model.model.a.lokr_w2": torch.ones(6, 4)}


def peft(**fields: object) -> dict[str, str]:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **fields}
    return {"lora_adapter_metadata": json.dumps(settings)}


@pytest.mark.parametrize("alpha", [1e300, 1e39, float("inf"), float("nan"), -1e35, 5e-324])
def test_an_alpha_that_no_training_uses(alpha: float) -> None:
    with pytest.raises(BadValueError, match="'alpha' is"):
        lycoris_algos.from_tensors({**LORA, "a.alpha": torch.tensor(alpha, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("tensors", "fields"),
    [
        (PEFT, {"lora_alpha": 1e299}),
        (LOKR, {"peft_type": "LOKR", "r": -4, "use_rslora": True}),
        (LOKR, {"peft_type": "LOKR", "r": 1e-200, "lora_alpha": 1e200}),
    ],
)
def test_settings_that_make_alpha_impossible(tensors: dict[str, Tensor], fields: dict[str, object]) -> None:
    with pytest.raises(BadValueError):
        lycoris_algos.from_tensors(tensors, peft(**fields))


@pytest.mark.parametrize("alpha", ["2", None, [2], {"x": 2}])
def test_settings_that_are_no_numbers_are_passed_over(alpha: object) -> None:
    layers = lycoris_algos.from_tensors(PEFT, peft(lora_alpha=alpha, alpha=None))
    assert all(bool(layer.delta((24, 16)).isfinite().all()) for layer in layers.values())


@pytest.mark.parametrize("number", ["1e301", "-1e301", "1e400", "-1e400", "NaN", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("setting", ["lora_alpha", "alpha_pattern", "rank_pattern"])
def test_settings_that_no_training_uses(setting: str, number: str) -> None:
    value: object = {"to_q": "@"} if setting.endswith("_pattern") else "@"
    told = {key: text.replace('"@"', number) for key, text in peft(**{setting: value}).items()}
    with pytest.raises(BadValueError, match=f"file 'adapter'.*'{setting}' that no training uses"):
        lycoris_algos.from_tensors(PEFT, told)


def test_a_rotation_of_numbers_that_lose_the_identity() -> None:
    blocks = torch.full((1, 1, 3, 3), 3e38).triu(1)  # skew-symmetric of odd size: singular but for I
    layer = lycoris_algos.from_tensors({"a.boft_R": blocks, "a.boft_s": torch.ones(4, 1)})["a"]
    with pytest.raises(BadValueError, match="numbers that no training reaches"):
        layer.delta(torch.ones(4, 3))


@pytest.mark.parametrize("size", ["inf", "nan", "1e300", "-5", "x"])
def test_a_block_size_that_cannot_be(size: str) -> None:
    args = {"ss_network_args": json.dumps({"algo": "dylora", "block_size": size})}
    tensors = {**LORA, "a.alpha": torch.tensor(2.0)}
    try:
        layer = lycoris_algos.from_tensors(tensors, args)["a"]
    except LycorisError:
        return
    assert bool(layer.delta((24, 16)).isfinite().all())


def test_blocks_of_four_dimensions() -> None:
    split = {"a.oft_blocks.0": torch.ones(2, 2, 2, 2), "a.oft_blocks.1": torch.ones(1, 6, 6)}
    with pytest.raises(ShapeMismatchError, match=r"'oft_blocks\.0' has 4 dimensions"):
        lycoris_algos.from_tensors(split)


@pytest.mark.parametrize("shape", [(24, 2**24), (48, 32)])
def test_a_weight_is_only_enlarged_to_what_its_adapter_fills(shape: tuple[int, int]) -> None:
    tensors = {"a.oft_blocks": torch.zeros(6, 4, 4), "a.reshape_weight": torch.tensor(shape)}
    with pytest.raises(ShapeMismatchError, match="enlarges its weight"):
        lycoris_algos.from_tensors(tensors)


@pytest.mark.parametrize("shape", [(24, 2**24), (6, 109), (12, 108)])
def test_a_weight_is_only_enlarged_to_what_its_factors_fill(shape: tuple[int, int]) -> None:
    loha = {f"a.hada_w{half}_{side}": torch.ones(*size) for half in (1, 2) for side, size in _SIDES}
    with pytest.raises(ShapeMismatchError):
        lycoris_algos.from_tensors({**loha, "a.reshape_weight": torch.tensor(shape)})


_SIDES = (("a", (6, 2)), ("b", (2, 108)))


@pytest.mark.parametrize(
    "tensors",
    [
        {"hra_u": torch.ones(16, 2, 1)},
        {"lora_up.weight": torch.ones(12, 2, 4, 1), "lora_down.weight": torch.ones(8, 8, 3, 3)},
        {"boft_R": torch.zeros(1, 4, 4, 4), "boft_s": torch.zeros(0, 1)},
        {**{key[2:]: value for key, value in LORA.items()}, "alpha": torch.tensor(2j)},
    ],
    ids=["vectors", "up with a kernel", "no outputs", "a complex alpha"],
)
def test_shapes_and_numbers_that_no_training_makes(tensors: dict[str, Tensor]) -> None:
    with pytest.raises((ShapeMismatchError, BadValueError), match="file 'adapter', layer 'a'"):
        lycoris_algos.from_tensors({f"a.{suffix}": value for suffix, value in tensors.items()})


@pytest.mark.parametrize("strength", [1e39, -1e39, 1e7, float("inf"), float("nan")])
def test_a_strength_that_cannot_be(strength: float) -> None:
    adapters = lycoris_algos.from_tensors(LORA, name="my file")
    for entry in ((strength, 1.0), (1.0, strength)):
        with pytest.raises(BadValueError, match="the strength of 'my file' is"):
            StackEntry(adapters, *entry)
    with pytest.raises(BadValueError, match="the strength of"):
        StackEntry(adapters, 100.0).scaled(strength, 1.0)


def test_a_number_times_a_strength_stays_a_number() -> None:
    layer = lycoris_algos.from_tensors({**LORA, "a.alpha": torch.tensor(9e29)})["a"]
    assert bool(layer.add_to_(torch.zeros(24, 16), 1e6).isfinite().all())


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a\ud800.safetensors"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(LycorisError, match="not a possible file name"):
        lycoris_algos.save(lycoris_algos.from_tensors(LORA), tmp_path / name)


def test_half_a_letter_in_the_notes_of_a_torch_file(tmp_path: Path) -> None:
    torch.save({**LORA, "note": "x\ud800"}, tmp_path / "s.pt")
    path = lycoris_algos.save(lycoris_algos.load(tmp_path / "s.pt"), tmp_path / "s.safetensors")
    assert lycoris_algos.load(path).metadata["note"] == "x?"
