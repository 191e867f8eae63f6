"""``unpack``: the embeddings of adapter files into files of their own."""

from __future__ import annotations

import argparse
import sys

from ..io import name_and_step, possible_name, save_tensors
from ..network import load, save, unpack
from ..text import quoted
from ._shared import batch_arguments, batch_files, print_path, wrapped
from .pack import BUNDLE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Takes embeddings out of bundles: writes each as WORD.safetensors (WORD-STEP, if the bundle has a "
        "step), and the adapter file without them."
    )
    batch_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Unpacks; prints what was written."""
    for path in batch_files(args):
        adapters = load(path)
        if not adapters.embeddings:
            print(f"left alone, it has no embeddings: {quoted(path.name)}", file=sys.stderr)
            continue
        name, step = name_and_step(path.stem)
        tail = "" if step is None else f"-{step}"
        called = name.removesuffix(BUNDLE) + tail
        rest, words = unpack(adapters, title=called)
        args.output.mkdir(parents=True, exist_ok=True)
        print_path(save(rest, args.output / f"{called}.safetensors"))
        for word, tensors in words.items():
            own = f"{possible_name(word) or 'embedding'}{tail}.safetensors"
            print_path(save_tensors(args.output / own, tensors))
    return 0
