"""How long a bake takes and how much memory, against a plain copy and against ComfyUI core.

    make bench          or: PYTHONPATH=tests/support .host/venv/bin/python benchmarks/merge.py

On the full Stable Diffusion 1.5 checkpoint (2.1 GB, fp16), each run in a process of its own, in turns:

- copy: the file copied by the system and forced to the disk, which is the floor;
- ours: ``plan_bake`` and ``run_bake``, with the loading of the adapters and the proof, to the disk;
- core: what users do today: load the checkpoint, Load LoRA, Save Checkpoint.

Memory is the peak of the process over what it has after its imports. A second checkpoint, the same with the
averaged weights of its training (``model_ema``), as full releases have them, shows that ours does not grow
with the file. Each file is read once before, so that all find it in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from lab import models, paths
from lab.neighbours import busy

RANKS = {"LoRA": 16, "LoHa": 8, "LoKr": 16}
#: Of a rotation, the size of its blocks.
ROTATION = {"Diag-OFT": 16}
FACTOR = 8


def memory(field: str) -> float:
    """MB of ``VmRSS`` (now) or ``VmHWM`` (the peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{field}:"))


# ---- one run, in a process of its own ---------------------------------------------------------------------


def copy(base: Path, _: list[Path], out: Path) -> None:
    """The system's copy, to the disk."""
    import shutil

    shutil.copyfile(base, out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())


def ours(base: Path, files: list[Path], out: Path) -> None:
    """The library, as the node and the command line use it."""
    from lycoris_algos import load
    from lycoris_algos.io import read_header
    from lycoris_algos.merge.bake import plan_bake, run_bake
    from lycoris_algos.network import StackEntry

    plan = plan_bake(read_header(base), [StackEntry(load(file), 0.8, 0.8) for file in files])
    plan.require(everything=True)
    run_bake(plan, base, out)


def core(base: Path, files: list[Path], out: Path) -> None:
    """ComfyUI's own nodes: Load Checkpoint, Load LoRA for each file, Save Checkpoint."""
    import comfy.sd
    import comfy.utils
    import torch

    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(base), output_vae=True)
        for file in files:
            tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
            model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, 0.8, 0.8)
        comfy.sd.save_checkpoint(str(out), model, clip, vae, None)
    with out.open("rb+") as file:
        os.fsync(file.fileno())


RUNS: dict[str, Callable[[Path, list[Path], Path], None]] = {"copy": copy, "ours": ours, "core": core}


def child(name: str, base: Path, out: Path, files: list[Path], threads: int) -> None:
    """Runs one of ``RUNS`` and prints {seconds, MB}."""
    import torch

    if name == "core":
        from lab.prime import prime_comfy

        prime_comfy()
        import comfy.sd  # noqa: F401
    elif name == "ours":
        import lycoris_algos.merge.bake  # noqa: F401
    torch.set_num_threads(threads)
    torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries behind the first product are no peak of a run
    before = memory("VmRSS")
    start = time.perf_counter()
    RUNS[name](base, files, out)
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": memory("VmHWM") - before}))


# ---- the adapters -----------------------------------------------------------------------------------------


def make_adapter(algo: str, base: Path, path: Path, seed: int) -> int:
    """An adapter file for every attention, feed-forward and residual layer; answers how many there are."""
    import math
    import re

    import torch
    from safetensors.torch import save_file

    from lycoris_algos.io import read_header

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    layers = {}
    for key, info in read_header(base).tensors.items():
        unet = re.fullmatch(
            r"model\.diffusion_model\.(.*(?:attn\d\.to_\w+(?:\.0)?|ff\.net.*|proj_in|proj_out|"
            r"in_layers\.2|out_layers\.3))\.weight",
            key,
        )
        text = re.fullmatch(r"cond_stage_model\.transformer\.(.*(?:_proj|fc1|fc2))\.weight", key)
        if unet or text:
            prefix, path_of = ("lora_unet_", unet[1]) if unet else ("lora_te_", text[1])  # type: ignore[index]
            layers[prefix + path_of.replace(".", "_")] = info.shape
    tensors = {}
    rank = (RANKS | ROTATION)[algo]
    for layer, (o, i, *kernel) in layers.items():
        columns, ones = i * math.prod(kernel), [1] * len(kernel)
        own = {
            "LoRA": lambda o=o, i=i, kernel=kernel, ones=ones: {
                "lora_up.weight": normal(o, rank, *ones),
                "lora_down.weight": normal(rank, i, *kernel),
            },
            "LoHa": lambda o=o, columns=columns: {
                "hada_w1_a": normal(o, rank),
                "hada_w1_b": normal(rank, columns),
                "hada_w2_a": normal(o, rank),
                "hada_w2_b": normal(rank, columns),
            },
            "LoKr": lambda o=o, columns=columns: {
                "lokr_w1": normal(FACTOR, FACTOR if columns % FACTOR == 0 else 1),
                "lokr_w2_a": normal(o // FACTOR, rank),
                "lokr_w2_b": normal(rank, columns // FACTOR),
            },
            "Diag-OFT": lambda o=o: {"oft_blocks": normal(o // rank, rank, rank)},
        }[algo]()
        tensors |= {f"{layer}.{name}": value for name, value in own.items()}
        tensors[f"{layer}.alpha"] = torch.tensor(8.0)
    save_file(tensors, path)
    return len(layers)


def with_averages(base: Path, path: Path) -> None:
    """``base`` and a ``model_ema`` tensor for each of its UNet's, which no merge touches."""
    from lycoris_algos.io import SafetensorsReader, SafetensorsWriter

    inner = "model.diffusion_model."
    with SafetensorsReader(base) as reader:
        names = {name: name for name in reader}
        names |= {
            f"model_ema.{name[len('model.') :].replace('.', '')}": name for name in reader if inner in name
        }
        tensors = {new: reader.header.tensors[old] for new, old in names.items()}
        writer = SafetensorsWriter(path, {new: (info.dtype, info.shape) for new, info in tensors.items()})
        with writer:
            for new in writer.order:
                writer.write(new, reader[names[new]])


# ---- the comparison ---------------------------------------------------------------------------------------


def measure(name: str, base: Path, files: list[Path], folder: Path, threads: int) -> dict[str, float]:
    """One run in a fresh process; its file is deleted again."""
    out = folder / "out.safetensors"
    command = [sys.executable, __file__, "--child", name, "--threads", str(threads), str(base), str(out)]
    environment = paths.lab_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(paths.REPO), environment["PYTHONPATH"]])
    environment["OMP_NUM_THREADS"] = str(threads)
    os.sync()  # what an earlier run left to be written must not count here
    done = subprocess.run(
        [*command, *map(str, files)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    out.unlink()
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stack", action="append", help="only this, as LoRA or 'all three' (repeatable)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="with N busy programs beside it")
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        base, out, *files = options.paths
        child(options.child, base, out, files, options.threads)
        return
    models.ensure(["full_sd15"])
    sys.path.insert(0, str(paths.REPO))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=paths.LAB) as name:
        folder = Path(name)
        full, larger = paths.MODELS / models.FILES["full_sd15"][0], folder / "full_sd15_ema.safetensors"
        with_averages(full, larger)
        adapters = {}
        for seed, algo in enumerate(RANKS):
            adapters[algo] = folder / f"{algo}.safetensors"
            layers = make_adapter(algo, full, adapters[algo], seed)
        stacks = {algo: [path] for algo, path in adapters.items()}
        stacks["all three"] = list(adapters.values())
        rows = []
        for base, stack in [*((full, stack) for stack in stacks), (larger, "all three")]:
            if options.stack and stack not in options.stack:
                continue
            base.read_bytes()
            taken: dict[str, list[dict[str, float]]] = {run: [] for run in RUNS}
            for _ in range(options.rounds):
                for run, own in taken.items():
                    with busy(options.busy):
                        own.append(measure(run, base, stacks[stack], folder, options.threads))
            rows.append((base.stem, base.stat().st_size, layers, stack, taken))
            print(row(*rows[-1]), file=sys.stderr, flush=True)
    print(
        f"{options.threads} thread(s), load at the start {load:.1f}, "
        f"busy programs beside it: {options.busy}, median of {options.rounds}\n"
    )
    print(
        "| base | size | layers | stack | copy | ours | core | ours / copy | ours − copy "
        "| core / ours | memory: ours | core |\n|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    print("\n".join(row(*values) for values in rows))


def row(base: str, size: int, layers: int, stack: str, taken: dict[str, list[dict[str, float]]]) -> str:
    """One line of the table."""
    seconds = {run: statistics.median(own["seconds"] for own in runs) for run, runs in taken.items()}
    peak = {run: max(own["mb"] for own in runs) for run, runs in taken.items()}
    return (
        f"| {base} | {size / 1e9:.2f} GB | {layers} | {stack} "
        f"| {seconds['copy']:.2f} s | {seconds['ours']:.2f} s "
        f"| {seconds['core']:.1f} s | {seconds['ours'] / seconds['copy']:.2f} "
        f"| {seconds['ours'] - seconds['copy']:.2f} s | {seconds['core'] / seconds['ours']:.1f} "
        f"| {peak['ours']:.0f} MB | {peak['core']:.0f} MB |"
    )


if __name__ == "__main__":
    main()
