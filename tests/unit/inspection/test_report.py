"""The texts about adapter sets, word for word: people read them."""

from __future__ import annotations

import json

import pytest
import torch
from samples import CASES
from torch import Tensor

from lycoris_algos import AdapterSet, Unmatched, describe, from_tensors
from lycoris_algos.inspection import algorithm_lines, unmatched_lines


def sample(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return next(case for case in CASES if case.name == name).stored(dtype)


def adapter_set(layers: dict[str, dict[str, Tensor]], metadata: dict[str, str] | None = None) -> AdapterSet:
    stored = {f"{layer}.{suffix}": v for layer, tensors in layers.items() for suffix, v in tensors.items()}
    return from_tensors(stored, metadata, name="mine.safetensors")


def lora(
    rank: int, alpha: float | None = None, size: int = 4, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    stored = {"lora_up.weight": torch.ones(size, rank), "lora_down.weight": torch.ones(rank, size)}
    if alpha is not None:
        stored["alpha"] = torch.tensor(alpha)
    return {suffix: value.to(dtype) for suffix, value in stored.items()}


def facts_of(lines: list[str], title: str) -> set[str]:
    """What the line of one algorithm says, piece by piece."""
    (line,) = [line for line in lines if line.strip().startswith(f"{title}: ")]
    return set(line.split(": ", 1)[1].split(", "))


def test_a_plain_file() -> None:
    adapters = adapter_set({f"lora_unet_blocks_{n}": lora(2, 1.0) for n in range(3)})
    assert describe(adapters) == "\n".join(
        [
            "mine.safetensors: 3 layers",
            "  LoRA: 3 layers, rank 2, alpha 1",
            "  stored as float32, 0.2 kB",
            "  names as kohya spells them",
        ]
    )


def test_everything_that_a_file_can_say() -> None:
    layers = {
        "lora_unet_a": lora(4, 2.0, dtype=torch.float16),
        "lora_unet_b": lora(8, 2.0, dtype=torch.float16),
        "lora_unet_c": lora(4, 1.5, dtype=torch.float16),
        "lora_te_d": sample("lokr-linear"),
        "lora_te_e": sample("full_bias-alone"),
        "lora_unet_f": sample("lora+full+full_bias-linear"),
        "lora_unet_g": {**sample("loha-linear"), "mystery": torch.ones(1)},
    }
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.trigger_phrase": "sks, dog",
        "modelspec.title": "My Dog",
        "ss_network_args": json.dumps({"algo": "lokr"}),
    }
    text = describe(adapter_set(layers, metadata))
    lines = text.splitlines()
    assert lines[0] == "mine.safetensors: 6 layers (4 in the model, 2 in the text encoder)"
    assert facts_of(lines, "LoRA") >= {"3 layers", "rank 4 to 8 (mostly 4)", "alpha 1.5 to 2 (mostly 2)"}
    assert facts_of(lines, "LoKr") >= {"1 layer", "rank 2", "alpha 1"}
    assert facts_of(lines, "Full") == {"1 layer"}
    assert facts_of(lines, "LoRA + Full") >= {"1 layer", "rank 4", "alpha 2"}
    assert "  stored as float32 and float16, 3.7 kB" in lines
    assert "  names as kohya spells them" in lines
    assert "  trained for Stable Diffusion XL" in lines
    assert "  trigger words: sks, dog" in lines
    assert "  Title: My Dog" in lines
    assert lines.index("Not used:") > lines.index("  Title: My Dog")
    unused = lines[lines.index("Not used:") + 1 :]
    assert len(unused) == 4  # hada_w1_a and hada_w2_a are one family
    assert all("lora_unet_g." in line and "'mystery'" in line for line in unused)


@pytest.mark.parametrize(
    ("layer", "title"),
    [
        ("lora_unet_a", "kohya"),
        ("lycoris_a", "LyCORIS wrapper"),
        ("diffusion_model.a", "ComfyUI"),
        ("nobody.a", "an unknown program"),
        ("transformer.a", "diffusers"),
    ],
)
def test_the_dialect(layer: str, title: str) -> None:
    assert f"  names as {title} spells them" in describe(adapter_set({layer: lora(1)})).splitlines()


def test_sizes_grow_into_megabytes() -> None:
    assert "stored as bfloat16, 99.8 kB" in describe(
        adapter_set({"a.b": lora(1, None, 24950, torch.bfloat16)})
    )
    assert "stored as bfloat16, 0.1 MB" in describe(
        adapter_set({"a.b": lora(1, None, 25000, torch.bfloat16)})
    )
    assert "stored as float32, 4.0 MB" in describe(adapter_set({"a.b": lora(4, None, 125_000)}))


def test_algorithms_are_told_apart_and_the_most_frequent_comes_first() -> None:
    layers = {
        "a.1": sample("norm+norm_bias-both"),
        "a.2": sample("loha-linear"),
        "a.3": sample("loha-conv2d_3x3-tucker"),
        "a.4": sample("lokr-linear-both_whole"),
    }
    lines = algorithm_lines(adapter_set(layers).values())
    assert [line.split(":")[0] for line in lines] == ["LoHa", "Norm", "LoKr"]
    assert facts_of(lines, "LoHa") >= {"2 layers", "rank 3", "alpha 2"}
    assert facts_of(lines, "Norm") == {"1 layer"}
    assert facts_of(lines, "LoKr") >= {"1 layer", "alpha 7"}
    assert not any(fact.startswith("rank") for fact in facts_of(lines, "LoKr"))


def test_a_rank_that_is_missing_somewhere() -> None:
    layers = {
        "a.1": sample("lokr-linear-both_whole"),
        "a.2": sample("lokr-linear"),
        "a.3": sample("lokr-linear_wide"),
    }
    lines = algorithm_lines(adapter_set(layers).values())
    assert facts_of(lines, "LoKr") >= {"3 layers", "rank 2", "alpha 1 to 7 (mostly 1)"}
    assert algorithm_lines(adapter_set({"a.1": lora(2)}).values()) == ["LoRA: 1 layer, rank 2"]
    assert algorithm_lines([]) == []


def test_layers_that_differ_in_numbers_are_one_line() -> None:
    unmatched = [
        *(Unmatched(f"lora_unet_double_blocks_{n}_img_mod.alpha", "no such layer") for n in range(19)),
        Unmatched("lora_unet_double_blocks_7_img_mod.alpha", "another reason"),
        Unmatched("step", "no known algorithm"),
    ]
    assert unmatched_lines(unmatched) == [
        "  - 19× lora_unet_double_blocks_*_img_mod.alpha: no such layer",
        "  - lora_unet_double_blocks_7_img_mod.alpha: another reason",
        "  - step: no known algorithm",
    ]
    assert unmatched_lines([]) == []


def test_a_large_file_keeps_its_report_short() -> None:
    layers = {f"lora_unet_blocks_{n}_{m}": lora(2, 1.0) for n in range(20) for m in range(10)}
    layers |= {f"lora_unet_odd_{n}": {**lora(2), "mystery": torch.ones(1)} for n in range(100)}
    text = describe(adapter_set(layers))
    assert len(text.splitlines()) < 12
    assert "100× lora_unet_odd_*.mystery" in text


def test_the_report_is_lines_of_plain_text() -> None:
    # Metadata is written by strangers: nothing of it may break a line or the terminal.
    metadata = {"modelspec.title": "line\nbreak\x1b[31m", "modelspec.trigger_phrase": "a\tb"}
    text = describe(adapter_set({"lora_unet_a": lora(1)}, metadata))
    assert "  Title: line break" in text
    assert text.splitlines() == text.split("\n")
    assert all(char.isprintable() for line in text.split("\n") for char in line)
