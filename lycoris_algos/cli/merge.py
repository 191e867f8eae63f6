"""``merge``: adapter files into a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import __version__
from ..merge.bake import bake_report, plan_bake, plan_report, run_bake
from ..model_files import checkpoint_header
from ._shared import (
    DTYPES,
    device_argument,
    dtype_argument,
    multipliers_argument,
    output_argument,
    plan_argument,
    print_path,
    progress_on_stderr,
    quiet_argument,
    stack_argument,
    stack_of,
    wrapped,
)

_UNMATCHED = ("nothing", "anything", "never")
_OVERFLOW = ("refuse", "report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Writes a checkpoint with adapters of any algorithm baked into its weights, tensor by tensor: memory "
        "does not grow with the model. What was written is read back and checked."
    )
    parser.add_argument(
        "base",
        type=Path,
        metavar="BASE",
        help="checkpoint, diffusion model or text encoder: a file, the index of shards, or a folder of "
        "diffusers; several files are written as a folder",
    )
    stack_argument(parser)
    output_argument(parser)
    dtype_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="of fp8's rounding (default: 0)")
    parser.add_argument(
        "--refuse",
        choices=_UNMATCHED,
        default="nothing",
        help="stop if nothing of a file matches (default), if anything of it does not, or never",
    )
    parser.add_argument(
        "--overflow",
        choices=_OVERFLOW,
        default="refuse",
        help="stop if the number type cannot hold a weight (default), or write it and say so",
    )
    multipliers_argument(parser)
    device_argument(parser)
    plan_argument(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Merges; prints the report and the path."""
    stack = stack_of(args.files, args.multipliers)
    plan = plan_bake(
        checkpoint_header(args.base),
        stack,
        DTYPES.get(args.dtype),
        base=args.base.resolve().name,
        seed=args.seed,
        program=f"lycoris_algos {__version__}",
    )
    if args.refuse != "never":
        plan.require(everything=args.refuse == "anything")
    if args.plan:
        print(plan_report(plan))
        return 0
    progress = progress_on_stderr(args.quiet)
    result = run_bake(
        plan,
        args.base,
        args.output,
        device=args.device,
        progress=progress,
        refuse_overflow=args.overflow == "refuse",
    )
    if not args.quiet:
        print(bake_report(result))
    print_path(result.path)
    return 0
