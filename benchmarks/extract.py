"""Extraction against lycoris-lora's own, layer by layer; and a whole model end to end.

    PYTHONPATH=tests/support .host/venv/bin/python benchmarks/extract.py layers
    PYTHONPATH=tests/support .host/venv/bin/python benchmarks/extract.py model [--blocks N] [--as auto]

``layers``: ``extract_linear`` and ``extract_conv`` of lycoris-lora (a full SVD each) and the fit here,
side by side in one process on the same layers, at rank 32. The layers have the shapes of SDXL's UNet and
spectra as fine-tunes leave them: singular values that fall off as a power of their number, and rounding
noise below. The residual is that of the stored float32 factors against the best there is (the values beyond
rank 32). With ``--largest MB`` layers for which the other one would need more memory are left out.

``model``: a pair of checkpoints of SD1.5's size is made in a temporary folder (only once for each size), and
extracted in a process of its own, of which the peak of memory is read, less what importing takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lycoris_algos.adapters import FitRequest, LayerAdapter, component
from lycoris_algos.extract import ExtractOptions, plan_extract, rule_for, run_extract
from lycoris_algos.io import SafetensorsWriter
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import save
from lycoris_algos.structures import Dense

RANK = 32
# MB of a square matrix that lycoris-lora forms.
_LARGEST = 1000.0
#: Shapes of SDXL's UNet.
SHAPES = (
    (320, 320, 3, 3),
    (640, 640),
    (640, 2048),
    (640, 640, 3, 3),
    (1280, 1280),
    (1280, 5120),
    (1280, 1280, 3, 3),
    (10240, 1280),
)


def layer(shape: tuple[int, ...], power: float) -> tuple[torch.Tensor, float]:
    """(a change whose singular values fall off as n^-power, the squared residual beyond rank 32)."""
    rows, columns = shape[0], math.prod(shape[1:])
    count = min(rows, columns)
    draw = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn((rows, count), generator=draw))[0]
    right = torch.linalg.qr(torch.randn((columns, count), generator=draw))[0]
    values = torch.arange(1, count + 1).double() ** -power + 0.002
    change = ((left * values.float()) @ right.T).reshape(shape)
    return change, float(values[RANK:].square().sum())


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(the median time, the last result) of ``work``."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def theirs(change: torch.Tensor) -> torch.Tensor:
    """What lycoris-lora stores, multiplied out."""
    from lycoris.utils import extract_conv, extract_linear

    extract: Any = extract_conv if change.dim() == 4 else extract_linear
    (down, up, _), kind = extract(change, "fixed", RANK)
    assert kind == "low rank"
    return up.flatten(1) @ down.flatten(1)


def ours(change: torch.Tensor) -> Any:
    """What this library stores."""
    shape = tuple(change.shape)
    request = FitRequest(Dense(change.flatten(1)), shape, rule_for("fixed rank", RANK))
    kind: Any = component("lora")
    return kind.fit(request).stored


def layers(largest: float, threads: int) -> None:
    """The table of single layers."""
    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, rank {RANK}\n")
    print("| shape | spectrum | lycoris-lora | here | times faster | residual theirs | residual here |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for shape in SHAPES:
        name = "×".join(map(str, shape))
        full = max(shape[0], math.prod(shape[1:])) ** 2 * 4 / 1e6
        for power in (0.5, 1.0):
            change, best = layer(shape, power)
            fast, stored = seconds(lambda c=change: ours(c), 5)  # type: ignore[misc]
            got = LayerAdapter(algorithm=stored).delta(tuple(shape))
            residual = math.sqrt(float((change - got).double().square().sum()) / best)
            if full > largest:
                print(f"| {name} | n^-{power} | – | {fast * 1e3:.0f} ms | | | {residual:.5f} |")
                continue
            slow, other = seconds(lambda c=change: theirs(c), 1 if full > 100 else 3)  # type: ignore[misc]
            reached = math.sqrt(float((change.flatten(1) - other).double().square().sum()) / best)
            ratios.append(slow / fast)
            print(
                f"| {name} | n^-{power} | {slow * 1e3:.0f} ms | {fast * 1e3:.0f} ms "
                f"| {slow / fast:.0f} | {reached:.5f} | {residual:.5f} |",
                flush=True,
            )
    print(f"\ngeometric mean: {statistics.geometric_mean(ratios):.1f} times faster")


# ---- a whole model --------------------------------------------------------------------------------------


def pair(folder: Path, blocks: int) -> tuple[Path, Path]:
    """Two checkpoints of ``blocks`` transformer blocks of SD1.5's widest kind (16: about its size)."""
    width, prefix = 1280, "model.diffusion_model.blocks"
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(blocks):
        for name, shape in (
            *((f"attn.{part}", (width, width)) for part in "qkvo"),
            ("ff.0", (8 * width, width)),
            ("ff.2", (width, 4 * width)),
            ("conv", (width, width, 3, 3)),
        ):
            shapes[f"{prefix}.{number}.{name}.weight"] = shape
    files = []
    for tuned in (False, True):
        path = folder / f"{'tuned' if tuned else 'base'}-{blocks}.safetensors"
        files.append(path)
        if path.exists():
            continue
        writer = SafetensorsWriter(path, {key: (torch.float16, shape) for key, shape in shapes.items()})
        with writer:
            for number, key in enumerate(writer.order):
                draw = torch.Generator().manual_seed(number)
                rows, columns = shapes[key][0], math.prod(shapes[key][1:])
                weight = torch.randn((rows, columns), generator=draw) * 0.03
                if tuned:
                    decay = torch.arange(1, 65).float() ** -1
                    up = torch.randn((rows, 64), generator=draw) * decay
                    weight += 0.003 * up @ torch.randn((64, columns), generator=draw)
                writer.write(key, weight.half().reshape(shapes[key]))
    return files[0], files[1]


def peak() -> float:
    """The most memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what the parent had in ru_maxrss
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def one(base: Path, tuned: Path, algorithm: str, threads: int) -> None:
    """An extraction in this process; prints what it took as JSON."""
    torch.set_num_threads(threads)
    before = peak()
    start = time.perf_counter()
    rule = rule_for("fixed rank", RANK)
    with BaseFile(base) as first, BaseFile(tuned) as second:
        options = ExtractOptions(algorithm, rule, rule)
        extracted = run_extract(plan_extract(first, second, options))
    with tempfile.TemporaryDirectory() as folder:
        size = save(extracted.adapters, Path(folder) / "out.safetensors").stat().st_size
    took = time.perf_counter() - start
    told = {"seconds": took, "peak": peak() - before, "size": size / 1e6, "kept": extracted.retained}
    print(json.dumps(told))


def model(folder: Path, blocks: int, algorithms: list[str], threads: int) -> None:
    """The table of whole models."""
    print(f"torch {torch.__version__}, {threads} threads, rank {RANK}\n")
    print("| model | algorithm | time | memory over importing | result | energy kept |")
    print("|---|---|---|---|---|---|")
    for count in sorted({max(1, blocks // 4), blocks}):
        base, tuned = pair(folder, count)
        for algorithm in algorithms:
            command = [sys.executable, __file__, "one", str(base), str(tuned), algorithm, str(threads)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"| 2 × {base.stat().st_size / 1e9:.2f} GB | {algorithm} | {told['seconds']:.0f} s "
                f"| {told['peak']:.0f} MB | {told['size']:.0f} MB | {100 * told['kept']:.2f} % |",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command")
    single = commands.add_parser("layers")
    single.add_argument("--largest", type=float, default=_LARGEST, metavar="MB")
    single.add_argument("--threads", type=int, default=1, help="1 is what each worker of a run has")
    whole = commands.add_parser("model")
    whole.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    whole.add_argument("--blocks", type=int, default=16)
    whole.add_argument("--as", dest="algorithms", nargs="+", default=["lora", "auto"])
    whole.add_argument("--threads", type=int, default=torch.get_num_threads())
    alone = commands.add_parser("one")
    alone.add_argument("files", nargs=2, type=Path)
    alone.add_argument("algorithm")
    alone.add_argument("threads", type=int)
    options = parser.parse_args()
    if options.command is None:
        layers(_LARGEST, 1)
    elif options.command == "layers":
        layers(options.largest, options.threads)
    elif options.command == "model":
        model(options.folder, options.blocks, options.algorithms, options.threads)
    else:
        one(*options.files, options.algorithm, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
