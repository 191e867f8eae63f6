"""The vocabulary that commands share: options that mean the same in all of them, and progress on stderr."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch

from ..io import gathered
from ..network import Multipliers, StackEntry, load
from ..ops.dtypes import STORED_DTYPES
from ..text import quoted, single_line

DTYPES: dict[str, torch.dtype] = {name.replace(" ", "-"): dtype for name, dtype in STORED_DTYPES.items()}
#: Columns of texts that argparse does not wrap.
WIDTH = 79
#: What files that may hold adapters end in.
MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".bin")


def wrapped(text: str) -> str:
    """A description for ``--help``."""
    return textwrap.fill(text, WIDTH)


def stack_argument(parser: argparse.ArgumentParser) -> None:
    """``FILE[:STRENGTH[:CLIP]] …``: adapter files, each with its strengths."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE[:STRENGTH[:CLIP]]",
        type=weighted_file,
        help="adapter files, in order of application",
    )


def output_argument(parser: argparse.ArgumentParser) -> None:
    """``-o FILE``: what is written."""
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="never replaced")


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    """``FILE …`` and folders of them, all of whose results go into the folder ``-o``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files, or folders of them")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FOLDER", help="made if it is not there"
    )
    parser.add_argument("--recursive", action="store_true", help="also files in folders within the folders")


def batch_files(args: argparse.Namespace, suffixes: Collection[str] = MODEL_SUFFIXES) -> list[Path]:
    """The files that ``batch_arguments`` name."""
    return gathered(args.files, suffixes, recursive=args.recursive)


def base_argument(parser: argparse.ArgumentParser, use: str, *aliases: str) -> None:
    """``--base MODEL``: the model that was trained on, and what ``use`` it is."""
    parser.add_argument(
        "--base",
        *aliases,
        dest="base",
        type=Path,
        metavar="MODEL",
        help=f"the model that was trained on: {use}",
    )


def plan_argument(parser: argparse.ArgumentParser) -> None:
    """``--plan``: nothing is written."""
    parser.add_argument("--plan", action="store_true", help="print what would be done, and stop")


def quiet_argument(parser: argparse.ArgumentParser) -> None:
    """``-q``: only the path of what was written."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no report")


def dtype_argument(parser: argparse.ArgumentParser) -> None:
    """``--dtype``: the number type of the result."""
    parser.add_argument(
        "--dtype", choices=DTYPES, help="number type of the result (default: that of the input)"
    )


def device_argument(parser: argparse.ArgumentParser) -> None:
    """``--device``: where the work is done."""
    parser.add_argument(
        "--device",
        type=_device,
        default=torch.device("cpu"),
        metavar="DEVICE",
        help="where to compute, e.g. cuda (default: cpu)",
    )


def multipliers_argument(parser: argparse.ArgumentParser) -> None:
    """``--multipliers``: rules for blocks and kinds of layers, of all files."""
    parser.add_argument(
        "--multipliers",
        default="",
        metavar="RULES",
        help="multipliers block by block on top of the strengths, such as 'double.0-9=0.5, attn.k=0, te=0'",
    )


def stack_of(files: Iterable[tuple[Path, float, float]], multipliers: str = "") -> list[StackEntry]:
    """The files that ``weighted_file`` read, loaded, with the same rules for all of them."""
    rules = Multipliers.parse(multipliers)
    return [StackEntry(load(path), model, clip).with_multipliers(rules) for path, model, clip in files]


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ValueError) as error:  # PyTorch has many words for "there is none"
        raise argparse.ArgumentTypeError(
            f"this machine has no device {quoted(text)} to compute on"
        ) from error
    return device


def weighted_file(text: str) -> tuple[Path, float, float]:
    """FILE, FILE:STRENGTH or FILE:STRENGTH:CLIP_STRENGTH. Any other colon is part of the name."""
    name = text
    numbers: list[float] = []
    while len(numbers) < 2:
        head, colon, tail = name.rpartition(":")
        try:
            number = float(tail)
        except ValueError:
            break
        if not colon or not head:
            break
        name, numbers = head, [number, *numbers]
    model = numbers[0] if numbers else 1.0
    return Path(name), model, numbers[1] if len(numbers) > 1 else model


def print_path(path: Path) -> None:
    """Prints what was written, to the letter for scripts, unless a terminal would obey a part of it."""
    text = str(path)
    print(text if text.isprintable() else single_line(text, len(text)))


def progress_on_stderr(quiet: bool) -> Callable[[int, int, str], None]:
    """A line that is written over on a terminal; nothing where stderr is a file or ``quiet`` is asked for."""
    shown = not quiet and sys.stderr.isatty()

    def step(done: int, total: int, what: str) -> None:
        if shown:
            end = "\n" if done == total else ""
            line = f"{min(done + 1, total)}/{total} {single_line(what, 60)}"
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)

    return step
