"""The patch against ComfyUI's own adapters, wherever those are right.

Where that is was measured against lycoris-lora's training forward: ``core_is_right`` says it as rules.
Elsewhere core differs from training (or fails), so there is nothing to compare with there;
tests/parity/test_lycoris.py holds this pack to training everywhere.
"""

from __future__ import annotations

import logging
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from reference import CASES, FORMS, Case, Reference
from torch import Tensor

MULTIPLIERS = (1.0, 0.7, -0.5, 2.0)
TOLERANCE = 1e-6
WEIGHT, BIAS = "diffusion_model.x.weight", "diffusion_model.x.bias"

#: Other programs' files that core reads right, at every multiplier.
FORMS_THAT_CORE_READS = (
    "GLoRA, old order",
    "GLoRA, old order, square",
    "LoRA without alpha",
    "LoCon of extract_locon: alpha in a list",
    "Norm without b_norm",
    "diff_b alone",
    "bundled embeddings beside a LoRA",
    "LoRA and diff_b in one layer",
)


def core_is_right(case: Case, multiplier: float) -> bool:
    """Whether ComfyUI computes the same as W + m·(W(1) − W)."""
    algo, variant, kind = case.name.split(" / ")
    reference = case.build()
    if not isinstance(reference, Reference) or reference.needs_metadata:
        return False  # core reads no metadata
    if algo in ("ia3", "tlora") or "dora_out" in variant or "constraint" in variant:
        return False
    if variant == "tucker" and (algo == "lokr" or kind != "conv2d_3x3"):
        return False
    if variant == "full_matrix" and kind in ("conv1d_3", "conv3d_3"):
        return False
    if algo == "diag-oft":
        return variant == "plain" and multiplier == 1
    if algo == "boft":  # the multiplier enters at every stage
        return multiplier == 1
    return True


COMPARED = [case for case in CASES if core_is_right(case, 1.0)]
OTHERS = [case for case in FORMS if case.name in FORMS_THAT_CORE_READS]


def _both(case: Case, pack: ModuleType) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """{key: core's patch}, {key: ours} and {key: base} of a case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.lora
        import comfy.lora_convert

    reference = case.build()
    assert isinstance(reference, Reference)
    state_dict = comfy.lora_convert.convert_lora(reference.state_dict)
    core = comfy.lora.load_lora(state_dict, {reference.layer: WEIGHT})

    algos = sys.modules[f"{pack.__name__}.lycoris_algos"]
    patch_class = sys.modules[f"{pack.__name__}.nodes.host.patch"].LycorisPatch
    (layer,) = algos.from_tensors(reference.state_dict, dict(reference.metadata)).values()
    adapters = {WEIGHT: layer, BIAS: layer.bias}
    bases = {WEIGHT: reference.weight, BIAS: reference.bias}

    def made(adapter: Any, base: Tensor) -> Any:
        return adapter.structure(base.shape, base=lambda: base)

    ours = {
        key: patch_class.of([(made(adapter, bases[key]), 1.0)], {reference.layer})
        for key, adapter in adapters.items()
        if adapter is not None and adapter.weight_components
    }
    assert reference.bias is not None
    return core, ours, bases


def _calculate(patch: Any, base: Tensor, key: str, multiplier: float) -> Tensor:
    import comfy.lora

    return comfy.lora.calculate_weight([(multiplier, patch, 1.0, None, None)], base.clone(), key)


@pytest.mark.parametrize("case", [*COMPARED, *OTHERS], ids=lambda case: case.name.replace(" / ", "-"))
def test_core_agrees(case: Case, pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        core, ours, bases = _both(case, pack)
        assert core.keys() <= bases.keys()
        changed = [key for key in bases if key in core]
        assert set(changed) == ours.keys()
        for multiplier in MULTIPLIERS:
            if case in COMPARED and not core_is_right(case, multiplier):
                continue
            for key in changed:
                base = bases[key]
                theirs = _calculate(core[key], base, key, multiplier).double()
                mine = _calculate(ours[key], base, key, multiplier).double()

                largest = (theirs - base).abs().max()
                error = (mine - theirs).abs().max()
                assert largest > 0
                assert error <= _limit(largest, theirs), (
                    f"{key} at {multiplier}: {float(error / largest):.1e}"
                )
    assert "ERROR" not in caplog.text, "core has swallowed an error: it is not right here"


def _limit(largest: Tensor, result: Tensor) -> float:
    """A share of the change, and one step between neighbouring numbers of the float32 result."""
    return float(TOLERANCE * largest + torch.finfo(torch.float32).eps * result.abs().max())


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
def test_core_agrees_on_a_weight_that_is_enlarged(multiplier: float, pack: ModuleType) -> None:
    """Control models of BFL: more input channels than the base has."""
    import comfy.lora

    base = torch.randn(64, 48)
    tensors = {
        "lora_up.weight": torch.randn(64, 4),
        "lora_down.weight": torch.randn(4, 96),
        "alpha": torch.tensor(2.0),
        "reshape_weight": torch.tensor([64, 96]),
    }
    stored = {f"lora_unet_x.{suffix}": value for suffix, value in tensors.items()}
    core = comfy.lora.load_lora(dict(stored), {"lora_unet_x": WEIGHT})
    algos = sys.modules[f"{pack.__name__}.lycoris_algos"]
    patch_class = sys.modules[f"{pack.__name__}.nodes.host.patch"].LycorisPatch
    (layer,) = algos.from_tensors(stored).values()
    ours = patch_class.of([(layer.structure(base.shape), 1.0)], {"lora_unet_x"})

    theirs = _calculate(core[WEIGHT], base, WEIGHT, multiplier)
    mine = _calculate(ours, base, WEIGHT, multiplier)

    assert mine.shape == theirs.shape == (64, 96) == tuple(ours.calculate_shape(WEIGHT))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_the_comparison_covers_what_was_measured() -> None:
    assert len(COMPARED) == 95
    assert sum(core_is_right(case, 0.7) for case in CASES) == 64 + 16  # 16: DoRA on the input axis
    assert len(OTHERS) == len(FORMS_THAT_CORE_READS)
