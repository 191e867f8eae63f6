"""What an inspection finds out, against dense float64 and on stacks that were made to meet in known ways."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import every_case
from oracles import expected_delta, to_numpy
from samples import CASES, Case
from torch import Tensor

from lycoris_algos import AdapterSet, CancelledError, LayerAdapter, from_tensors
from lycoris_algos.inspection import Inspection, View, inspect
from lycoris_algos.inspection.run import SPECTRUM
from lycoris_algos.model_files import WeightsInMemory
from lycoris_algos.network import StackEntry

LAYER = "lora_unet_x"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(up: Tensor, down: Tensor, layer: str = LAYER) -> dict[str, Tensor]:
    return {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}


def file(tensors: dict[str, Tensor], name: str = "one") -> AdapterSet:
    return from_tensors(tensors, name=name)


def stack(*tensors: dict[str, Tensor], strengths: tuple[float, ...] = ()) -> list[StackEntry]:
    return [
        StackEntry(file(own, str(number)), strength, strength)
        for number, (own, strength) in enumerate(zip(tensors, strengths or [1.0] * len(tensors), strict=True))
    ]


def sampled(case: Case) -> tuple[list[StackEntry], WeightsInMemory, np.ndarray, Tensor]:
    """(a stack of the sample alone, its model, the change and the parameter that count)."""
    target = next(case.targets())
    base = target.weight(torch.float32)
    adapters = AdapterSet({LAYER: LayerAdapter.from_tensors(case.tensors)}, name="one")
    own = {LAYER: base}
    known = WeightsInMemory(own, {}) if target.what == "weight" else WeightsInMemory({}, own)
    change = expected_delta(target.algos, case.tensors, base).reshape(base.shape[0], -1)
    return [StackEntry(adapters)], known, change, base


@every_case
def test_norms_and_spectra_are_those_of_the_dense_change(case: Case) -> None:
    entries, known, change, base = sampled(case)
    singular = np.linalg.svd(change, compute_uv=False)
    (spectra,) = inspect(entries, View.SPECTRA, known).layers
    (relative,) = inspect(entries, View.RELATIVE, known).layers

    norm = np.linalg.norm(change)
    assert spectra.problem == relative.problem == ""
    assert spectra.norm == pytest.approx(norm, rel=1e-4, abs=1e-9)
    assert relative.norm == pytest.approx(norm, rel=1e-4, abs=1e-9)
    assert relative.relative == pytest.approx(norm / np.linalg.norm(to_numpy(base)), rel=1e-4, abs=1e-9)
    count = min(len(spectra.singular_values), len(singular))
    assert np.abs(np.array(spectra.singular_values[:count]) - singular[:count]).max() <= 1e-4 * singular[0]
    assert singular[count:].max(initial=0.0) <= max(1e-4 * singular[0], singular[min(SPECTRUM, count) - 1])
    shares = singular / singular.sum() if singular.any() else singular
    wanted = math.exp(-sum(p * math.log(p) for p in shares if p > 0)) if singular.any() else 0.0
    assert spectra.effective_rank == pytest.approx(wanted, rel=1e-3)


@every_case
def test_what_only_a_model_tells_is_said_without_one(case: Case) -> None:
    entries, _, change, _ = sampled(case)
    (values,) = inspect(entries, View.ENERGY).layers
    (adapter,) = entries[0].adapters.values()
    own = adapter if adapter.weight_components else adapter.bias
    assert own is not None
    if values.norm is None:
        assert own.needs_weight or own.matrix_shape is None
        assert "give the model" in values.problem
    else:
        assert values.norm == pytest.approx(np.linalg.norm(change), rel=1e-4, abs=1e-9)


def test_the_overview_computes_nothing() -> None:
    tensors = {name: value.to("meta") for name, value in lora(draw(40, 4), draw(4, 50)).items()}
    found = inspect([StackEntry(file(tensors), 0.5, 0.25)])
    (values,) = found.layers
    assert (values.algorithm, values.rank, values.shape, values.norm) == ("lora", 4, (40, 50), None)
    assert values.size_bytes == 4 * 4 * (40 + 50)
    assert (found.files[0].strength_model, found.files[0].strength_clip) == (0.5, 0.25)
    assert found.files[0].parts == {"model": values.size_bytes}


def test_layers_have_their_blocks_and_kinds() -> None:
    names = {
        "lora_unet_double_blocks_11_img_attn_qkv": ("double.11", "attn.qkv"),
        "lora_unet_double_blocks_2_txt_mlp_0": ("double.2", "ff"),
        "lora_unet_single_blocks_0_modulation_lin": ("single.0", "mod"),
        "lora_te1_text_model_encoder_layers_3_mlp_fc1": ("te.3", "text"),
        "lora_unet_img_in": ("embed", "embed"),
    }
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= lora(draw(8, 2), draw(2, 6), name)
    found = inspect(stack(tensors), View.ENERGY)
    assert {values.layer: (values.block, values.kind) for values in found.layers} == names
    assert list(found.energies) == ["embed", "double.2", "double.11", "single.0", "te.3"]


# ---- outliers ------------------------------------------------------------------------------------------


def test_layers_that_stand_out() -> None:
    tensors: dict[str, Tensor] = {}
    weights = {}
    for number in range(12):
        size = 5.0 if number == 7 else 1.0 + 0.05 * number
        tensors |= lora(size * draw(8, 2, seed=number), draw(2, 6, seed=number), f"lora_unet_{number}")
        weights[f"lora_unet_{number}"] = torch.ones(8, 6)
    found = inspect(stack(tensors), View.RELATIVE, WeightsInMemory(weights, {}))
    marked = [values.layer for values in found.layers if values.outlier]
    assert "lora_unet_7" in marked
    assert len(marked) <= 2


# ---- stacks --------------------------------------------------------------------------------------------


def compared(*tensors: dict[str, Tensor], strengths: tuple[float, ...] = ()) -> Inspection:
    return inspect(stack(*tensors, strengths=strengths), View.COMPARE)


def test_identical_opposite_and_scaled_files() -> None:
    up, down = draw(20, 3), draw(3, 30, seed=1)
    for factor, cosine, conflict in ((1.0, 1.0, 0.0), (-1.0, -1.0, 1.0), (0.25, 1.0, 0.0)):
        found = compared(lora(up, down), lora(up * factor, down))
        (pair,) = found.pairs
        assert (pair.first, pair.second, pair.whole.layers) == (0, 1, 1)
        assert pair.whole.cosine == pytest.approx(cosine, abs=1e-5)
        assert (pair.whole.outputs, pair.whole.inputs) == pytest.approx((1, 1), abs=1e-5)
        assert pair.whole.conflict == pytest.approx(conflict, abs=1e-6)
        norm = float((up @ down).norm())
        assert found.joint[""].norm == pytest.approx(abs(1 + factor) * norm, abs=1e-3 * norm)
        assert found.joint[""].apart == pytest.approx((1 + abs(factor)) * norm, rel=1e-5)


def test_files_at_right_angles() -> None:
    basis = torch.linalg.qr(draw(20, 20))[0]
    (pair,) = compared(lora(basis[:, :3], draw(3, 30)), lora(basis[:, 3:6], draw(3, 30))).pairs
    assert (pair.whole.cosine, pair.whole.outputs) == pytest.approx((0, 0), abs=1e-5)
    assert pair.whole.inputs == pytest.approx(1, abs=1e-4)


def test_a_negative_strength_turns_a_file_round() -> None:
    up, down = draw(20, 3), draw(3, 30, seed=1)
    found = compared(lora(up, down), lora(up, down), strengths=(2.0, -0.5))
    (pair,) = found.pairs
    assert (pair.whole.cosine, pair.whole.conflict) == pytest.approx((-1, 1), abs=1e-5)
    assert found.joint[""].norm == pytest.approx(1.5 * float((up @ down).norm()), rel=1e-4)


def test_a_file_of_strength_0_meets_nothing() -> None:
    up, down = draw(20, 3), draw(3, 30)
    found = compared(lora(up, down), lora(up, down), strengths=(1.0, 0.0))
    assert found.pairs == ()
    assert found.joint[""].norm == pytest.approx(found.joint[""].apart)


def test_three_files_of_other_algorithms_and_layers_against_dense() -> None:
    cases = {case.name: case.tensors for case in CASES}
    names = ("lora-linear", "loha-linear", "lokr-linear")
    own = [{f"lora_unet_a.{k}": v for k, v in cases[name].items()} for name in names]
    own[0] |= lora(draw(8, 2), draw(2, 6), "lora_unet_b")
    own[2] |= lora(draw(8, 3, seed=4), draw(3, 6, seed=5), "lora_unet_b")
    strengths = (0.5, -1.0, 2.0)
    found = compared(*own, strengths=strengths)

    base = torch.zeros(24, 16)
    deltas = [
        {"a": s * expected_delta((name.split("-")[0],), cases[name], base)}
        for s, name in zip(strengths, names, strict=True)
    ]
    for number in (0, 2):
        up, down = (to_numpy(own[number][f"lora_unet_b.lora_{part}.weight"]) for part in ("up", "down"))
        deltas[number]["b"] = strengths[number] * up @ down
    for pair in found.pairs:
        one, other = deltas[pair.first], deltas[pair.second]
        both = one.keys() & other.keys()
        inner = sum(float((one[layer] * other[layer]).sum()) for layer in both)
        lengths = [math.sqrt(sum(float((d[layer] ** 2).sum()) for layer in both)) for d in (one, other)]
        assert pair.whole.layers == len(both)
        assert pair.whole.cosine == pytest.approx(inner / lengths[0] / lengths[1], abs=1e-5)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    total = sum(float((sum(d[layer] for d in deltas if layer in d) ** 2).sum()) for layer in "ab")
    apart = sum(math.sqrt(sum(float((v**2).sum()) for v in d.values())) for d in deltas)
    assert found.joint[""].norm == pytest.approx(math.sqrt(total), rel=1e-5)
    assert found.joint[""].apart == pytest.approx(apart, rel=1e-5)


# ---- quantisation --------------------------------------------------------------------------------------


def test_what_number_types_leave_of_a_change() -> None:
    weight, change = draw(24, 16), 0.01 * draw(24, 16, seed=1)
    entries = [StackEntry(file({f"{LAYER}.diff": change}), 0.5, 0.5)]
    known = WeightsInMemory({LAYER: weight.to(torch.bfloat16)}, {})
    (values,) = inspect(entries, View.QUANTISATION, known).layers
    assert values.dtype == "bf16"
    assert set(values.survival) == {"fp16", "bf16", "fp8 e4m3", "fp8 e5m2"}
    base = weight.to(torch.bfloat16).float()
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp8 e4m3", torch.float8_e4m3fn)):
        stored = base.to(dtype).float()
        moved = ((stored + 0.5 * change).to(dtype).float() != stored).double().mean()
        assert values.survival[name].nearest == pytest.approx(float(moved))
    shares = [values.survival[name].nearest for name in ("fp16", "bf16", "fp8 e4m3", "fp8 e5m2")]
    assert shares == sorted(shares, reverse=True)
    assert inspect(entries, View.QUANTISATION).layers[0].survival == {}


# ---- the run -------------------------------------------------------------------------------------------


def many(count: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number in range(count):
        tensors |= lora(draw(8, 2), draw(2, 6), f"lora_unet_{number}")
    return tensors


def test_progress_names_every_layer_and_ends() -> None:
    seen: list[tuple[int, int, str]] = []
    inspect(stack(many(5)), View.SPECTRA, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert {total for _, total, _ in seen} == {5}
    assert [what for _, _, what in seen[:-1]] == [f"lora_unet_{n}" for n in range(5)]


def test_it_stops_when_asked_to() -> None:
    with pytest.raises(CancelledError, match="cancelled"):
        inspect(stack(many(5)), View.SPECTRA, cancel=lambda: True)


def test_a_layer_that_cannot_be_measured_does_not_stop_the_others() -> None:
    known = WeightsInMemory({LAYER: torch.ones(7, 7), "lora_unet_0": torch.ones(8, 6)}, {})
    tensors = {**lora(draw(8, 2), draw(2, 6)), **many(1)}
    found = inspect(stack(tensors), View.ENERGY, known)
    by_layer = {values.layer: values for values in found.layers}
    assert by_layer["lora_unet_0"].norm is not None
    assert by_layer[LAYER].norm is None
    assert "7×7" in by_layer[LAYER].problem
    assert any("'0'" in line and LAYER in line for line in found.warnings)


# ---- the document --------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", View, ids=lambda view: view.value)
def test_the_document_has_the_same_names_in_every_view(view: View) -> None:
    known = WeightsInMemory({f"lora_unet_{n}": torch.ones(8, 6) for n in range(3)}, {})
    found = inspect(stack(many(3), many(2)), view, known)
    document = json.loads(found.to_json())
    assert list(document) == [
        *("version", "view", "file", "files", "algorithms", "family", "model", "layers", "blocks", "pairs"),
        *("together", "warnings"),
    ]
    assert document["file"] == "0 + 1"
    assert document["algorithms"] == {"lora": 5}
    for layer in document["layers"]:
        assert list(layer) == [
            *("file", "layer", "target", "block", "kind", "algorithm", "rank", "shape", "bytes", "problem"),
            *("norm", "relative", "outlier", "effective_rank", "singular_values", "dtype", "survival"),
        ]
    energy = sum(sum(kinds.values()) for kinds in document["blocks"].values())
    norms = [layer["norm"] for layer in document["layers"] if layer["norm"] is not None]
    assert energy == pytest.approx(sum(norm**2 for norm in norms), rel=1e-4)
    assert (document["pairs"] != []) == (view is View.COMPARE)
    assert (document["together"] is not None) == (view is View.COMPARE)


def test_numbers_that_are_none_are_null() -> None:
    found = inspect(stack(many(1)), View.ENERGY)
    broken = replace(found, layers=(replace(found.layers[0], norm=math.inf),))
    assert json.loads(broken.to_json())["layers"][0]["norm"] is None
