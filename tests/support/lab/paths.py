"""Where everything of the lab lies: one folder, so that deleting it leaves nothing behind.

Two environment variables move things: LYCORIS_LAB names the lab's folder (default: `.host` in the
repository) and COMFYUI_PATH names an existing ComfyUI to test against instead of the one the lab unpacks.
Standard library only.
"""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
"""This repository, which is also the node pack."""


def _from_environment(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "")
    return Path(value).expanduser().resolve() if value else default


LAB = _from_environment("LYCORIS_LAB", REPO / ".host")
VENV = LAB / "venv"
COMFYUI_IS_OURS = not os.environ.get("COMFYUI_PATH")
"""True when the lab unpacks ComfyUI itself, False when COMFYUI_PATH names somebody else's."""
COMFYUI = _from_environment("COMFYUI_PATH", LAB / "ComfyUI")
MODELS = LAB / "models"
BASE = LAB / "base"
"""The server's base directory of `make demo` and `make serve`; tests make their own."""
DEMO = LAB / "demo"

WORKFLOWS = REPO / "tests" / "workflows"
"""Workflows in API format: what the server is given."""
EXAMPLE_WORKFLOWS = REPO / "example_workflows"
"""The same workflows in the format of the web page: what users open."""


def venv_python() -> Path:
    """The interpreter of the lab's virtual environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def require_comfyui() -> Path:
    """ComfyUI's folder. Raises RuntimeError with advice when there is no ComfyUI in it."""
    if (COMFYUI / "main.py").is_file():
        return COMFYUI
    advice = "run `make test` or `make demo` once" if COMFYUI_IS_OURS else "see COMFYUI_PATH"
    raise RuntimeError(f"There is no ComfyUI in {COMFYUI}: {advice}.")


def host_environment() -> dict[str, str]:
    """The environment for ComfyUI's server.

    It does not litter source folders with bytecode, asks no model hub for anything, and computes on one
    thread: that makes results repeatable and leaves a shared machine usable.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.update(
        PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1", DO_NOT_TRACK="1"
    )
    return environment


def lab_environment() -> dict[str, str]:
    """The environment for a child process that imports `lab`."""
    environment = host_environment()
    support = str(REPO / "tests" / "support")
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([support, inherited] if inherited else [support])
    return environment
