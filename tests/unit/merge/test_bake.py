"""Baking into files: what is planned, what is written, and what is not there when it goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import CASES, Case
from torch import Tensor

import lycoris_algos
from lycoris_algos.errors import CancelledError, FileFormatError, LycorisError, NoMatchError
from lycoris_algos.io import SafetensorsWriter, _copy, read_header
from lycoris_algos.merge.bake import BakeEntry, bake_report, plan_bake, plan_report, run_bake, weights
from lycoris_algos.merge.bake.storage import is_companion

ROOT = Path(__file__).parents[3]
UNET = "model.diffusion_model."
FP8 = torch.float8_e4m3fn
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")

Tensors = dict[str, Tensor]


def base_tensors(dtype: torch.dtype = torch.float16) -> Tensors:
    """A small checkpoint of no family: six linear layers with biases, a norm, a VAE, a counter."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).to(dtype)

    tensors: Tensors = {}
    for number in range(6):
        tensors[f"{UNET}blocks.{number}.linear.weight"] = draw(24, 16)
        tensors[f"{UNET}blocks.{number}.linear.bias"] = draw(24)
    tensors[f"{UNET}norm.weight"] = draw(16)
    tensors["first_stage_model.conv.weight"] = draw(8, 4, 3, 3)
    tensors["steps"] = torch.tensor(7)
    tensors["betas"] = torch.linspace(0, 1, 10, dtype=torch.float64)
    return tensors


def save_base(folder: Path, tensors: Tensors | None = None, metadata: dict[str, str] | None = None) -> Path:
    path = folder / "base.safetensors"
    save_file(base_tensors() if tensors is None else tensors, path, metadata)
    return path


def lora(rank: int = 4, shape: tuple[int, int] = (24, 16), seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "lora_up.weight": torch.randn(shape[0], rank, generator=generator) * 0.1,
        "lora_down.weight": torch.randn(rank, shape[1], generator=generator) * 0.3,
        "alpha": torch.tensor(2.0),
    }


def entry(
    layers: dict[str, Tensors], multiplier: float = 1.0, clip: float = 1.0, name: str = "a.safetensors"
) -> BakeEntry:
    tensors = {f"{layer}.{suffix}": value for layer, own in layers.items() for suffix, value in own.items()}
    return BakeEntry(lycoris_algos.from_tensors(tensors, name=name), multiplier, clip)


def every_block(seed: int = 0) -> dict[str, Tensors]:
    return {f"lora_unet_blocks_{number}_linear": lora(seed=seed + number) for number in range(6)}


def bake(base: Path, *stack: BakeEntry, dtype: torch.dtype | None = None, **options: Any) -> Any:
    plan = plan_bake(read_header(base), stack, dtype, base=base.name)
    return run_bake(plan, base, base.with_name("out.safetensors"), **options)


def live(weight: Tensor, *steps: tuple[Tensors, float]) -> Tensor:
    """What live application makes of the weight, in float32."""
    changed = weight.float()
    layers = [(lycoris_algos.LayerAdapter.from_tensors(tensors), multiplier) for tensors, multiplier in steps]
    return lycoris_algos.apply_(changed, [(a.prepare(lambda: weight.float()), m) for a, m in layers])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raw(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {key: data[info.start : info.end] for key, info in read_header(path).tensors.items()}


# ---- what is written --------------------------------------------------------------------------------------


def test_changed_weights_are_the_live_ones_rounded_once_and_the_rest_is_copied(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    layers = {f"lora_unet_blocks_{number}_linear": lora(seed=number) for number in (1, 2, 5)}
    result = bake(base, entry(layers, 0.7))

    before, after = load_file(base), load_file(result.path)
    changed = {f"{UNET}blocks.{number}.linear.weight" for number in (1, 2, 5)}
    for key, value in before.items():
        if key in changed:
            own = layers[f"lora_unet_blocks_{key.split('.')[3]}_linear"]
            assert torch.equal(after[key], live(value, (own, 0.7)).half())
            assert not torch.equal(after[key], value)
    old, new = raw(base), raw(result.path)
    assert list(old) == list(new), "the order of the base is kept"
    assert all(old[key] == new[key] for key in old if key not in changed)
    assert result.proof.changed == 3
    assert "3 tensors of 'base.safetensors' are changed, 13 are copied" in bake_report(result)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_algorithm_bakes_as_it_is_applied(case: Case, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = case.shape
    # A T-LoRA starts from its own base weight.
    start = next((target for target in case.targets() if target.what == "weight"), None)
    random = torch.randn(shape, generator=generator) * 0.5
    stored = start.weight() if start is not None and "tlora" in case.algos else random
    bias = torch.randn(shape[0], generator=generator)
    tensors = {f"{UNET}x.weight": stored, f"{UNET}x.bias": bias}
    tensors |= {f"{UNET}rest.{number}.weight": torch.zeros(2, 2) for number in range(6)}
    base = save_base(tmp_path, tensors)

    own = entry({"lora_unet_x": case.tensors}, -0.6)

    result = bake(base, own)

    adapter = next(iter(own.adapters.values())).prepare(lambda: stored)
    after = load_file(result.path)
    assert torch.equal(after[f"{UNET}x.weight"], lycoris_algos.apply_(stored.clone(), [(adapter, -0.6)]))
    if adapter.bias is not None:
        assert torch.equal(after[f"{UNET}x.bias"], adapter.bias.add_to_(bias.clone(), -0.6))
    else:
        assert torch.equal(after[f"{UNET}x.bias"], bias)


def test_a_stack_runs_in_its_order(tmp_path: Path) -> None:
    base = save_base(tmp_path, base_tensors(torch.float32))
    weight = base_tensors(torch.float32)[f"{UNET}blocks.0.linear.weight"]
    full = {"diff": torch.randn(24, 16)}
    dora = {**lora(), "dora_scale": weight.norm(dim=1, keepdim=True) * 1.3}
    layer = "lora_unet_blocks_0_linear"
    result = bake(base, entry({layer: full}, 0.5), entry({layer: dora}, 0.9))
    after = load_file(result.path)[f"{UNET}blocks.0.linear.weight"]
    assert torch.equal(after, live(weight, (full, 0.5), (dora, 0.9)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_dtype_holds_for_the_model_and_not_for_the_rest(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    layers = every_block()
    result = bake(base, entry(layers), dtype=dtype)
    before, after = load_file(base), load_file(result.path)
    for key, value in after.items():
        if key in ("steps", "betas"):
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key])
            continue
        assert value.dtype == dtype
        own = layers.get(f"lora_unet_{key.removeprefix(UNET).removesuffix('.weight').replace('.', '_')}")
        expected = live(before[key], (own, 1.0)) if own else before[key].float()
        assert torch.equal(value, expected.to(dtype)), key


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_fp8_is_for_matrices_and_is_the_same_each_time(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    first, second = (bake(base, entry(every_block()), dtype=dtype) for _ in range(2))
    after = load_file(first.path)
    kept = {f"{UNET}norm.weight", "first_stage_model.conv.weight", "steps", "betas"}
    for key, value in after.items():
        is_matrix = key not in kept and not key.endswith(".bias")
        assert (value.dtype == dtype) == is_matrix, key
    assert first.path.read_bytes() == second.path.read_bytes()
    # A change far below the gap of fp8 survives on average, where rounding to the nearest would lose it.
    assert first.proof.steps <= 1.0


def test_small_changes_survive_fp8_on_average(tmp_path: Path) -> None:
    tensors = {f"{UNET}{number}.weight": torch.full((256, 256), 1.0) for number in range(6)}
    base = save_base(tmp_path, tensors)
    result = bake(base, entry({"lora_unet_0": {"diff": torch.full((256, 256), 0.01)}}), dtype=FP8)
    after = load_file(result.path)[f"{UNET}0.weight"].float()
    assert set(after.unique().tolist()) == {1.0, 1.125}
    assert abs(float(after.mean()) - 1.01) < 0.001


def test_multiplier_zero_is_a_copy(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    result = bake(base, entry(every_block(), 0.0))
    assert raw(result.path) == raw(base)
    assert "nothing was changed" in bake_report(result)


def test_a_weight_changed_as_a_whole_and_in_parts_rounds_once(tmp_path: Path) -> None:
    key = f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"
    tensors = {f"{UNET}rest.{n}.weight": torch.zeros(2, 2, dtype=torch.bfloat16) for n in range(6)}
    tensors[key] = torch.randn(48, 16).bfloat16()
    base = save_base(tmp_path, tensors)
    whole, part = lora(shape=(48, 16)), lora(shape=(16, 16), seed=3)
    result = bake(
        base,
        entry({"lora_unet_joint_blocks_0_x_block_attn_qkv": whole}),
        entry({"transformer.transformer_blocks.0.attn.to_k": part}, 0.5),
    )
    expected = live(tensors[key], (whole, 1.0))
    expected[16:32] = live(expected[16:32], (part, 0.5))
    assert torch.equal(load_file(result.path)[key], expected.bfloat16())


def test_openclip_layers_are_changed_where_they_are(tmp_path: Path) -> None:
    root = "conditioner.embedders.1.model."
    width = 1280
    tensors = {
        f"{root}transformer.resblocks.0.attn.in_proj_weight": torch.randn(3 * width, width),
        f"{root}transformer.resblocks.0.attn.in_proj_bias": torch.randn(3 * width),
        f"{root}transformer.resblocks.0.mlp.c_fc.weight": torch.randn(64, width),
        f"{root}text_projection": torch.randn(width, width),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (
            torch.randn(768, 768)
        ),
    }
    base = save_base(tmp_path, tensors)
    k, projection = lora(shape=(width, width)), lora(shape=(width, width), seed=1)
    small = lora(shape=(768, 768), seed=2)
    result = bake(
        base,
        entry(
            {
                "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": {**k, "diff_b": torch.ones(width)},
                "lora_te2_text_projection": projection,
                "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": small,
            },
            clip=0.5,
        ),
    )
    after = load_file(result.path)
    fused = f"{root}transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(after[fused][width : 2 * width], live(tensors[fused][width : 2 * width], (k, 0.5)))
    assert torch.equal(after[fused][:width], tensors[fused][:width])
    assert torch.equal(after[fused][2 * width :], tensors[fused][2 * width :])
    bias = fused.replace("weight", "bias")
    assert torch.equal(after[bias][width : 2 * width], tensors[bias][width : 2 * width] + 0.5)
    key = f"{root}text_projection"
    assert torch.equal(after[key], live(tensors[key].T.contiguous(), (projection, 0.5)).T)
    (other,) = (key for key in tensors if "embedders.0" in key)
    assert torch.equal(after[other], live(tensors[other], (small, 0.5)))


def test_an_adapter_may_enlarge_its_weight(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    wide = {**lora(shape=(24, 20)), "reshape_weight": torch.tensor([24, 20])}
    result = bake(base, entry({"lora_unet_blocks_0_linear": wide}))
    assert load_file(result.path)[f"{UNET}blocks.0.linear.weight"].shape == (24, 20)


# ---- scaled fp8 and other layouts -------------------------------------------------------------------------


def scaled(second_form: bool = False) -> Tensors:
    """The same checkpoint with the weights of blocks 0 to 3 as fp8 with a scale."""
    tensors = base_tensors()
    for number in range(4):
        key = f"{UNET}blocks.{number}.linear.weight"
        weight = tensors[key].float()
        scale = weight.abs().max() / 448
        tensors[key] = (weight / scale).to(FP8)
        layer = key.removesuffix("weight")
        tensors[layer + ("weight_scale" if second_form else "scale_weight")] = scale
        if second_form:
            tensors[f"{layer}comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}')).byte()
    if not second_form:
        tensors[f"{UNET}scaled_fp8"] = torch.empty(2, dtype=FP8)
    return tensors


@pytest.mark.parametrize("second_form", [False, True])
def test_scaled_fp8_gets_a_new_scale_where_it_is_changed(second_form: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path, scaled(second_form))
    name = "weight_scale" if second_form else "scale_weight"
    own = lora()
    result = bake(base, entry({"lora_unet_blocks_0_linear": own}))
    before, after = load_file(base), load_file(result.path)
    layer = f"{UNET}blocks.0.linear."
    plain = before[layer + "weight"].float() * before[layer + name]
    expected = live(plain, (own, 1.0))
    found = after[layer + "weight"].float() * after[layer + name]
    assert after[layer + "weight"].dtype == FP8
    assert torch.allclose(after[layer + name], expected.abs().max() / 448)
    assert bool(((found - expected).abs() <= expected.abs() * 0.125 + after[layer + name] * 2**-9).all())
    old, new = raw(base), raw(result.path)
    assert [k for k in old if old[k] != new[k]] == [k for k in old if k in (layer + name, layer + "weight")]
    assert "1 changed fp8 weights get a new scale" in bake_report(result)


@pytest.mark.parametrize("second_form", [False, True])
def test_scaled_fp8_is_unpacked_for_another_dtype(second_form: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path, scaled(second_form))
    own = lora()
    result = bake(base, entry({"lora_unet_blocks_0_linear": own}), dtype=torch.bfloat16)
    before, after = load_file(base), load_file(result.path)
    assert not any(map(is_companion, after))
    for number in range(4):
        layer = f"{UNET}blocks.{number}.linear."
        scale = before[layer + ("weight_scale" if second_form else "scale_weight")]
        plain = before[layer + "weight"].float() * scale
        expected = plain if number else live(plain, (own, 1.0))
        assert torch.equal(after[layer + "weight"], expected.bfloat16())


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        ("NVFP4", {"weight": torch.zeros(24, 8).byte(), "weight_scale_2": torch.ones(())}),
        ("quantised whole numbers", {"weight": torch.zeros(24, 16).char(), "weight_scale": torch.ones(())}),
        ("a scale for each block", {"weight": torch.zeros(24, 16).to(FP8), "weight_scale": torch.ones(24)}),
        ("GPTQ or AWQ", {"qweight": torch.zeros(24, 2).int()}),
    ],
)
def test_other_layouts_are_refused_by_name(layout: str, extra: Tensors, tmp_path: Path) -> None:
    tensors = base_tensors()
    layer = f"{UNET}blocks.0.linear."
    del tensors[layer + "weight"]
    tensors |= {layer + name: value for name, value in extra.items()}
    width = 8 if layout == "NVFP4" else 16
    base = save_base(tmp_path, tensors)
    with pytest.raises(LycorisError, match=layout) as error:
        plan_bake(
            read_header(base), [entry({"lora_unet_blocks_0_linear": lora(shape=(24, width))})], base="b.st"
        )
    assert "b.st" in str(error.value)


# ---- plans ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_listed_with_reasons(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    layers = {
        "lora_unet_blocks_0_linear": lora(),
        "lora_unet_blocks_9_linear": lora(),
        "lora_unet_blocks_1_linear": lora(shape=(24, 18)),
        "lora_unet_norm": {"w_norm": torch.ones(16), "b_norm": torch.ones(16)},
        "lora_te_text_model_encoder_layers_0_mlp_fc1": lora(),
    }
    plan = plan_bake(read_header(base), [entry(layers)], base=base.name)
    (file,) = plan.files
    reasons = {item.key: item.reason for item in file.unmatched}
    assert file.placed == ("lora_unet_blocks_0_linear",)
    assert "no such layer" in reasons["lora_unet_blocks_9_linear"]
    assert "24×18" in reasons["lora_unet_blocks_1_linear"]
    assert "bias" in reasons["lora_unet_norm"]
    assert file.left_out == ("1 text encoder layers are left out: the file has no text encoder",)
    plan.require()
    with pytest.raises(NoMatchError, match="3 entries"):
        plan.require(everything=True)
    report = plan_report(plan)
    assert "1 of 5 layers" in report
    assert "lora_unet_blocks_9_linear" in report


def test_nothing_that_fits_is_an_error_that_says_what_the_base_is(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    plan = plan_bake(read_header(base), [entry({"lora_unet_double_blocks_0_img_mod": lora()})], base="b")
    with pytest.raises(
        NoMatchError, match=r"none of the 1 layers of 'a\.safetensors' fits 'b'.*diffusion model"
    ):
        plan.require()


def test_recipes(tmp_path: Path) -> None:
    base = save_base(tmp_path, metadata={"modelspec.title": "T", "modelspec.hash_sha256": "0xab"})
    first = bake(base, entry(every_block(), 0.5, 0.25))
    other = first.path.rename(tmp_path / "first.safetensors")
    plan = plan_bake(read_header(other), [entry(every_block(1), name="b")], base=other.name, program="P 1")
    second = run_bake(plan, other, tmp_path / "second.safetensors")
    metadata = read_header(second.path).metadata
    recipe = json.loads(metadata["lycoris_algos.bake"])
    assert metadata["modelspec.title"] == "T"
    assert "modelspec.hash_sha256" not in metadata
    assert recipe["program"] == "P 1"
    assert recipe["adapters"][0]["file"] == "b"
    earlier = recipe["base"]["recipe"]
    assert earlier["base"]["modelspec.hash_sha256"] == "0xab"
    assert (earlier["adapters"][0]["multiplier"], earlier["adapters"][0]["clip_multiplier"]) == (0.5, 0.25)
    assert earlier["adapters"][0]["tensors_sha256"] != recipe["adapters"][0]["tensors_sha256"]
    assert earlier["base"]["sampled_sha256"] != recipe["base"]["sampled_sha256"]


# ---- what goes wrong --------------------------------------------------------------------------------------


def test_cancel_at_each_tensor_leaves_nothing(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    asked = 0
    while True:
        calls = 0

        def cancel(stop_at: int = asked) -> bool:
            nonlocal calls
            calls += 1
            return calls > stop_at

        try:
            bake(base, entry(every_block()), cancel=cancel)
        except CancelledError:
            assert names(tmp_path) == ["base.safetensors"]
            asked += 1
            continue
        break
    assert asked > 12, "between all tensors, and while checking"


def test_the_callers_own_exception_passes_through(tmp_path: Path) -> None:
    base = save_base(tmp_path)

    class Stop(BaseException):
        pass

    def cancel() -> bool:
        raise Stop

    with pytest.raises(Stop):
        bake(base, entry(every_block()), cancel=cancel)
    assert names(tmp_path) == ["base.safetensors"]


@pytest.mark.parametrize("dtype", [None, torch.float32, FP8])
@pytest.mark.parametrize("layer", [0, 3, 5])
def test_out_of_memory_is_done_again(
    layer: int, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    expected = bake(base, entry(every_block()), dtype=dtype).path.read_bytes()
    calls, real = 0, weights.apply_

    def failing(weight: Tensor, *args: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == layer + 1:
            weight.fill_(torch.nan)  # whatever was half done must not show
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(weight, *args, **options)

    monkeypatch.setattr(weights, "apply_", failing)
    result = bake(base, entry(every_block()), dtype=dtype)
    assert result.path.read_bytes() == expected
    assert result.redone == (f"{UNET}blocks.{layer}.linear.weight",)
    assert "did not fit" in bake_report(result)


def test_a_wrong_weight_is_found_and_no_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    real = weights.Weights.make

    def wrong(self: Any, item: Any, device: torch.device) -> Any:
        baked = real(self, item, device)
        baked.tensor[3, 5] += 0.01
        return baked

    monkeypatch.setattr(weights.Weights, "make", wrong)
    with pytest.raises(LycorisError, match="differ from the live weight"):
        bake(base, entry(every_block()))
    assert names(tmp_path) == ["base.safetensors"]


def test_a_weight_beyond_fp16_is_an_error(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    with pytest.raises(LycorisError, match="beyond its largest number"):
        bake(base, entry({"lora_unet_blocks_0_linear": {"diff": torch.full((24, 16), 1e5)}}))
    assert names(tmp_path) == ["base.safetensors"]


def test_a_base_that_changes_in_between_is_noticed(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    plan = plan_bake(read_header(base), [entry(every_block())])
    save_base(tmp_path, base_tensors(torch.float32))
    with pytest.raises(FileFormatError, match="changed since"):
        run_bake(plan, base, tmp_path / "out.safetensors")


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, None])
def test_copies_without_the_kernels_help(
    refusal: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    expected = bake(base, entry(every_block())).path.read_bytes()

    def refused(*_: object) -> int:
        raise OSError(refusal, os.strerror(refusal or 0))

    monkeypatch.setattr(_copy, "_in_kernel", None if refusal is None else refused)
    assert bake(base, entry(every_block())).path.read_bytes() == expected


def test_a_short_kernel_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if _copy._in_kernel is None:
        pytest.skip("this system has none")
    base = save_base(tmp_path)
    expected = bake(base, entry(every_block())).path.read_bytes()
    monkeypatch.setattr(_copy, "_in_kernel", lambda s, t, n, at: os.copy_file_range(s, t, min(n, 13), at))
    assert bake(base, entry(every_block())).path.read_bytes() == expected


def run_python(folder: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


_SLOW = """
    import sys, time
    from pathlib import Path
    from lycoris_algos import load
    from lycoris_algos.io import read_header
    from lycoris_algos.merge.bake import BakeEntry, plan_bake, run_bake
    base = Path("base.safetensors")
    plan = plan_bake(read_header(base), [BakeEntry(load("a.safetensors"))])
    def progress(done, total, what):
        if done > 4:
            print("half", flush=True)
            time.sleep(SLEEP)
    try:
        print(run_bake(plan, base, "out.safetensors", progress=progress).path)
    except Exception as error:
        print(type(error).__name__, error)
"""


def _files(folder: Path) -> None:
    save_base(folder)
    tensors = {f"{layer}.{name}": v for layer, own in every_block().items() for name, v in own.items()}
    save_file(tensors, folder / "a.safetensors")


@posix_only
def test_a_killed_run_leaves_no_model_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    _files(tmp_path)
    with run_python(tmp_path, _SLOW.replace("SLEEP", "60")) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "half"
        process.send_signal(signal.SIGKILL)
    left = [name for name in names(tmp_path) if name not in ("a.safetensors", "base.safetensors")]
    assert len(left) == 1
    assert left[0].startswith(".out.safetensors.")
    assert left[0].endswith(".part")

    bake(tmp_path / "base.safetensors", entry(every_block()))

    assert names(tmp_path) == ["a.safetensors", "base.safetensors", "out.safetensors"]


@posix_only
def test_a_limit_of_the_files_size_leaves_nothing(tmp_path: Path) -> None:
    _files(tmp_path)
    size = (tmp_path / "base.safetensors").stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
    process = run_python(tmp_path, limit + textwrap.dedent(_SLOW.replace("SLEEP", "0")))
    output, _ = process.communicate(timeout=60)
    assert "LycorisError" in output
    assert "may hold" in output
    assert names(tmp_path) == ["a.safetensors", "base.safetensors"]


# ---- the writer's additions -------------------------------------------------------------------------------


def test_the_writer_refuses_what_was_not_announced(tmp_path: Path) -> None:
    from lycoris_algos.io import SafetensorsReader

    base = save_base(tmp_path)
    header = read_header(base)
    plan = {key: (info.dtype, info.shape) for key, info in header.tensors.items()}
    order = list(plan)
    with pytest.raises(ValueError, match="every tensor once"):
        SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order[:-1])
    writer = SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order)
    with SafetensorsReader(base) as reader:
        with pytest.raises(ValueError, match="not the next"), writer:
            writer.copy(reader, order[1], order[2])
        writer = SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order)
        with pytest.raises(ValueError, match="not been written"), writer:
            writer.replace(order[0], reader[order[0]])
        writer = SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order)
        with writer:
            writer.copy(reader, order[0], order[-1])
            other = reader[order[3]] + 1
            writer.replace(order[3], other)
            assert writer.unpublished.name.endswith(".part")
    after = load_file(writer.path)
    assert torch.equal(after[order[3]], other)
    assert all(torch.equal(after[key], value) for key, value in load_file(base).items() if key != order[3])
    with pytest.raises(ValueError, match="not open"):
        _ = writer.unpublished
