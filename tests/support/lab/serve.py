"""`make serve [PORT=8188]`: ComfyUI with this pack and the tiny models, open in the browser until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
import time

from lab import adapters, models, paths
from lab.server import ComfyServer, ServerError, stop_cleanly_on_sigterm


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.serve", description="Open ComfyUI with this pack.")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 8188))
    port = parser.parse_args(arguments).port
    stop_cleanly_on_sigterm()
    try:
        models.ensure(models.FOR_DEMO)
        adapters.ensure()
        print("Starting ComfyUI on the CPU ...", flush=True)
        with ComfyServer(paths.BASE, port=port) as server:
            print(f"\n  Open {server.url}   (Ctrl-C stops it; the log follows)\n", flush=True)
            _follow_log(server)
            print("ComfyUI ended.", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0
    except (ServerError, RuntimeError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _follow_log(server: ComfyServer) -> None:
    """Print the log as it grows, until the server ends."""
    with server.log.open(encoding="utf-8", errors="replace") as log:
        while server.is_running():
            sys.stdout.write(log.read())
            sys.stdout.flush()
            time.sleep(0.2)
        sys.stdout.write(log.read())


if __name__ == "__main__":
    sys.exit(main())
