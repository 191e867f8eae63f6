"""Names of UNets where no model tells them: flattened paths, and the one layout of SDXL."""

from __future__ import annotations

import pytest
from checkpoint_shapes import UNET, clip, sd15, sdxl

from lycoris_algos.models.unet import dotted, original_names, sdxl_diffusers, sdxl_original, unet_names


def inside(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [key.removeprefix(UNET) for key in shapes if key.startswith(UNET)]


def test_every_path_of_a_unet_or_clip_is_told_from_its_flattened_one() -> None:
    paths = {path for shapes in (sd15(), sdxl()) for path, _ in unet_names(inside(shapes))}
    paths |= {key.removesuffix(".weight") for key in inside(sdxl()) if key.endswith(".weight")}
    paths |= {key.rpartition(".")[0] for key in clip("", 768) if "." in key}
    assert len(paths) > 300
    for path in paths:
        assert dotted(path.replace(".", "_")) == path


@pytest.mark.parametrize("flat", ["double_blocks_0_img_attn_qkv", "down_blocks_0_who", "", "to_q_"])
def test_other_words_are_not_guessed(flat: str) -> None:
    assert dotted(flat) is None


def test_the_layout_of_sdxl() -> None:
    known = list(unet_names(inside(sdxl())))
    assert len(known) > 100
    for path, key in known:
        original = key.removesuffix(".weight")
        if path.startswith("class_embedding"):
            continue
        assert sdxl_original(path) == original
        assert sdxl_diffusers(original) == path
    assert sdxl_original("down_blocks.3.resnets.0.conv1") is None
    assert sdxl_diffusers("input_blocks.11.0.in_layers.0") is None
    assert dict(original_names([f"{path}.weight" for path, _ in known]))
