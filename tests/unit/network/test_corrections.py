"""What only metadata tells: network/corrections.py, beyond what tests/parity compares with training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lycoris_algos import from_tensors, load, save

RANK = 4


def lora(layer: str, alpha: float | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(RANK, 16, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(24, RANK, generator=generator),
    }
    return tensors if alpha is None else {**tensors, f"{layer}.alpha": torch.tensor(alpha)}


def product(tensors: dict[str, Tensor], layer: str) -> Tensor:
    return tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]


def test_a_peft_folder_is_read_with_its_configuration(tmp_path: Path) -> None:
    layer = "base_model.model.blocks.0.proj"
    tensors = lora(layer)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": RANK, "lora_alpha": 8, "use_rslora": True})
    )
    adapters = load(tmp_path / "adapter_model.safetensors")
    (adapter,) = adapters.values()
    assert torch.allclose(adapter.delta((24, 16)), 8 / RANK**0.5 * product(tensors, layer), rtol=1e-5)
    assert "configuration" in adapters.notes[0]


def test_a_configuration_counts_for_pefts_own_file_name_only(tmp_path: Path) -> None:
    layer = "diffusion_model.blocks.0.proj"
    tensors = lora(layer)
    save_file(tensors, tmp_path / "style.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    (adapter,) = load(tmp_path / "style.safetensors").values()
    assert torch.allclose(adapter.delta((24, 16)), product(tensors, layer), rtol=1e-5)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", '{"lora_alpha": "high"}', "\0"])
def test_a_broken_configuration_is_no_configuration(text: str, tmp_path: Path) -> None:
    layer = "base_model.model.proj"
    tensors = lora(layer)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    (adapter,) = load(tmp_path / "adapter_model.safetensors").values()
    assert torch.allclose(adapter.delta((24, 16)), product(tensors, layer), rtol=1e-5)


def test_alpha_patterns_of_peft() -> None:
    config = {"lora_alpha": 4, "alpha_pattern": {"attn.to_q": 16}}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    tensors = {**lora("transformer.blocks.0.attn.to_q"), **lora("transformer.blocks.0.attn.to_k")}
    adapters = from_tensors(tensors, metadata)
    scales = [
        float((adapter.delta((24, 16)) / product(tensors, f"transformer.blocks.0.attn.{which}")).median())
        for which, adapter in zip(("to_q", "to_k"), adapters.values(), strict=True)
    ]
    assert scales == pytest.approx([4.0, 1.0], rel=1e-4)


def test_a_corrected_file_is_not_corrected_again(tmp_path: Path) -> None:
    args = json.dumps({"algo": "dylora", "block_size": "4"})
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_args": args}
    once = from_tensors(lora("lora_unet_a", 2.0), metadata)
    again = load(save(once, tmp_path / "a.safetensors"))
    third = load(save(again, tmp_path / "b.safetensors"))
    expected = next(iter(once.values())).delta((24, 16))
    assert once.notes
    for adapters in (again, third):
        assert torch.equal(next(iter(adapters.values())).delta((24, 16)), expected)
        assert not adapters.notes


def test_an_alpha_of_zero_is_noticed() -> None:
    adapters = from_tensors({**lora("lora_unet_a", 0.0), **lora("lora_unet_b", 1.0)})
    assert adapters.notes == ("alpha is 0: the file changes nothing there (1 of 2 layers)",)


def test_the_residual_beside_a_tucker_core_gives_what_was_extracted(tmp_path: Path) -> None:
    # As extract_locon writes it: the residual of the target itself, not of its difference to the base.
    generator = torch.Generator().manual_seed(2)
    base, target = (torch.randn(12, 8, 3, 3, generator=generator) for _ in range(2))
    tucker = {
        "lora_up.weight": torch.randn(12, 2, 1, 1, generator=generator),
        "lora_mid.weight": torch.randn(2, 2, 3, 3, generator=generator),
        "lora_down.weight": torch.randn(2, 8, 1, 1, generator=generator),
    }
    plain = {f"lora_unet_x.{suffix}": value for suffix, value in tucker.items()}
    (low_rank,) = (adapter.delta(base.shape) for adapter in from_tensors(plain).values())
    residual = (target - low_rank).reshape(12, -1)
    rows, columns = torch.where(residual.abs() > residual.abs().flatten().quantile(0.9))
    sparse = {
        "bias_indices": torch.stack((rows, columns)).to(torch.int16),
        "bias_values": residual[rows, columns],
        "bias_size": torch.tensor(residual.shape, dtype=torch.int16),
    }
    stored = {**plain, **{f"lora_unet_x.{suffix}": value for suffix, value in sparse.items()}}
    once = from_tensors(stored)
    assert "extract_locon" in once.notes[0]
    for adapters in (once, load(save(once, tmp_path / "x.safetensors"))):
        (adapter,) = adapters.values()
        changed = adapter.add_to_(base.clone(), 1.0).reshape(12, -1)
        assert torch.allclose(changed[rows, columns], target.reshape(12, -1)[rows, columns], atol=1e-5)
        elsewhere = torch.ones(changed.shape, dtype=torch.bool)
        elsewhere[rows, columns] = False
        plainly = (base + low_rank).reshape(12, -1)
        assert torch.allclose(changed[elsewhere], plainly[elsewhere], atol=1e-5)
        half = adapter.add_to_(base.clone().bfloat16(), 0.5)
        assert torch.allclose(half.float(), base + 0.5 * adapter.delta(base), atol=0.05)
