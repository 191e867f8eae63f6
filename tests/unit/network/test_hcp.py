"""HCP-Diffusion's files there and back: names, what each of its tables means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from folders import save_pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from lycoris_algos import LycorisError, from_tensors, load, save
from lycoris_algos.cli import main
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import from_hcp, to_hcp

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
UNDERSCORES = "lora_unet_down_blocks_0_resnets_0_time_emb_proj"
ENCODER = "lora_te_text_model_encoder_layers_0_layer_norm1"
MLP = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_out_0"


def lora(outputs: int = 8, inputs: int = 6, rank: int = 4, alpha: float = 2.0) -> dict[str, Tensor]:
    return {
        "lora_up.weight": torch.randn(outputs, rank),
        "lora_down.weight": torch.randn(rank, inputs),
        "alpha": torch.tensor(alpha),
    }


def stored(layers: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{suffix}": value for name, own in layers.items() for suffix, value in own.items()}


def hcp_trains_with(tensors: dict[str, Tensor], path: str, *, own_alpha: float | None) -> Tensor:
    """The change that HCP computes: with the alpha of the file, or with that of its configuration."""
    up, down = tensors[f"lora:{path}.___.layer.W_up"], tensors[f"lora:{path}.___.layer.W_down"]
    alpha = float(tensors[f"lora:{path}.___.alpha"]) if own_alpha is None else own_alpha / down.shape[0]
    return alpha * (up.float() @ down.float())


@pytest.mark.parametrize("alpha", [4.0, 2.0, -1.0, 0.0])
def test_a_lora_is_the_same_whatever_hcp_makes_of_its_alpha(alpha: float) -> None:
    own = from_tensors(stored({ATTENTION: lora(alpha=alpha), MLP: lora(alpha=alpha)}))
    files = to_hcp(own, "lora")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "text_model.encoder.layers.0.mlp.fc1"
    assert {key.rpartition(".___.")[0] for key in files["unet"]} == {f"lora:{path}"}
    for file, name, where in (("unet", ATTENTION, path), ("text_encoder", MLP, text)):
        for configured in (None, 1.0):
            change = hcp_trains_with(files[file], where, own_alpha=configured)
            torch.testing.assert_close(change, own[name].delta((8, 6)), atol=1e-5, rtol=1e-5)


def test_there_and_back_by_both_tables(tmp_path: Path) -> None:
    layers = {ATTENTION: lora(), UNDERSCORES: lora(), ENCODER: lora(), MLP: lora()}
    own = from_tensors(stored(layers))
    for table in ("lora", "plugin"):
        files = to_hcp(own, table)
        assert f"{table}:down_blocks.0.resnets.0.time_emb_proj.___.alpha" in files["unet"]
        assert f"{table}:text_model.encoder.layers.0.layer_norm1.___.alpha" in files["text_encoder"]
        (back,) = from_hcp(files, "x").values()
        assert back.keys() == own.keys()
        for name in own:
            torch.testing.assert_close(back[name].delta((8, 6)), own[name].delta((8, 6)))
        again = load(save(back, tmp_path / "x.safetensors"))
        assert not any("scale" in adapter.to_tensors() for adapter in again.values())


def test_sdxl_has_the_names_of_its_trainers() -> None:
    names = (SDXL, MLP.replace("lora_te_", "lora_te1_"), MLP.replace("lora_te_", "lora_te2_"))
    own = from_tensors(stored({name: lora() for name in names}))
    files = to_hcp(own, "plugin")
    assert {key.rpartition(".___.")[0] for own in files.values() for key in own} == {
        "plugin:down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0",
        "plugin:clip_B.text_model.encoder.layers.0.mlp.fc1",
        "plugin:clip_bigG.text_model.encoder.layers.0.mlp.fc1",
    }
    (back,) = from_hcp(files, "x").values()
    assert back.keys() == {*names}
    unet = {"unet": files["unet"]}
    assert [*from_hcp(unet, "x", sdxl=True)["plugin"]] == [SDXL]
    assert [*from_hcp(unet, "x")["plugin"]] == [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_out_0"
    ]


def test_old_files_and_several_tables() -> None:
    path = "mid_block.attentions.0.proj_in"
    old = {
        f"lora.{path}.___.layer.lora_up.weight": torch.ones(8, 2),
        f"lora.{path}.___.layer.lora_down.weight": torch.ones(2, 6),
        f"lora.{path}.___.alpha": torch.tensor(0.5),
        f"plugin.{path}.___.hada_w1_a": torch.ones(8, 2),
        f"plugin.{path}.___.hada_w1_b": torch.ones(2, 6),
        f"plugin.{path}.___.hada_w2_a": torch.ones(8, 2),
        f"plugin.{path}.___.hada_w2_b": torch.ones(2, 6),
        f"lora_ema.{path}.___.layer.lora_up.weight": torch.ones(8, 2),
    }
    made = from_hcp({"unet": old}, "x")
    assert [*made] == ["lora", "plugin"]
    name = "lora_unet_mid_block_attentions_0_proj_in"
    assert torch.equal(made["lora"][name].delta((8, 6)), torch.ones(8, 6))
    assert torch.equal(made["plugin"][name].delta((8, 6)), torch.full((8, 6), 4.0))


def test_whole_weights_there_and_back(tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    unet = {
        f"{path}.weight": torch.randn(8, 6),
        f"{path}.bias": torch.randn(8),
        "conv_in.weight": torch.ones(4, 4, 3, 3),
    }
    text = {f"text_model.encoder.layers.0.self_attn.{p}_proj.weight": torch.randn(4, 4) for p in "qkv"}
    base = save_pipeline(tmp_path / "base", {"unet": unet, "text_encoder": text})
    layers = {
        ATTENTION: {**lora(), "diff_b": torch.ones(8)},
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": lora(4, 4),
    }
    own = from_tensors(stored(layers))
    with BaseFile(base, [own]) as known:
        files = to_hcp(own, "base", known)
        torch.testing.assert_close(
            files["unet"][f"base:{path}.weight"], unet[f"{path}.weight"] + own[ATTENTION].delta((8, 6))
        )
        torch.testing.assert_close(files["unet"][f"base:{path}.bias"], unet[f"{path}.bias"] + 1)
        (back,) = from_hcp(files, "x", known=known).values()
        unchanged = {"unet": {f"base:{key}": value for key, value in unet.items()}}
        with pytest.raises(LycorisError, match="all weights are those of the base model"):
            from_hcp(unchanged, "x", known=known)
        with pytest.raises(LycorisError, match=r"the base model has no 'base:who.weight'"):
            from_hcp({"unet": {"base:who.weight": torch.ones(2, 2)}}, "x", known=known)
    assert back.keys() == own.keys()
    torch.testing.assert_close(
        back[ATTENTION].delta((8, 6)), own[ATTENTION].delta((8, 6)), atol=1e-5, rtol=1e-4
    )


def test_what_hcp_cannot_hold_is_refused_by_name() -> None:
    for suffix, value in (("dora_scale", torch.ones(8, 1)), ("diff_b", torch.ones(8))):
        own = from_tensors(stored({ATTENTION: {**lora(), suffix: value}}))
        with pytest.raises(LycorisError, match=rf"'{ATTENTION}'.*write it as plugin"):
            to_hcp(own, "lora")
        assert to_hcp(own, "plugin")
    with pytest.raises(
        LycorisError, match=r"'lora_unet_double_blocks_0_img_attn_qkv'.*Give the model|no such name"
    ):
        to_hcp(from_tensors(stored({"lora_unet_double_blocks_0_img_attn_qkv": lora()})), "plugin")
    with pytest.raises(LycorisError, match="base model: give it"):
        to_hcp(from_tensors(stored({ATTENTION: lora()})), "base")
    with pytest.raises(LycorisError, match="base model: give it"):
        from_hcp({"unet": {"base:a.weight": torch.ones(1)}}, "x")
    with pytest.raises(LycorisError, match="none of HCP-Diffusion's tables"):
        from_hcp({"unet": {"lora_ema:a.___.alpha": torch.ones(1)}}, "x")
    twice = {"lora:a.___.alpha": torch.ones(1)}
    with pytest.raises(LycorisError, match=r"both files of 'x' hold 'lora:a.___.alpha'"):
        from_hcp({"unet": twice, "text_encoder": {**twice, "lora:a.___.alpha": torch.zeros(1)}}, "x")


def test_batches_in_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, hcp, out = (tmp_path / name for name in ("in", "hcp", "out"))
    source.mkdir()
    for step in (100, 200):
        save_file(stored({ATTENTION: lora(), MLP: lora()}), source / f"cat-{step}.safetensors")
    assert main(["to-hcp", str(source), "-o", str(hcp), "--as", "lora", "--dtype", "fp32"]) == 0
    assert sorted(path.name for path in hcp.iterdir()) == [
        *(f"text_encoder-cat-{step}.safetensors" for step in (100, 200)),
        *(f"unet-cat-{step}.safetensors" for step in (100, 200)),
    ]
    assert capsys.readouterr().out.count("\n") == 4
    (hcp / "notes.safetensors").write_bytes(b"")
    assert main(["from-hcp", str(hcp), "-o", str(out), "--prefix", "my-"]) == 0
    assert "left alone: notes.safetensors" in capsys.readouterr().err
    for step in (100, 200):
        before, after = load(source / f"cat-{step}.safetensors"), load(out / f"my-cat-{step}.safetensors")
        torch.testing.assert_close(after[ATTENTION].delta((8, 6)), before[ATTENTION].delta((8, 6)))
    (hcp / "unet-cat-100.safetensors").unlink()
    assert main(["to-hcp", str(source / "cat-100.safetensors"), "-o", str(hcp)]) == 0
    names = sorted(Path(line).name for line in capsys.readouterr().out.splitlines())
    assert names == ["text_encoder-cat-100_00002.safetensors", "unet-cat-100_00002.safetensors"], (
        "a pair stays one"
    )
    assert all(key.startswith("plugin:") for key in load_file(hcp / names[0]))
    assert main(["from-hcp", str(source), "-o", str(out)]) == 1
    assert "nothing to convert" in capsys.readouterr().err
    (hcp / "more").mkdir()
    (hcp / "unet-cat-200.safetensors").rename(hcp / "more" / "unet-cat-200.safetensors")
    assert main(["to-hcp", str(source / "cat-200.safetensors"), "-o", str(hcp)]) == 0
    assert main(["from-hcp", str(tmp_path / "missing"), "-o", str(out)]) == 1
    assert "no file or folder" in capsys.readouterr().err
