"""The library against the real PEFT 0.21.2: folders that PEFT has saved, and what its layers compute with.

Both truths are PEFT's own, in float64 from the float32 numbers of the file: the weight that
``merge_and_unload`` leaves, and the output of its module before that, which is what training ran. Where the
two differ (OFT of a kernel) neither is taken for the other: such a file is refused.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from reference.peft_models import CASES, LINEAR, PREFIX, REFUSED, Adapted, Layers, PeftCase, peft
from safetensors.torch import load_file, save_file
from torch import Tensor

import lycoris_algos

MULTIPLIERS = (1.0, 0.7, -0.5, 0.0)
TOLERANCE = 1e-5
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, {layer: before and after}) of a case, saved once."""

    @cache
    def save(case: PeftCase) -> tuple[Path, dict[str, Adapted]]:
        folder = tmp_path_factory.mktemp("peft")
        return folder, case.save(folder)

    return save


def _every(cases: tuple[PeftCase, ...]) -> pytest.MarkDecorator:
    names = [case.name.replace(", ", "-").replace(" ", "_") for case in cases]
    return pytest.mark.parametrize("case", cases, ids=names)


def _case(name: str) -> PeftCase:
    return next(case for case in CASES if case.name == name)


def _parameters(layer: Any, adapted: Adapted) -> list[tuple[str, Any, Tensor, Tensor]]:
    """(which, the library's adapter or None, base, PEFT's change in float64) of a layer's parameters."""
    weight, bias = adapted.weight.float(), adapted.bias.float()
    return [
        ("weight", layer, weight, adapted.merged_weight - adapted.weight),
        ("bias", layer.bias, bias, adapted.merged_bias - adapted.bias),
    ]


def _assert_change(result: Tensor, base: Tensor, change: Tensor, multiplier: float, what: str) -> None:
    """``result`` is base + multiplier·change; where that is nothing, to the bit."""
    expected = multiplier * change
    if not expected.any():
        assert torch.equal(result, base), f"{what} has changed"
        return
    error, largest = (result.double() - base.double() - expected).abs().max(), expected.abs().max()
    # The second term is what a float32 weight cannot resolve.
    limit = TOLERANCE * largest + torch.finfo(torch.float32).eps * base.abs().max()
    assert error <= limit, f"{what} is off by {float(error / largest):.1e} of the largest change"


# ---- what must hold ---------------------------------------------------------------------------------------


@_every(CASES)
def test_a_layer_is_changed_as_peft_merges_it(case: PeftCase, trained: Any) -> None:
    folder, layers = trained(case)
    loaded = lycoris_algos.load(folder / FILE)
    assert set(loaded) == {PREFIX + layer for layer in case.layers}
    assert not loaded.unmatched
    assert loaded.dialect == "peft"
    for name, adapted in layers.items():
        for what, adapter, base, change in _parameters(loaded[PREFIX + name], adapted):
            if adapter is None:
                assert not change.any(), f"{what} of {name} stays as it is"
                continue
            if change.any():
                error = (adapter.delta(base).double() - change).abs().max()
                assert error < TOLERANCE * change.abs().max(), f"{what} of {name}"
            for multiplier in MULTIPLIERS:
                result = adapter.add_to_(base.clone(), multiplier)
                _assert_change(result, base, change, multiplier, f"{what} of {name} at {multiplier}")


@_every(CASES)
def test_a_layer_computes_as_pefts_own_module_did(case: PeftCase, trained: Any) -> None:
    folder, layers = trained(case)
    loaded = lycoris_algos.load(folder / FILE)
    for name, adapted in layers.items():
        weight, bias = (
            base.double() if adapter is None else adapter.add_to_(base.double(), 1.0)
            for _, adapter, base, _ in _parameters(loaded[PREFIX + name], adapted)
        )

        output = adapted.run(weight, bias)

        # Rotations are solved once in float64 and kept in float32.
        assert (output - adapted.output).abs().max() < 1e-6 * adapted.output.abs().max(), name
        moved = (adapted.output - adapted.run(adapted.weight, adapted.bias)).abs().max()
        assert moved > 0 or case.name == "LoRA, alpha 0", "a case that changes nothing shows nothing"


@_every(CASES)
def test_the_bridge_changes_a_layer_as_peft_merges_it(case: PeftCase, trained: Any, pack: ModuleType) -> None:
    """Through the patch that ComfyUI's own ``calculate_weight`` is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.lora

    folder, layers = trained(case)
    loaded = sys.modules[f"{pack.__name__}.lycoris_algos"].load(folder / FILE)
    patch_class = sys.modules[f"{pack.__name__}.nodes.host.patch"].LycorisPatch
    for name, adapted in layers.items():
        for what, adapter, base, change in _parameters(loaded[PREFIX + name], adapted):
            if adapter is None:
                continue
            made = adapter.structure(base.shape, base=lambda base=base: base)
            patch = patch_class.of([(made, 1.0)], {name})
            for strength in (1.0, 0.7):
                entry = (strength, patch, 1.0, None, None)
                result = comfy.lora.calculate_weight([entry], base.clone(), f"diffusion_model.{name}.{what}")
                _assert_change(result, base, change, strength, f"{what} of {name} at {strength}")


@_every(CASES)
def test_a_file_saved_again_means_the_same_without_its_configuration(
    case: PeftCase, trained: Any, tmp_path: Path
) -> None:
    folder, layers = trained(case)
    loaded = lycoris_algos.load(folder / FILE)
    again = lycoris_algos.load(lycoris_algos.save(loaded, tmp_path / "again.safetensors"))

    def deltas(layer: Any, adapted: Adapted) -> list[Tensor]:
        return [adapter.delta(base) for _, adapter, base, _ in _parameters(layer, adapted) if adapter]

    for name, adapted in layers.items():
        first, second = (deltas(found[PREFIX + name], adapted) for found in (loaded, again))
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert (one - other).abs().max() <= 1e-6 * one.abs().max(), name


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", None))
def test_what_cannot_be_applied_is_refused_with_the_reason(case: PeftCase, reason: str, trained: Any) -> None:
    folder, layers = trained(case)

    def use() -> None:
        loaded = lycoris_algos.load(folder / FILE)
        for name, adapted in layers.items():
            loaded[PREFIX + name].add_to_(adapted.weight.clone(), 1.0)

    with pytest.raises(lycoris_algos.LycorisError, match=reason):
        use()


def test_a_convolution_turned_by_oft_is_no_convolution_with_another_kernel(trained: Any) -> None:
    """Why it is refused: what PEFT merges is not what its module computes, and that has no weight."""
    case = next(case for case, _ in REFUSED if case.name == "OFT of kernels")
    _, layers = trained(case)
    kernel, point = layers["conv2d"], layers["point2d"]
    error = (kernel.run(kernel.merged_weight, kernel.merged_bias) - kernel.output).abs().max()
    assert error > 0.1 * kernel.output.abs().max()
    torch.testing.assert_close(point.run(point.merged_weight, point.merged_bias), point.output)


# ---- where the configuration is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scaling"), [("LoRA", 0.5), ("LoRA, rslora", 1.0), ("LoHa", 0.5), ("LoKr, both", 0.5)]
)
def test_a_renamed_file_has_lost_its_configuration(
    name: str, scaling: float, trained: Any, tmp_path: Path
) -> None:
    """PEFT keeps alpha in adapter_config.json only; without it the factors are all there is, so alpha = r."""
    folder, layers = trained(_case(name))
    assert not [key for key in load_file(folder / FILE) if "alpha" in key]
    for file in ("style.safetensors", "adapter_config.json"):
        shutil.copy(folder / (FILE if file.endswith("s") else file), tmp_path / file)
    loaded = lycoris_algos.load(tmp_path / "style.safetensors")
    assert not loaded.notes
    for layer, adapted in layers.items():
        change = adapted.merged_weight - adapted.weight
        delta = loaded[PREFIX + layer].delta(adapted.weight)
        assert (delta * scaling - change).abs().max() < TOLERANCE * change.abs().max()


def test_a_renamed_doras_magnitude_follows_the_factors_alone(trained: Any, tmp_path: Path) -> None:
    """Without alpha the direction is another one; its magnitudes are still those of the file."""
    folder, layers = trained(_case("DoRA"))
    shutil.copy(folder / FILE, tmp_path / "style.safetensors")
    loaded = lycoris_algos.load(tmp_path / "style.safetensors")
    for name, adapted in layers.items():
        weight = loaded[PREFIX + name].add_to_(adapted.weight.clone(), 1.0)
        assert (weight - adapted.merged_weight).abs().max() > 0.01 * weight.abs().max()
        torch.testing.assert_close(
            weight.flatten(1).norm(dim=1), adapted.merged_weight.flatten(1).norm(dim=1), rtol=1e-6, atol=0
        )


def test_a_file_of_diffusers_says_alpha_in_its_metadata(tmp_path: Path) -> None:
    """What diffusers saves: an injected adapter's tensors under the component, the configuration as JSON."""
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=list(LINEAR), alpha_pattern={"square": 3})
    model = peft.inject_adapter_in_model(config, Layers())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"transformer.{k}": v for k, v in peft.get_peft_model_state_dict(model).items()}
    told = {f"transformer.{key}": value for key, value in config.to_dict().items() if _is_plain(value)}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    save_file(state, tmp_path / "style.safetensors", metadata)

    loaded = lycoris_algos.load(tmp_path / "style.safetensors")

    assert loaded.dialect == "diffusers"
    for name in LINEAR:
        change = model.get_submodule(name).get_delta_weight("default").detach()
        assert (
            loaded[f"transformer.{name}"].delta(change) - change
        ).abs().max() < TOLERANCE * change.abs().max()


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | dict)


def test_names_without_a_prefix_follow_the_same_patterns(tmp_path: Path) -> None:
    """An injected adapter's tensors saved by hand beside the configuration: paths inside the model itself."""
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=list(LINEAR), alpha_pattern={"^square": 3})
    model = peft.inject_adapter_in_model(config, Layers())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_file(peft.get_peft_model_state_dict(model), tmp_path / FILE)
    config.save_pretrained(str(tmp_path))

    loaded = lycoris_algos.load(tmp_path / FILE)

    for name in LINEAR:
        change = model.get_submodule(name).get_delta_weight("default").detach()
        assert (loaded[name].delta(change) - change).abs().max() < TOLERANCE * change.abs().max()


# ---- beside an adapter ------------------------------------------------------------------------------------


def test_weights_and_biases_that_were_saved_whole_replace(tmp_path: Path) -> None:
    options = {"r": 4, "lora_alpha": 2, "modules_to_save": ["wide"]}
    PeftCase("modules_to_save", peft.LoraConfig, LINEAR, options).save(tmp_path)
    loaded = lycoris_algos.load(tmp_path / FILE)
    assert set(loaded) == {PREFIX + name for name in (*LINEAR, "wide")}
    saved, layer = load_file(tmp_path / FILE), loaded[f"{PREFIX}wide"]
    assert layer.bias is not None
    for what, adapter in (("weight", layer), ("bias", layer.bias)):
        wanted = saved[f"{PREFIX}wide.{what}"]
        base = torch.randn_like(wanted)
        assert torch.allclose(base + adapter.delta(base), wanted, atol=1e-6)
    assert loaded.unmatched == ()


def test_biases_of_layers_without_an_adapter_replace(tmp_path: Path) -> None:
    PeftCase("bias", peft.LoraConfig, LINEAR, {"r": 4, "lora_alpha": 2, "bias": "all"}).save(tmp_path)
    saved, loaded = load_file(tmp_path / FILE), lycoris_algos.load(tmp_path / FILE)
    keys = [key for key in saved if key.endswith(".bias")]
    assert len(keys) > len(LINEAR)
    for key in keys:
        adapter = loaded[key.removesuffix(".bias").removesuffix(".base_layer")].bias
        assert adapter is not None
        base = torch.randn_like(saved[key])
        assert torch.allclose(base + adapter.delta(base), saved[key], atol=1e-6)
    assert loaded.unmatched == ()


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")  # PEFT's, of the conversion itself
def test_a_pissa_that_peft_has_converted_fits_the_unchanged_model(tmp_path: Path) -> None:
    """What the refusal of an unconverted one advises to do."""
    base = Layers()
    weight = base.linear.weight.detach().clone()
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["linear"], init_lora_weights="pissa")
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if "lora_" in name else 0.0)
    model.peft_config["default"].init_lora_weights = "pissa"
    start = str(tmp_path / "start")
    model.save_pretrained(str(tmp_path / "end"), path_initial_model_for_weight_conversion=start)
    change = model.merge_and_unload().linear.weight.detach() - weight

    (layer,) = lycoris_algos.load(tmp_path / "end" / FILE).values()

    # The singular values go out of the base and in again, so float32 rounds three times.
    assert (layer.delta(weight) - change).abs().max() < 1e-5 * weight.abs().max()
    assert change.abs().max() > 0.01
