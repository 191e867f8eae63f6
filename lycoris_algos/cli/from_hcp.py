"""``from-hcp``: HCP-Diffusion's files as adapter files for every other program."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import nullcontext
from pathlib import Path

from ..errors import LycorisError
from ..io import read_tensors
from ..model_files import BaseFile
from ..network import from_hcp, save
from ..network.respelling import WRITABLE
from ..text import listed, quoted
from ._shared import (
    DTYPES,
    base_argument,
    batch_arguments,
    batch_files,
    dtype_argument,
    print_path,
    wrapped,
)

_NAMED = re.compile(r"(unet|text_encoder)-(.+)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Makes one adapter file of HCP-Diffusion's unet-NAME and text_encoder-NAME. A file of several tables "
        "(lora, plugin, base) becomes several, called NAME-TABLE."
    )
    batch_arguments(parser)
    parser.add_argument("--dialect", choices=WRITABLE, default="kohya", help="how layers are called")
    parser.add_argument("--prefix", default="", help="what names of results begin with")
    parser.add_argument("--sdxl", action="store_true", help="SDXL, where no text encoder is there to tell")
    base_argument(parser, "needed for whole weights, which become changes of it; tells names of its layers")
    dtype_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Converts; prints what was written."""
    for name, files in _pairs(batch_files(args)).items():
        tensors = {part: read_tensors(path)[0] for part, path in files.items()}
        with nullcontext() if args.base is None else BaseFile(args.base) as known:
            made = from_hcp(tensors, name, args.dialect, known, dtype=DTYPES.get(args.dtype), sdxl=args.sdxl)
        args.output.mkdir(parents=True, exist_ok=True)
        for table, adapters in made.items():
            called = args.prefix + name + (f"-{table}" if len(made) > 1 else "")
            print_path(save(adapters, args.output / f"{called}.safetensors"))
    return 0


def _pairs(paths: list[Path]) -> dict[str, dict[str, Path]]:
    """{NAME: {"unet" or "text_encoder": file}}. Raises LycorisError for two files of one name."""
    pairs: dict[str, dict[str, Path]] = {}
    others: list[str] = []
    for path in paths:
        match = _NAMED.fullmatch(path.stem)
        if match is None:
            others.append(path.name)
        elif pairs.setdefault(match[2], {}).setdefault(match[1], path) is not path:
            first = pairs[match[2]][match[1]]
            raise LycorisError(f"{quoted(str(first))} and {quoted(str(path))} are of one name: give one")
    told = f"not called unet-NAME or text_encoder-NAME, and left alone: {listed(others)}"
    if not pairs:
        raise LycorisError(f"there is nothing to convert. {told}")
    if others:
        print(told, file=sys.stderr)
    return pairs
