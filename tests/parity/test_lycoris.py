"""The library against lycoris-lora 4.1.3 and the other programs that write such files, case by case.

    W(m) = W + m·(W(1) − W)        with W(1) what the trained layer computes with

Every case is held at four multipliers, through the library and through the patch that ComfyUI is given
(whose copy of the library is another one: only tensors pass between them). A case that the library does not
know must be refused with a reason; which ones it knows is asked, so nothing here changes when an algorithm
is added but the two counts.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest
import torch
from prepared import Prepared
from reference import (
    CASES,
    FOREIGN,
    FORMS,
    IRRECOVERABLE,
    SPELLINGS,
    Case,
    NoReference,
    Reference,
)
from torch import Tensor

import lycoris_algos
from lycoris_algos.adapters import component, known_suffixes
from lycoris_algos.formats import canonical_suffix

#: How many of CASES, and of FORMS, the library computes; raise them with every algorithm. Two cases of T-LoRA
#: have no reference, and the files of two others do not hold what they would need.
EXPECTED_SUPPORTED = 153
EXPECTED_FORMS = 49

MULTIPLIERS = (1.0, 0.7, -0.5, 0.0)
TOLERANCE = 1e-5

#: The name of an algorithm here: the names that the library may give it.
_ALGOS = {"diag-oft": ("oft", "diag_oft"), "dylora": ("dylora", "lora"), "peft_ia3": ("ia3", "ia3_peft")}


def _known(algo: str) -> bool:
    for name in _ALGOS.get(algo, (algo,)):
        try:
            component(name)
        except KeyError:
            continue
        return True
    return False


def _load(reference: Reference, algos: Any = lycoris_algos, *, metadata: bool = True) -> Any:
    """The layer's adapter in ``algos`` (either copy of the library)."""
    described = dict(reference.metadata) if metadata else None
    loaded = algos.from_tensors(reference.state_dict, described, name=reference.name)
    return loaded[_layer_name(loaded, reference)]


def _layer_name(loaded: Any, reference: Reference) -> str:
    """Its layer: the one of the file, however the library spells it."""
    assert len(loaded) == 1, f"{reference.name}: {list(loaded)}, {loaded.unmatched}"
    return next(iter(loaded))


@functools.cache
def supported(case: Case) -> bool:
    """Whether the library says that it knows this: algorithm, tensors, and what only metadata tells."""
    reference = case.build()
    if isinstance(reference, NoReference) or case.name in IRRECOVERABLE:
        return False
    if not _known(case.algo):
        return False
    suffixes = known_suffixes()
    for suffix in reference.tensors:
        if canonical_suffix(suffix) not in suffixes:
            return False
    return not reference.needs_metadata or _heeds_metadata(reference)


def _heeds_metadata(reference: Reference) -> bool:
    """Whether the file means something else without its metadata."""
    found: list[Tensor | None] = []
    for metadata in (True, False):
        try:
            layer = _load(reference, metadata=metadata)
            found.append(layer.delta(reference.weight))
        except lycoris_algos.LycorisError:
            found.append(None)
    with_metadata, without = found
    return with_metadata is not None and (without is None or not torch.allclose(with_metadata, without))


def _ids(cases: Iterable[Case]) -> list[str]:
    return [case.name.replace(" / ", "-").replace(" ", "_") for case in cases]


def _every_case(test: Callable[..., None]) -> Callable[..., None]:
    cases = [*CASES, *FORMS]
    return pytest.mark.parametrize("case", cases, ids=_ids(cases))(test)


# ---- what must hold ---------------------------------------------------------------------------------------


def _assert_change(result: Tensor, base: Tensor, delta: Tensor | None, multiplier: float, what: str) -> None:
    """``result`` is base + multiplier·delta; where that is no change at all, to the bit."""
    if delta is None or multiplier == 0 or not delta.any():
        assert torch.equal(result, base), f"{what} has changed"
        return
    expected = multiplier * delta
    error, largest = (result.double() - base.double() - expected).abs().max(), expected.abs().max()
    assert error <= _limit(expected, base), (
        f"{what} is off by {float(error / largest):.1e} of the largest change"
    )


def _limit(delta: Tensor, base: Tensor) -> float:
    """A share of the change, and what a float32 weight cannot resolve anyway."""
    return float(TOLERANCE * delta.abs().max() + torch.finfo(torch.float32).eps * base.abs().max())


def _assert_refused(case: Case) -> None:
    """Loading or applying it fails with one of the library's errors, or every key is listed with a reason."""
    reference = case.build()
    message = ""
    try:
        loaded = lycoris_algos.from_tensors(
            reference.state_dict, dict(reference.metadata), name="x.safetensors"
        )
        for layer in loaded.values():
            layer.add_to_(reference.weight.clone(), 1.0)
    except lycoris_algos.LycorisError as error:
        message = str(error)
    assert len(message) > 20, "it is applied, but not as it was trained, and nothing says so"


@_every_case
def test_library_changes_a_weight_as_training_did(case: Case) -> None:
    if not supported(case):
        _assert_refused(case)
        return
    reference = case.build()
    assert isinstance(reference, Reference)
    layer = _load(reference)
    prepared = Prepared(layer, reference.weight)
    for multiplier in MULTIPLIERS:
        for how, adapter in (("weight", layer), ("weight (prepared)", prepared)):
            result = adapter.add_to_(reference.weight.clone(), multiplier)

            _assert_change(result, reference.weight, reference.delta, multiplier, f"{how} at {multiplier}")


@_every_case
def test_library_changes_a_bias_as_training_did(case: Case) -> None:
    if not supported(case):
        return  # refused: the test above
    reference = case.build()
    assert isinstance(reference, Reference)
    bias_adapter = _load(reference).bias
    if reference.bias_delta is None:
        assert bias_adapter is None
        return
    assert reference.bias is not None
    assert bias_adapter is not None
    for multiplier in MULTIPLIERS:
        result = bias_adapter.add_to_(reference.bias.clone(), multiplier)

        _assert_change(result, reference.bias, reference.bias_delta, multiplier, f"bias at {multiplier}")


@_every_case
def test_delta_is_what_is_added(case: Case) -> None:
    if not supported(case):
        return
    reference = case.build()
    assert isinstance(reference, Reference)

    delta = _load(reference).delta(reference.weight)

    assert delta.shape == reference.weight.shape
    assert (delta.double() - reference.delta).abs().max() <= _limit(reference.delta, reference.weight)


@_every_case
def test_the_bridge_changes_a_weight_as_training_did(case: Case, pack: ModuleType) -> None:
    if not supported(case):
        return
    reference = case.build()
    assert isinstance(reference, Reference)
    layer = _load(reference, sys.modules[f"{pack.__name__}.lycoris_algos"])
    parameters = [("weight", layer, reference.weight, reference.delta)]
    if layer.bias is not None:
        assert reference.bias is not None
        parameters.append(("bias", layer.bias, reference.bias, reference.bias_delta))
    for what, adapter, base, delta in parameters:
        for multiplier in MULTIPLIERS:
            result = calculate_weight(pack, adapter, base, multiplier)

            _assert_change(result, base, delta, multiplier, f"{what} at {multiplier}")


def calculate_weight(pack: ModuleType, adapter: Any, base: Tensor, strength: float) -> Tensor:
    """``adapter`` on a copy of ``base``, as ComfyUI's patcher computes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.lora

    patch_class = sys.modules[f"{pack.__name__}.nodes.host.patch"].LycorisPatch
    change = adapter.structure(base.shape, base=lambda: base)
    patch = patch_class.of([(change, 1.0)], {"x"})
    entry = (strength, patch, 1.0, None, None)
    return comfy.lora.calculate_weight([entry], base.clone(), "diffusion_model.x.weight")


@pytest.mark.parametrize("case", CASES, ids=_ids(CASES))
def test_files_in_half_precision_mean_the_same(case: Case) -> None:
    """Trainers cast every tensor when they save, alpha and on_input among them."""
    if not supported(case):
        return
    reference = case.build()
    assert isinstance(reference, Reference)
    for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 6e-2)):
        halves = {key: value.to(dtype) for key, value in reference.state_dict.items()}
        floats = {key: value.float() for key, value in halves.items()}
        deltas = []
        for tensors in (halves, floats):
            loaded = lycoris_algos.from_tensors(tensors, dict(reference.metadata))
            layer = loaded[_layer_name(loaded, reference)]
            deltas.append(layer.delta(reference.weight).double())
        found, as_floats = deltas

        largest = float(reference.delta.abs().max())
        assert (found - as_floats).abs().max() < TOLERANCE * largest, dtype
        assert (found - reference.delta).abs().max() < tolerance * largest, dtype


@pytest.mark.parametrize(("name", "shape", "tensors"), FOREIGN, ids=[name for name, *_ in FOREIGN])
def test_foreign_formats_are_refused(
    name: str, shape: tuple[int, ...], tensors: dict[str, tuple[int, ...]]
) -> None:
    stored = {f"base_model.model.x.{suffix}": torch.randn(size) for suffix, size in tensors.items()}

    with pytest.raises(lycoris_algos.LycorisError) as caught:
        lycoris_algos.from_tensors(stored, name="foreign.safetensors")

    assert "foreign.safetensors" in str(caught.value)
    assert any(key in str(caught.value) for key in stored), "the message names none of its tensors"


@pytest.mark.parametrize(("up", "down"), SPELLINGS, ids=[up for up, _ in SPELLINGS])
def test_every_spelling_of_a_lora(up: str, down: str) -> None:
    reference = next(case for case in FORMS if case.name == "LoRA without alpha").build()
    assert isinstance(reference, Reference)
    names = {"lora_up.weight": up, "lora_down.weight": down}
    stored = {f"unet.blocks.0.x{names[suffix]}": value for suffix, value in reference.tensors.items()}

    loaded = lycoris_algos.from_tensors(stored)

    assert list(loaded) == ["unet.blocks.0.x"]
    assert not loaded.unmatched
    result = loaded["unet.blocks.0.x"].add_to_(reference.weight.clone(), 1.0)
    _assert_change(result, reference.weight, reference.delta, 1.0, "weight")


class _Extracted(torch.nn.Module):
    """What extract_locon takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(24, 16)
        self.conv = torch.nn.Conv2d(8, 16, 3)
        self.point = torch.nn.Conv2d(8, 16, 1)


@pytest.mark.parametrize("tucker", [False, True])
def test_what_extract_locon_has_extracted_is_put_back(tucker: bool) -> None:
    """LyCORIS' own extraction with a sparse rest: put on the base, that is the tuned model where it is exact.

    Beside a Tucker kernel the tool mistakes the whole weight for the difference, so that its rest holds the
    base weight too; a reader that adds it as it is gets those elements wrong by all of the base weight.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lycoris.utils import extract_diff

    base, tuned = _Extracted(), _Extracted()
    extracted = extract_diff(
        [],
        [],
        base,
        tuned,
        linear_mode_param=4,
        conv_mode_param=4,
        use_bias=True,
        sparsity=0.9,
        small_conv=tucker,
    )
    assert any("lora_mid" in key for key in extracted) == tucker
    loaded = lycoris_algos.from_tensors(extracted)
    assert len(loaded) == 3
    for name, module in base.named_children():
        before, after = module.weight.detach(), tuned.get_submodule(name).weight.detach()
        row, column = extracted[f"lora_unet_{name}.bias_indices"].long()

        result = loaded[f"lora_unet_{name}"].add_to_(before.clone(), 1.0)

        error = (result - after).abs().flatten(1)
        assert error[row, column].max() < 2e-3, f"{name}: {float(error[row, column].max())}"
        assert error.mean() < 0.8 * (before - after).abs().mean(), name


# ---- the matrix itself ------------------------------------------------------------------------------------


def test_the_matrix_is_complete() -> None:
    assert len(CASES) == 157
    assert len({case.name for case in (*CASES, *FORMS)}) == len(CASES) + len(FORMS)
    without = {case.name for case in CASES if isinstance(case.build(), NoReference)}
    assert without == {"tlora / principal / conv2d_3x3", "tlora / principal / conv1d_3"}
    assert {case.name for case in CASES} > IRRECOVERABLE


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("lora / tucker / conv3d_3", "lora_up.weight lora_down.weight lora_mid.weight alpha"),
        ("loha / tucker / conv1d_3", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 alpha"),
        ("lokr / w1_full / linear", "lokr_w1 lokr_w2_a lokr_w2_b alpha"),
        ("lokr / tucker / conv2d_3x3", "lokr_w1 lokr_w2_a lokr_w2_b lokr_t2 alpha"),
        ("lokr / decompose_both / conv3d_3", "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b alpha"),
        ("lokr / w1lr_w2full / conv2d_3x3", "lokr_w1_a lokr_w1_b lokr_w2 alpha"),
        ("lokr / full_matrix / conv1d_3", "lokr_w1 lokr_w2 alpha"),
        ("lokr / full+dora_out / linear", "lokr_w1 lokr_w2 dora_scale alpha"),
        ("diag-oft / constraint+rescaled / linear", "oft_blocks rescale alpha"),
        ("glora / tucker_asked / conv2d_3x3", "a1.weight a2.weight b1.weight b2.weight alpha"),
        ("tlora / last / linear", "q_layer.weight p_layer.weight lambda_layer alpha"),
    ],
)
def test_cases_are_stored_in_the_form_that_they_are_named_for(name: str, suffixes: str) -> None:
    reference = next(case for case in CASES if case.name == name).build()

    assert isinstance(reference, Reference)
    assert set(reference.tensors) == set(suffixes.split())


def test_deltas_are_as_large_as_the_weights() -> None:
    """Or a relative error would say nothing."""
    for case in CASES:
        reference = case.build()
        if isinstance(reference, Reference):
            ratio = float(reference.delta.abs().max() / reference.weight.abs().max())
            assert 0.01 < ratio < 50, f"{case.name}: {ratio}"


def test_count_of_supported_cases() -> None:
    unsupported = [case.name for case in (*CASES, *FORMS) if not supported(case)]
    print("not supported:", *unsupported, sep="\n  ")

    assert sum(map(supported, CASES)) == EXPECTED_SUPPORTED
    assert sum(map(supported, FORMS)) == EXPECTED_FORMS
