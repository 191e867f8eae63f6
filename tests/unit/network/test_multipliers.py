"""Rules for multipliers: what they say, what they print, what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos import BadValueError
from lycoris_algos.io import read_presets
from lycoris_algos.models import KINDS, Role, role_of, text_role
from lycoris_algos.network import Multipliers
from lycoris_algos.network.multipliers import Layer, MultiplierRule

FLUX = [
    *(Layer(f"a.{n}", role_of(f"double_blocks.{n}.img_attn.qkv")) for n in range(19)),
    *(Layer(f"b.{n}", role_of(f"single_blocks.{n}.linear1")) for n in range(38)),
    Layer("c", role_of("img_in")),
    Layer("te", text_role("text_model.encoder.layers.3.mlp.fc1")),
    Layer("t5", text_role("encoder.block.3.layer.1.DenseReluDense.wo", 2)),
]


def values(text: str, layers: list[Layer] = FLUX) -> list[float]:
    multipliers = Multipliers.parse(text)
    return [multipliers.of(layer) for layer in layers]


def test_the_last_rule_that_fits_decides() -> None:
    found = dict(
        zip([name for name, _ in FLUX], values("*=2, double=0.5, double.3-5=0, double.4=-1"), strict=True)
    )
    assert [found[f"a.{n}"] for n in range(7)] == [0.5, 0.5, 0.5, 0.0, -1.0, 0.0, 0.5]
    assert {found[name] for name in ("b.0", "c", "te", "t5")} == {2.0}


def test_kinds_groups_and_patterns() -> None:
    assert Multipliers.parse("attn=0").of(Layer("x", Role("double", 1, "attn.q"))) == 0.0
    assert Multipliers.parse("attn.k=0").of(Layer("x", Role("double", 1, "attn.q"))) == 1.0
    assert Multipliers.parse("cross=0").of(Layer("x", Role("double", 1, "attn.q"))) == 1.0
    assert Multipliers.parse("te=0").of(Layer("x", Role("te2", 1, "text"))) == 1.0
    assert Multipliers.parse("text=0").of(Layer("x", Role("te2", 1, "text"))) == 0.0
    assert Multipliers.parse("te2.0-9=0.3").of(Layer("x", Role("te2", 9, "text"))) == 0.3
    assert Multipliers.parse("middle=0.3").of(Layer("x", Role("middle", None, "ff"))) == 0.3
    assert Multipliers.parse("*_img_*=0.3").of(Layer("lora_img_in", Role("embed", None, "embed"))) == 0.3
    assert Multipliers.parse("*_img_*=0.3").of(Layer("lora_txt_in", Role("embed", None, "embed"))) == 1.0


SELECTORS = st.one_of(
    st.sampled_from(KINDS),
    st.builds(
        lambda group, first, more: f"{group}.{first}" + (f"-{first + more}" if more else ""),
        st.sampled_from(("double", "input", "te2", "layers", "noise_refiner")),
        st.integers(0, 99),
        st.integers(0, 9),
    ),
    st.sampled_from(("*", "*_attn_*", "lora_unet_*", "middle", "embed", "final")),
)
RULES = st.builds(MultiplierRule, SELECTORS, st.floats(-1000, 1000), st.booleans())


@given(st.lists(RULES, max_size=8))
def test_what_is_printed_is_read_back(rules: list[MultiplierRule]) -> None:
    multipliers = Multipliers(tuple(rules))
    assert Multipliers.parse(str(multipliers)) == multipliers


@given(st.lists(RULES, min_size=1, max_size=8))
def test_spaces_and_lines_do_not_matter(rules: list[MultiplierRule]) -> None:
    text = "\n".join(f"  {rule.selector}{'?' * rule.optional} =  {rule.value!r} " for rule in rules)
    assert Multipliers.parse(text).rules == tuple(rules)


@given(st.text(max_size=40))
def test_any_text_is_read_back_or_refused(text: str) -> None:
    try:
        multipliers = Multipliers.parse(text)
    except BadValueError:
        return
    assert Multipliers.parse(str(multipliers)) == multipliers


@pytest.mark.parametrize(
    "text",
    [
        "double",
        "double.3",
        "double=",
        "=1",
        "double=x",
        "double=nan",
        "double=1e9",
        "doub-le=1",
        "a.b.c=1",
        "1,2,3",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(BadValueError, match=r"no multiplier rule|for no block|must lie|none that programs"):
        Multipliers.parse(text)


def test_a_rule_that_fits_nothing_is_named() -> None:
    with pytest.raises(BadValueError, match=r"'double.19=0.5' fits no layer of x.*double.0-18"):
        Multipliers.parse("double=1, double.19=0.5").check(FLUX, "x")
    Multipliers.parse("double=1, double.19?=0.5").check(FLUX, "x")
    with pytest.raises(BadValueError, match="another kind of model"):
        Multipliers.parse("input?=1, double.19?=0.5").check(FLUX, "x")
    with pytest.raises(BadValueError, match="counts backwards"):
        Multipliers.parse("double.9-3=1")


# ---- lists of numbers of other programs -----------------------------------------------------------------

WITH_ATTENTION = (
    "BASE IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
)
SDXL = "BASE IN04 IN05 IN07 IN08 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
LISTS = [
    WITH_ATTENTION.split(),
    ["BASE", *(f"IN{n:02}" for n in range(12)), "MID", *(f"OUT{n:02}" for n in range(12))],
    SDXL.split(),
    ["BASE", *(f"IN{n:02}" for n in range(9)), "MID", *(f"OUT{n:02}" for n in range(9))],
    ["BASE", *(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38))],
    [*(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38))],
]
PLACES = {"IN": "input", "OUT": "output", "D": "double", "S": "single"}


@pytest.mark.parametrize("names", LISTS, ids=[str(len(names)) for names in LISTS])
def test_a_list_of_numbers_goes_by_the_numbers_of_blocks(names: list[str]) -> None:
    text = ", ".join(f"{number / 8}" for number in range(1, len(names) + 1))
    multipliers = Multipliers.parse(text)
    for number, name in enumerate(names, 1):
        letters = name.rstrip("0123456789")
        if name == "BASE":
            roles = [Role("te", 3, "text"), Role("embed", None, "embed")]
        elif name == "MID":
            roles = [Role("middle", None, "ff")]
        else:
            roles = [Role(PLACES[letters], int(name.removeprefix(letters)), "attn.q")]
        assert {multipliers.of(Layer("x", role)) for role in roles} == {number / 8}, name
    assert Multipliers.parse(str(multipliers)) == multipliers


def test_a_missing_block_shifts_nothing() -> None:
    numbers = ",".join(["1"] * 19 + ["0"] * 37 + ["0.5"])
    few = [layer for layer in FLUX if layer.name in ("a.3", "b.20", "b.37")]
    assert values(numbers, few) == [1.0, 0.0, 0.5]


# ---- presets ----------------------------------------------------------------------------------------------


def test_presets_are_named_texts(tmp_path: Path) -> None:
    path = tmp_path / "presets.txt"
    assert read_presets(path) == {}
    path.write_text(
        "# mine\n\nFACE: double.0-9=0.5, te=0  # soft\nOLD:"
        + ",".join(["1"] * 17)
        + "\nboth: FACE, final=0\n",
        "utf-8",
    )
    presets = read_presets(path)
    assert presets["FACE"] == "double.0-9=0.5, te=0"
    assert str(Multipliers.parse("both, te2?=0.3", presets)) == "double.0-9=0.5, te=0, final=0, te2?=0.3"
    assert len(Multipliers.parse("OLD", presets).rules) == 17
    with pytest.raises(BadValueError, match="presets are FACE, OLD, both"):
        Multipliers.parse("NONE", presets)


def test_a_preset_that_names_itself_ends() -> None:
    with pytest.raises(BadValueError, match="no multiplier rule"):
        Multipliers.parse("a", {"a": "b", "b": "a"})


@pytest.mark.parametrize("text", ["no colon", ": nothing", "name:"])
def test_a_line_that_is_no_preset_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "presets.txt"
    path.write_text(f"# first\n{text}\n", "utf-8")
    with pytest.raises(BadValueError, match=r"line 2 of 'presets\.txt'"):
        read_presets(path)
