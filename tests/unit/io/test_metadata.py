"""What metadata says, and that no metadata can make these functions fail."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lycoris_algos.io import base_model, facts, network_args, title, trigger_words


def tags(**folders: dict[str, object]) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps(folders)}


def test_network_args_are_texts() -> None:
    metadata = {
        "ss_network_args": json.dumps(
            {"algo": "lokr", "factor": 8, "dora_wd": True, "blocks": [1, 2], "none": None}
        )
    }
    assert network_args(metadata) == {
        "algo": "lokr",
        "factor": "8",
        "dora_wd": "true",
        "blocks": "[1, 2]",
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"x"', "[" * 100_000, "9" * 5000])
def test_damaged_json_answers_nothing(text: str) -> None:
    metadata = dict.fromkeys(("ss_network_args", "ss_tag_frequency", "ss_dataset_dirs"), text)
    assert network_args(metadata) == {}
    assert trigger_words(metadata) == ()


def test_the_authors_phrase_goes_before_tags() -> None:
    metadata = {
        "modelspec.trigger_phrase": " sks dog,  on a\nhill, sks dog ",
        **tags(a={"1girl": 9}),
    }
    assert trigger_words(metadata) == ("sks dog", "on a hill")


def test_tags_are_counted_over_all_folders_most_frequent_first() -> None:
    metadata = tags(
        one={"solo": 5, "sks": 10, "tree": 4},
        two={"sks": 10, " solo": 6, "rare": 9, "": 99, "bad": "x", "worse": -3, "yes": True},
        three=["not a table"],  # type: ignore[arg-type]
    )
    assert trigger_words(metadata) == ("sks", "solo")


def test_the_half_is_included() -> None:
    assert trigger_words(tags(a={"half": 5, "most": 10, "less": 4})) == ("most", "half")


def test_at_most_twelve_words_in_order() -> None:
    words = trigger_words(tags(a={f"tag{i}": 20 - i for i in range(10)} | {f"x{i}": 10 for i in range(9)}))
    assert words == (*(f"tag{i}" for i in range(10)), "x0", "x1")


def test_sentences_that_occur_once_are_no_triggers() -> None:
    metadata = {
        **tags(a={f"a photo number {i}": 1 for i in range(30)}),
        "ss_dataset_dirs": json.dumps({"10_sks dog": {"n_repeats": 10, "img_count": 30}}),
    }
    assert trigger_words(metadata) == ("sks dog",)


def test_overlong_words_are_left_out_not_cut() -> None:
    assert trigger_words(tags(a={"x" * 101: 9, "y" * 100: 9})) == ("y" * 100,)


def test_concepts_of_folders() -> None:
    folders = ["10_sks dog", "5_sks dog", "no number", "3_", "12_a_b"]
    metadata = {"ss_dataset_dirs": json.dumps({folder: {} for folder in folders})}
    assert trigger_words(metadata) == ("sks dog", "a_b")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, None),
        ({"ss_base_model_version": "sd_v1"}, "Stable Diffusion 1.x"),
        ({"ss_base_model_version": "sd_v2"}, "Stable Diffusion 2.x"),
        ({"ss_base_model_version": "sd_v2_v"}, "Stable Diffusion 2.x (v-prediction)"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        ({"ss_base_model_version": "flux1"}, "FLUX.1"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "Stable Diffusion XL"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "FLUX.1 dev"),
        (
            {"ss_base_model_version": "None", "modelspec.architecture": "lumina-2"},
            "Lumina Image 2.0",
        ),
        (
            {"ss_base_model_version": "new9", "modelspec.architecture": "chroma"},
            "Chroma",
        ),
        ({"ss_base_model_version": "new\n9"}, "new 9"),
        ({"modelspec.architecture": "newest-model/lora"}, "newest-model"),
    ],
)
def test_base_model(metadata: dict[str, str], words: str | None) -> None:
    assert base_model(metadata) == words


def test_title() -> None:
    assert title({"modelspec.title": "My LoRA", "ss_output_name": "x"}) == "My LoRA"
    assert title({"modelspec.title": "None", "ss_output_name": "x"}) == "x"
    assert title({}) is None


def test_facts_tell_what_is_known_in_a_fixed_order() -> None:
    metadata = {
        "ss_network_alpha": "1",
        "ss_network_dim": "8",
        "ss_output_name": "mine",
        "modelspec.author": "me",
        "ss_network_args": '{"algo": "loha"}',
        "ss_num_train_images": "120",
        "ss_resolution": "(1024, 1024)",
        "ss_epoch": "3",
        "ss_steps": "360",
        "sshs_model_hash": "ab12",
        "ss_seed": "None",
        "unknown": "x",
    }
    assert facts(metadata) == [
        ("Title", "mine"),
        ("Algorithm", "loha"),
        ("Author", "me"),
        ("Rank", "8"),
        ("Alpha", "1"),
        ("Training images", "120"),
        ("Resolution", "(1024, 1024)"),
        ("Epochs", "3"),
        ("Steps", "360"),
        ("Hash", "ab12"),
    ]


def test_values_are_short_single_and_plain_lines() -> None:
    evil = "a\r\nb\t\x1b[31m\u202ec" + "x" * 10_000_000
    ((_, value),) = facts({"modelspec.author": evil})
    assert value.startswith("a b [31mcxxx")
    assert value.endswith("…")
    assert len(value) == 200


KEYS = st.sampled_from(
    [
        "ss_network_args",
        "ss_tag_frequency",
        "ss_dataset_dirs",
        "ss_base_model_version",
        "modelspec.architecture",
        "modelspec.trigger_phrase",
        "modelspec.title",
        "ss_num_train_images",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@given(st.dictionaries(KEYS, st.text(max_size=40) | JSON.map(json.dumps), max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_makes_them_fail(metadata: dict[str, str]) -> None:
    before = dict(metadata)
    words = trigger_words(metadata)
    lines = [*words, *(value for _, value in facts(metadata))]
    lines += [text for text in (base_model(metadata), title(metadata)) if text is not None]
    for line in lines:
        assert 0 < len(line) <= 200
        assert not any(character in line for character in "\n\r\t\0\x1b\u2028")
    assert len(words) == len(set(words)) <= 12
    assert all(isinstance(value, str) for value in network_args(metadata).values())
    assert metadata == before


def test_huge_json_is_not_parsed() -> None:
    assert network_args({"ss_network_args": '{"a": "b"}' + " " * 16_000_000}) == {}
