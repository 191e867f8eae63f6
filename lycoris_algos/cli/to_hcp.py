"""``to-hcp``: adapter files as HCP-Diffusion has them."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from ..io import free_together, save_tensors
from ..model_files import BaseFile
from ..network import convert, load, to_hcp
from ..network.hcp import TABLES
from ..network.recipe import RECIPE, source_record
from ._shared import (
    DTYPES,
    base_argument,
    batch_arguments,
    batch_files,
    dtype_argument,
    print_path,
    wrapped,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = wrapped(
        "Writes adapter files for HCP-Diffusion: unet-NAME.safetensors and text_encoder-NAME.safetensors of "
        "each. Names of Stable Diffusion 1, 2 and XL are known without a model."
    )
    batch_arguments(parser)
    parser.add_argument(
        "--as",
        dest="table",
        choices=TABLES,
        default="plugin",
        help="lora: HCP's own LoRA; plugin: LyCORIS modules of any algorithm (default); base: the whole "
        "changed weights, for which --base is needed",
    )
    base_argument(parser, "tells names of its layers, and gives the weights of --as base")
    dtype_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Converts; prints what was written."""
    for path in batch_files(args):
        adapters = load(path)
        if args.dtype is not None:
            adapters = convert(adapters, dtype=DTYPES[args.dtype])
        with nullcontext() if args.base is None else BaseFile(args.base, [adapters]) as known:
            files = to_hcp(adapters, args.table, known)
        recipe = {"tool": "lycoris_algos to-hcp", "source": source_record(adapters)}
        metadata = {RECIPE: json.dumps(recipe, ensure_ascii=False)}
        args.output.mkdir(parents=True, exist_ok=True)
        wanted = [args.output / f"{name}-{path.stem}.safetensors" for name in files]
        for target, tensors in zip(free_together(wanted), files.values(), strict=True):
            print_path(save_tensors(Path(target), tensors, metadata))
    return 0
