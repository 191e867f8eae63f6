"""LyCORIS' functional interface: tensors in its order, ΔW of them, and the same on activations."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from lycoris_algos.training.functional import (
    FUNC_LIST,
    add_scaled,
    apply_dora_scale,
    boft,
    diag_oft,
    glora,
    locon,
    loha,
    lokr,
    rebuild_tucker,
    tucker_weight,
    tucker_weight_from_conv,
    weight_decompose,
)

WEIGHTS = {
    "linear": ((16, 12), (3, 12)),
    "conv1d": ((16, 12, 3), (2, 12, 9)),
    "conv2d": ((16, 12, 3, 3), (2, 12, 6, 6)),
    "conv3d": ((16, 12, 3, 3, 3), (1, 12, 5, 5, 5)),
}
ADDED = {"locon": locon, "loha": loha, "lokr": lokr}
ROTATED = {"diag_oft": diag_oft, "boft": boft}
every_weight = pytest.mark.parametrize("kind", WEIGHTS)


def generated(kind: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shape, inputs = WEIGHTS[kind]
    return torch.randn(shape), torch.randn(inputs)


def moved(weights: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if value is None else value + 0.1 * torch.randn_like(value) for value in weights]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@every_weight
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("module", ADDED.values(), ids=ADDED)
def test_activations_are_changed_as_the_weight_is(module: ModuleType, tucker: bool, kind: str) -> None:
    weight, x = generated(kind)
    start = module.weight_gen(weight, 1, tucker)
    assert not module.diff_weight(*start).any()
    weights = moved(start)
    delta = module.diff_weight(*weights, gamma=0.5)
    assert delta.shape == weight.shape
    close(module.diff_weight(*weights, gamma=1.0), delta * 2)
    extra = {} if kind == "linear" else {"padding": 1, "stride": 2}
    operation = FUNC_LIST[weight.dim()]
    assert operation is not None
    wanted = operation(x, delta, **extra)
    close(module.bypass_forward_diff(x, None, *weights, gamma=0.5, extra_args=extra), wanted)
    close(module.bypass_forward_diff(x, *weights, gamma=0.5, extra_args=extra), wanted)  # as LyCORIS 3 had it
    with pytest.raises(TypeError, match="tensors are needed"):
        module.bypass_forward_diff(x, *weights[:-1])


@every_weight
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("module", ROTATED.values(), ids=ROTATED)
def test_outputs_are_turned_as_the_weight_is(module: ModuleType, rescale: bool, kind: str) -> None:
    weight, x = generated(kind)
    start = module.weight_gen(weight, 4, rescale=rescale)
    assert (start[1] is not None) == rescale
    assert float(module.diff_weight(weight, *start).abs().max()) < 1e-6
    weights = moved(start)
    delta = module.diff_weight(weight, *weights)
    operation = FUNC_LIST[weight.dim()]
    assert operation is not None
    y = operation(x, weight)
    wanted = operation(x, delta)
    close(module.bypass_forward_diff(y, *weights, need_transpose=weight.dim() > 2), wanted)
    close(module.bypass_forward_diff(x, y, *weights, need_transpose=weight.dim() > 2), wanted)
    small = module.diff_weight(weight, *weights, constraint=1e-3)
    assert float((small - module.diff_weight(weight, *start)).norm()) < 0.2 * float(weight.norm())


def test_lokr_in_all_its_forms() -> None:
    weight, x = generated("linear")
    for options in ({}, {"decompose_both": True}, {"full_matrix": True}, {"unbalanced_factorization": True}):
        weights = moved(lokr.weight_gen(weight, 1, factor=4, **options))
        w1, w1a, w1b, w2, w2a, w2b, _ = weights
        first = w1a @ w1b if w1 is None else w1
        second = w2a @ w2b if w2 is None else w2
        gamma = 0.7 if w1 is None or w2 is None else 1.0
        close(lokr.diff_weight(*weights, gamma=0.7), gamma * torch.kron(first, second))
        close(lokr.kron_bypass(x, *weights, scale=2.0), x @ (2 * torch.kron(first, second)).T)


@every_weight
def test_glora(kind: str) -> None:
    weight, _ = generated(kind)
    start = glora.weight_gen(weight, 2)
    assert not glora.diff_weight(weight, *start).any()
    a1, a2, b1, b2, bm = moved(start)
    wanted = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    wanted = wanted + (b1.flatten(1) @ b2.flatten(1)).reshape(weight.shape)
    close(glora.diff_weight(weight, a1, a2, b1, b2, bm, gamma=0.5), wanted / 2)


def test_tucker_weights() -> None:
    torch.manual_seed(0)
    core, wa, wb = torch.randn(2, 3, 5, 5), torch.randn(2, 6), torch.randn(3, 7)
    wanted = torch.einsum("abkl,ap,bq->pqkl", core, wa, wb)
    close(tucker_weight(wa, wb, core), wanted)
    close(rebuild_tucker(core, wa, wb), wanted)
    close(tucker_weight_from_conv(wa.T[..., None, None], wb[..., None, None], core), wanted)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
def test_lengths(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, change = torch.randn(shape), torch.randn(shape)
    for on_output in (True, False):
        dims = [d for d in range(weight.dim()) if d != (0 if on_output else 1)]
        scale = torch.rand_like(weight.sum(dims, keepdim=True)) + 0.5
        wanted = weight * scale / torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
        close(weight_decompose(weight, scale, 1.0, on_output), wanted)
        close(weight_decompose(weight, scale, 0.5, on_output), weight + 0.5 * (wanted - weight))
    combined = weight + change
    wanted = combined * scale / torch.linalg.vector_norm(combined, dim=dims, keepdim=True)
    close(apply_dora_scale(weight, change, scale, 0.5), weight + 0.5 * (wanted - weight))
    close(add_scaled(weight, change, 0.5), weight + 0.5 * change)


def test_gradients_reach_every_tensor() -> None:
    weight, x = generated("linear")
    weights = [value.requires_grad_() for value in moved(locon.weight_gen(weight, 2)) if value is not None]
    (x @ locon.diff_weight(*weights, None).T).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in weights)
