"""A folder of diffusers from command to command: merged into, and extracted from again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_shapes import UNET, clip, sd15, sdxl
from folders import save_pipeline
from safetensors.torch import save_file

import lycoris_algos
from lycoris_algos.cli import main
from lycoris_algos.models.unet import unet_names

BLOCK = {
    "SD 1": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "SDXL": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
}


@pytest.mark.parametrize(("kind", "shapes"), [("SD 1", sd15()), ("SDXL", sdxl())], ids=["sd15", "sdxl"])
def test_what_was_merged_is_extracted_again(
    kind: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = {key.removeprefix(UNET): shape for key, shape in shapes.items() if key.startswith(UNET)}
    unet = {f"{path}.weight": torch.randn(inside[key]) for path, key in unet_names(inside)}
    folder = save_pipeline(
        tmp_path / "base",
        {
            "unet": unet,
            "text_encoder": {key: torch.randn(shape) for key, shape in clip("", 768, 1).items()},
        },
        sharded="unet",
    )
    layer = BLOCK[kind]
    size = unet["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"].shape
    lora = {"lora_up.weight": torch.randn(size[0], 2), "lora_down.weight": torch.randn(2, size[1])}
    save_file({f"{layer}.{suffix}": value for suffix, value in lora.items()}, tmp_path / "a.safetensors")
    merged, out = tmp_path / "merged", tmp_path / "out.safetensors"
    assert main(["merge", str(folder), str(tmp_path / "a.safetensors"), "-o", str(merged), "-q"]) == 0
    options = [
        "--mode",
        "fixed",
        "--linear_dim",
        "2",
        "--conv_dim",
        "2",
        "--dialect",
        "kohya",
        "--dtype",
        "fp32",
    ]
    assert main(["extract", str(folder), str(merged), "-o", str(out), *options]) == 0, capsys.readouterr().err
    extracted = lycoris_algos.load(out)
    wanted = lycoris_algos.load(tmp_path / "a.safetensors")[layer].delta(tuple(size))
    assert list(extracted) == [layer]
    torch.testing.assert_close(extracted[layer].delta(tuple(size)), wanted, atol=1e-4, rtol=1e-4)
