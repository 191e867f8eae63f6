"""How long it takes from a file on the disk to a patched MODEL and CLIP, beside other programs too.

    make bench          or: PYTHONPATH=tests/support .host/venv/bin/python benchmarks/applying.py --busy 2

On the full Stable Diffusion 1.5 checkpoint, in this process, in turns:

- ours: ``load`` and ``apply_stack``, which Load and Apply LyCORIS call: the file is checked, its layers are
  matched and prepared, and the report is written;
- core: what Load LoRA calls. It neither checks nor prepares anything; what it cannot read it leaves out.

No weight is changed yet on either side: ComfyUI does that when it loads the model (see benchmarks/apply.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from lab import models, paths
from lab.neighbours import busy
from lab.pack import load_pack
from lab.prime import prime_comfy
from merge import RANKS, ROTATION, make_adapter


def median_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """{name: median milliseconds} of ``calls``, in turns, after one call of each."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(own) for name, own in taken.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="with N busy programs beside it")
    options = parser.parse_args()
    models.ensure(["full_sd15"])
    sys.path.insert(0, str(paths.REPO))
    prime_comfy()
    import comfy.sd
    import comfy.utils

    host = f"{load_pack().__name__}.nodes.host"
    library, applying = sys.modules[load_pack().__name__ + ".lycoris_algos"], sys.modules[f"{host}.applying"]
    torch.set_num_threads(os.cpu_count() or 1)
    base = paths.MODELS / models.FILES["full_sd15"][0]
    print(f"{torch.get_num_threads()} threads, busy programs beside it: {options.busy}\n")
    print("| file | layers | ours ms | core ms |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=paths.LAB) as name, torch.inference_mode():
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(base))
        for seed, algo in enumerate(RANKS | ROTATION):
            file = Path(name) / f"{algo}.safetensors"
            layers = make_adapter(algo, base, file, seed)

            def ours(file: Path = file) -> object:
                stack = (applying.StackEntry(library.load(file)),)
                return applying.apply_stack(model, clip, stack, 0.8, 0.8, applying.OnUnmatched.NOTHING)

            def core(file: Path = file) -> object:
                tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
                return comfy.sd.load_lora_for_models(model, clip, tensors, 0.8, 0.8)

            with busy(options.busy):
                taken = median_ms({"ours": ours, "core": core}, options.rounds)
            print(f"| {algo} | {layers} | {taken['ours']:.0f} | {taken['core']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
