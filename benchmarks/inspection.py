"""How long an inspection takes: the spectra of a LoKr of Flux' size, and the overview of a file of 1 GB.

    PYTHONPATH=tests/support .host/venv/bin/python benchmarks/inspection.py

The LoKr has all 494 layers that diffusers trains of FLUX.1, with factor 8 and whole second factors, which is
the most that its spectra can cost. Beside it, one layer of each shape by the dense route (form ΔW, all its
singular values), times their number. Memory is what the program holds at most, beyond what it held before
the inspection began; the file itself is loaded before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from lab.neighbours import busy

from lycoris_algos import AdapterSet, from_tensors
from lycoris_algos.inspection import View, inspect, text_of
from lycoris_algos.network import StackEntry, outline

ROOT = Path(__file__).resolve().parents[1]
FACTOR = 8
#: {(outputs, inputs): how many layers of FLUX.1 have it}, as diffusers names them.
SHAPES = {
    (3072, 3072): 19 * 8 + 38 * 3,
    (12288, 3072): 19 * 2 + 38,
    (3072, 12288): 19 * 2,
    (3072, 15360): 38,
    (18432, 3072): 19 * 2,
    (9216, 3072): 38,
}
GIGABYTE = 1_000_000_000


def lokr() -> AdapterSet:
    """The file, with spectra that fall off as those of trained files do."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for (outputs, inputs), count in SHAPES.items():
        for number in range(count):
            layer = f"transformer.{outputs}x{inputs}.{number}"
            decay = torch.logspace(0, -2, inputs // FACTOR)
            tensors[f"{layer}.lokr_w1"] = torch.randn((FACTOR, FACTOR), generator=draw).half()
            second = torch.randn((outputs // FACTOR, inputs // FACTOR), generator=draw) * decay
            tensors[f"{layer}.lokr_w2"] = second.half()
    return from_tensors(tensors, name="lokr of Flux' size")


def peak_megabytes() -> float:
    """The most that this process has held so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spectra(dense: bool) -> None:
    """Prints the table of the spectra."""
    adapters = lokr()
    stack = [StackEntry(adapters)]
    megabytes = adapters.size_bytes / 1e6
    print(f"{len(adapters)} layers, {megabytes:.0f} MB\n")
    before = peak_megabytes()
    inspect(
        [
            StackEntry(
                from_tensors({"x.lora_up.weight": torch.ones(4, 1), "x.lora_down.weight": torch.ones(1, 4)})
            )
        ],
        View.SPECTRA,
    )
    start, used = time.perf_counter(), time.process_time()
    found = inspect(stack, View.SPECTRA)
    took, used = time.perf_counter() - start, time.process_time() - used
    print(f"spectra in factor space: {took:.1f} s ({used:.1f} s of all cores together), ", end="")
    print(f"{peak_megabytes() - before:.0f} MB beyond the file")
    print(f"energies: {seconds(lambda: inspect(stack, View.ENERGY)):.2f} s")
    if not dense:
        return
    print("\n| shape | layers | dense, one layer | largest error of a singular value |\n|---|--:|--:|--:|")
    total = 0.0
    values = {layer.layer: layer.singular_values for layer in found.layers}
    for (outputs, inputs), count in SHAPES.items():
        layer = f"transformer.{outputs}x{inputs}.0"
        start = time.perf_counter()
        wanted = torch.linalg.svdvals(adapters[layer].delta((outputs, inputs)))
        one = time.perf_counter() - start
        got = torch.tensor(values[layer])
        error = float(((got - wanted[: len(got)]).abs() / wanted[: len(got)]).max())
        total += one * count
        print(f"| {outputs}×{inputs} | {count} | {one:.1f} s | {error:.1e} |", flush=True)
    print(f"| all | {len(adapters)} | {total:.0f} s | |\n{total / took:.0f} times faster")


def overview() -> None:
    """Prints how long a file of 1 GB takes: its values and text, and the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.safetensors"
        write_large(path)
        print(f"\noverview of {path.stat().st_size / 1e9:.2f} GB: ", end="")
        print(f"{seconds(lambda: text_of(inspect([StackEntry(outline(path))]))):.2f} s", end="")
        command = [sys.executable, "-m", "lycoris_algos", "inspect", str(path)]
        whole = seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))
        start = seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
        print(f"; the whole command {whole:.1f} s, of which 'import torch' is {start:.1f} s")


def write_large(path: Path) -> None:
    """A LoRA of rank 128 with as many layers as make 1 GB; a file with a hole, which readers see as zeros."""
    entries: dict[str, dict[str, object]] = {}
    end = 0
    number = 0
    while end < GIGABYTE:
        for suffix, shape in (("lora_up", (3072, 128)), ("lora_down", (128, 3072)), ("alpha", ())):
            size = 2 * (3072 * 128 if shape else 1)
            name = f"lora_unet_single_blocks_{number}_linear1.{suffix}{'.weight' if shape else ''}"
            entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        number += 1
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--dense", action="store_true", help="also by the dense route (minutes)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="with N busy programs beside it")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, CPU, busy programs beside it: {options.busy}\n")
    with busy(options.busy):
        spectra(options.dense)
        overview()
    return 0


if __name__ == "__main__":
    sys.exit(main())
