"""What holds for every algorithm that is trained, on every kind of layer: starts, gradients, forms, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import LAYERS, Trial, moved, trials

import lycoris_algos
from lycoris_algos import BadValueError, LayerAdapter, ShapeMismatchError
from lycoris_algos.adapters import trainable, training_options
from lycoris_algos.training import AdapterModule, train

TRIALS = list(trials())
every_trial = pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def started(trial: Trial, **options: Any) -> tuple[nn.Module, Tensor, AdapterModule]:
    """(layer, input, its training at the start)."""
    module, x = trial.made()
    return module, x, train(module, trial.algorithm, **trial.options, **options)


def trained(trial: Trial, **options: Any) -> tuple[nn.Module, Tensor, AdapterModule]:
    """(layer, input, its training after some of it)."""
    module, x, adapter = started(trial, **options)
    moved(adapter)
    return module, x, adapter


def expected(module: nn.Module, x: Tensor, adapter: LayerAdapter, multiplier: float = 1.0) -> Tensor:
    """The output of the layer whose weight and bias the file's adapter changed: what inference does."""
    changed = copy.deepcopy(module)
    with torch.no_grad():
        if adapter.weight_components:
            adapter.add_to_(changed.weight, multiplier)
        if adapter.bias is not None:
            adapter.bias.add_to_(changed.bias, multiplier)
    return changed(x)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))


@every_trial
def test_training_begins_at_the_layer_as_it_is(trial: Trial) -> None:
    module, x, adapter = started(trial)
    close(adapter(x), module(x))


@every_trial
@pytest.mark.parametrize("multiplier", [1.0, -0.5])
def test_what_is_trained_is_what_is_applied(trial: Trial, multiplier: float) -> None:
    module, x, adapter = trained(trial, multiplier=multiplier)
    adapter.eval()
    stored = LayerAdapter.from_tensors({key: value.clone() for key, value in adapter.state_dict().items()})
    close(adapter(x), expected(module, x, stored, multiplier))


@every_trial
def test_both_ways_to_compute_give_the_same(trial: Trial) -> None:
    if trial.layer in ("layernorm", "groupnorm", "embedding"):
        pytest.skip("its weight is changed, always")
    module, x, adapter = trained(trial)
    adapter.eval()
    wanted = expected(module, x, adapter.adapter)
    adapter.bypass_mode = True
    close(adapter(x), wanted)
    adapter.bypass_mode = None
    delta, _ = adapter.get_diff_weight()
    close(adapter._by_weight(delta, adapter.adapter, x), wanted)
    adapter.dropout, adapter.training = 1e-9, True  # then it is added to the layer's output
    close(adapter._by_weight(delta, adapter.adapter, x), wanted)


@every_trial
def test_gradients_are_those_of_the_change(trial: Trial) -> None:
    module, x, adapter = trained(trial)
    module.double().requires_grad_(False)
    adapter.double().eval()
    x = x.double() if x.is_floating_point() else x
    names = [name for name, _ in adapter.named_parameters()]

    def output(*values: Tensor) -> Tensor:
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (x,))

    values = tuple(value.detach().clone().requires_grad_() for value in adapter.parameters())
    for adapter.bypass_mode in (None, True):
        assert torch.autograd.gradcheck(output, values, atol=1e-5, rtol=1e-3, fast_mode=True)


@every_trial
def test_the_layer_under_it_gets_its_gradient_too(trial: Trial) -> None:
    module, x, adapter = trained(trial)
    adapter.eval()
    module.requires_grad_(False)
    x = x.requires_grad_() if x.is_floating_point() else x
    adapter(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
    assert all(p.grad is None for p in module.parameters())
    assert not x.is_floating_point() or x.grad is not None


@every_trial
def test_a_saved_file_resumes(trial: Trial, tmp_path: Path) -> None:
    module, x, adapter = trained(trial)
    adapter.eval()
    keys = {f"lycoris_layer.{suffix}": value for suffix, value in adapter.state_dict().items()}
    path = lycoris_algos.save(lycoris_algos.from_tensors(keys), tmp_path / "trained.safetensors")
    (loaded,) = lycoris_algos.load(path).values()
    again = train(module, trial.algorithm, **trial.options).eval()
    again.load_adapter(loaded)
    close(again(x), adapter(x))
    close(AdapterModule(module, loaded).eval()(x), adapter(x))
    once_more = train(module, trial.algorithm, **trial.options).eval()
    assert once_more.load_state_dict(adapter.state_dict())
    close(once_more(x), adapter(x))


@every_trial
def test_a_step_lowers_the_loss(trial: Trial) -> None:
    module, x, adapter = started(trial)
    with torch.no_grad():
        goal = module(x) + torch.randn_like(module(x))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-3)
    before = float((adapter.eval()(x) - goal).square().mean().detach())
    for _ in range(20):
        optimizer.zero_grad()
        (adapter.train()(x) - goal).square().mean().backward()
        optimizer.step()
    assert float((adapter.eval()(x) - goal).square().mean().detach()) < before


def test_everything_that_trains_is_tried() -> None:
    assert {trainable()[trial.algorithm] for trial in TRIALS} == set(trainable().values())


# ---- options ----------------------------------------------------------------------------------------------


def linear(**options: Any) -> tuple[nn.Module, Tensor, AdapterModule]:
    return trained(Trial("lora", "linear", {"lora_dim": 2}), **options)


def test_dropout_is_of_what_the_change_adds() -> None:
    module, x, adapter = linear(dropout=0.5)
    change = adapter.eval()(x) - module(x)
    dropped = adapter.train()(x) - module(x)
    zero, doubled = dropped.abs() < 1e-6, (dropped - 2 * change).abs() < 1e-5
    assert (zero | doubled).all()
    assert zero.any()
    assert doubled.any()


@pytest.mark.parametrize("scaled", [False, True])
def test_rank_dropout_drops_rows_of_the_change(scaled: bool) -> None:
    module, x, adapter = linear(rank_dropout=0.5, rank_dropout_scale=scaled)
    change = adapter.eval()(x) - module(x)
    dropped = (adapter.train()(x) - module(x)) / change
    kept = dropped.abs().amax(0) > 1e-3
    assert 0 < kept.sum() < 8
    factor = 8 / float(kept.sum()) if scaled else 1.0
    close(dropped, (kept * factor).expand_as(dropped))


def test_rank_dropout_drops_ranks_of_activations() -> None:
    module, x, adapter = linear(rank_dropout=0.5, bypass_mode=True)
    up, down = (value.detach() for value in adapter.parameters())
    ranks = [(x @ down[n : n + 1].T @ up[:, n : n + 1].T) / 2 for n in range(2)]
    possible = [a * ranks[0] + b * ranks[1] for a in (0, 1) for b in (0, 1)]
    seen = set()
    for _ in range(32):
        change = adapter(x) - module(x)
        seen |= {n for n, wanted in enumerate(possible) if torch.allclose(change, wanted, atol=1e-5)}
    assert seen == {0, 1, 2, 3}


def test_module_dropout_leaves_the_change_out() -> None:
    module, x, adapter = linear(module_dropout=0.5)
    plain, changed = module(x), adapter.eval()(x)
    adapter.train()
    outputs = [adapter(x) for _ in range(32)]
    skipped = sum(torch.equal(output, plain) for output in outputs)
    assert 0 < skipped < 32
    assert skipped + sum(torch.allclose(output, changed, atol=1e-6) for output in outputs) == 32


def test_dylora_trains_one_block_in_a_step() -> None:
    _, x, adapter = trained(Trial("dylora", "linear", {"lora_dim": 6, "alpha": 3.0, "block_size": 2}))
    blocks = set()
    for _ in range(32):
        adapter.zero_grad()
        adapter(x).sum().backward()
        changed = adapter.get_parameter("lora_down.weight").grad.abs().sum(1) > 0
        (block,) = {int(rank) // 2 for rank in changed.nonzero()}
        assert changed.sum() == 2
        blocks.add(block)
    assert blocks == {0, 1, 2}


def test_tlora_follows_the_mask_of_its_timestep() -> None:
    from lycoris_algos.training import clear_timestep_mask, compute_timestep_mask, set_timestep_mask

    module, x, adapter = trained(Trial("tlora", "linear", {"lora_dim": 4}))
    assert compute_timestep_mask(1000, 1000, 4).tolist() == [[1, 0, 0, 0]]
    assert compute_timestep_mask(0, 1000, 4).tolist() == [[1, 1, 1, 1]]
    assert compute_timestep_mask(500, 1000, 4).tolist() == [[1, 1, 0, 0]]
    whole = adapter(x)
    set_timestep_mask(torch.zeros(1, 4))
    try:
        close(adapter(x), module(x))
        set_timestep_mask(compute_timestep_mask(500, 1000, 4))
        assert not torch.allclose(adapter(x), whole)
    finally:
        clear_timestep_mask()
    close(adapter(x), whole)


def test_max_norm_makes_a_change_that_is_too_large_smaller() -> None:
    module, _, adapter = linear()
    before, _ = adapter.get_diff_weight()
    norm = float(before.detach().norm())
    assert adapter.apply_max_norm(norm * 2) == (False, pytest.approx(norm))
    scaled, after = adapter.apply_max_norm(norm / 2)
    assert scaled
    assert float(after) == pytest.approx(norm / 2)
    close(adapter.get_diff_weight()[0], before / 2)
    assert train(module, "diag-oft").apply_max_norm(1.0) == (None, None)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    _, x, adapter = trained(Trial("loha", "conv2d", {"lora_dim": 2}))
    gradients = []
    for adapter.grad_ckpt in (False, True):
        adapter.zero_grad()
        adapter(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in adapter.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "glora", "diag-oft", "boft", "ia3", "full"])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_a_small_change_survives_bf16(algorithm: str, layer: str) -> None:
    """Added to a bf16 weight it would be rounded away."""
    module, x, adapter = trained(Trial(algorithm, layer, {}))
    adapter.eval()
    adapter.multiplier = 1e-3
    wanted = (expected(module, x, adapter.adapter, 1e-3) - module(x)).detach()
    for dtype in (torch.bfloat16, torch.float32):
        mixed = copy.deepcopy(module).bfloat16()
        own = AdapterModule(mixed, adapter.adapter, multiplier=1e-3, bypass_mode=None).to(dtype).eval()
        delta, _ = own.get_diff_weight()
        assert not torch.equal((mixed.weight.float() + delta * 1e-3), mixed.weight.float())
        output = own(x.bfloat16())
        assert output.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            amp = AdapterModule(module, adapter.adapter, multiplier=1e-3).eval()(x)
        for got in (output, amp):
            error = (got.float() - module(x) - wanted).detach().norm()
            assert float(error) <= 0.02 * float(module(x).detach().norm())


def test_adapters_stack_and_come_off_in_any_order() -> None:
    module, x = Trial("lora", "linear", {}).made()
    plain = module(x)
    own = [train(module, name, lora_dim=2) for name in ("lora", "loha", "diag-oft")]
    for adapter in own:
        moved(adapter)
        adapter.eval()
    changes = [adapter(x) - plain for adapter in own]
    for adapter in own:
        adapter.apply_to()
    close(module(x), plain + sum(changes))
    own[1].restore()
    close(module(x), plain + changes[0] + changes[2])
    own[0].restore()
    close(module(x), plain + changes[2])
    own[1].apply_to()
    close(module(x), plain + changes[2] + changes[1])
    own[2].restore()
    own[1].restore()
    own[1].restore()
    assert torch.equal(module(x), plain)
    assert not {name for name in vars(module) if "lycoris" in name or name == "forward"}


def test_a_forward_that_was_there_before_is_kept() -> None:
    module, x = Trial("lora", "linear", {}).made()
    plain, first = module(x), module.forward
    module.forward = lambda x: first(x) + 1
    adapter = train(module, "loha", lora_dim=8)
    moved(adapter)
    adapter.eval().apply_to()
    close(module(x), plain + 1 + x @ adapter.get_diff_weight()[0].T)
    adapter.restore()
    close(module(x), plain + 1)


@pytest.mark.parametrize("algorithm", ["lora", "full", "diag-oft"])
def test_merging_and_taking_it_back(algorithm: str) -> None:
    module, x, adapter = trained(Trial(algorithm, "linear", {}))
    adapter.eval()
    weight = module.weight.detach().clone()
    wanted = adapter(x)
    adapter.onfly_merge()
    close(module(x), wanted)
    adapter.onfly_restore()
    assert torch.equal(module.weight, weight)
    adapter.merge_to()
    close(module(x), wanted)


def test_merging_precisely_does_not_drift() -> None:
    module, _, adapter = linear()
    weight = module.weight.detach().clone()
    for _ in range(100):
        adapter.merge_to(1.0, precise=True)
        adapter.merge_to(-1.0, precise=True)
    assert torch.equal(module.weight, weight)


# ---- mistakes ---------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_says_why() -> None:
    module, _ = Trial("lora", "linear", {}).made()
    with pytest.raises(BadValueError, match=r"is not trained\. Choose one of "):
        train(module, "hada")
    with pytest.raises(BadValueError, match=r"does not understand rank\. Its options are lora_dim"):
        train(module, "lora", rank=4)
    with pytest.raises(BadValueError, match="'Dropout' is no layer"):
        train(nn.Dropout(), "lora")
    with pytest.raises(BadValueError, match="no multiple"):
        train(module, "dylora", lora_dim=3)
    with pytest.raises(BadValueError, match="BOFT cannot cut 7 outputs"):
        train(nn.Linear(4, 7), "boft")
    with pytest.raises(BadValueError, match="sig_type"):
        train(module, "tlora", sig_type="first")
    with pytest.raises(BadValueError, match="cannot be multiplied"):
        AdapterModule(module, train(module, "diag-oft").adapter, scalar=True)
    with pytest.raises(ShapeMismatchError, match="ask for its algorithm, rank and options"):
        train(module, "lora", lora_dim=2).load_adapter(train(module, "lora", lora_dim=3).adapter)
    with pytest.raises(ShapeMismatchError):
        AdapterModule(module, train(nn.Linear(3, 3), "lora").adapter)


def test_options_are_told() -> None:
    assert training_options("dylora") == (
        "lora_dim",
        "alpha",
        "block_size",
        "weight_decompose",
        "wd_on_out",
    )


def test_every_layer_is_a_pytorch_layer_of_its_own() -> None:
    assert {type(make()) for make, _ in LAYERS.values()} >= {nn.Linear, nn.Conv1d, nn.Conv3d, nn.Embedding}
