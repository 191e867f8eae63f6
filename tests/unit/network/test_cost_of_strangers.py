"""Files that would cost more than they weigh: read, or refused in words, in proportion to their size."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lycoris_algos
from lycoris_algos import LycorisError, describe, from_tensors
from lycoris_algos.formats import is_text_layer, model_paths, text_paths
from lycoris_algos.io import Header, TensorInfo, trigger_words
from lycoris_algos.merge.bake import plan_bake, plan_report
from lycoris_algos.network import StackEntry
from lycoris_algos.network.load import _owners

Tensors = dict[str, Tensor]
ONE, NOTHING = torch.ones(1, 1), torch.zeros(0)
#: Bytes of names or metadata in each of the files below.
SIZE = 500_000
#: Seconds of processor time, several times of what a slow and busy computer needs.
LIMIT = 5.0


def lora(layer: str) -> Tensors:
    return {f"{layer}.lora_up.weight": ONE, f"{layer}.lora_down.weight": ONE}


def loras(*layers: str) -> Tensors:
    return {key: value for layer in layers for key, value in lora(layer).items()}


def peft(**config: object) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config})}


def table(count: int, form: str = "t{}") -> str:
    return json.dumps({form.format(number): 1 + number % 2 for number in range(count)})


def nested(depth: int) -> Tensors:
    """Layers below layers, and strangers below all of them."""
    names = [".".join("a" * count) for count in range(1, depth)]
    strangers = (stranger for name in names for stranger in (f"{name}.b.c", f"b.{name}"))
    return loras(*names) | dict.fromkeys(strangers, NOTHING)


P = "base_model.model."
BLOCKS = [f"{P}blocks.{number}.attn.to_q" for number in range(SIZE // 250)]
A = lora("lora_unet_a")

FILES: dict[str, Callable[[], tuple[Tensors, dict[str, str]]]] = {
    "dots": lambda: ({**A, "." * SIZE: NOTHING}, {}),
    "letters and dots": lambda: ({**A, "a." * (SIZE // 2): NOTHING}, {}),
    "a layer of dots": lambda: (lora("a." * (SIZE // 2) + "b"), {}),
    "layers below layers": lambda: (nested(300), {}),
    "prefix upon prefix": lambda: (lora("lora_unet_" * (SIZE // 10) + "x"), {}),
    "PEFT's prefix upon prefix": lambda: (lora("base_model.model." * (SIZE // 17) + "x"), {}),
    "encoder upon encoder": lambda: (lora("text_encoder." * (SIZE // 13) + "x"), {}),
    "numbers upon numbers": lambda: (lora("lora_unet" + "_blocks_1" * (SIZE // 9)), {}),
    "a long number": lambda: (lora("lora_unet_double_blocks_" + "1" * SIZE), {}),
    "adapter upon adapter": lambda: (lora("a" + ".default_1" * (SIZE // 10)), {}),
    "processor upon processor": lambda: (lora("a" + ".processor.a_lora1" * (SIZE // 18)), {}),
    "many strangers": lambda: ({**A, **{f"x{number}": NOTHING for number in range(20_000)}}, {}),
    "many strangers in a layer": lambda: ({**A, **{f"lora_unet_a.x{n}": NOTHING for n in range(20_000)}}, {}),
    "many layers": lambda: (loras(*(f"lora_unet_{number}" for number in range(5_000))), {}),
    "many embeddings": lambda: ({**A, **{f"bundle_emb.w{n}.emb_params": ONE for n in range(10_000)}}, {}),
    "training options": lambda: (A, {"ss_network_args": table(SIZE // 10)}),
    "wrapper's options": lambda: (A, {"lycoris_config": table(SIZE // 10)}),
    "tags": lambda: (A, {"ss_tag_frequency": f'{{"x": {table(SIZE // 10)}}}'}),
    "folders": lambda: (A, {"ss_dataset_dirs": table(SIZE // 10, "1_{}")}),
    "a long phrase": lambda: (A, {"modelspec.trigger_phrase": "ab," * (SIZE // 3)}),
    "commas": lambda: (A, {"modelspec.trigger_phrase": "a" + "," * SIZE}),
    "blanks": lambda: (A, {"modelspec.title": " " * SIZE, "modelspec.author": "\n" * SIZE}),
    "a pattern for each layer": lambda: (loras(*BLOCKS), peft(alpha_pattern={n[17:]: 2 for n in BLOCKS})),
    "an expression for each layer": lambda: (
        loras(*BLOCKS),
        peft(alpha_pattern={rf".*blocks\.{number}\..*to_q": 2 for number in range(len(BLOCKS))}),
    ),
    "a long expression": lambda: (lora(f"{P}{'a' * 900}"), peft(alpha_pattern={"(a|aa)*" * 50_000: 2})),
    "a pattern that backtracks": lambda: (
        lora(f"{P}{'a' * 60}b"),
        peft(alpha_pattern={"(aa|a)" * 24 + "c": 4}),
    ),
    "numbers without end": lambda: (
        lora(BLOCKS[0]),
        peft(alpha_pattern={"to_q": 10**4000}, lora_alpha=10**4000),
    ),
}


def said(tensors: Tensors, metadata: dict[str, str]) -> str:
    """What a person is told about the file: the report, or why it is refused."""
    try:
        found = from_tensors(tensors, metadata)
    except LycorisError as error:
        return str(error)
    trigger_words(found.metadata)
    for layer in found:
        assert len([*model_paths(layer), *text_paths(layer)]) < 50
        is_text_layer(layer)
    return describe(found)


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_read_or_refused_in_time(file: str) -> None:
    tensors, metadata = FILES[file]()
    start = time.process_time()
    assert len(said(tensors, metadata)) < 20_000
    assert time.process_time() - start < LIMIT


def test_each_of_700_layers_with_an_alpha_of_its_own() -> None:
    names = [f"unet.down_blocks.{number % 3}.attn.{number}.to_q" for number in range(700)]
    table = {name[5:]: 2 + number for number, name in enumerate(names)}
    config = {"unet.peft_type": "LORA", "unet.r": 1, "unet.lora_alpha": 2, "unet.alpha_pattern": table}
    start = time.process_time()
    found = from_tensors(loras(*names), {"lora_adapter_metadata": json.dumps(config)})
    assert time.process_time() - start < 2
    assert [layer.algorithm.alpha for layer in found.values()] == [2.0 + number for number in range(700)]


def test_prefixes_are_taken_off_as_far_as_programs_put_them_on() -> None:
    assert "blocks.0" in list(model_paths("base_model.model.unet.blocks.0"))
    assert "x" in list(model_paths("lora_unet_" * 4 + "x"))
    assert "x" not in list(model_paths("lora_unet_" * 5 + "x"))


def test_a_file_of_too_many_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    entry = '"x{}":{{"dtype":"F32","shape":[0],"{}":[0,0]}}'
    for key in ("data_offsets", "data\\u005foffsets"):
        raw = ("{" + ",".join(entry.format(number, key) for number in range(70_000)) + "}").encode()
        path = tmp_path / "many.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw)
        start = time.process_time()
        with pytest.raises(LycorisError, match=r"many\.safetensors.*70,000 tensors"):
            lycoris_algos.load(path)
        assert time.process_time() - start < LIMIT


@pytest.mark.parametrize(
    "form", ["encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"]
)
def test_a_checkpoint_of_thousands_of_encoders_is_planned_in_time(form: str) -> None:
    names = [f"r{number}.{form}.weight" for number in range(8_000)]
    tensors = {name: TensorInfo(name, torch.float32, (1, 1), 0, 4) for name in names}
    start = time.process_time()
    plan = plan_bake(Header(tensors, {}, 0, 0), [StackEntry(from_tensors(A))])
    assert time.process_time() - start < LIMIT
    assert len(plan_report(plan)) < 1000


def by_looking_up(key: str, layers: Collection[str]) -> str | None:
    while "." in key:
        key = key.rpartition(".")[0]
        if key in layers:
            return key
    return None


_NAMES = st.lists(st.text("ab.\0-", min_size=1, max_size=6), max_size=12)


@given(_NAMES, _NAMES)
def test_a_tensor_belongs_to_the_nearest_layer_above_it(keys: list[str], layers: list[str]) -> None:
    strangers = [key for key in keys if key not in layers]
    expected = {key: by_looking_up(key, layers) for key in strangers}
    assert {key: _owners(strangers, set(layers)).get(key) for key in strangers} == expected
