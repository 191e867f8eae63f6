"""Networks on whole models: which layers they train, how they come on and off, what they save."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import moved

import lycoris_algos
from lycoris_algos import ShapeMismatchError
from lycoris_algos.training import LycorisNetwork, create_lycoris, create_lycoris_from_weights

ALGORITHMS = ("lora", "loha", "lokr", "full", "diag-oft", "boft", "glora", "ia3", "dylora", "tlora")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 8)
        self.to_out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self.to_q(x).tanh())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.attention(self.norm(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.group_norm(self.conv_in(x))).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x


LAYERS = [
    "conv_in",
    "pointwise",
    *(
        f"blocks_{n}_{own}"
        for n in (0, 1)
        for own in ("attention_to_q", "attention_to_out", "mlp_0", "mlp_2")
    ),
]
NORMS = ["group_norm", "blocks_0_norm", "blocks_1_norm"]
_DEFAULTS = {
    "enable_conv": True,
    "target_module": list(LycorisNetwork.TARGET_REPLACE_MODULE),
    "target_name": [],
    "lora_prefix": "lycoris",
    "module_algo_map": {},
    "name_algo_map": {},
    "use_fnmatch": False,
    "exclude_name": [],
}


@pytest.fixture(autouse=True)
def _presets_are_the_classes_own() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    LycorisNetwork.apply_preset(_DEFAULTS)


def made(algorithm: str = "lora", **options: Any) -> tuple[Model, Tensor, LycorisNetwork]:
    model = Model().requires_grad_(False)
    options = {"linear_dim": 4, "linear_alpha": 2.0, **options}
    return model, torch.randn(2, 4, 5, 5), create_lycoris(model, 1.0, algo=algorithm, **options)


def names(network: LycorisNetwork) -> list[str]:
    return [lora.lora_name.removeprefix("lycoris_") for lora in network.loras]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_model_is_trained_saved_resumed_and_merged(algorithm: str, tmp_path: Path) -> None:
    model, x, network = made(algorithm, train_norm=True)
    plain = model(x)
    assert names(network) == [name for name, _ in _in_order(model)]
    network.apply_to()
    network.train()
    optimizer = torch.optim.SGD(network.prepare_optimizer_params(lr=1e-3))
    moved(network, 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        assert all(p.grad is not None for p in network.parameters())
        optimizer.step()
    network.eval()
    trained = model(x)
    assert not torch.allclose(trained, plain)
    network.restore()
    assert torch.equal(model(x), plain)

    path = tmp_path / "trained.safetensors"
    for _ in range(2):  # a later epoch takes the place of an earlier one
        network.save_weights(path, None, {"ss_steps": "2", "ss_network_args": '{"rs_lora": "True"}'})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = lycoris_algos.load(path)
    assert set(loaded) == {lora.lora_name for lora in network.loras}
    assert not loaded.unmatched
    assert loaded.metadata["ss_steps"] == "2"
    for lora in network.loras:
        close(loaded[lora.lora_name].delta(lora.org_weight), lora.get_diff_weight()[0])

    again, tensors = create_lycoris_from_weights(1.0, path, model)
    assert set(tensors) == set(network.state_dict())
    again.eval().apply_to()
    close(model(x), trained)
    again.restore()
    _, _, fresh = made(algorithm, train_norm=True)
    fresh = create_lycoris(model, 1.0, 4, 2.0, algo=algorithm, train_norm=True)
    assert fresh.load_weights(path) == {}
    fresh.eval().apply_to()
    close(model(x), trained)
    fresh.restore()
    from_tensors, _ = create_lycoris_from_weights(1.0, None, model, network.state_dict())
    assert names(from_tensors) == names(network)
    network.onfly_merge()
    close(model(x), trained)
    network.onfly_restore()
    assert torch.equal(model(x), plain)
    network.merge_to()
    close(model(x), trained)


def _in_order(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        name = path.replace(".", "_")
        if name in (*LAYERS, *NORMS):
            yield name, module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_files_are_saved_in_the_dtype_that_is_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    _, _, network = made("lora", linear_alpha=3.3, conv_alpha=3.3)
    network.save_weights(tmp_path / "half.safetensors", dtype, None)
    (layer, *_) = lycoris_algos.load(tmp_path / "half.safetensors").values()
    stored = layer.to_tensors()
    assert stored["lora_down.weight"].dtype == dtype
    assert float(stored["alpha"]) == pytest.approx(3.3)  # not rounded with the rest


def test_kernels_have_a_rank_of_their_own() -> None:
    _, _, network = made(conv_dim=2, conv_alpha=1.0)
    ranks = {lora.lora_name: lora.adapter.algorithm.rank for lora in network.loras}
    assert ranks.pop("lycoris_conv_in") == 2
    assert set(ranks.values()) == {4}
    assert names(made(preset="full-lin")[2]) == LAYERS[1:]


def test_options_of_a_command_line_are_texts() -> None:
    _, _, network = made(
        "lokr",
        factor="2",
        full_matrix="True",
        dora_wd="True",
        wd_on_output="False",
        use_scalar="false",
        rank_dropout="0.1",
        use_cp="False",
        nobody_knows_this="1",
    )
    lora = network.loras[-1]
    assert lora.full_matrix
    assert lora.wd
    assert lora.rank_dropout == 0.1
    assert lora.get_parameter("dora_scale").shape == (1, 16)
    assert lora.get_parameter("lokr_w1").shape == (2, 2)


def test_presets_choose_layers_and_what_trains_them() -> None:
    LycorisNetwork.apply_preset(
        {
            "target_module": ["Block"],
            "target_name": ["conv.*"],
            "module_algo_map": {"Attention": {"algo": "lokr", "factor": 4}},
            "name_algo_map": {r"blocks\.1\.mlp\.[0-9]": {"algo": "loha", "dim": 2, "alpha": 1}},
            "exclude_name": [r"blocks\.0\.attention\.to_q"],
        }
    )
    _, _, network = made()
    kinds = {name: type(lora).__name__ for name, lora in zip(names(network), network.loras, strict=True)}
    assert kinds == {
        "conv_in": "LoConModule",
        "blocks_0_attention_to_out": "LokrModule",
        "blocks_0_mlp_0": "LoConModule",
        "blocks_0_mlp_2": "LoConModule",
        "blocks_1_attention_to_q": "LokrModule",
        "blocks_1_attention_to_out": "LokrModule",
        "blocks_1_mlp_0": "LoConModule",
        "blocks_1_mlp_2": "LoConModule",
    }
    assert network.algo_table == {"LoConModule": 5, "LokrModule": 3}


def test_names_come_before_the_blocks_that_they_are_in() -> None:
    LycorisNetwork.apply_preset(
        {"target_module": [], "name_algo_map": {"blocks.1.mlp.*": {"algo": "loha"}}, "use_fnmatch": True}
    )
    _, _, network = made()
    assert names(network) == ["blocks_1_mlp_0", "blocks_1_mlp_2"]
    assert network.algo_table == {"LohaModule": 2}
    assert network.match_fn("blocks.*", "blocks.1")
    assert network.find_conf_for_name("blocks.1.mlp.0") == {"algo": "loha"}
    assert not network.is_excluded("blocks")


def test_a_preset_with_unknown_keys_is_refused() -> None:
    with pytest.raises(KeyError, match="Unknown preset key"):
        LycorisNetwork.apply_preset({"target_modules": []})


def test_what_a_preset_has_no_layers_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    LycorisNetwork.apply_preset({"target_module": ["Linear", "Bilinear"]})
    made()
    assert "has nothing for Bilinear" in caplog.text


def test_a_single_layer_is_a_model_too() -> None:
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    plain = linear(x)
    first = create_lycoris(linear, algo="lora", linear_dim=2)
    second = create_lycoris(linear, algo="loha", linear_dim=2)
    changes = []
    for network in (first, second):
        moved(network)
        network.apply_to()
        changes.append(linear(x) - plain)
        network.restore()
    first.apply_to()
    second.apply_to()
    close(linear(x), plain + sum(changes))
    first.restore()
    close(linear(x), plain + changes[1])
    second.restore()
    assert torch.equal(linear(x), plain)


def test_strength_norms_and_checkpoints() -> None:
    model, x, network = made("loha")
    moved(network, 0.5)
    network.apply_to()
    trained = model(x)
    network.set_multiplier(0.0)
    assert not torch.allclose(model(x), trained)
    network.set_multiplier(1.0)
    network.enable_gradient_checkpointing()
    close(model(x), trained)
    count, mean, largest = network.apply_max_norm_regularization(0.1, "cpu")
    assert count == len(network.loras)
    assert float(mean) == pytest.approx(0.1)
    assert float(largest) == pytest.approx(0.1)
    assert network.apply_max_norm_regularization(0.2, "cpu") == (0, 0, 0)
    assert network.is_mergeable()
    assert len(list(network.get_trainable_params())) == 4 * len(network.loras)


def test_a_file_of_other_sizes_is_refused(tmp_path: Path) -> None:
    model, _, network = made("lora")
    network.save_weights(tmp_path / "a.safetensors", None, None)
    with pytest.raises(ShapeMismatchError, match="layer 'lycoris_conv_in': what is resumed"):
        create_lycoris(model, linear_dim=2).load_weights(tmp_path / "a.safetensors")
    told = create_lycoris(model.blocks[0].mlp).load_weights(tmp_path / "a.safetensors")
    assert told["missing keys"] == ["lycoris_0", "lycoris_2"]
    assert len(told["unexpected keys"]) == len(LAYERS)
