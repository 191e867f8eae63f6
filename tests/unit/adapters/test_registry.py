"""The registry: what may put itself there, which class tensors mean, and how bad tensors are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from samples import CASES, Case
from torch import Tensor

from lycoris_algos import (
    AmbiguousAdapterError,
    BadValueError,
    LayerAdapter,
    ShapeMismatchError,
    UnknownAdapterError,
)
from lycoris_algos.adapters import (
    Algorithm,
    Component,
    Extra,
    algorithms,
    component,
    extras,
    known_suffixes,
    modifiers,
)
from lycoris_algos.adapters._keys import KeySpec

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *FP8)


def tensors(name: str) -> dict[str, Tensor]:
    """Those of a sample, to be spoiled."""
    return dict(next(case for case in CASES if case.name == name).tensors)


# ---- registration -------------------------------------------------------------------------------------

CLASS_DATA: dict[str, Any] = {
    "algo": "test_only",
    "title": "Test",
    "reference": "nowhere",
    "keys": KeySpec(required=("test_only.weight",)),
    "target": "weight",
}


def registry() -> tuple[object, ...]:
    every = (*algorithms(), *extras(), *modifiers())
    found = {cls.algo: component(cls.algo) for cls in every}
    return algorithms(), extras(), modifiers(), known_suffixes(), found


@contextmanager
def unchanged_registry() -> Iterator[None]:
    before = registry()
    yield
    assert registry() == before


def define(base: type[Component], data: dict[str, Any], **options: bool) -> type:
    return type("Defined", (base,), dict(data), **options)


@pytest.mark.parametrize("missing", ["algo", "title", "reference", "keys"])
@pytest.mark.parametrize("base", [Algorithm, Extra])
def test_a_class_without_its_class_data_is_an_error(base: type[Component], missing: str) -> None:
    data = {name: value for name, value in CLASS_DATA.items() if name != missing}
    with unchanged_registry(), pytest.raises(TypeError, match=rf"Defined lacks class data: {missing}"):
        define(base, data)


def test_an_extra_that_does_not_say_what_it_changes_is_an_error() -> None:
    data = {name: value for name, value in CLASS_DATA.items() if name != "target"}
    with unchanged_registry(), pytest.raises(TypeError, match="target"):
        define(Extra, data)


@pytest.mark.parametrize("taken", ["lora", "full_bias"])
@pytest.mark.parametrize("base", [Algorithm, Extra])
def test_a_second_class_of_one_name_is_an_error(base: type[Component], taken: str) -> None:
    owner = component(taken).__qualname__
    with unchanged_registry(), pytest.raises(TypeError, match=f"'{taken}' is taken by {owner}"):
        define(base, {**CLASS_DATA, "algo": taken})


def test_a_subclass_of_an_algorithm_is_not_the_algorithm() -> None:
    with unchanged_registry(), pytest.raises(TypeError, match="'lora' is taken by LoRA"):
        type("Defined", (component("lora"),), {})


def test_two_extras_may_not_share_a_key() -> None:
    data = {**CLASS_DATA, "keys": KeySpec(required=("own", "diff_b"), optional=("w_norm",))}
    with unchanged_registry(), pytest.raises(TypeError, match=r"Defined and \w+ share \['(diff_b|w_norm)'\]"):
        define(Extra, data)


def test_an_extra_may_not_share_a_key_with_a_modifier() -> None:
    with unchanged_registry(), pytest.raises(TypeError, match=r"Defined and \w+ share \['dora_scale'\]"):
        define(Extra, {**CLASS_DATA, "keys": KeySpec(required=("dora_scale",))})


def test_an_algorithm_may_not_take_the_key_of_an_extra() -> None:
    # Extras are taken out of a layer first: such an algorithm would never see its own tensor.
    with unchanged_registry(), pytest.raises(TypeError, match=r"Defined and \w+ share \['diff'\]"):
        define(Algorithm, {**CLASS_DATA, "keys": KeySpec(required=("own", "diff"))})


@pytest.mark.parametrize("base", [Algorithm, Extra])
def test_an_intermediate_class_is_not_registered(base: type[Component]) -> None:
    with unchanged_registry():
        define(base, {}, register=False)


@pytest.mark.parametrize("cls", [*algorithms(), *extras(), *modifiers()], ids=lambda cls: cls.algo)
def test_class_data_is_for_people(cls: type[Component]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.algo)
    assert cls.title
    assert cls.reference.startswith("https://")
    assert cls.keys.names <= known_suffixes()
    assert cls.keys.names or cls not in algorithms()
    assert component(cls.algo) is cls
    assert (cls.__doc__ or "").strip()


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        component("no such algorithm")


# ---- detection ----------------------------------------------------------------------------------------


def test_nothing_at_all() -> None:
    with pytest.raises(UnknownAdapterError, match="stores nothing"):
        LayerAdapter.from_tensors({})


def test_names_of_no_algorithm() -> None:
    with pytest.raises(UnknownAdapterError, match="no known algorithm is stored as what_a, what_b"):
        LayerAdapter.from_tensors({"what_b": torch.ones(2, 2), "what_a": torch.ones(2, 2)})


def test_an_alpha_alone_is_near_to_nothing() -> None:
    with pytest.raises(UnknownAdapterError, match="no known algorithm is stored as alpha"):
        LayerAdapter.from_tensors({"alpha": torch.tensor(1.0)})


INCOMPLETE = (
    ("lora-linear", ("lora_down.weight",), "LoRA", ("'lora_down.weight' is missing",)),
    ("lora-linear", ("lora_up.weight",), "LoRA", ("'lora_up.weight' is missing",)),
    ("loha-linear", ("hada_w2_b",), "LoHa", ("'hada_w2_b' is missing",)),
    ("loha-linear", ("hada_w1_a", "hada_w2_a"), "LoHa", ("'hada_w1_a' is missing", "'hada_w2_a' is missing")),
    ("loha-conv2d_3x3-tucker", ("hada_t2",), "LoHa", ("'hada_t2' is missing beside 'hada_t1'",)),
    (
        "lokr-linear",
        ("lokr_w2_a",),
        "LoKr",
        ("one of 'lokr_w2' or 'lokr_w2_a'+'lokr_w2_b' or", "+'lokr_t2' must be complete"),
    ),
    ("lokr-linear-both_whole", ("lokr_w1",), "LoKr", ("one of 'lokr_w1' or", "must be complete")),
    ("lokr-linear-both_low_rank", ("lokr_w1_b",), "LoKr", ("'lokr_w1_a'+'lokr_w1_b' must be complete",)),
    ("lokr-conv2d_3x3-tucker", ("lokr_w2_b",), "LoKr", ("must be complete",)),
)


@pytest.mark.parametrize(
    ("name", "without", "title", "words"), INCOMPLETE, ids=[f"{n}-{'+'.join(w)}" for n, w, _, _ in INCOMPLETE]
)
def test_an_incomplete_layer_names_the_nearest_and_what_is_missing(
    name: str, without: tuple[str, ...], title: str, words: tuple[str, ...]
) -> None:
    stored = {suffix: value for suffix, value in tensors(name).items() if suffix not in without}
    with pytest.raises(UnknownAdapterError) as caught:
        LayerAdapter.from_tensors(stored)
    message = str(caught.value)
    assert f"The nearest algorithm is {title}" in message
    assert all(word in message for word in words), message
    assert all(suffix in message for suffix in stored), "the message lists what is there"


def test_a_factor_that_is_stored_twice() -> None:
    stored = tensors("lokr-linear") | {"lokr_w2": torch.ones(6, 4)}
    with pytest.raises(
        UnknownAdapterError, match=r"same factor is stored twice \(lokr_w2 and lokr_w2_a\+lokr_w2_b\)"
    ):
        LayerAdapter.from_tensors(stored)
    stored = tensors("lokr-linear") | {"lokr_w1_a": torch.ones(4, 2)}
    with pytest.raises(UnknownAdapterError, match="'lokr_w1_a' lies beside lokr_w1"):
        LayerAdapter.from_tensors(stored)


def test_two_algorithms_in_one_layer_are_refused() -> None:
    for first, second in (("lora-linear", "loha-linear"), ("loha-linear", "lokr-linear")):
        stored = tensors(first) | tensors(second)
        with pytest.raises(UnknownAdapterError, match="is no part of it"):
            LayerAdapter.from_tensors(stored)


def test_a_stray_tensor_beside_an_algorithm_is_named() -> None:
    with pytest.raises(
        UnknownAdapterError, match=r"nearest algorithm is LoRA, but 'strange' is no part of it"
    ):
        LayerAdapter.from_tensors(tensors("lora-linear") | {"strange": torch.ones(2, 2)})


def test_tensors_that_fit_two_algorithms_are_ambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    # No two algorithms of the library do, which is a law (test_laws.py); so a twin is put beside LoRA.
    from lycoris_algos.adapters import _registry

    twin = type("Twin", (component("lora"),), {"algo": "twin", "title": "Twin"}, register=False)
    monkeypatch.setitem(_registry._STORED, "twin", twin)  # type: ignore[arg-type]
    with pytest.raises(AmbiguousAdapterError, match=r"fit several algorithms: LoRA, Twin"):
        LayerAdapter.from_tensors(tensors("lora-linear"))


# ---- numbers that cannot be used ----------------------------------------------------------------------

ONE_OF_EACH = (
    "lora-conv2d_3x3-tucker",
    "loha-conv2d_3x3-tucker",
    "lokr-conv2d_3x3-tucker",
    "full-linear-bias",
)
ONE_OF_EACH += ("norm+norm_bias-both", "lokr-linear-both_whole")
NAMED = [case for case in CASES if case.name in ONE_OF_EACH or case.name == "full+full_bias-linear-bias"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_nan_and_infinity_are_found_in_every_tensor_of_every_dtype(case: Case, dtype: torch.dtype) -> None:
    layer = LayerAdapter.from_tensors(case.stored(dtype))
    layer.require_finite()
    bad = [float("nan")] if dtype == torch.float8_e4m3fn else [float("nan"), float("inf"), -float("inf")]
    for suffix in (name for part in layer.components() for name, _ in part.tensors()):
        for value in bad:
            stored = case.stored(dtype)
            stored[suffix].view(-1)[-1] = value
            with pytest.raises(
                BadValueError, match=rf"'{re.escape(suffix)}' holds 1 of {stored[suffix].numel()} "
            ):
                LayerAdapter.from_tensors(stored).require_finite()


def test_numbers_whose_sum_overflows_are_finite() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        big = torch.full((64, 4), torch.finfo(dtype).max, dtype=dtype)
        LayerAdapter.from_tensors({"diff": big}).require_finite()
        big[3, 1] = float("inf")
        big[4, 1] = float("-inf")
        with pytest.raises(BadValueError, match="2 of 256"):
            LayerAdapter.from_tensors({"diff": big}).require_finite()


def test_alpha_that_is_no_number() -> None:
    for value in (float("nan"), float("inf")):
        for dtype in (torch.float32, torch.float16, torch.float64):
            with pytest.raises(BadValueError, match=r"'alpha' is (nan|inf)"):
                LayerAdapter.from_tensors(
                    tensors("lora-linear") | {"alpha": torch.tensor(value, dtype=dtype)}
                )


@pytest.mark.parametrize("name", ["lora-linear", "loha-linear", "lokr-linear"])
@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(0), torch.ones(1, 2)], ids=["2", "0", "1×2"])
def test_alpha_of_other_than_one_element(name: str, value: Tensor) -> None:
    with pytest.raises(ShapeMismatchError, match="'alpha' must be one number"):
        LayerAdapter.from_tensors(tensors(name) | {"alpha": value})


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64], ids=str
)
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("lora-linear", "lora_up.weight"),
        ("loha-linear", "hada_w2_b"),
        ("lokr-linear", "lokr_w1"),
        ("full-linear", "diff"),
        ("full_bias-alone", "diff_b"),
        ("norm-weight", "w_norm"),
    ],
)
def test_factors_that_are_no_real_numbers(name: str, suffix: str, dtype: torch.dtype) -> None:
    stored = tensors(name)
    stored[suffix] = torch.ones(stored[suffix].shape, dtype=dtype)
    with pytest.raises(
        BadValueError, match=rf"'{suffix}' is stored as {dtype}, which is no real number type"
    ):
        LayerAdapter.from_tensors(stored)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_a_single_number_is_a_factor_too(dtype: torch.dtype) -> None:
    with pytest.raises(BadValueError, match="'diff' is stored as"):
        LayerAdapter.from_tensors({"diff": torch.tensor(1, dtype=dtype)})


# ---- factors that do not fit each other ---------------------------------------------------------------

MISFITS = (
    (
        "lora-linear",
        {"lora_up.weight": (24, 5)},
        ("the rank differs", "5 in 'lora_up.weight'", "4 in 'lora_down"),
    ),
    ("lora-linear", {"lora_mid.weight": (3, 4, 3, 3)}, ("the rank differs", "3 in 'lora_mid.weight'")),
    (
        "lora-linear",
        {"lora_mid.weight": (4, 3, 3, 3)},
        ("the rank differs", "3 in 'lora_mid.weight (second axis)'"),
    ),
    ("loha-linear", {"hada_w1_a": (24, 2)}, ("the rank differs", "2 in 'hada_w1_a'", "3 in 'hada_w1_b'")),
    ("loha-linear", {"hada_w2_b": (4, 16)}, ("the rank differs", "4 in 'hada_w2_b'", "3 in 'hada_w2_a'")),
    (
        "loha-linear",
        {"hada_w2_a": (24, 2), "hada_w2_b": (2, 16)},
        ("the rank differs", "3 in 'hada_w1_b'", "2 in 'hada_w2_b'"),
    ),
    (
        "loha-linear",
        {"hada_w2_a": (23, 3)},
        ("the output size differs", "24 in 'hada_w1_a'", "23 in 'hada_w2_a'"),
    ),
    (
        "loha-linear",
        {"hada_w1_b": (3, 15)},
        ("the input size differs", "15 in 'hada_w1_b'", "16 in 'hada_w2_b'"),
    ),
    ("loha-conv2d_3x3-tucker", {"hada_t1": (2, 3, 3, 3)}, ("the rank differs", "2 in 'hada_t1'")),
    (
        "loha-conv2d_3x3-tucker",
        {"hada_t2": (3, 2, 3, 3)},
        ("the rank differs", "2 in 'hada_t2 (second axis)'"),
    ),
    ("loha-conv2d_3x3-tucker", {"hada_t2": (3, 3, 3, 1)}, ("the input size differs", "72", "24")),
    ("lokr-linear-both_low_rank", {"lokr_w1_a": (3, 4)}, ("the rank differs", "4 in 'lokr_w1_a'")),
    ("lokr-linear", {"lokr_w2_b": (3, 4)}, ("the rank differs", "3 in 'lokr_w2_b'", "2 in 'lokr_w2_a'")),
    ("lokr-conv2d_3x3-tucker", {"lokr_t2": (3, 2, 3, 3)}, ("the rank differs", "3 in 'lokr_t2'")),
    ("lokr-conv2d_3x3-tucker", {"lokr_t2": (2, 3, 3, 3)}, ("the rank differs", "'lokr_t2 (second axis)'")),
)


@pytest.mark.parametrize(
    ("name", "spoiled", "words"), MISFITS, ids=[f"{n}-{next(iter(s))}" for n, s, _ in MISFITS]
)
def test_factors_that_contradict_each_other(
    name: str, spoiled: dict[str, tuple[int, ...]], words: tuple[str, ...]
) -> None:
    stored = tensors(name) | {suffix: torch.ones(shape) for suffix, shape in spoiled.items()}
    with pytest.raises(ShapeMismatchError) as caught:
        LayerAdapter.from_tensors(stored)
    assert all(word in str(caught.value) for word in words), str(caught.value)


NO_MEANING = (
    ("ia3-linear-input", "on_input", torch.tensor(2.0), "'on_input' is 2.0, but must be 0 or 1"),
    ("ia3-linear-input", "on_input", torch.tensor(-1), "'on_input' is -1.0"),
    ("ia3-linear-input", "on_input", torch.tensor(0.5), "'on_input' is 0.5"),
    ("oft_v2-peft-old", "oft_R.peft", torch.tensor(4.0), "'oft_R.peft' is 4.0, but must be 1, 2 or 3"),
    ("oft_v2-peft-old", "oft_R.peft", torch.tensor(0.0), "'oft_R.peft' is 0.0"),
    ("hra-linear", "hra_u", torch.eye(16, 4).roll(1, 1) * torch.tensor([1, 1, 0, 1]), "a vector of zeros"),
)


@pytest.mark.parametrize(("name", "suffix", "value", "words"), NO_MEANING)
def test_numbers_that_mean_nothing(name: str, suffix: str, value: Tensor, words: str) -> None:
    with pytest.raises(BadValueError, match=re.escape(words)):
        LayerAdapter.from_tensors(tensors(name) | {suffix: value})


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_empty_factors_are_refused(case: Case) -> None:
    held = [
        suffix
        for part in LayerAdapter.from_tensors(case.tensors).components()
        for suffix, _ in part.tensors()
    ]
    for suffix in held:
        shape = case.tensors[suffix].shape
        for dim in range(len(shape)):
            empty = torch.ones([0 if axis == dim else size for axis, size in enumerate(shape)])
            with pytest.raises(ShapeMismatchError, match=r"empty|differs"):
                LayerAdapter.from_tensors({**case.tensors, suffix: empty})


@pytest.mark.parametrize("name", ["lora-linear", "loha-linear", "lokr-linear", "lokr-linear-both_whole"])
def test_vectors_in_place_of_matrices_are_refused(name: str) -> None:
    stored = tensors(name)
    for suffix in stored.keys() - {"alpha"}:
        for flat in (torch.ones(4), torch.tensor(1.0)):
            with pytest.raises(ShapeMismatchError, match=rf"'{re.escape(suffix)}' has the shape"):
                LayerAdapter.from_tensors({**stored, suffix: flat})
