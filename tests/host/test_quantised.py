"""Models that newer hosts hold quantised: weights of another form, with their scales beside them."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import tiny
import torch
from lab import models, paths
from safetensors.torch import load_file

LAYER, KEY = "lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q.weight"
ALGOS = ("lora", "loha", "lokr", "full", "dora", "oft", "tlora")
FORMATS = ("float8_e4m3fn", "nvfp4")


@pytest.fixture(params=FORMATS, scope="module")
def model(request: pytest.FixtureRequest, pack: Any) -> Any:
    """Wan with its linear layers in one of ComfyUI's own formats."""
    import comfy.sd

    quant = importlib.import_module("comfy.quant_ops")
    if not hasattr(getattr(quant, "QuantizedTensor", None), "state_dict"):
        pytest.skip("this ComfyUI has no such formats")
    layout = quant.QUANT_ALGOS[request.param]["comfy_tensor_layout"]
    models.ensure(["tiny_wan"])
    stored = load_file(paths.MODELS / models.FILES["tiny_wan"][0])
    with torch.inference_mode():
        for key in [k for k, v in stored.items() if k.startswith("blocks.") and v.dim() == 2]:
            made = quant.QuantizedTensor.from_float(stored.pop(key).bfloat16(), layout)
            stored |= made.state_dict(key)
            said = json.dumps({"format": request.param}).encode()
            stored[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
        return comfy.sd.load_diffusion_model_state_dict(stored)


def weight_of(patcher: Any) -> torch.Tensor:
    return tiny.parameter(patcher, KEY).detach().dequantize().float().clone()


@pytest.mark.parametrize("algo", ALGOS)
def test_every_algorithm(algo: str, model: Any, apply: Any) -> None:
    weight = weight_of(model)
    tensors = tiny.make(algo, weight)

    patched, _, report = apply.files(model, {LAYER: tensors})

    assert "1 of 1 layers applied" in report
    wanted = tiny.changed(weight, (tensors, 1.0)).float() - weight
    with tiny.loaded(patched):
        found = weight_of(patched) - weight
    # Each number is rounded at random, by a lot; the change as a whole is what it should be.
    assert abs(float((found * wanted).sum() / wanted.square().sum()) - 1.0) < 0.1
    assert torch.equal(weight_of(model), weight)


def test_the_model_gives_its_weights_to_those_who_combine(
    model: Any, apply: Any, comfy_nodes: dict[str, Any]
) -> None:
    weight = weight_of(model)
    files = [tiny.make(algo, weight) for algo in ("lora", "dora")]
    (stack,) = (
        comfy_nodes["StackLyCORIS"]
        .execute(**{f"lycoris_{n}": apply.stack({LAYER: own}) for n, own in enumerate(files, 1)})
        .args
    )
    combined, _ = combine(comfy_nodes["CombineLyCORIS"], lycoris=stack, model=model, output="full").args

    changes = [tiny.changed(weight, (own, 1.0), base=weight) - weight.double() for own in files]
    found = combined[0].adapters[LAYER].delta(weight.double())
    torch.testing.assert_close(found.double(), sum(changes), rtol=1e-3, atol=1e-4)


def combine(node: Any, **inputs: Any) -> Any:
    """The node with its widgets as they stand on a new one."""
    widgets = {item.id: item.default for item in node.define_schema().inputs if hasattr(item, "default")}
    return node.execute(**{**{name: v for name, v in widgets.items() if v is not None}, **inputs})
