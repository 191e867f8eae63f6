"""``combine``: several adapter files into one, or one resized."""

from __future__ import annotations

import argparse
import textwrap

from ..merge.combine import (
    METHODS,
    PARAMETERS,
    SAME,
    CombineOptions,
    RankKind,
    RankRule,
    explained,
    outputs,
    plan_combine,
    run_combine,
)
from ..model_files import BaseFile
from ..network import StackEntry, save
from ._shared import (
    DTYPES,
    WIDTH,
    base_argument,
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

# Option: (rule, type, help).
_RULES: dict[str, tuple[RankKind, type, str]] = {
    "rank": (RankKind.FIXED, int, "so many ranks on every layer"),
    "energy": (RankKind.ENERGY, float, "as many ranks as keep this share of each layer, 0 to 1"),
    "budget": (RankKind.BUDGET, float, "as many ranks as fit in a file of so many MB"),
    "sv-ratio": (RankKind.SV_RATIO, float, "singular values above the largest divided by this (kohya)"),
    "sv-fro": (RankKind.SV_FRO, float, "this share of the Frobenius norm, 0 to 1 (kohya)"),
    "sv-cumulative": (RankKind.SV_CUMULATIVE, float, "this share of the sum of singular values (kohya)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Combines adapter files of any algorithm on their deltas. With one file: resizes or converts it. "
        "Ranks are exact unless a rule is given."
    )
    parser.epilog = _methods()
    stack_argument(parser)
    output_argument(parser)
    parser.add_argument("--method", choices=METHODS, default="sum", help="see below (default: sum)")
    parser.add_argument(
        "--as",
        dest="form",
        choices=outputs(),
        default=SAME,
        help="algorithm of the result (default: same)",
    )
    rules = parser.add_mutually_exclusive_group()
    for name, (_, kind, text) in _RULES.items():
        rules.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    parser.add_argument(
        "--max-rank",
        type=int,
        default=0,
        metavar="N",
        help="the most that a rule may find, 0 for any (default)",
    )
    parser.add_argument(
        "--conv-rank",
        type=int,
        default=0,
        metavar="N",
        help="on convolutions in the place of --rank or --max-rank, 0 for the same (default)",
    )
    for parameter in PARAMETERS.values():
        parser.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            type=type(parameter.default),
            default=parameter.default,
            help=f"{explained(parameter)} (default: {parameter.default:g})",
        )
    parser.add_argument("--lambda", dest="scaling", type=float, default=1.0, help="factor on the result")
    parser.add_argument("--factor", type=int, default=0, help="LoKr's factor, 0 to choose (default)")
    base_argument(parser, "needed for DoRA, OFT, BOFT, GLoRA, (IA)³ …")
    parser.add_argument(
        "--live-order", action="store_true", help="sum: as a stack does it, one after another"
    )
    multipliers_argument(parser)
    device_argument(parser)
    plan_argument(parser)
    quiet_argument(parser)
    dtype_argument(parser)


def _methods() -> str:
    """All of them, for ``--help``."""
    lines = [
        f"{found.name}: {found.summary}" + (f" ({found.reference})" if found.reference else "")
        for found in METHODS.values()
    ]
    wrap = textwrap.TextWrapper(WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(["methods:", *map(wrap.fill, lines)])


def run(args: argparse.Namespace) -> int:
    """Combines; prints the report."""
    stack = stack_of(args.files, args.multipliers)
    options = CombineOptions(
        method=args.method,
        scaling=args.scaling,
        output=args.form,
        rank=_rule(args),
        dtype=DTYPES.get(args.dtype),
        factor=args.factor,
        live_order=args.live_order,
        **{name: getattr(args, name) for name in PARAMETERS},
    )
    if args.base is None:
        return _combine(args, stack, options, None)
    with BaseFile(args.base, [entry.adapters for entry in stack]) as base:
        return _combine(args, stack, options, base)


def _combine(
    args: argparse.Namespace,
    stack: list[StackEntry],
    options: CombineOptions,
    base: BaseFile | None,
) -> int:
    plan = plan_combine(stack, options, base)
    if args.plan:
        print(plan)
        return 0
    combined = run_combine(plan, args.device, progress_on_stderr(args.quiet), name=args.output.stem)
    path = save(combined.adapters, args.output)
    if not args.quiet:
        print(combined.report())
    print_path(path)
    return 0


def _rule(args: argparse.Namespace) -> RankRule:
    for name, (kind, _, _) in _RULES.items():
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            return RankRule(kind, float(value), args.max_rank, args.conv_rank)
    return RankRule(most=args.max_rank, convolution=args.conv_rank)
