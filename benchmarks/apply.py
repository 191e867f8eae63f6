"""How fast a patch changes a weight, against ComfyUI core's own adapters on the same tensors.

    make bench          or: PYTHONPATH=tests/support .host/venv/bin/python benchmarks/apply.py

Both sides run in this process, alternating, and the median of each counts. Two figures per row:

- alone: ``calculate_weight`` on an fp32 weight, which is what this pack can make faster;
- whole: ``ModelPatcher.patch_weight_to_device``, what ComfyUI runs for every weight when a model is loaded:
  back up, cast to fp32, patch, round to the stored dtype, put in place; and undone, as for another file.

"host" is the whole path with a patch that changes nothing: no patch can be faster. "floor" is one in-place
pass over the weight plus the products of the factors, measured in the same run: less than that is only
possible by fusing the two. "scratch" is the largest new tensor, in parts of the weight.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from lab.neighbours import busy
from lab.pack import load_pack
from lab.prime import prime_comfy

SHAPES = ((1280, 1280), (10240, 1280), (3072, 3072), (12288, 3072), (1280, 1280, 3, 3))
# Those of Stable Diffusion 1.5: what is done once per call counts for more there. Summed up on their own.
SMALL = ((320, 320), (640, 640), (320, 320, 3, 3))
FACTOR = 8
LINEAR_IN_STRENGTH = ("LoRA", "LoHa", "LoKr", "LoKr, w2 whole", "GLoRA")
# At strength 1 core agrees on these.
AT_ONE = ("Diag-OFT", "BOFT", "DoRA on inputs")
# Core has no (IA)³, and another rule for DoRA on the output axis: only the floor to compare with.
WITHOUT_CORE = ("(IA)³ on outputs", "(IA)³ on inputs", "DoRA on outputs")


@dataclass(frozen=True)
class Row:
    """Median seconds of one algorithm on one shape; NaN of core where it does not compute the same."""

    algo: str
    shape: tuple[int, ...]
    dtype: str
    core_alone: float
    ours_alone: float
    core_whole: float
    ours_whole: float
    host: float
    floor: float
    scratch: float


def factors(algo: str, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors of one layer, stored as fp16 as most files are."""
    o, i = shape[0], math.prod(shape[1:])
    ones = (1,) * (len(shape) - 2)

    def normal(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.02).half()

    alpha = {"alpha": torch.tensor(8.0)}
    if algo in ("LoRA", "DoRA on inputs", "DoRA on outputs"):
        lora = {"lora_up.weight": normal(o, 16, *ones), "lora_down.weight": normal(16, *shape[1:]), **alpha}
        axis = (1, shape[1], *ones) if algo == "DoRA on inputs" else (o, 1, *ones)
        return lora if algo == "LoRA" else {**lora, "dora_scale": normal(*axis).abs() + 1}
    if algo.startswith("(IA)³"):
        on_input = algo.endswith("inputs")
        return {"weight": normal(1, shape[1] if on_input else o, *ones), "on_input": torch.tensor(on_input)}
    if algo == "LoHa":
        halves = {"hada_w1_a": normal(o, 8), "hada_w1_b": normal(8, i)}
        return {**halves, "hada_w2_a": normal(o, 8), "hada_w2_b": normal(8, i), **alpha}
    if algo == "GLoRA":
        passed = {"a1.weight": normal(shape[1], 16, *ones), "a2.weight": normal(16, shape[1], *ones)}
        return {**passed, "b1.weight": normal(o, 16, *ones), "b2.weight": normal(16, *shape[1:]), **alpha}
    if algo == "Diag-OFT":
        return {"oft_blocks": normal(o // 32, 32, 32), "alpha": torch.tensor(0.0)}
    if algo == "BOFT":
        blocks = 16 if o <= 1280 else 128
        return {"oft_blocks": normal(blocks.bit_length(), blocks, o // blocks, o // blocks), **NO_CONSTRAINT}
    w1 = {"lokr_w1": normal(FACTOR, FACTOR)}
    if algo == "LoKr":
        return {**w1, "lokr_w2_a": normal(o // FACTOR, 16), "lokr_w2_b": normal(16, i // FACTOR), **alpha}
    return {**w1, "lokr_w2": normal(o // FACTOR, shape[1] // FACTOR, *shape[2:]), **alpha}


NO_CONSTRAINT = {"alpha": torch.tensor(0.0)}


def products(algo: str, tensors: dict[str, torch.Tensor], weight: torch.Tensor) -> Callable[[], object]:
    """The matrix products that no implementation can avoid, in fp32."""
    wide = {name: value.float().flatten(1) for name, value in tensors.items() if value.dim() > 1}
    matrix = weight.flatten(1)
    if algo in ("LoRA", "DoRA on inputs", "DoRA on outputs"):
        return lambda: wide["lora_up.weight"] @ wide["lora_down.weight"]
    if algo == "LoHa":
        return lambda: (wide["hada_w1_a"] @ wide["hada_w1_b"], wide["hada_w2_a"] @ wide["hada_w2_b"])
    if algo == "LoKr":
        return lambda: wide["lokr_w2_a"] @ wide["lokr_w2_b"]
    if algo == "GLoRA":
        channels = matrix.view(weight.shape[0], weight.shape[1], -1).transpose(1, 2)
        return lambda: (
            channels @ wide["a1.weight"] @ wide["a2.weight"],
            wide["b1.weight"] @ wide["b2.weight"],
        )
    if algo == "Diag-OFT":
        blocks = tensors["oft_blocks"].float()
        return lambda: torch.bmm(blocks, matrix.view(*blocks.shape[:2], -1))
    if algo == "BOFT":
        stages = tensors["oft_blocks"].float()
        rows = matrix.view(*stages.shape[1:3], -1)
        return lambda: [torch.bmm(stage, rows) for stage in stages]
    return lambda: None


def side_by_side(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each function, taken in turns so that all see the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, taken.values())) < 5:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def largest_allocation(run: Callable[[], object]) -> int:
    """Bytes of the largest single allocation that ``run`` makes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    return max((event.cpu_memory_usage for event in trace.events()), default=0)


def patcher_of(weight: torch.Tensor, patch: object, strength: float) -> object:
    """A real ModelPatcher of a model that has this weight only, with ``patch`` on it."""
    from comfy.model_patcher import ModelPatcher

    model, layer = torch.nn.Module(), torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    model.x = layer
    patcher = ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    assert patcher.add_patches({"x.weight": patch}, strength) == ["x.weight"]
    return patcher


def measure(algo: str, shape: tuple[int, ...], dtype: torch.dtype, pack: object, seconds: float) -> Row:
    """One row of the table."""
    import comfy.lora

    library = sys.modules[f"{pack.__name__}.lycoris_algos"]
    bridge = sys.modules[f"{pack.__name__}.nodes.host.patch"].LycorisPatch
    generator = torch.Generator().manual_seed(0)
    tensors = factors(algo, shape, generator)
    stored = (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    change = library.LayerAdapter.from_tensors(tensors).structure(shape, base=stored.float)
    ours = bridge.of([(change, 1.0)], {"x"})
    strength = 1.0 if algo in AT_ONE else 1e-3
    patches = {"ours": ours, "host": bridge.of([], {"x"})}
    if algo not in WITHOUT_CORE:
        named = {f"x.{name}": tensor for name, tensor in tensors.items()}
        patches["core"] = comfy.lora.load_lora(named, {"x": "x.weight"})["x.weight"]

    def patched(patch: object, weight: torch.Tensor) -> torch.Tensor:
        return comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], weight, "x.weight")

    def whole(patcher: object) -> None:
        patcher.patch_weight_to_device("x.weight")
        patcher.unpatch_model()

    if "core" in patches:
        expected, found = (patched(patches[name], stored.float()) for name in ("core", "ours"))
        assert torch.allclose(expected, found, rtol=1e-4, atol=1e-6), (algo, shape)

    runs: dict[str, Callable[[], object]] = {}
    for name, patch in patches.items():
        runs[f"{name} alone"] = partial(patched, patch, stored.float())
        runs[f"{name} whole"] = partial(whole, patcher_of(stored.clone(), patch, strength))
    last = stored.float()
    runs["pass"], runs["products"] = lambda: last.mul_(1.0), products(algo, tensors, last)
    took = side_by_side(runs, seconds)
    scratch = largest_allocation(runs["ours alone"]) / (4 * stored.numel())
    return Row(
        algo,
        shape,
        str(dtype).removeprefix("torch."),
        took.get("core alone", math.nan),
        took["ours alone"],
        took.get("core whole", math.nan),
        took["ours whole"],
        took["host whole"],
        took["pass"] + took["products"],
        scratch,
    )


def table(rows: list[Row]) -> str:
    """A Markdown table of all rows, and the geometric means."""
    lines = [
        "| algorithm | weight | stored | alone: core ms | ours ms | × | whole: core ms | ours ms | × "
        "| host ms | alone / floor | scratch |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.algo} | {'×'.join(map(str, r.shape))} | {r.dtype} "
            f"| {r.core_alone * 1e3:.2f} | {r.ours_alone * 1e3:.2f} | {r.core_alone / r.ours_alone:.1f} "
            f"| {r.core_whole * 1e3:.2f} | {r.ours_whole * 1e3:.2f} | {r.core_whole / r.ours_whole:.1f} "
            f"| {r.host * 1e3:.2f} | {r.ours_alone / r.floor:.2f} | {r.scratch:.3f} |"
        )
    small = [r for r in rows if r.shape in SMALL and not math.isnan(r.core_alone)]
    compared = [r for r in rows if r.shape in SHAPES and not math.isnan(r.core_alone)]
    if compared:
        lines += ["", f"All rows with core: {summary(compared)}"]
    first = [r for r in compared if r.algo.startswith("Lo")]
    if 0 < len(first) < len(compared):
        lines.append(f"LoRA, LoHa and LoKr only: {summary(first)}")
    if small:
        lines.append(f"Small weights, all rows with core: {summary(small)}")
    return "\n".join(lines).replace("| nan ", "| – ")


def summary(rows: list[Row]) -> str:
    """The figures that the project has targets for."""
    mean = statistics.geometric_mean
    alone, whole = [r.core_alone / r.ours_alone for r in rows], [r.core_whole / r.ours_whole for r in rows]
    return (
        f"geometric mean alone {mean(alone):.2f}×, whole {mean(whole):.2f}× "
        f"(a patch that costs nothing: {mean(r.core_whole / r.host for r in rows):.2f}×); "
        f"least favourable {min(*alone, *whole):.2f}×; "
        f"at most {max(r.ours_alone / r.floor for r in rows):.2f}× the floor."
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--algo", action="append", help="only these (repeatable)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="with N busy programs beside it")
    options = parser.parse_args()
    prime_comfy()
    torch.set_num_threads(options.threads)
    pack = load_pack()
    rows: list[Row] = []
    with torch.inference_mode(), busy(options.busy):
        measure(
            "LoRA", SHAPES[0], torch.float16, pack, options.seconds
        )  # the first work of a process is slower
        for dtype in (torch.float16, torch.float32):
            for algo in options.algo or (*LINEAR_IN_STRENGTH, *AT_ONE, *WITHOUT_CORE):
                for shape in (*SMALL, *SHAPES):
                    rows.append(measure(algo, shape, dtype, pack, options.seconds))
                    print(table(rows[-1:]).splitlines()[2], file=sys.stderr, flush=True)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, CPU, busy programs beside it: {options.busy}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
