"""``convert``: an adapter file in another number type, dialect or strength."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..model_files import BaseFile
from ..network import convert, load, save
from ..network.respelling import WRITABLE
from ..text import single_line
from ._shared import DTYPES, dtype_argument, print_path, weighted_file


def add_parser(subparsers: Any) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "convert",
        help="an adapter file in another number type, dialect or strength",
        description="Writes an adapter file again with the same effect. "
        "To change its algorithm or ranks, use combine.",
    )
    parser.add_argument(
        "file",
        metavar="FILE[:STRENGTH[:CLIP]]",
        type=weighted_file,
        help="a strength is stored in the factors, where the algorithm allows that",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="never replaced")
    parser.add_argument("--dialect", choices=WRITABLE, help="how layers are called (default: as in the file)")
    parser.add_argument(
        "--model",
        "--base",
        type=Path,
        metavar="MODEL",
        help="the model that was trained on: tells names of its layers",
    )
    parser.add_argument("--without-embeddings", action="store_true", help="leave out bundled embeddings")
    dtype_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Converts; prints the path that was written."""
    path, model, clip = args.file
    adapters = load(path)
    with ExitStack() as opened:
        known = None if args.model is None else opened.enter_context(BaseFile(args.model, [adapters]))
        converted = convert(
            adapters,
            dtype=DTYPES.get(args.dtype),
            dialect=args.dialect,
            strength_model=model,
            strength_clip=clip,
            known=known,
            title=args.output.stem,
            embeddings=not args.without_embeddings,
        )
    written = save(converted, args.output)
    for note in converted.notes[len(adapters.notes) :]:
        print(single_line(note, 400), file=sys.stderr)
    print_path(written)
    return 0
