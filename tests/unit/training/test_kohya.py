"""The network module for sd-scripts: its functions, called in the order in which train_network.py does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from training import moved

import lycoris_algos
from lycoris_algos.training.kohya import (
    LycorisNetworkKohya,
    create_network,
    create_network_from_weights,
)


class Transformer2DModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        self.proj_in = nn.Conv2d(8, 8, 1)
        self.to_q = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x))
        return x + self.to_q(y.movedim(1, -1)).movedim(-1, 1)


class ResnetBlock2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down = nn.Sequential(ResnetBlock2D(), Transformer2DModel())
        self.conv_out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.conv_out(self.down(self.conv_in(x) + context.mean(1)[..., None, None]))


class CLIPMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).tanh())


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(CLIPMLP())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


UNET = [
    f"lora_unet_{own}" for own in ("conv_in", "down_0_conv1", "down_1_proj_in", "down_1_to_q", "conv_out")
]
_OWN = {
    attribute: getattr(LycorisNetworkKohya, attribute)
    for attribute in LycorisNetworkKohya.preset_keys.values()
}


@pytest.fixture(autouse=True)
def _presets_are_the_classes_own() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    for attribute, value in _OWN.items():
        setattr(LycorisNetworkKohya, attribute, value)


def encoder(number: str = "") -> list[str]:
    return [f"lora_te{number}_layers_0_{own}" for own in ("fc1", "fc2")]


def names(network: LycorisNetworkKohya) -> list[str]:
    return [lora.lora_name for lora in network.loras]


def models() -> tuple[list[nn.Module], nn.Module]:
    return [TextEncoder().requires_grad_(False) for _ in range(2)], UNet().requires_grad_(False)


@pytest.mark.parametrize(
    "args",
    [
        {"algo": "lora"},
        {"algo": "locon", "use_tucker": "True", "conv_dim": "2", "conv_alpha": "1"},
        {"algo": "loha", "dora_wd": "True"},
        {"algo": "lokr", "factor": "4", "train_norm": "True"},
        {"algo": "lokr", "full_matrix": "True", "decompose_both": "True"},
        {"algo": "diag-oft", "constraint": "0.1"},
        {"algo": "boft", "rescaled": "True"},
        {"algo": "glora", "rs_lora": "True"},
        {"algo": "dylora", "block_size": "2"},
        {"algo": "full"},
        {"algo": "ia3", "preset": "full"},
        {"algo": "tlora", "sig_type": "last"},
    ],
    ids=lambda args: "-".join(args.values()),
)
def test_a_training_step_as_sd_scripts_takes_it(args: dict[str, str], tmp_path: Path) -> None:
    encoders, unet = models()
    x, tokens = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 8)

    def output() -> Tensor:
        return unet(x, encoders[0](tokens) + encoders[1](tokens))

    plain = output()
    network = create_network(1.0, 4, 2.0, None, encoders, unet, neuron_dropout=None, **args)
    network.apply_to(encoders, unet, True, True)
    network.enable_gradient_checkpointing()
    groups, descriptions = network.prepare_optimizer_params(5e-4, 1e-3, 1e-3)
    assert descriptions == ["textencoder", "unet"]
    assert [group["lr"] for group in groups] == [5e-4, 1e-3]
    optimizer = torch.optim.AdamW(groups)
    network.prepare_grad_etc(encoders, unet)
    network.on_epoch_start(encoders, unet)
    moved(network, 0.05)
    for _ in range(2):
        network.on_step_start(encoders, unet)
        loss = output().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    network.apply_max_norm_regularization(10.0, "cpu")
    path = tmp_path / "last.safetensors"
    metadata = {
        "ss_network_module": "lycoris_algos.training.kohya",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_network_args": str(args).replace("'", '"'),
    }
    network.save_weights(path, None, metadata)
    network.eval()
    trained = output()
    assert not torch.allclose(trained, plain)
    network.restore()
    assert torch.equal(output(), plain)

    loaded = lycoris_algos.load(path)
    assert sorted(loaded) == sorted(names(network))
    assert not loaded.unmatched
    for lora in network.loras:
        change = loaded[lora.lora_name].delta(lora.org_weight)
        torch.testing.assert_close(change, lora.get_diff_weight()[0], rtol=1e-5, atol=1e-6)
    resumed = create_network(1.0, 4, 2.0, None, encoders, unet, **args)
    resumed.apply_to(encoders, unet, True, True)
    assert resumed.load_weights(str(path)) == {}
    resumed.eval()
    torch.testing.assert_close(output(), trained, rtol=1e-4, atol=1e-5)
    resumed.restore()
    merged, tensors = create_network_from_weights(1.0, str(path), None, encoders, unet, for_inference=True)
    merged.merge_to(encoders, unet, tensors, torch.float32, "cpu")
    torch.testing.assert_close(output(), trained, rtol=1e-4, atol=1e-5)


def test_the_file_has_the_hash_that_web_uis_ask_for(tmp_path: Path) -> None:
    encoders, unet = models()
    network = create_network(1.0, 4, 2.0, None, encoders, unet)
    network.save_weights(tmp_path / "a.safetensors", torch.float16, None)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
        stored = {key: file.get_tensor(key) for key in network.state_dict()}
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in stored.values())).hexdigest()
    assert metadata["sshs_model_hash"] == f"0x{digest}"


def test_names_tell_the_model() -> None:
    encoders, unet = models()
    both = create_network(1.0, 4, 1.0, None, encoders, unet)
    assert names(both) == [*encoder("1"), *encoder("2"), *UNET]
    assert names(create_network(1.0, None, None, None, encoders[0], unet)) == [*encoder(), *UNET]
    assert names(create_network(1.0, 4, 1.0, None, None, unet)) == UNET
    assert names(create_network(1.0, 4, 1.0, None, encoders, unet, preset="unet-only")) == UNET
    lines = create_network(1.0, 4, 1.0, None, encoders, unet, preset="attn-mlp")
    assert names(lines) == [*encoder("1"), *encoder("2"), "lora_unet_down_1_proj_in", "lora_unet_down_1_to_q"]
    assert len(both.text_encoder_loras) == 4
    both.apply_to(encoders, unet, False, True)
    assert names(both) == UNET
    assert {key.split(".")[0] for key in both.state_dict()} == set(UNET)
    both.restore()


def test_rates_and_loraplus() -> None:
    encoders, unet = models()
    network = create_network(
        1.0, 4, 1.0, None, encoders, unet, loraplus_lr_ratio="4", loraplus_unet_lr_ratio="16"
    )
    groups, descriptions = network.prepare_optimizer_params(None, 1e-4, 1e-3)
    assert descriptions == ["textencoder", "textencoder plus", "unet", "unet plus"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 4e-3, 1e-4, 16e-4])
    outer = {id(lora.get_parameter("lora_up.weight")) for lora in network.unet_loras}
    assert {id(parameter) for parameter in groups[3]["params"]} == outer
    total = sum(len(group["params"]) for group in groups)
    assert total == len(list(network.parameters()))
    _, only_unet = network.prepare_optimizer_params(0, 1e-4, 1e-3)
    assert only_unet == ["unet", "unet plus"]
    plain = create_network(1.0, 4, 1.0, None, encoders, unet)
    groups, descriptions = plain.prepare_optimizer_params([1e-5, 2e-5], None, 1e-3)
    assert descriptions == ["textencoder", "textencoder", "unet"]
    assert [group["lr"] for group in groups] == [1e-5, 2e-5, 1e-3]
    assert [len(group["params"]) for group in groups] == [4, 4, 10]


def test_kohyas_own_dropout_is_dropout() -> None:
    encoders, unet = models()
    arguments: dict[str, Any] = {"rank_dropout": "0.2", "module_dropout": "0.1"}
    network = create_network(1.0, 4, 1.0, None, encoders, unet, neuron_dropout=0.3, **arguments)
    assert {lora.dropout for lora in network.loras} == {0.3}
    assert {(lora.rank_dropout, lora.module_dropout) for lora in network.loras} == {(0.2, 0.1)}
    own = create_network(1.0, 4, 1.0, None, encoders, unet, neuron_dropout=0.3, dropout="0.5")
    assert {lora.dropout for lora in own.loras} == {0.5}


def test_ia3_is_meant_for_its_preset(caplog: pytest.LogCaptureFixture) -> None:
    encoders, unet = models()
    create_network(1.0, 4, 1.0, None, encoders, unet, algo="ia3")
    assert "preset=ia3" in caplog.text
