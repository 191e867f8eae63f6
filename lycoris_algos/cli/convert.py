"""``convert``: an adapter file in another number type, dialect or strength."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from ..model_files import BaseFile
from ..network import convert, load, save
from ..network.respelling import WRITABLE
from ..text import single_line
from ._shared import (
    DTYPES,
    base_argument,
    dtype_argument,
    output_argument,
    print_path,
    weighted_file,
    wrapped,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Writes an adapter file again with the same effect. To change its algorithm or ranks, use combine."
    )
    parser.add_argument(
        "file",
        metavar="FILE[:STRENGTH[:CLIP]]",
        type=weighted_file,
        help="a strength is stored in the factors, where the algorithm allows that",
    )
    output_argument(parser)
    parser.add_argument("--dialect", choices=WRITABLE, help="how layers are called (default: as in the file)")
    base_argument(parser, "tells names of its layers", "--model")
    parser.add_argument("--without-embeddings", action="store_true", help="leave out bundled embeddings")
    dtype_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Converts; prints the path that was written."""
    path, model, clip = args.file
    adapters = load(path)
    with ExitStack() as opened:
        known = None if args.base is None else opened.enter_context(BaseFile(args.base, [adapters]))
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
