"""The command line: ``python -m lycoris_algos COMMAND …``, one module per command.

Each module has ``add_parser(subparsers)``, which declares its arguments, and ``run(args)``, which answers the
exit code. Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 refused or failed (with
the reason), 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from ..errors import LycorisError
from ..text import bounded
from . import combine, convert, extract, merge

COMMANDS = (merge, combine, extract, convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; answers the exit code."""
    parser = argparse.ArgumentParser(
        prog="lycoris_algos", description="LyCORIS adapters of every algorithm: merge, combine, convert."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may lack letters of a name
            stream.reconfigure(errors="replace")
    try:
        code: int = args.run(args)
    except (LycorisError, OSError) as error:
        print(bounded(f"lycoris_algos {args.command}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    return code
