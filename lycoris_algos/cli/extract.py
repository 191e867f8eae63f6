"""``extract``: an adapter file out of two models."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import BadValueError
from ..extract import ALGORITHMS, ExtractOptions, plan_extract, rule_for, run_extract
from ..model_files import BaseFile
from ..network import save
from ..network.respelling import WRITABLE
from ..ops.ranks import RankRule
from ._shared import (
    DTYPES,
    device_argument,
    output_argument,
    plan_argument,
    print_path,
    progress_on_stderr,
    quiet_argument,
    wrapped,
)

# As in LyCORIS' extract_locon.py: the mode, and the option that its number has for linear layers and for
# convolutions, with the default there.
_NUMBERS = {
    "fixed": "dim",
    "threshold": "threshold",
    "ratio": "ratio",
    "quantile": "quantile",
    "energy": "energy",
}
_DEFAULTS = {"dim": 32, "energy": 0.95}
_MODES = ("full", *_NUMBERS, "noise-floor", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Stores what a tuned model has more than its base, tensor by tensor: memory does not grow with the "
        "models. Options that LyCORIS' extract_locon.py has are called as there."
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="the model that was tuned")
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="what came of it")
    output_argument(parser)
    parser.add_argument(
        "--as",
        dest="algorithm",
        choices=[name.replace(" ", "-") for name in ALGORITHMS],
        default="lora",
        help="what changes are stored as; auto chooses for each layer (default: lora)",
    )
    parser.add_argument(
        "--mode", choices=_MODES, default="fixed", help="how ranks are found (default: fixed)"
    )
    for kind, layers in (("linear", "linear layers and 1×1 convolutions"), ("conv", "other convolutions")):
        for mode, option in _NUMBERS.items():
            parser.add_argument(
                f"--{kind}_{option}",
                f"--{kind}-{option}",
                type=int if option == "dim" else float,
                default=_DEFAULTS.get(option),
                metavar="N" if option == "dim" else "X",
                help=f"for --mode {mode}: of {layers}",
            )
    parser.add_argument("--size", type=float, metavar="MB", help="for --mode size: of the whole file")
    parser.add_argument("--factor", type=int, default=0, help="LoKr's factor, 0 to choose (default)")
    parser.add_argument(
        "--use_sparse_bias",
        "--use-sparse-bias",
        action="store_true",
        help="store the largest elements of what is left beside each layer",
    )
    parser.add_argument(
        "--sparsity", type=float, default=0.98, help="the share of them that is not stored (default: 0.98)"
    )
    parser.add_argument(
        "--disable_cp",
        "--disable-cp",
        action="store_true",
        help="no Tucker kernels, as --as lora (LyCORIS has them by default, here --as tucker-lora asks)",
    )
    for name in ("include", "exclude"):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{name} layers whose name holds this, or matches it with * and ? (again for more)",
        )
    parser.add_argument("--no-text-encoders", action="store_true", help="the diffusion model alone")
    parser.add_argument("--no-norms-and-biases", action="store_true", help="matrices and kernels alone")
    parser.add_argument("--dialect", choices=WRITABLE, help="spelling of the layers (default: the usual one)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="number type (default: fp16)")
    device_argument(parser)
    parser.add_argument(
        "--safetensors", action="store_true", help="accepted for extract_locon.py's sake: always so"
    )
    plan_argument(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Extracts; prints the report and the path."""
    algorithm = "full" if args.mode == "full" else args.algorithm.replace("-", " ")
    if args.disable_cp and algorithm == "tucker lora":
        algorithm = "lora"
    options = ExtractOptions(
        algorithm=algorithm,
        linear=_rule(args, "linear"),
        convolution=_rule(args, "conv"),
        factor=args.factor,
        sparsity=args.sparsity if args.use_sparse_bias else None,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        text_encoders=not args.no_text_encoders,
        norms_and_biases=not args.no_norms_and_biases,
        dtype=DTYPES[args.dtype],
        dialect=args.dialect,
    )
    with BaseFile(args.base) as base, BaseFile(args.tuned) as tuned:
        plan = plan_extract(base, tuned, options, (args.base.name, args.tuned.name))
        if args.plan:
            print(plan)
            return 0
        extracted = run_extract(plan, args.device, progress_on_stderr(args.quiet), name=args.output.stem)
    path = save(extracted.adapters, args.output)
    if not args.quiet:
        print(extracted.report())
    print_path(path)
    return 0


def _rule(args: argparse.Namespace, kind: str) -> RankRule:
    """The rule for layers of ``kind``. Raises BadValueError where the mode lacks its number."""
    if args.mode == "full":
        return rule_for("fixed", 1)
    if args.mode == "noise-floor":
        return rule_for("noise floor", 0)
    if args.mode == "size":
        if args.size is None:
            raise BadValueError("--mode size needs --size, the megabytes of the whole file")
        return rule_for("size", args.size)
    option = _NUMBERS[args.mode]
    value = getattr(args, f"{kind}_{option}")
    if value is None:
        raise BadValueError(f"--mode {args.mode} needs --{kind}_{option}")
    return rule_for(args.mode, value)
