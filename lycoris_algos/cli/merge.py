"""``merge``: adapter files into a checkpoint."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..io import read_header
from ..merge.bake import BakeEntry, bake_report, plan_bake, plan_report, run_bake
from ..network import load
from ._shared import progress_on_stderr, weighted_file

_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
_UNMATCHED = ("nothing", "anything", "never")
# Seconds between two lines of progress: small models would scroll by.
_PAUSE = 0.1


def add_parser(subparsers: Any) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "merge",
        help="adapter files into a checkpoint",
        description="Writes a checkpoint with adapters of any algorithm baked into its weights, tensor by "
        "tensor: memory does not grow with the model. What was written is read back and checked.",
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="checkpoint, diffusion model or text encoder")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE[:STRENGTH[:CLIP]]",
        type=weighted_file,
        help="adapter files, in order of application",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="never replaced")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="number type of the result (default: that of each tensor); fp8 is rounded at random",
    )
    parser.add_argument("--seed", type=int, default=0, help="of fp8's rounding (default: 0)")
    parser.add_argument(
        "--refuse",
        choices=_UNMATCHED,
        default="nothing",
        help="stop if nothing of a file matches (default), if anything of it does not, or never",
    )
    parser.add_argument("--device", default="cpu", help="where to compute, e.g. cuda (default: cpu)")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and stop")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merges; prints the report and the path."""
    from .. import __version__

    stack = [BakeEntry(load(path), model, clip) for path, model, clip in args.files]
    plan = plan_bake(
        read_header(args.base),
        stack,
        _DTYPES.get(args.dtype),
        base=args.base.name,
        seed=args.seed,
        program=f"lycoris_algos {__version__}",
    )
    if args.refuse != "never":
        plan.require(everything=args.refuse == "anything")
    if args.plan:
        print(plan_report(plan))
        return 0
    progress = _now_and_then(progress_on_stderr(args.quiet))
    result = run_bake(plan, args.base, args.output, device=args.device, progress=progress)
    if not args.quiet:
        print(bake_report(result))
    print(result.path)
    return 0


def _now_and_then(progress: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """``progress`` in megabytes, at most every ``_PAUSE`` seconds and at the end."""
    last = 0.0

    def step(done: int, total: int, what: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > _PAUSE:
            last = time.monotonic()
            progress(max(done // 10**6 - 1, 0), max(total // 10**6, 1), what)

    return step
