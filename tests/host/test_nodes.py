"""The nodes as ComfyUI calls them: schemas, outputs, the order of a stack."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

#: The nodes that this file is about; there may be more.
CORE_NODES = ("LoadLyCORIS", "StackLyCORIS", "ApplyLyCORISToModel", "LyCORISLoader")


# ---- schemas ----------------------------------------------------------------------------------------------


def test_the_nodes_are_there(comfy_nodes: dict[str, Any]) -> None:
    assert set(CORE_NODES) <= comfy_nodes.keys()
    for node_id, node in comfy_nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.node_id == node_id
        assert schema.category.startswith("LyCORIS"), node_id
        assert schema.display_name, node_id
    names = [node.GET_SCHEMA().display_name for node in comfy_nodes.values()]
    assert len(set(names)) == len(names)


def test_everything_explains_itself(comfy_nodes: dict[str, Any]) -> None:
    for node_id, node in comfy_nodes.items():
        schema = node.GET_SCHEMA()
        assert len(schema.description) > 20, node_id
        for item in schema.inputs:
            assert item.tooltip, f"input '{item.id}' of {node_id} has no tooltip"
            assert len(item.tooltip) > 10, f"input '{item.id}' of {node_id}"
        for number, item in enumerate(schema.outputs):
            assert item.tooltip, f"output {number} of {node_id} has no tooltip"


def test_every_node_has_a_help_page(comfy_nodes: dict[str, Any], pack: ModuleType) -> None:
    docs = Path(str(pack.__file__)).parent / pack.WEB_DIRECTORY / "docs"
    missing = [node_id for node_id in comfy_nodes if not (docs / f"{node_id}.md").is_file()]

    assert not missing
    for node_id in comfy_nodes:
        assert len((docs / f"{node_id}.md").read_text("utf-8")) > 200, node_id


def test_every_input_is_in_the_help_page(comfy_nodes: dict[str, Any], pack: ModuleType) -> None:
    docs = Path(str(pack.__file__)).parent / pack.WEB_DIRECTORY / "docs"
    for node_id, node in comfy_nodes.items():
        text = (docs / f"{node_id}.md").read_text("utf-8")
        if node_id == "StackLyCORIS":  # eight of a kind
            assert "lycoris_1" in text
            continue
        for item in node.GET_SCHEMA().inputs:
            assert item.id in text, f"{node_id}.md says nothing of '{item.id}'"


def test_what_the_frontend_is_told_is_json(comfy_nodes: dict[str, Any], folders: Path) -> None:
    for node_id, node in comfy_nodes.items():
        assert json.dumps(node.GET_NODE_INFO_V1()), node_id


def test_required_inputs_are_those_of_execute(comfy_nodes: dict[str, Any]) -> None:
    """A node can be called with what its schema asks for, by name."""
    import inspect

    for node_id, node in comfy_nodes.items():
        parameters = inspect.signature(node.execute).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for item in node.GET_SCHEMA().inputs:
            assert takes_any or item.id in parameters, f"{node_id} has no parameter '{item.id}'"
            if item.optional and not takes_any:
                assert parameters[item.id].default is not inspect.Parameter.empty, f"{node_id}: {item.id}"


# ---- Load LyCORIS -----------------------------------------------------------------------------------------


def test_load_outputs_a_stack_a_report_and_trigger_words(load_node: Any, folders: Path) -> None:
    tiny.put(
        folders,
        "sub/style.safetensors",
        modelspec__trigger_phrase="sks dog, oil painting",
        ss_base_model_version="sd_v1",
        ss_network_module="lycoris.kohya",
    )

    output = load_node.execute("sub/style.safetensors", 0.8, 0.3)

    stack, report, words = output.args
    (entry,) = stack
    assert (entry.strength_model, entry.strength_clip) == (0.8, 0.3)
    assert list(entry.adapters) == [tiny.CONV_IN]
    assert "LoRA: 1 layer, rank 4, alpha 2" in report
    assert "Stable Diffusion 1.x" in report
    assert words == "sks dog, oil painting"
    assert output.ui == {"text": [report]}


def test_load_without_metadata(load_node: Any, folders: Path) -> None:
    tiny.put(folders, "plain.safetensors")

    _, report, words = load_node.execute("plain.safetensors", 1.0, 1.0).args

    assert words == ""
    assert "plain.safetensors" in report


def test_pickled_files_are_read_too(load_node: Any, folders: Path) -> None:
    tensors = {f"{tiny.CONV_IN}.{suffix}": value for suffix, value in tiny.conv_in_lora().items()}
    torch.save(tensors, folders / "loras" / "old.pt")

    stack, report, _ = load_node.execute("old.pt", 1.0, 1.0).args

    assert [list(entry.adapters) for entry in stack] == [[tiny.CONV_IN]]
    assert "old.pt" in report


def test_pickled_code_is_not_run(load_node: Any, folders: Path, pack: ModuleType) -> None:
    import pickle
    import sys

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(folders / "pwned"),)

    (folders / "loras" / "evil.pt").write_bytes(pickle.dumps({"x.alpha": Evil()}))

    with pytest.raises(sys.modules[f"{pack.__name__}.lycoris_algos"].LycorisError, match=r"evil\.pt"):
        load_node.execute("evil.pt", 1.0, 1.0)

    assert not (folders / "pwned").exists()


# ---- Stack LyCORIS ----------------------------------------------------------------------------------------


def test_stack_keeps_the_order_of_its_inputs(
    comfy_nodes: dict[str, Any], load_node: Any, folders: Path
) -> None:
    stacks = []
    for number in range(1, 5):
        tiny.put(folders, f"{number}.safetensors", tiny.conv_in_lora(str(number)))
        stacks.append(load_node.execute(f"{number}.safetensors", number / 10, 1.0).args[0])
    stack_node = comfy_nodes["StackLyCORIS"]

    (first,) = stack_node.execute(lycoris_1=stacks[2], lycoris_5=stacks[0]).args
    (both,) = stack_node.execute(
        lycoris_8=stacks[1], lycoris_1=first, lycoris_2=stacks[3], lycoris_3=None
    ).args

    assert [entry.strength_model for entry in both] == [0.3, 0.1, 0.4, 0.2]
    assert [entry.strength_model for entry in first] == [0.3, 0.1], "the input has changed"


def test_order_of_a_stack_is_the_order_of_application(sd15: tuple[Any, Any], apply: Any) -> None:
    """Seen where it matters: DoRA rescales what is there before it."""
    model, _ = sd15
    weight = tiny.parameter(model, tiny.CONV_IN_KEY).clone()
    full, dora = tiny.make("full", weight), tiny.make("dora", weight)

    for files in ((full, dora), (dora, full)):
        patched, _, _ = apply.files(model, *({tiny.CONV_IN: tensors} for tensors in files))
        with tiny.loaded(patched) as now:
            expected = tiny.changed(weight, *((tensors, 1.0) for tensors in files))
            tiny.assert_weight(now(tiny.CONV_IN_KEY), expected, steps=4)


# ---- Apply LyCORIS to Model and LyCORIS Loader ------------------------------------------------------------


def test_loader_is_load_and_apply_in_one(
    sd15: tuple[Any, Any], comfy_nodes: dict[str, Any], load_node: Any, folders: Path
) -> None:
    model, clip = sd15
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tiny.save(
        folders / "loras" / "both.safetensors",
        {tiny.CONV_IN: tiny.conv_in_lora(), text: tiny.make("lora", torch.randn(3072, 768))},
    )
    stack = load_node.execute("both.safetensors", 1.0, 1.0).args[0]
    apply_node, loader = comfy_nodes["ApplyLyCORISToModel"], comfy_nodes["LyCORISLoader"]

    separate = apply_node.execute(model, stack, 0.7, -0.4, "error if nothing matches", clip)
    together = loader.execute(model, "both.safetensors", 0.7, -0.4, clip)

    for patcher in (lambda output: output.args[0], lambda output: output.args[1].patcher):
        one, other = patcher(separate).patches, patcher(together).patches
        assert one.keys() == other.keys() != set()
        for key in one:
            assert [entry[0] for entry in one[key]] == [entry[0] for entry in other[key]]
    assert together.args[2] == separate.args[2]
    assert together.ui == {"text": [together.args[2]]}
    assert separate.ui == {"text": [separate.args[2]]}


def test_loader_without_clip(sd15: tuple[Any, Any], comfy_nodes: dict[str, Any], folders: Path) -> None:
    model, _ = sd15
    tiny.put(folders, "one.safetensors")

    patched, clip, report = (
        comfy_nodes["LyCORISLoader"]
        .execute(model=model, lycoris_name="one.safetensors", strength_model=1.0, strength_clip=1.0)
        .args
    )

    assert clip is None
    assert set(patched.patches) == {tiny.CONV_IN_KEY}
    assert "1 of 1 layers applied" in report


def test_an_empty_stack_changes_nothing(sd15: tuple[Any, Any], comfy_nodes: dict[str, Any]) -> None:
    model, clip = sd15
    (empty,) = comfy_nodes["StackLyCORIS"].execute().args

    patched, patched_clip, report = (
        comfy_nodes["ApplyLyCORISToModel"].execute(model, empty, 1.0, 1.0, "report only", clip).args
    )

    assert empty == ()
    assert patched.patches == model.patches
    assert patched_clip.patcher.patches == clip.patcher.patches
    assert isinstance(report, str)


def test_an_unknown_choice_is_refused(sd15: tuple[Any, Any], comfy_nodes: dict[str, Any]) -> None:
    """ComfyUI 0.3.75 does not check combos of new-style nodes."""
    model, _ = sd15
    with pytest.raises(ValueError, match="whatever"):
        comfy_nodes["ApplyLyCORISToModel"].execute(model, (), 1.0, 1.0, "whatever")
