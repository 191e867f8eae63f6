"""``inspect``: what adapter files are and do."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

from ..inspection import Detail, View, inspect, save_picture, text_of
from ..model_files import BaseFile
from ..network import StackEntry, load, outline
from ..text import single_line
from ._shared import base_argument, device_argument, progress_on_stderr, stack_argument, wrapped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Says which algorithm a file is, whether it fits a model, where its strength sits, how files meet, "
        "and what number types leave of them. An overview reads headers only."
    )
    stack_argument(parser)
    base_argument(parser, "tells what fits, and norms relative to its weights")
    _choice(parser, "--view", View, "what to look at")
    _choice(parser, "--detail", Detail, "how finely")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a text")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf; never replaced"
    )
    device_argument(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _choice(parser: argparse.ArgumentParser, name: str, kind: type[Enum], what: str) -> None:
    """An option whose default is the first of ``kind``."""
    values = [item.value for item in kind]
    parser.add_argument(name, choices=values, default=values[0], help=f"{what} (default: {values[0]})")


def run(args: argparse.Namespace) -> int:
    """Inspects; prints the text or the document."""
    view = View(args.view)
    read = outline if view is View.OVERVIEW else load
    stack = [StackEntry(read(path), model, clip) for path, model, clip in args.files]
    with ExitStack() as opened:
        sets = [entry.adapters for entry in stack]
        known = None if args.base is None else opened.enter_context(BaseFile(args.base, sets))
        found = inspect(stack, view, known, args.device, progress_on_stderr(args.quiet))
    print(found.to_json() if args.json else text_of(found, Detail(args.detail)))
    if args.figure is not None:
        save_picture(found, args.figure)
        print(f"drawn: {single_line(str(args.figure), 400)}", file=sys.stderr)
    return 0
