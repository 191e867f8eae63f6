"""Presets: built-in ones, tables, files, and what is wrong with one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lycoris_algos import FileFormatError
from lycoris_algos.training.config import BUILTIN_PRESET_CONFIGS, PRESET, list_builtin_presets
from lycoris_algos.training.config_sdk import (
    ALGO_REGISTRY,
    VALID_PRESET_KEYS,
    AlgoOverride,
    PresetConfig,
    PresetValidationError,
    describe_algo,
    list_algorithms,
)
from lycoris_algos.training.utils.preset import read_preset


def test_the_built_in_presets() -> None:
    assert list(PRESET) == [
        *("full", "full-lin", "attn-mlp", "attn-only"),
        *("unet-only", "unet-transformer-only", "unet-convblock-only", "ia3"),
    ]
    assert list_builtin_presets() == BUILTIN_PRESET_CONFIGS
    for name, table in PRESET.items():
        assert table.keys() <= set(VALID_PRESET_KEYS)
        assert PresetConfig.from_dict(table, strict=True).to_dict() == table, name
    assert {name for name, table in PRESET.items() if table["enable_conv"]} == {
        *("full", "unet-only", "unet-convblock-only")
    }
    assert {name for name, table in PRESET.items() if not table["text_encoder_target_module"]} == {
        *("unet-only", "unet-transformer-only", "unet-convblock-only", "ia3")
    }
    assert PRESET["ia3"]["name_algo_map"]["ff.net.2"] == {"train_on_input": True}


def test_a_preset_has_what_its_table_has() -> None:
    table = {
        "enable_conv": False,
        "module_algo_map": {"Attention": {"algo": "lokr", "factor": 6, "dim": 8}},
        "name_algo_map": {"proj.*": {"algo": "full"}},
        "use_fnmatch": True,
    }
    preset = PresetConfig.from_dict(table, strict=True)
    assert preset.module_algo_map["Attention"] == AlgoOverride("lokr", {"factor": 6, "dim": 8})
    assert preset.target_module is None
    assert list(preset.list_algorithms()) == ["lokr", "full"]
    assert preset.to_dict() == table
    preset.to_dict()["module_algo_map"]["Attention"]["dim"] = 1
    assert preset.to_dict() == table


def test_what_is_wrong_with_a_preset_is_said() -> None:
    with pytest.raises(PresetValidationError, match="no preset has target_modules"):
        PresetConfig.from_dict({"target_modules": []})
    with pytest.raises(PresetValidationError, match="'hada' is no algorithm"):
        PresetConfig.from_dict({"name_algo_map": {"x": {"algo": "hada"}}}, strict=True)
    with pytest.raises(PresetValidationError, match="'loha' does not understand factor"):
        PresetConfig.from_dict({"name_algo_map": {"x": {"algo": "loha", "factor": 4}}}, strict=True)
    assert issubclass(PresetValidationError, ValueError)


def test_algorithms_say_their_options() -> None:
    assert [spec.name for spec in list_algorithms()] == list(ALGO_REGISTRY)
    assert describe_algo("LoKr").supports("factor")
    assert not describe_algo("loha").supports("factor")
    assert describe_algo("lora").supports("wd_on_output")
    assert not describe_algo("diag-oft").supports("weight_decompose")
    assert all(spec.supports("module_dropout") and spec.description for spec in list_algorithms())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")
def test_presets_of_files(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text(
        'enable_conv = false\ntarget_module = ["Attention"]\n\n'
        '[module_algo_map.Attention]\nalgo = "lokr"\nfactor = 8\n'
    )
    assert read_preset(path) == {
        "enable_conv": False,
        "target_module": ["Attention"],
        "module_algo_map": {"Attention": {"algo": "lokr", "factor": 8}},
    }
    path.write_text("enable_conv =")
    with pytest.raises(FileFormatError, match=r"'preset\.toml' is no TOML"):
        read_preset(path)
    with pytest.raises(FileFormatError, match=r"'nowhere\.toml' cannot be read"):
        read_preset(tmp_path / "nowhere.toml")
