"""Sources that are broken, strange, or of another kind, and runs that are stopped: what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_shapes import UNET, flux, sd15
from extracting import Tensors, baked, changed, drawn, extract, largest_error, write
from safetensors.torch import load_file, save_file

from lycoris_algos import BadValueError, CancelledError, LycorisError, NoMatchError
from lycoris_algos.extract import ExtractOptions, plan_extract, rule_for, run_extract
from lycoris_algos.model_files import BaseFile

BLOCK = f"{UNET}input_blocks.1.1.transformer_blocks.0"
QUERY, NORM = f"{BLOCK}.attn1.to_q.weight", f"{BLOCK}.norm1.weight"
NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TWO = {"linear": rule_for("fixed rank", 2), "convolution": rule_for("fixed rank", 2)}


def unet() -> Tensors:
    kept = ("input_blocks.0.", "input_blocks.1.", "time_embed", "out.")
    return drawn(
        {key: shape for key, shape in sd15().items() if key.startswith(tuple(UNET + k for k in kept))}
    )


def change(size: float = 0.05) -> Tensors:
    return {QUERY: size * torch.randn(8, 2) @ torch.randn(2, 8)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path, "base", unet())


DTYPES = ((torch.float32, torch.float16), (torch.float16, torch.float32), (torch.bfloat16, torch.float32))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_what_is_only_rounded_is_the_same(dtypes: tuple[torch.dtype, torch.dtype], tmp_path: Path) -> None:
    first, second = dtypes
    own = {key: value.to(first).float() if first != torch.float32 else value for key, value in unet().items()}
    base = write(tmp_path, "base", {key: value.to(first) for key, value in own.items()})
    tuned = write(tmp_path, "tuned", {key: value.to(second) for key, value in changed(own, change()).items()})
    got = extract(base, tuned, **TWO)
    assert set(got.adapters) == {NAME}
    assert got.retained > 1 - 1e-5 if second == torch.float32 else got.retained > 0.99


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scaled_fp8_is_read_with_its_scale(dtype: torch.dtype, tmp_path: Path) -> None:
    own = unet()
    files = []
    for name, tensors in (("base", own), ("tuned", changed(own, {QUERY: torch.ones(8, 8)}))):
        stored = {**tensors, QUERY: (tensors[QUERY] * 100).to(dtype)}
        stored[QUERY.replace("weight", "scale_weight")] = torch.tensor(0.01)
        files.append(write(tmp_path, name, stored))
    got = extract(*files, **TWO)
    delta = got.adapters[NAME].delta((8, 8))
    assert torch.allclose(delta, torch.ones(8, 8), atol=0.1)


def test_identical_models_are_an_error(base: Path, tmp_path: Path) -> None:
    for options in ({}, {"algorithm": "auto"}, {"algorithm": "auto", "linear": rule_for("size", 1)}):
        with pytest.raises(BadValueError, match="nothing to extract"):
            extract(base, base, **options)
    rounded = write(tmp_path, "half", {key: value.half() for key, value in unet().items()})
    with pytest.raises(BadValueError, match=r"'half\.safetensors' is the same as 'base\.safetensors'"):
        extract(base, rounded)


def test_averaged_copies_are_not_taken_for_the_weights(base: Path, tmp_path: Path) -> None:
    own = unet()
    averaged = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value + 1 for key, value in own.items()
    }
    tuned = write(
        tmp_path, "tuned", {**changed(own, change()), **averaged, "model_ema.decay": torch.ones(())}
    )
    got = extract(base, tuned, **TWO)
    assert set(got.adapters) == {NAME}
    assert "averaged (EMA) copy" in got.report()


def test_missing_and_further_keys_and_other_shapes_are_named(base: Path, tmp_path: Path) -> None:
    own = changed(unet(), change())
    del own[f"{BLOCK}.attn1.to_k.weight"]
    own[f"{UNET}input_blocks.1.1.more.weight"] = torch.randn(4, 4)
    own[f"{UNET}input_blocks.0.0.weight"] = torch.randn(8, 9, 3, 3)  # an inpainting model
    got = extract(base, write(tmp_path, "tuned", own), **TWO)
    assert set(got.adapters) == {NAME}
    report = got.report()
    assert "1× only in base: 'input_blocks.1.1.transformer_blocks.0.attn1.to_k'" in report
    assert "1× only in tuned: 'input_blocks.1.1.more'" in report
    assert "other shapes, 8×4×3×3 and 8×9×3×3" in report


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("algorithm", ["lora", "auto"])
def test_a_layer_that_holds_no_numbers_is_named_and_left_out(
    base: Path, tmp_path: Path, bad: float, algorithm: str
) -> None:
    own = changed(unet(), change())
    own[NORM][3] = bad
    tuned = write(tmp_path, "tuned", own)
    got = extract(base, tuned, algorithm=algorithm, **TWO)
    assert set(got.adapters) == {NAME}
    assert got.broken == (NAME.replace("attn1_to_q", "norm1"),)
    assert "NaN or infinity" in got.report()
    # Nothing else differs: an error.
    alone = unet()
    alone[NORM][3] = bad
    with pytest.raises(BadValueError, match=r"NaN or infinity.*damaged"):
        extract(base, write(tmp_path, "alone", alone), algorithm=algorithm)


def test_positions_and_counters_are_no_weights(tmp_path: Path) -> None:
    key = f"{UNET}positions"
    own = {**unet(), key: torch.arange(8)[None]}
    base = write(tmp_path, "base", own)
    tuned = write(tmp_path, "tuned", {**changed(own, change()), key: torch.arange(1, 9)[None]})
    got = extract(base, tuned, **TWO)
    assert set(got.adapters) == {NAME}
    assert "1× whole numbers: 'positions'" in got.report()


def test_another_family_is_named(base: Path, tmp_path: Path) -> None:
    whole = {key: shape for key, shape in sd15().items() if key.startswith(UNET)}
    one, other = write(tmp_path, "sd", drawn(whole)), write(tmp_path, "flux", drawn(flux()))
    with pytest.raises(NoMatchError, match=r"'sd\.safetensors' is Stable Diffusion 1 or 2, and .* is Flux"):
        extract(one, other)
    wide = {key: torch.zeros([2 * size for size in value.shape]) for key, value in unet().items()}
    with pytest.raises(NoMatchError, match="other sizes"):
        extract(base, write(tmp_path, "wide", wide))


def test_packed_weights_are_refused_with_their_file(base: Path, tmp_path: Path) -> None:
    own: Tensors = {**unet(), QUERY: torch.zeros(8, 8, dtype=torch.int8)}
    tuned = write(tmp_path, "tuned", own)
    with pytest.raises(LycorisError, match=r"tuned.safetensors.*quantised whole numbers"):
        extract(base, tuned)


def test_numbers_that_the_dtype_cannot_hold_are_refused(base: Path, tmp_path: Path) -> None:
    tuned = write(tmp_path, "tuned", changed(unet(), {QUERY: 1e6 * torch.ones(8, 8)}))
    with pytest.raises(BadValueError, match=r"attn1_to_q.*wider number type"):
        extract(base, tuned, algorithm="full")
    got = extract(base, tuned, **TWO, dtype=torch.float32)
    assert largest_error(unet(), load_file(tuned), baked(base, got.adapters)) < 1e-4


def test_a_stop_between_layers(base: Path, tmp_path: Path) -> None:
    tuned = write(tmp_path, "tuned", changed(unet(), change()))
    seen: list[str] = []
    with BaseFile(base) as first, BaseFile(tuned) as second:
        plan = plan_extract(first, second, ExtractOptions(**TWO))  # type: ignore[arg-type]
        with pytest.raises(CancelledError):
            run_extract(
                plan, progress=lambda done, total, what: seen.append(what), cancel=lambda: len(seen) > 3
            )
        assert len(seen) == 4
        steps: list[tuple[int, int]] = []
        run_extract(plan, progress=lambda done, total, what: steps.append((done, total)))
    assert steps[-1] == (plan.steps, plan.steps)
    assert [done for done, _ in steps] == list(range(plan.steps + 1))


def test_a_damaged_file_is_named(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(base.read_bytes()[:-100])
    with pytest.raises(LycorisError, match=r"short\.safetensors"):
        extract(base, path)


def test_options_that_make_no_sense() -> None:
    for options in (
        {"algorithm": "svd"},
        {"sparsity": 1.0},
        {"sparsity": 0.5, "algorithm": "dora"},
        {"dialect": "klingon"},
        {"algorithm": "full", "linear": rule_for("size", 3)},
    ):
        with pytest.raises(BadValueError):
            ExtractOptions(**options)  # type: ignore[arg-type]
    for mode, value in (
        ("ratio", 0),
        ("ratio", 1.5),
        ("quantile", 0),
        ("fixed rank", 0),
        ("size", -1),
        ("other", 1),
    ):
        with pytest.raises(BadValueError):
            rule_for(mode, value)


def test_names_of_strangers_are_shown_harmless(tmp_path: Path) -> None:
    own = unet()
    evil = f"{UNET}input_blocks.1.1.<img src=x>\x1b[2J{'x' * 500}.weight"
    tensors = {**own, evil: torch.randn(4, 4)}
    base = tmp_path / "base.safetensors"
    save_file(tensors, base)
    tuned = write(tmp_path, "tuned", changed(tensors, {evil: torch.ones(4, 4)}))
    report = extract(base, tuned, **TWO).report()
    assert "\x1b" not in report
    assert max(map(len, report.splitlines())) < 400
    assert json.dumps(report)


def test_a_model_in_shards_is_one(base: Path, tmp_path: Path) -> None:
    own = changed(unet(), change())
    whole = extract(base, write(tmp_path, "tuned", own), **TWO)
    keys = list(own)
    parts = {f"m-0000{n}-of-00002": keys[n - 1 :: 2] for n in (1, 2)}
    for name, part in parts.items():
        write(tmp_path, name, {key: own[key] for key in part})
    places = {key: f"{name}.safetensors" for name, part in parts.items() for key in part}
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    got = extract(base, index, **TWO)
    assert got.adapters.keys() == whole.adapters.keys()
    for key, value in whole.adapters[NAME].to_tensors().items():
        assert torch.equal(got.adapters[NAME].to_tensors()[key], value)
