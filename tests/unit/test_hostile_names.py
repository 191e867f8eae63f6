"""Strangers' names through everything that says something: harmless there, and still data as they were."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from strangers import NAMES, problems
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet, LycorisError, Unmatched, convert, describe, from_tensors, with_rank
from lycoris_algos.cli import main
from lycoris_algos.cli._shared import progress_on_stderr
from lycoris_algos.io import read_header, save_tensors
from lycoris_algos.merge.bake import bake_report, plan_bake, plan_report, run_bake
from lycoris_algos.merge.combine import CombineOptions, plan_combine, run_combine
from lycoris_algos.network import StackEntry
from lycoris_algos.text import as_report

Tensors = dict[str, Tensor]


def lora(layer: str, **more: Tensor) -> Tensors:
    up, down = torch.randn(24, 2), torch.randn(2, 16)
    stored = {"lora_up.weight": up, "lora_down.weight": down, **more}
    return {f"{layer}.{suffix}": value for suffix, value in stored.items()}


def said(work: Callable[[], object]) -> str:
    """The error that ``work`` raises."""
    with pytest.raises(LycorisError) as caught:
        work()
    return str(caught.value)


def hostile_set(name: str) -> AdapterSet:
    """Everything that a file names is called ``name``."""
    tensors = {**lora("lora_unet_blocks_0_linear"), **lora(f"lora_unet_{name}")}
    tensors |= {f"{name}.foo": torch.zeros(1), f"lora_unet_blocks_1_linear.{name}": torch.zeros(1)}
    tensors |= {**lora("lora_unet_blocks_1_linear"), f"lora_unet_half_{name}.alpha": torch.zeros(())}
    tensors |= {f"bundle_emb.{name}.{part}": torch.zeros(2, 8) for part in ("emb_params", "odd.odd")}
    keys = ("title", "author", "description", "license", "architecture")
    metadata = {f"modelspec.{key}": name for key in keys}
    metadata["modelspec.trigger_phrase"] = f"{name[:50]}, b"
    return from_tensors(tensors, metadata, name=name)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_is_told_about_a_file(name: str) -> None:
    found = hostile_set(name)
    assert problems(describe(found)) == []
    assert f"lora_unet_{name}" in found, "data stays as it is"
    assert any(item.key == f"{name}.foo" for item in found.unmatched)
    assert problems(repr(found)) == []


@pytest.mark.parametrize("name", [*NAMES.values(), "a\ud800b"], ids=[*NAMES, "surrogate"])
def test_errors_about_a_file(name: str, tmp_path: Path) -> None:
    nan = torch.full((24, 2), float("nan"))
    dora = {"dora_scale": torch.ones(24, 1)}
    pattern = {"adapter_config": json.dumps({"peft_type": "LORA", "alpha_pattern": {f"({name}": 4}})}
    start = {"adapter_config": json.dumps({"init_lora_weights": f"pissa{name}"})}
    works: list[Callable[[], object]] = [
        lambda: from_tensors({f"{name}.lora_up.weight": torch.zeros(2, 2)}, name=name),
        lambda: from_tensors({f"{name}.lora_up.weight": nan, f"{name}.lora_down.weight": nan.T}, name=name),
        lambda: from_tensors({f"{name}.weight": torch.zeros(2, 2)}, name=name),
        lambda: from_tensors({}, name=name),
        lambda: from_tensors({f"bundle_emb.{name}.emb_params": nan, **lora("a")}, name=name),
        lambda: from_tensors(lora("a"), pattern),
        lambda: from_tensors(lora("a"), start),
        lambda: lycoris_algos.LayerAdapter.from_tensors({name: torch.zeros(2), "alpha": torch.zeros(())}),
        lambda: convert(from_tensors(lora(name, **dora)), strength_model=2.0),
        lambda: convert(from_tensors(lora(f"lora_unet_{name}")), dialect="peft"),
        lambda: convert(from_tensors(lora(name)), dialect=name),
        lambda: with_rank(from_tensors({f"{name}.oft_blocks": torch.zeros(2, 4, 4)}, name=name), 1),
        lambda: plan_combine([StackEntry(from_tensors(lora(name, **dora)))], CombineOptions(method="ties")),
        lambda: plan_combine(
            [StackEntry(from_tensors(lora(name))), StackEntry(from_tensors({f"{name}.diff": nan}))]
        ),
    ]
    for number, work in enumerate(works):
        assert problems(said(work)) == [], number


def _on_disk(name: str) -> bool:
    return sys.platform != "win32" and len(name) < 200 and not {"/", "\0"} & set(name)


@pytest.mark.parametrize(
    "name", [n for n in NAMES.values() if _on_disk(n)], ids=[k for k, n in NAMES.items() if _on_disk(n)]
)
def test_errors_about_a_file_of_that_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert problems(said(lambda: lycoris_algos.load(path))) == []
    path.write_bytes(b"\0" * 600)
    assert problems(said(lambda: lycoris_algos.load(path))) == []
    assert problems(said(lambda: save_tensors(path / "x", {"a": torch.zeros(1)}))) == []


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """(checkpoint, adapter file) whose tensors are called what a stranger likes."""
    name = request.param
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"
    names = [*(f"blocks.{number}.linear" for number in range(8)), name]
    save_file({f"model.diffusion_model.{n}.weight": torch.randn(24, 16) for n in names}, base)
    tensors = {**lora("lora_unet_blocks_0_linear"), **lora(f"lora_unet_{name}")}
    save_file({**tensors, **lora(f"lora_unet_no_{name}"), f"{name}.no": torch.zeros(1)}, adapter)
    return base, adapter


each_name = pytest.mark.parametrize("files", NAMES.values(), ids=NAMES, indirect=True)


@each_name
def test_a_bake(files: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = files
    loaded = lycoris_algos.load(adapter)
    plan = plan_bake(read_header(base), [StackEntry(loaded)], base=next(iter(loaded)))
    result = run_bake(plan, base, tmp_path / "out.safetensors")
    assert problems(plan_report(plan)) == problems(bake_report(result)) == []
    assert problems(said(lambda: plan.require(everything=True))) == []
    other = plan_bake(read_header(adapter), [StackEntry(loaded)], base=next(iter(loaded)))
    assert problems(said(other.require)) == []


@each_name
def test_a_combination(files: tuple[Path, Path]) -> None:
    loaded = lycoris_algos.load(files[1])
    other = dataclasses.replace(loaded, name=next(iter(loaded)), dialect="peft")
    plan = plan_combine([StackEntry(loaded), StackEntry(other)])
    combined = run_combine(plan)
    assert problems(str(plan)) == problems(combined.report()) == problems(describe(combined.adapters)) == []


@each_name
def test_the_command_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = map(str, files)
    out = ["-o", str(tmp_path / "out.safetensors")]
    for arguments, code in (
        (["merge", base, adapter, *out], 0),
        (["merge", base, adapter, "--plan", *out], 0),
        (["merge", base, adapter, "--refuse", "anything", *out], 1),
        (["combine", adapter, adapter, "--rank", "1", *out], 0),
        (["combine", adapter, "--plan", *out], 0),
        (["convert", adapter, *out], 0),
        (["convert", adapter, "--dialect", "peft", *out], 1),
        (["merge", adapter, base, *out], 1),
    ):
        assert main(arguments) == code, arguments
        printed = capsys.readouterr()
        assert problems(printed.out) == problems(printed.err) == [], arguments


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_progress_on_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    step = progress_on_stderr(quiet=False)
    step(0, 2, name)
    step(2, 2, name)
    shown = capsys.readouterr().err
    assert shown.endswith("\n")
    assert [problems(line.removeprefix("\x1b[K").removesuffix("\n")) for line in shown.split("\r")] == [
        [],
        [],
        [],
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="no such file names there")
def test_a_printed_path_is_exact_unless_a_terminal_would_obey_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(lora("a"), tmp_path / "a.safetensors")
    for name in ("R&B <1>.safetensors", "x\x1b[2J\n.safetensors"):
        assert main(["convert", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out.removesuffix("\n")
        assert printed == (str(tmp_path / name) if "&" in name else str(tmp_path / "x[2J .safetensors"))


def test_the_traceback_of_a_refused_pickle_says_nothing_of_the_file(tmp_path: Path) -> None:
    # It is what ComfyUI prints: a global of that name is a line of text in a pickle.
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02cos\x1b[2J\x1b]0;title\x07<img>\nsystem\n.")
    with pytest.raises(LycorisError) as caught:
        lycoris_algos.load(path)
    printed = "".join(traceback.format_exception(caught.value))
    assert "\x1b" not in printed
    assert problems(str(caught.value)) == []


# ---- nothing unbounded ----------------------------------------------------------------------------------


def test_a_report_of_fifty_thousand_strangers_is_short() -> None:
    names = [f"{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}x{i * 'y'}" for i in range(300)]
    unmatched = tuple(Unmatched(f"{name}.z", "no known algorithm stores it") for name in names)
    found = dataclasses.replace(from_tensors(lora("lora_unet_a")), unmatched=unmatched)
    report = describe(found)
    assert len(report) < 20_000
    assert f"… and {len(names) - 60} more" in report
    many = {f"w{i}": {"": torch.zeros(2, 8)} for i in range(5000)}
    assert len(describe(dataclasses.replace(found, embeddings=many)).splitlines()) < 150


def test_a_report_as_a_whole_is_bounded() -> None:
    assert len(as_report("x" * 100 for _ in range(100_000))) < 61_100
