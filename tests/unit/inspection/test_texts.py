"""The texts of every view: what a person reads."""

from __future__ import annotations

import pytest
from inspected import LAYERS, LOUD, entry, found

from lycoris_algos.inspection import Detail, View, inspect, text_of
from lycoris_algos.text import LINES


def lines(view: View, *names: str, detail: Detail = Detail.BLOCKS) -> list[str]:
    return text_of(found(view, *(names or ("one.safetensors",))), detail).splitlines()


def test_the_overview_is_the_files_card_and_how_it_fits() -> None:
    shown = lines(View.OVERVIEW)
    assert shown[0] == "one.safetensors: 18 layers"
    assert "  LoRA: 18 layers, rank 4" in shown
    assert "  Title: A title" in shown
    assert "  made for Stable Diffusion 1 or 2" in shown
    assert "  size: model 11.5 kB" in shown
    assert any("18 of 18 layers fit" in line for line in shown)


def test_the_overview_lists_layers_where_that_is_asked() -> None:
    shown = lines(View.OVERVIEW, detail=Detail.LAYERS)
    assert any(LAYERS[0] in line and "24×16" in line and "lora" in line for line in shown)


def test_energy_names_the_strongest_layer_first() -> None:
    shown = lines(View.ENERGY, detail=Detail.LAYERS)
    assert shown[0].startswith("Energy Σ‖ΔW‖² of 'one.safetensors'")
    assert LOUD in shown[2]
    assert sum("lora_unet" in line for line in shown) == len(LAYERS)


def test_shares_of_blocks_add_up() -> None:
    shown = lines(View.ENERGY)
    shares = [float(line.split("%")[0].split()[-1]) for line in shown[2:]]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


@pytest.mark.parametrize("detail", Detail, ids=lambda detail: detail.value)
def test_spectra(detail: Detail) -> None:
    shown = lines(View.SPECTRA, detail=detail)
    assert shown[0].startswith("Singular values of 'one.safetensors'")
    assert "effective rank" in shown[1]
    assert (LOUD in "\n".join(shown)) == (detail is Detail.LAYERS)


@pytest.mark.parametrize("detail", Detail, ids=lambda detail: detail.value)
def test_relative_to_base_names_what_stands_out(detail: Detail) -> None:
    shown = lines(View.RELATIVE, detail=detail)
    assert shown[1].startswith("1 layers stand out")
    assert LOUD in shown[3]


def test_compare_names_the_files_and_how_they_meet() -> None:
    text = "\n".join(lines(View.COMPARE, "one.safetensors", "two.safetensors"))
    assert "0: 'one.safetensors' at 1 (clip 1)" in text
    assert "1: 'two.safetensors' at 0.5 (clip 0.5)" in text
    assert "0 and 1, on 18 layers that both change:" in text
    assert "they hardly meet" in text
    assert "norm of sum" in text


def test_the_same_file_twice_is_said_to_be_too_much() -> None:
    stack = [entry("one", 0), entry("copy", 0)]
    assert "they pull the same way" in text_of(inspect(stack, View.COMPARE))
    stack = [entry("one", 0), entry("copy", 0, -1.0)]
    assert "they pull against each other" in text_of(inspect(stack, View.COMPARE))


def test_one_file_alone_is_told_what_to_connect() -> None:
    assert "Stack LyCORIS" in lines(View.COMPARE)[0]


@pytest.mark.parametrize("detail", Detail, ids=lambda detail: detail.value)
def test_quantisation_says_what_every_number_type_leaves(detail: Detail) -> None:
    text = "\n".join(lines(View.QUANTISATION, detail=detail))
    assert "The model is stored as fp16" in text
    assert all(name in text for name in ("fp16", "bf16", "fp8 e4m3", "fp8 e5m2"))


@pytest.mark.parametrize("view", [View.RELATIVE, View.QUANTISATION], ids=lambda view: view.value)
def test_what_needs_the_model_says_so(view: View) -> None:
    assert "Give the model" in text_of(inspect([entry("one", 0)], view))


@pytest.mark.parametrize("view", View, ids=lambda view: view.value)
@pytest.mark.parametrize("detail", Detail, ids=lambda detail: detail.value)
def test_names_are_harmless(view: View, detail: Detail) -> None:
    text = text_of(found(view, "<b>$x$\x1b[31m", "two"), detail)
    assert not set("<\x1b") & set(text)


def test_long_tables_are_cut() -> None:
    many = [entry(str(number), number) for number in range(5)]
    shown = text_of(inspect(many, View.ENERGY), Detail.LAYERS).splitlines()
    assert len(shown) < LINES + 5
    assert shown[-1] == f"  … and {5 * len(LAYERS) - LINES} more"
