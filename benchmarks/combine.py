"""Two rank-64 LoRAs of SDXL's size into one of rank 64: by QR of their factors, and by a dense SVD.

    PYTHONPATH=tests/support .host/venv/bin/python benchmarks/combine.py

Both give the best approximation of the sum (Eckart–Young), so their errors must agree; only the way differs.
Each shape of SDXL's UNet is measured alone, alternating, and the median counts; the total is that of all its
722 attention and feed-forward layers. "run" is the whole of ``run_combine`` for each of eight such layers:
with the choice of ranks, rounding to the stored dtype, and the comparison of every layer with the live stack.

The dense SVD is torch.linalg.svd in float32, as resizing scripts call it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from lab.neighbours import busy

from lycoris_algos import AdapterSet, from_tensors
from lycoris_algos.merge.combine import CombineOptions, RankKind, RankRule, plan_combine, run_combine
from lycoris_algos.network import StackEntry
from lycoris_algos.ops.lowrank import product_svd

RANK = 64
LAYERS = 8


def shapes() -> dict[tuple[int, int], int]:
    """{(outputs, inputs): how many layers of SDXL's UNet have it}."""
    found: dict[tuple[int, int], int] = {}
    for width, blocks, transformers in ((640, 10, 5), (1280, 60, 6)):
        for shape, count in (
            ((width, width), 6 * blocks + 2 * transformers),
            ((width, 2048), 2 * blocks),
            ((8 * width, width), blocks),
            ((width, 4 * width), blocks),
        ):
            found[shape] = found.get(shape, 0) + count
    return found


def factors(shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A LoRA with a spectrum that falls off, as trained ones have."""
    draw = torch.Generator().manual_seed(seed)
    decay = torch.logspace(0, -1.5, RANK)
    up = torch.randn((shape[0], RANK), generator=draw) * decay
    return up, torch.randn((RANK, shape[1]), generator=draw)


def by_qr(pair: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best factors of the sum, without forming it."""
    up, down = torch.cat([u for u, _ in pair], dim=1), torch.cat([d for _, d in pair])
    u, s, vh = product_svd(up, down)
    return u[:, :RANK] * s[:RANK], vh[:RANK]


def by_svd(pair: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best factors of the sum, by forming and decomposing it."""
    total = pair[0][0] @ pair[0][1] + pair[1][0] @ pair[1][1]
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    return u[:, :RANK] * s[:RANK], vh[:RANK]


def error(pair: list[tuple[torch.Tensor, torch.Tensor]], got: tuple[torch.Tensor, torch.Tensor]) -> float:
    """|sum − up·down| / |sum|, in float64."""
    total = sum(u.double() @ d.double() for u, d in pair)
    return float((total - got[0].double() @ got[1].double()).norm() / torch.as_tensor(total).norm())


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of ``work``."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(pair: list[tuple[torch.Tensor, torch.Tensor]]) -> object:
    """All of run_combine on ``LAYERS`` layers."""
    sources = []
    for number, (up, down) in enumerate(pair):
        tensors = {}
        for layer in range(LAYERS):
            tensors |= {f"{layer}.lora_up.weight": up.half(), f"{layer}.lora_down.weight": down.half()}
        adapters: AdapterSet = from_tensors(tensors, name=str(number))
        assert len(adapters) == LAYERS
        sources.append(StackEntry(adapters))
    options = CombineOptions(rank=RankRule(RankKind.FIXED, RANK))
    return run_combine(plan_combine(sources, options))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3, help="of the dense SVD (QR: ten times as many)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="with N busy programs beside it")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, CPU, busy programs beside it: {options.busy}\n")
    with busy(options.busy):
        return measure(options.repeats)


def measure(repeats: int) -> int:
    """Prints the table."""
    print("| shape | layers | dense SVD | QR | times faster | run | error SVD | error QR |")
    print("|---|---|---|---|---|---|---|---|")
    totals = [0.0, 0.0, 0.0]
    for shape, count in shapes().items():
        pair = [factors(shape, seed) for seed in (1, 2)]
        by_qr(pair)
        dense = seconds(lambda p=pair: by_svd(p), repeats)  # type: ignore[misc]
        qr = seconds(lambda p=pair: by_qr(p), 10 * repeats)  # type: ignore[misc]
        whole = seconds(lambda p=pair: run(p), repeats) / LAYERS  # type: ignore[misc]
        totals = [t + count * s for t, s in zip(totals, (dense, qr, whole), strict=True)]
        print(
            f"| {shape[0]}×{shape[1]} | {count} "
            f"| {dense * 1e3:.0f} ms | {qr * 1e3:.1f} ms | {dense / qr:.0f} "
            f"| {whole * 1e3:.0f} ms | {error(pair, by_svd(pair)):.6f} | {error(pair, by_qr(pair)):.6f} |",
            flush=True,
        )
    dense, qr, whole = totals
    layers = sum(shapes().values())
    print(f"| all | {layers} | {dense:.0f} s | {qr:.1f} s | {dense / qr:.0f} | {whole:.0f} s | | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
