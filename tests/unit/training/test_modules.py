"""LyCORIS' module classes: its constructors, attributes and keys around the one module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import VARIANTS, Trial, moved, trials

from lycoris_algos import BadValueError
from lycoris_algos.training.modules import (
    MODULE_LIST,
    DyLoraModule,
    FullModule,
    LoConModule,
    LohaModule,
    LokrModule,
    LycorisBaseModule,
    NormModule,
    TLoraModule,
    get_module,
    make_module,
)
from lycoris_algos.training.modules.base import dequantize_weight_only_fp8

CLASSES = {kind.algorithm: kind for kind in MODULE_LIST}
TRIALS = [
    trial
    for trial in trials()
    if trial.layer != "embedding" and trial.layer in ("linear", "conv2d", "layernorm")
]
every_trial = pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)


class Fp8Linear(nn.Module):
    """A linear layer as weight-only fp8 programs have it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1) / 448
        self.weight = nn.Parameter((linear.weight.detach() / scale[:, None]).to(torch.float8_e4m3fn), False)
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.weight_scale[:, None], self.bias)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))


@every_trial
def test_they_train_what_they_are_called(trial: Trial) -> None:
    torch.manual_seed(0)
    module, x = trial.made()
    made = CLASSES[trial.algorithm]("lycoris_layer", module, 1.0, **trial.options, unknown_option=3)
    moved(made)
    made.eval()
    assert (made.lora_name, made.dim, made.shape) == (
        "lycoris_layer",
        module.weight.shape[0],
        module.weight.shape,
    )
    assert made.org_module == [module]
    assert made.org_weight is module.weight
    assert made.multiplier == 1.0
    wanted = made(x)
    made.apply_to()
    assert torch.equal(module(x), wanted)
    made.restore()
    keys = {f"lycoris_layer.{suffix}": value for suffix, value in made.state_dict().items()}
    kind, params = get_module(keys, "lycoris_layer")
    again = make_module(kind, params, "lycoris_layer", module)
    assert again is not None
    close(again.eval()(x), wanted)
    merged, bias = made.get_merged_weight()
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.weight.copy_(merged)
        if bias is not None:
            changed.bias.copy_(bias)
    close(changed(x), wanted)
    if trial.layer != "layernorm":
        made.bypass_mode = True
        plain = module(x)
        own = made.bypass_forward_diff(x, scale=0.5)
        shift = made._shift(made.adapter)
        if shift is not None:
            own = own + 0.5 * shift.reshape(-1, *(1 for _ in module.weight.shape[2:]))
        close(plain + 2 * own, wanted)
        close(made.bypass_forward(x), plain + made.bypass_forward_diff(x))


def test_nothing_is_no_module() -> None:
    assert get_module({"x.strange": torch.ones(1)}, "x") == (None, None)
    assert make_module(None, None, "x", nn.Linear(2, 2)) is None


def test_positional_arguments_have_lycoris_order() -> None:
    linear = nn.Linear(8, 8)
    lora = LoConModule("x", linear, 0.5, 2, 3.0, 0.1, 0.2, 0.3, True, True)
    assert (lora.multiplier, lora.lora_dim, float(lora.alpha)) == (0.5, 2, 3.0)
    assert (lora.dropout, lora.rank_dropout, lora.module_dropout) == (0.1, 0.2, 0.3)
    assert float(lora.scalar.detach()) == 0.0
    dylora = DyLoraModule("x", linear, 1.0, 6, 3.0, 0.0, 0.0, 0.0, False, 3)
    assert float(dylora.alpha) == 9.0
    norm = NormModule("x", nn.LayerNorm(4), 1.0, 0.1, 0.2, True)
    assert (norm.rank_dropout, norm.module_dropout, norm.rank_dropout_scale) == (0.1, 0.2, True)
    tlora = TLoraModule("x", linear, 1.0, 4, 4.0, 0.0, 0.0, 0.0, False, None, "last")
    assert all(float(value.detach()) < 1e-8 for value in tlora.orthogonality_regularization())


def test_dora_stands_around_those_that_lycoris_has_it_for() -> None:
    for kind in MODULE_LIST:
        layer = nn.LayerNorm(8) if kind is NormModule else nn.Linear(8, 8)
        made = kind("x", layer, weight_decompose=True)
        assert (
            made.wd == ("dora_scale" in made.state_dict()) == (kind in (LoConModule, LohaModule, LokrModule))
        )


def test_layers_of_another_kind_are_refused() -> None:
    for kind, layer in (
        (LoConModule, nn.LayerNorm(4)),
        (NormModule, nn.Linear(4, 4)),
        (FullModule, nn.ReLU()),
    ):
        with pytest.raises(BadValueError, match="does not train a layer of the kind"):
            kind("x", layer)


def test_a_layer_inside_of_pefts_is_trained() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(4, 4)

    wrapped = Wrapped()
    assert LoConModule("x", wrapped).org_module == [wrapped.base_layer]


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "glora", "diag-oft", "boft", "ia3"])
def test_fp8_layers_are_trained_on_activations(algorithm: str) -> None:
    torch.manual_seed(0)
    quantised, x = Fp8Linear(nn.Linear(16, 8)), torch.randn(4, 16)
    made = CLASSES[algorithm]("x", quantised, 1.0, lora_dim=4, alpha=2.0)
    moved(made, 0.1)
    made.eval()
    assert made.is_quant
    assert made.bypass_mode
    plain = quantised(x)
    weight = dequantize_weight_only_fp8(quantised)
    close(made(x), plain + x @ made.adapter.delta(weight).T)
    made(x).sum().backward()
    with pytest.raises(RuntimeError, match="weight-only FP8"):
        made.merge_to()
    with pytest.raises(RuntimeError, match="weight-only FP8"):
        made.onfly_merge()


def test_subclasses_of_linear_are_trained_on_activations() -> None:
    class OtherLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    torch.manual_seed(0)
    other, x = OtherLinear(8, 8), torch.randn(3, 8)
    made = LoConModule("x", other)
    moved(made)
    assert made.bypass_mode
    close(made(x), other(x) + x @ made.get_diff_weight()[0].T)
    assert not LoConModule("x", other, bypass_mode=False).bypass_mode


def test_parametrize_takes_the_constructors_arguments() -> None:
    linear = nn.Linear(8, 8)
    made: Any = LokrModule.parametrize(linear, "weight", 0.5, 2, 1.0, factor=4)
    assert made.multiplier == 0.5
    assert made.get_parameter("lokr_w1").shape == (2, 2)
    assert made.load_state_dict(made.state_dict())


def test_every_algorithm_of_the_trials_has_a_class() -> None:
    assert set(VARIANTS) == set(CLASSES)
    assert all(issubclass(kind, LycorisBaseModule) for kind in MODULE_LIST)
