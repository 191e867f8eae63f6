"""The command line: ``python -m lycoris_algos COMMAND …``, one module per command.

Each module has ``add_arguments(parser)``, which declares its arguments, and ``run(args)``, which answers the
exit code. A module is imported when its command is called: PyTorch takes seconds, and ``--help`` does not
need it. Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 refused or failed (with
the reason), 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .. import __version__
from ..errors import LycorisError
from ..text import bounded

#: Command, which is also the name of its module: what it does.
COMMANDS = {
    "inspect": "what adapter files are and do",
    "merge": "adapter files into a checkpoint",
    "combine": "several adapter files into one, or one resized",
    "extract": "an adapter file out of two models",
    "convert": "an adapter file in another number type, dialect or strength",
    "pack": "embeddings into adapter files",
    "unpack": "embeddings of adapter files into files of their own",
    "to-hcp": "adapter files as HCP-Diffusion has them",
    "from-hcp": "HCP-Diffusion's files as adapter files",
}
_WORDS = """\
words that mean the same in every command:
  FILE[:STRENGTH[:CLIP]]  an adapter file, how strong it is, and how strong in the text encoders
  -o, --output            what is written; an existing file is never replaced
  --base                  the model that was trained on
  --dtype, --dialect      number type and spelling of the result
  --plan                  print what would be done, and stop
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; answers the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="lycoris_algos",
        description="LyCORIS adapters of every algorithm, from file to file.",
        epilog=_WORDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((word for word in arguments if not word.startswith("-")), None)
    command: Any = None
    for name, text in COMMANDS.items():
        own = subparsers.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == called:
            command = import_module(f".{name.replace('-', '_')}", __name__)
            command.add_arguments(own)
    args = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may lack letters of a name
            stream.reconfigure(errors="replace")
    try:
        code: int = command.run(args)
    except (LycorisError, OSError) as error:
        print(bounded(f"lycoris_algos {args.command}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    return code
