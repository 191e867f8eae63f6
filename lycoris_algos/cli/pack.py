"""``pack``: embeddings into adapter files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import LycorisError
from ..io import gathered, name_and_step
from ..network import load, load_embedding, pack, save
from ..text import listed, quoted
from ._shared import MODEL_SUFFIXES, batch_arguments, batch_files, print_path, wrapped

#: What the names of bundles have before the step.
BUNDLE = "-bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Puts embeddings into adapter files, as A1111, OneTrainer and this pack read them. What was saved at "
        "one step of training belongs together: cat-300.safetensors and its embedding cat-300.pt become "
        "cat-bundle-300.safetensors, with the word cat."
    )
    batch_arguments(parser)
    parser.add_argument(
        "--embeddings",
        nargs="+",
        required=True,
        type=Path,
        metavar="FILE",
        help="embeddings, or folders of them; the name of a file without its step is the word",
    )
    parser.add_argument(
        "--all", action="store_true", help="all embeddings into every file, whatever the step"
    )


def run(args: argparse.Namespace) -> int:
    """Packs; prints what was written."""
    words = gathered(args.embeddings, MODEL_SUFFIXES, recursive=args.recursive)
    for path, own in _together(batch_files(args), words, everything=args.all).items():
        embeddings = {}
        for file in own:
            word, _ = name_and_step(file.stem)
            if word in embeddings:
                raise LycorisError(f"two of the embeddings for {quoted(path.name)} are called {quoted(word)}")
            if "." in word or not word:
                print(f"some programs cannot read the word {quoted(word)} of a bundle", file=sys.stderr)
            embeddings[word or file.stem] = load_embedding(file)
        name, step = name_and_step(path.stem)
        called = f"{name}{BUNDLE}" + ("" if step is None else f"-{step}")
        args.output.mkdir(parents=True, exist_ok=True)
        packed = pack(load(path), embeddings, title=called)
        print_path(save(packed, args.output / f"{called}.safetensors"))
    return 0


def _together(files: list[Path], words: list[Path], *, everything: bool) -> dict[Path, list[Path]]:
    """{adapter file: embeddings}. Raises LycorisError where two files have one step, or nothing fits."""
    if everything:
        return dict.fromkeys(files, words)
    of_step: dict[int | None, Path] = {}
    for path in files:
        step = name_and_step(path.stem)[1]
        if step in of_step:
            raise LycorisError(
                f"{quoted(of_step[step].name)} and {quoted(path.name)} are of one step, so that embeddings "
                "cannot be told apart: give one of them, or all embeddings to each (--all)"
            )
        of_step[step] = path
    together: dict[Path, list[Path]] = {}
    left: list[str] = [path.name for path in words if name_and_step(path.stem)[1] not in of_step]
    for word in words:
        step = name_and_step(word.stem)[1]
        if step in of_step:
            together.setdefault(of_step[step], []).append(word)
    left += [path.name for path in files if path not in together]
    told = f"nothing is of the same step: {listed(left)}"
    if not together:
        raise LycorisError(f"there is nothing to pack, {told}")
    if left:
        print(f"left alone, {told}", file=sys.stderr)
    return together
