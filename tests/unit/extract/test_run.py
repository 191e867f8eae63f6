"""Adapters that are baked into a model are found again, in the form that was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from checkpoint_shapes import UNET, Shapes, clip, flux, openclip, sd15, sdxl
from extracting import Tensors, baked, changed, drawn, extract, largest_error, planted, write
from safetensors.torch import load_file
from torch import Tensor

import lycoris_algos
from lycoris_algos import BadValueError
from lycoris_algos.extract import rule_for
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import save

FIXED = "fixed rank"
BLOCK = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
INSIDE = f"{UNET}input_blocks.4.1.transformer_blocks.0"
#: A Linear (16×16), one of another shape (128×16) and a convolution (16×16×3×3) of ``sd15``.
QUERY, FEED, CONV = f"{BLOCK}_attn1_to_q", f"{BLOCK}_ff_net_0_proj", "lora_unet_down_blocks_1_resnets_0_conv2"


def part_of(shapes: Shapes) -> Shapes:
    """The first blocks of a UNet."""
    first = re.compile(re.escape(UNET) + r"(input_blocks\.[0-4]\.|time_embed|label_emb|out\.)")
    return {key: shape for key, shape in shapes.items() if first.match(key)}


def small() -> Shapes:
    """Stable Diffusion 1.5 with a text encoder as narrow as the rest."""
    return {**part_of(sd15()), **clip("cond_stage_model.transformer.", 16, 1)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pair"), "base", drawn(small()))


def lora(rows: int, columns: int, rank: int, kernel: tuple[int, ...] = ()) -> dict[str, Tensor]:
    ones = tuple(1 for _ in kernel)
    up, down = torch.randn(rows, rank, *ones), torch.randn(rank, columns, *kernel)
    return {"lora_up.weight": up * 0.1, "lora_down.weight": down * 0.1, "alpha": torch.tensor(float(rank))}


def tucker(rank: int) -> dict[str, Tensor]:
    tensors = lora(16, 16, rank, (1, 1))
    return {**tensors, "lora_mid.weight": torch.randn(rank, rank, 3, 3)}


def lokr() -> dict[str, Tensor]:
    return {"lokr_w1": torch.randn(4, 4) * 0.1, "lokr_w2": torch.randn(32, 4) * 0.1}


def dora(base: Tensors) -> dict[str, Tensor]:
    weight = base[f"{INSIDE}.ff.net.0.proj.weight"]
    lengths = weight.norm(dim=1, keepdim=True) * (1 + 0.1 * torch.randn(128, 1))
    return {**lora(128, 16, 2), "dora_scale": lengths}


def plants(algorithm: str, base: Tensors) -> dict[str, dict[str, Tensor]]:
    """Layers of a file to bake into ``base``."""
    if algorithm == "lora":
        return {QUERY: lora(16, 16, 2), FEED: lora(128, 16, 2), CONV: lora(16, 16, 2, (3, 3))}
    if algorithm == "tucker lora":
        return {CONV: tucker(2), QUERY: lora(16, 16, 2)}
    if algorithm == "full":
        return {FEED: {"diff": torch.randn(128, 16), "diff_b": torch.randn(128)}}
    return {FEED: lokr() if algorithm == "lokr" else dora(base)}


@pytest.mark.parametrize(
    ("algorithm", "tolerance"),
    [("lora", 1e-4), ("tucker lora", 1e-4), ("lokr", 1e-4), ("dora", 1e-3), ("full", 1e-4)],
)
def test_what_was_baked_in_is_extracted_again(
    base: Path, algorithm: str, tolerance: float, tmp_path: Path
) -> None:
    own = load_file(base)
    layers = plants(algorithm, own)
    tuned = planted(base, layers, f"tuned-{algorithm[:4]}")
    got = extract(
        base,
        tuned,
        algorithm=algorithm,
        linear=rule_for(FIXED, 16 if algorithm == "lokr" else 2),
        convolution=rule_for(FIXED, 2),
        factor=4,
        dtype=torch.float32,
    )
    assert set(got.adapters) == set(layers)
    titles = {title for layer in got.adapters.values() for title in layer.titles}
    assert ("DoRA" in titles) == (algorithm == "dora")
    assert titles - {"DoRA"} == {{"full": "Full", "lokr": "LoKr"}.get(algorithm, "LoRA")}
    again = baked(base, got.adapters)
    assert largest_error(own, load_file(tuned), again) < tolerance
    assert got.retained > 1 - tolerance
    # As a file, too.
    path = save(got.adapters, tmp_path / "out.safetensors")
    assert lycoris_algos.load(path).keys() == got.adapters.keys()
    recipe = json.loads(lycoris_algos.load(path).metadata["lycoris_algos.recipe"])
    assert recipe["base"]["file"] == base.name
    assert recipe["algorithm"] == algorithm


def everything(tensors: Tensors, size: float = 0.01) -> Tensors:
    """A change of every tensor: of low rank, with a little noise."""
    draw = torch.Generator().manual_seed(7)
    changes = {}
    for key, value in tensors.items():
        rows = value.shape[0]
        noise = torch.randn(value.shape, generator=draw) * 0.02
        if value.dim() > 1:
            columns = value.numel() // rows
            noise = noise + (
                torch.randn((rows, 2), generator=draw) @ torch.randn((2, columns), generator=draw)
            ).reshape(value.shape)
        changes[key] = noise * size
    return changes


def narrow_sdxl() -> Shapes:
    """The UNet of SDXL with one narrow CLIP."""
    return {**part_of(sdxl()), **clip("conditioner.embedders.0.transformer.", 16, 1)}


@pytest.mark.parametrize("dialect", [None, "kohya", "comfy"])
@pytest.mark.parametrize("family", [small, narrow_sdxl, flux], ids=lambda family: family.__name__)
def test_all_of_a_model_is_found_again_under_its_names(
    family: object, dialect: str | None, tmp_path: Path
) -> None:
    """Names are those that the index finds the same places by; whole changes are exact."""
    own = drawn(family())  # type: ignore[operator]
    base = write(tmp_path, "base", own)
    tuned = changed(own, everything(own))
    got = extract(
        base, write(tmp_path, "tuned", tuned), algorithm="full", dtype=torch.float32, dialect=dialect
    )
    usual = "comfy" if family is flux else "kohya"
    assert got.adapters.dialect == (dialect or usual)
    assert largest_error(own, tuned, baked(base, got.adapters)) < 1e-4
    assert not got.plan.left_out
    assert sum(parameter.what == "bias" for parameter in got.plan.parameters) > 20


def test_openclip_is_extracted_as_q_k_and_v(tmp_path: Path) -> None:
    unet = {key: shape for key, shape in sdxl().items() if "input_blocks.0" in key or "label_emb" in key}
    encoders = {
        **clip("conditioner.embedders.0.transformer.", 768, 1),
        **openclip("conditioner.embedders.1.model.", 1280, 1),
    }
    own = drawn({**unet, **encoders})
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    base = write(tmp_path, "base", own)
    draw = torch.randn(3 * 1280, 2) @ torch.randn(2, 1280)
    tuned = changed(own, {key: 0.01 * draw})
    got = extract(base, write(tmp_path, "tuned", tuned), linear=rule_for(FIXED, 2), dtype=torch.float32)
    layer = "lora_te2_text_model_encoder_layers_0_self_attn"
    assert set(got.adapters) == {f"{layer}_q_proj", f"{layer}_k_proj", f"{layer}_v_proj"}
    assert largest_error(own, tuned, baked(base, got.adapters)) < 1e-4


def test_as_diffusers_spells_it(tmp_path: Path) -> None:
    own = drawn(flux(UNET))
    base = write(tmp_path, "base", own)
    change = torch.randn(36, 2) @ torch.randn(2, 12)
    tuned = changed(own, {f"{UNET}double_blocks.0.img_attn.qkv.weight": 0.01 * change})
    got = extract(
        base,
        write(tmp_path, "tuned", tuned),
        linear=rule_for(FIXED, 2),
        dtype=torch.float32,
        dialect="diffusers",
    )
    assert set(got.adapters) == {f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"}
    assert largest_error(own, tuned, baked(base, got.adapters)) < 1e-4


# ---- what is asked for ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(base: Path) -> tuple[Path, Path]:
    own = load_file(base)
    return base, write(base.parent, "everything", changed(own, everything(own)))


def test_ranks_follow_the_mode_on_layers_and_kernels(pair: tuple[Path, Path]) -> None:
    got = extract(*pair, linear=rule_for(FIXED, 3), convolution=rule_for(FIXED, 1))
    for name, layer in got.adapters.items():
        if layer.algorithm is not None:
            kernel = layer.algorithm.weight_shape[2:]  # type: ignore[index]
            assert layer.algorithm.rank == (1 if max(kernel, default=1) > 1 else 3), name
    energy = extract(*pair, linear=rule_for("energy", 0.9), convolution=rule_for("energy", 0.9))
    assert all(
        1 - outcome.measured.lost / outcome.measured.energy > 0.899
        for outcome in energy.outcomes  # type: ignore[union-attr]
    )
    found = extract(*pair, linear=rule_for("noise floor", 0), convolution=rule_for("noise floor", 0))
    ranks = [o.rank for o in found.outcomes if o.rank is not None]
    assert ranks.count(2) > 0.8 * len(ranks)  # what was planted under the noise


def test_patterns_halves_and_vectors(pair: tuple[Path, Path]) -> None:
    only = extract(*pair, include=("*attn1_to_q", "time_embedding"), exclude=("down_blocks_0",))
    assert {name.rpartition("blocks_0_")[2] for name in only.adapters} == {
        "attn1_to_q",
        "lora_unet_time_embedding_linear_1",
        "lora_unet_time_embedding_linear_2",
    }
    assert not any("down_blocks_0" in name for name in only.adapters)
    assert "left out by the patterns" in only.report()
    bare = extract(*pair, text_encoders=False, norms_and_biases=False)
    assert not any(name.startswith("lora_te") for name in bare.adapters)
    assert all(layer.algorithm is not None or layer.weight_shape[1:] for layer in bare.adapters.values())  # type: ignore[index]
    assert not any(layer.bias_extras for layer in bare.adapters.values())
    with pytest.raises(BadValueError, match="nothing is left to compare"):
        extract(*pair, include=("nothing",))


def test_a_sparse_residual_stands_beside_the_loras(pair: tuple[Path, Path]) -> None:
    plain = extract(*pair, linear=rule_for(FIXED, 1), convolution=rule_for(FIXED, 1), dtype=torch.float32)
    sparse = extract(
        *pair, linear=rule_for(FIXED, 1), convolution=rule_for(FIXED, 1), dtype=torch.float32, sparsity=0.5
    )
    assert sparse.retained > plain.retained
    assert any("sparse residual" in layer.titles for layer in sparse.adapters.values())


def test_the_same_twice_and_on_any_number_of_threads(pair: tuple[Path, Path]) -> None:
    first = extract(*pair, linear=rule_for("size", 0.05), algorithm="auto")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        second = extract(*pair, linear=rule_for("size", 0.05), algorithm="auto")
    finally:
        torch.set_num_threads(threads)
    assert first.adapters.keys() == second.adapters.keys()
    for name, layer in first.adapters.items():
        for own, other in zip(
            layer.to_tensors().values(), second.adapters[name].to_tensors().values(), strict=True
        ):
            assert torch.equal(own, other)


# ---- sizes and auto -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["lora", "tucker lora", "lokr", "loha", "dora", "auto"])
def test_a_size_is_never_passed_and_filled(pair: tuple[Path, Path], algorithm: str, tmp_path: Path) -> None:
    got = extract(*pair, algorithm=algorithm, linear=rule_for("size", 0.06))
    path = save(got.adapters, tmp_path / "sized.safetensors")
    # Half of so small a file is names, which are counted generously.
    assert 0.9 * 60_000 < path.stat().st_size <= 60_000
    with pytest.raises(BadValueError, match="too small"):
        extract(*pair, algorithm=algorithm, linear=rule_for("size", 0.002))


@pytest.mark.parametrize("algorithm", ["lora", "lokr", "auto"])
def test_a_size_is_met_within_two_percent_on_larger_layers(algorithm: str, tmp_path: Path) -> None:
    own = drawn({f"{UNET}blocks.{number}.weight": (256, 320) for number in range(3)})
    base, tuned = (write(tmp_path, str(n), drawn({k: v.shape for k, v in own.items()}, n)) for n in (1, 2))
    got = extract(base, tuned, algorithm=algorithm, linear=rule_for("size", 0.2))
    path = save(got.adapters, tmp_path / "sized.safetensors")
    assert 0.98 * 200_000 < path.stat().st_size <= 200_000


def kinds(base: Tensors) -> Tensors:
    """A change of each kind, on layers of their own."""
    draw = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    changes: Tensors = {}
    for number, (key, value) in enumerate(base.items()):
        if value.dim() < 2 or not key.startswith(UNET):
            continue
        rows, columns = value.shape[0], value[0].numel()
        kind = number % 4
        if kind == 0:
            change = randn(rows, 1) @ randn(1, columns)
        elif kind == 1 and rows % 4 == 0 and value.shape[1] % 4 == 0:
            change = torch.kron(randn(4, 4), randn(rows // 4, columns // 4))
            if value.dim() == 4:
                inner = randn(rows // 4, value.shape[1] // 4, *value.shape[2:])
                change = torch.kron(randn(4, 4, 1, 1), inner)
        elif kind == 2:
            change = 3 * randn(rows, 1) * value.flatten(1)
        else:
            change = randn(rows, columns)
        changes[key] = 0.01 * change.reshape(value.shape)
    return changes


@pytest.mark.parametrize(
    ("mode", "value"), [("size", 0.02), ("size", 0.04), ("energy", 0.9), (FIXED, 1), ("quantile", 0.5)]
)
def test_auto_is_never_worse_than_one_algorithm_alone(base: Path, mode: str, value: float) -> None:
    own = load_file(base)
    tuned = write(base.parent, "kinds", changed(own, kinds(own)))
    rule = rule_for(mode, value)
    got = extract(base, tuned, algorithm="auto", linear=rule, convolution=rule)
    assert got.comparison is not None
    shares = got.comparison.shares
    assert shares["auto"] == max(shares.values())
    assert got.retained >= shares["auto"] - 1e-3
    assert {"lora", "lokr", "dora"} <= shares.keys()
    assert 1 - shares["auto"] < 0.8 * (1 - shares["lora"])
    forms = {outcome.form for outcome in got.outcomes}
    assert "LoKr" in forms
    assert len(forms) > 1
    for name in ("auto", "LoRA", "LoKr"):
        assert name in got.report()
    if mode == "energy":
        assert got.retained >= value - 1e-3
    if mode == "size":  # the table is true: that algorithm alone keeps what it says
        alone = extract(base, tuned, algorithm="lora", linear=rule)
        assert alone.retained == pytest.approx(shares["lora"], abs=0.01)


def test_energy_grows_with_the_size(pair: tuple[Path, Path]) -> None:
    kept = [
        extract(*pair, algorithm="auto", linear=rule_for("size", mb)).retained for mb in (0.03, 0.06, 0.2)
    ]
    assert kept == sorted(kept)


def test_a_base_that_is_loaded_is_asked_for_weights_one_at_a_time(pair: tuple[Path, Path]) -> None:
    """A plan reads headers only."""
    from lycoris_algos.extract import plan_extract

    class Counting(BaseFile):
        reads = 0

        def read(self, half, spot):  # type: ignore[no-untyped-def]
            Counting.reads += 1
            return super().read(half, spot)

    with Counting(pair[0]) as first, Counting(pair[1]) as second:
        plan = plan_extract(first, second)
        assert "spelled as kohya" in str(plan)
    assert Counting.reads == 0
