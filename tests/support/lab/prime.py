"""Make ComfyUI importable in this process, on the CPU.

ComfyUI reads its options from `sys.argv` at the first import, and would otherwise look for a graphics card.
So this runs before any import of `comfy`. It is for programs and test sessions that use ComfyUI's classes
without a server; the server has a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

from lab import paths


def prime_comfy() -> None:
    """Put ComfyUI on the path and tell it to compute on the CPU; doing it again changes nothing.

    Raises RuntimeError when ComfyUI is missing, or was imported before without this.
    """
    folder = str(paths.require_comfyui())
    if folder in sys.path:
        return
    if "comfy" in sys.modules:
        raise RuntimeError("ComfyUI was imported before prime_comfy() could choose the CPU.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, folder)
    arguments = sys.argv
    sys.argv = [arguments[0] if arguments else "lab", "--cpu"]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = arguments
    with contextlib.suppress(ImportError):  # newer hosts have it; main.py starts it before all else, too
        importlib.import_module("comfy_aimdo.control").init("cuda")
