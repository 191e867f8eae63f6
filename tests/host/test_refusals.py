"""Files that do not fit a model, or are no good at all: what is said, and that nothing happens."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

CONV_IN, CONV_IN_KEY = "lora_unet_conv_in", "diffusion_model.input_blocks.0.0.weight"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_Q_KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
FLUX = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.fixture
def errors(pack: ModuleType) -> Any:
    """The errors of the library's copy that ComfyUI runs."""
    import sys

    return sys.modules[f"{pack.__name__}.lycoris_algos"]


@pytest.fixture
def model(sd15: tuple[Any, Any]) -> Any:
    return sd15[0]


@pytest.fixture
def fitting(model: Any) -> dict[str, tiny.Tensors]:
    """One layer that tiny_sd15 has."""
    return {CONV_IN: tiny.make("lora", tiny.parameter(model, CONV_IN_KEY))}


@pytest.fixture
def alien() -> dict[str, tiny.Tensors]:
    """Layers of another kind of model."""
    return {
        FLUX: tiny.make("lora", torch.randn(384, 128)),
        FLUX.replace("0", "1"): tiny.make("lora", torch.randn(384, 128)),
    }


# ---- another model ----------------------------------------------------------------------------------------


def test_a_file_for_another_model_is_an_error_that_says_everything(
    model: Any, alien: Any, apply: Any, errors: Any
) -> None:
    before, state = tiny.checksum(model), tiny.state_of(model)

    with pytest.raises(errors.NoMatchError) as caught:
        apply.files(model, alien)

    text = str(caught.value)
    assert "file_1.safetensors" in text, "which file"
    assert "SD15" in text, "which model"
    assert "LoRA" in text, "what the file is"
    assert FLUX in text or "double_blocks" in text, "which layers"
    assert "It was trained for Flux" in text, "what to do"
    assert (tiny.checksum(model), tiny.state_of(model)) == (before, state)


@pytest.mark.parametrize(
    ("title", "blocks", "doubted"), [("Flux", 60, True), ("Qwen-Image", 60, False), ("Flux", 19, False)]
)
def test_a_file_that_fits_by_its_widths_alone_is_doubted(
    title: str, blocks: int, doubted: bool, apply: Any
) -> None:
    """Attention of Qwen-Image has the names and the sizes of Flux's, in more blocks."""
    import families

    model = families.load(next(subject for subject in families.SUBJECTS if subject.title == title))
    families.forget()
    parts = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    up, down = torch.ones(3072, 1, dtype=torch.float16), torch.ones(1, 3072, dtype=torch.float16)
    file = {
        f"transformer.transformer_blocks.{number}.attn.{part}": {
            "lora_up.weight": up,
            "lora_down.weight": down,
        }
        for number in range(blocks)
        for part in parts
    }

    report = apply.files(model, file)[2]

    fitting = 8 * (min(blocks, 19) if title == "Flux" else blocks)
    assert f"{fitting} of {8 * blocks} layers applied" in report
    assert ("was trained for another model" in report) == doubted


def test_one_bad_file_of_a_stack_stops_all_of_it(
    model: Any, fitting: Any, alien: Any, apply: Any, errors: Any
) -> None:
    state = tiny.state_of(model)

    with pytest.raises(errors.NoMatchError, match=r"file_2\.safetensors"):
        apply.files(model, fitting, alien)

    assert tiny.state_of(model) == state


def test_a_text_encoder_file_without_a_clip_says_to_connect_one(model: Any, apply: Any, errors: Any) -> None:
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    with pytest.raises(errors.NoMatchError, match="connect a CLIP"):
        apply.files(model, {layer: tiny.make("lora", torch.randn(3072, 768))})


def test_a_model_file_on_the_wrong_text_encoder_is_listed(
    sd15: tuple[Any, Any], fitting: Any, apply: Any
) -> None:
    model, clip = sd15
    layer = "lora_te2_text_model_encoder_layers_20_mlp_fc1"  # SDXL's second encoder
    layers = {**fitting, layer: tiny.make("lora", torch.randn(5120, 1280))}

    _, patched_clip, report = apply.files(model, layers, clip=clip)

    assert "1 of 2 layers applied" in report
    assert layer in report
    assert patched_clip.patcher.patches == clip.patcher.patches


# ---- on_unmatched -----------------------------------------------------------------------------------------


def test_error_if_nothing_matches_lets_a_partial_match_through(
    model: Any, fitting: Any, alien: Any, apply: Any
) -> None:
    patched, _, report = apply.files(model, {**fitting, **alien}, on_unmatched="error if nothing matches")

    assert "1 of 3 layers applied" in report
    assert "not applied" in report
    assert "double_blocks" in report
    assert set(patched.patches) == {CONV_IN_KEY}


def test_error_if_anything_is_unmatched(
    model: Any, fitting: Any, alien: Any, apply: Any, errors: Any
) -> None:
    state = tiny.state_of(model)

    with pytest.raises(errors.NoMatchError) as caught:
        apply.files(model, {**fitting, **alien}, on_unmatched="error if anything is unmatched")

    assert "2 entries of 'file_1.safetensors'" in str(caught.value)
    assert "double_blocks" in str(caught.value)
    assert "error if nothing matches" in str(caught.value), "the way out"
    assert tiny.state_of(model) == state
    apply.files(model, fitting, on_unmatched="error if anything is unmatched")


def test_report_only_never_fails(model: Any, alien: Any, apply: Any) -> None:
    patched, _, report = apply.files(model, alien, on_unmatched="report only")

    assert "0 of 2 layers applied" in report
    assert "double_blocks" in report
    assert patched.patches == model.patches


def test_unknown_tensors_of_a_file_are_reported(model: Any, fitting: Any, apply: Any, errors: Any) -> None:
    layers = {**fitting, "something_else": {"entirely.different": torch.randn(3)}}

    _, _, report = apply.files(model, layers)

    assert "something_else.entirely.different" in report
    with pytest.raises(errors.NoMatchError):
        apply.files(model, layers, on_unmatched="error if anything is unmatched")


# ---- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algo", ["lora", "loha", "lokr", "full", "dora", "glora", "ia3", "oft", "boft", "tlora"]
)
def test_a_layer_of_the_wrong_shape_is_listed_and_the_rest_applied(
    algo: str, model: Any, fitting: Any, apply: Any
) -> None:
    layers = {**fitting, TO_Q: tiny.make(algo, torch.randn(640, 640))}

    patched, _, report = apply.files(model, layers)

    assert "1 of 2 layers applied" in report
    line = next(line for line in report.splitlines() if TO_Q in line)
    assert "640" in line, "the file's size"
    assert "320" in line, "the model's size"
    assert set(patched.patches) == {CONV_IN_KEY}


def test_a_kernel_of_the_wrong_size_is_refused(model: Any, fitting: Any, apply: Any) -> None:
    layers = {
        CONV_IN: tiny.make("lora", torch.randn(320, 4, 1, 1)),
        TO_Q: tiny.make("lora", torch.randn(320, 320)),
    }

    patched, _, report = apply.files(model, layers)

    assert "1 of 2 layers applied" in report
    assert set(patched.patches) == {TO_Q_KEY}


def test_a_matrix_for_a_1x1_convolution_fits(model: Any, apply: Any) -> None:
    """Trainers store such layers either way."""
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    key = "diffusion_model.input_blocks.1.1.proj_in.weight"
    weight = tiny.parameter(model, key).clone()
    tensors = tiny.make("lora", weight[:, :, 0, 0])

    patched, _, _ = apply.files(model, {layer: tensors})

    with tiny.loaded(patched) as now:
        expected = tiny.changed(weight[:, :, 0, 0], (tensors, 1.0))[:, :, None, None]
        tiny.assert_weight(now(key), expected)


# ---- whole or not at all ----------------------------------------------------------------------------------


def test_a_layer_whose_bias_is_missing_is_refused_whole(model: Any, fitting: Any, apply: Any) -> None:
    tensors = {**tiny.make("lora", tiny.parameter(model, TO_Q_KEY)), "diff_b": torch.randn(320)}

    patched, _, report = apply.files(model, {**fitting, TO_Q: tensors})

    assert set(patched.patches) == {CONV_IN_KEY}, "half of a layer is applied"
    assert "bias" in next(line for line in report.splitlines() if TO_Q in line)


def test_a_layer_whose_bias_has_another_size_is_refused_whole(model: Any, fitting: Any, apply: Any) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    key = "diffusion_model.input_blocks.1.1.proj_in.weight"
    tensors = {**tiny.make("lora", tiny.parameter(model, key)), "diff_b": torch.randn(321)}

    patched, _, report = apply.files(model, {**fitting, layer: tensors})

    assert set(patched.patches) == {CONV_IN_KEY}
    assert "321" in next(line for line in report.splitlines() if layer in line)


def test_an_unknown_tensor_spoils_its_layer(model: Any, fitting: Any, apply: Any) -> None:
    tensors = {**tiny.make("lora", tiny.parameter(model, TO_Q_KEY)), "mystery": torch.randn(3)}

    patched, _, report = apply.files(model, {**fitting, TO_Q: tensors})

    assert set(patched.patches) == {CONV_IN_KEY}
    assert "mystery" in report


# ---- broken files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none(bad: float, fitting: Any, apply: Any, errors: Any) -> None:
    fitting[CONV_IN]["lora_up.weight"][0, 0] = bad

    with pytest.raises(errors.BadValueError) as caught:
        apply.stack(fitting)

    for part in ("file_1.safetensors", CONV_IN, "lora_up.weight"):
        assert part in str(caught.value)


def test_half_of_a_lora(fitting: Any, apply: Any, errors: Any) -> None:
    del fitting[CONV_IN]["lora_down.weight"]

    with pytest.raises(errors.LycorisError, match=r"file_1\.safetensors.*lora_down\.weight"):
        apply.stack(fitting)


def test_ranks_that_differ(fitting: Any, apply: Any, errors: Any) -> None:
    fitting[CONV_IN]["lora_down.weight"] = torch.randn(3, 4, 3, 3)

    with pytest.raises(errors.ShapeMismatchError, match=r"file_1\.safetensors.*rank"):
        apply.stack(fitting)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty|too short|0 bytes"),
        (b"<html>404 Not Found</html>", "web page|HTML"),
        (b"\xff" * 64, "not|damaged|header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS|pointer"),
    ],
)
def test_files_that_are_no_safetensors(
    content: bytes, what: str, folders: Path, comfy_nodes: dict[str, Any], errors: Any
) -> None:
    (folders / "loras" / "broken.safetensors").write_bytes(content)

    with pytest.raises(errors.FileFormatError, match=f"(?s)broken.safetensors.*({what})"):
        comfy_nodes["LoadLyCORIS"].execute("broken.safetensors", 1.0, 1.0)


def test_a_truncated_file(folders: Path, fitting: Any, comfy_nodes: dict[str, Any], errors: Any) -> None:
    path = tiny.save(folders / "loras" / "cut.safetensors", fitting)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(errors.FileFormatError, match=r"cut\.safetensors"):
        comfy_nodes["LoadLyCORIS"].execute("cut.safetensors", 1.0, 1.0)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x.weight"), "checkpoint"),
        (("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"), "VAE"),
        (("text_model.encoder.layers.0.mlp.fc1.weight",), "text encoder"),
        (("emb_params",), "embedding"),
    ],
)
def test_sound_files_of_another_kind_are_named(
    keys: tuple[str, ...], what: str, folders: Path, comfy_nodes: dict[str, Any], errors: Any
) -> None:
    from safetensors.torch import save_file

    save_file({key: torch.randn(4, 4) for key in keys}, folders / "loras" / "other.safetensors")

    with pytest.raises(errors.LycorisError) as caught:
        comfy_nodes["LoadLyCORIS"].execute("other.safetensors", 1.0, 1.0)

    assert isinstance(caught.value, errors.NotAnAdapterError)
    assert "other.safetensors" in str(caught.value)
    assert what in str(caught.value)


def test_an_error_while_loading_leaves_the_model_alone(
    model: Any, folders: Path, fitting: Any, comfy_nodes: dict[str, Any], errors: Any
) -> None:
    fitting[CONV_IN]["lora_up.weight"].fill_(float("nan"))
    tiny.save(folders / "loras" / "nan.safetensors", fitting)
    before, state = tiny.checksum(model), tiny.state_of(model)

    with pytest.raises(errors.BadValueError):
        comfy_nodes["LyCORISLoader"].execute(model, "nan.safetensors", 1.0, 1.0)

    assert (tiny.checksum(model), tiny.state_of(model)) == (before, state)
