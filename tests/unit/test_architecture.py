"""The shape of the project, held by walking its syntax trees: who may import whom.

Every check is a function of source text and is itself tested on text that breaks it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from imports import DOORS, FOUNDATION, LIBRARY, NODES, ROOT, imports, package_of, piece_of

#: Everything below the jobs that use it.
_ROOMS = ("ops", "structures", "adapters", "io", "formats", "models", "network", "model_files", "deltas")
#: What each piece of the library may import of the others; everyone may import errors and _types.
ALLOWED: dict[str, set[str]] = {
    "text": set(),
    "errors": {"text"},
    "_types": set(),
    "ops": set(),
    "structures": {"ops"},
    "adapters": {"ops", "structures"},
    "io": set(),
    "formats": set(),
    "models": set(),
    "network": {"ops", "adapters", "io", "formats", "models"},
    "model_files": {"ops", "structures", "adapters", "io", "formats", "models", "network"},
    "deltas": {"ops", "structures", "adapters", "network"},
    "inspection": {*_ROOMS},
    "merge": {*_ROOMS, "inspection"},
    "extract": {*_ROOMS},
    "training": {*_ROOMS} - {"model_files"},
}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "server",
    "execution",
}
#: Third-party packages of the library.
LIBRARY_NEEDS = {"torch", "numpy", "regex", "typing_extensions"}
#: What a piece of it imports late, and does without where it is not installed.
MAY_USE = {"inspection": {"matplotlib"}}


def library_problems(source: str, package: str, piece: str) -> list[str]:
    """What is wrong with the imports of a library module in ``package``, which belongs to ``piece``."""
    problems = []
    for level, name in imports(source, package):
        top = name.split(".")[0]
        if level == 0:
            if top in {"lycoris_algos", "tests"} | HOST:
                problems.append(f"imports {name}")
            elif top not in sys.stdlib_module_names | LIBRARY_NEEDS | MAY_USE.get(piece, set()):
                problems.append(f"needs the package {top}")
            continue
        if not name.startswith("pack.lycoris_algos"):
            problems.append(f"imports {name} from outside the library")
            continue
        other = name.removeprefix("pack.lycoris_algos").lstrip(".").split(".")[0]
        if piece in DOORS or other == piece or (other in FOUNDATION and piece not in FOUNDATION):
            continue
        if piece not in ALLOWED:
            problems.append(f"is in '{piece}', which ALLOWED does not list")
        elif other not in ALLOWED[piece]:
            problems.append(f"'{piece}' may not import '{other or 'the package itself'}'")
        elif other == "adapters" and name != "pack.lycoris_algos.adapters":
            problems.append(f"'{piece}' imports {name}: single algorithms are reached through the registry")
    return problems


def nodes_problems(source: str, package: str, *, door: bool = False) -> list[str]:
    """The same for a module of nodes/ or nodes/host/; ``door`` is nodes/__init__.py, which has them all."""
    in_host = package.startswith("pack.nodes.host")
    problems = []
    for level, name in imports(source, package):
        top = name.split(".")[0]
        if level == 0:
            allowed = HOST - {"nodes"} | {"torch"} if in_host else {"comfy_api"}
            if top not in sys.stdlib_module_names | allowed:
                problems.append(f"imports {name}")
        elif in_host and not name.startswith(("pack.nodes.host", "pack.lycoris_algos")):
            problems.append(f"nodes/host imports {name}")
        elif not name.startswith(("pack.nodes" if door else "pack.nodes.host", "pack.lycoris_algos")):
            problems.append(f"nodes imports {name}")
        elif name.startswith("pack.lycoris_algos.") and any(part.startswith("_") for part in name.split(".")):
            problems.append(f"imports the private {name}")
    return problems


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_of_the_library_run_one_way(path: Path) -> None:
    assert library_problems(path.read_text(encoding="utf-8"), package_of(path), piece_of(path)) == []


@pytest.mark.parametrize("path", sorted(NODES.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nodes_import_the_library_and_the_host_folder(path: Path) -> None:
    door = path == NODES / "__init__.py"
    assert nodes_problems(path.read_text(encoding="utf-8"), package_of(path), door=door) == []


@pytest.mark.parametrize(
    ("piece", "source"),
    [
        ("ops", "import comfy.lora"),
        ("ops", "from comfy import lora"),
        ("ops", "import folder_paths"),
        ("ops", "def late():\n    import folder_paths"),
        ("ops", "from lycoris_algos import errors"),
        ("ops", "import lycoris_algos.errors"),
        ("ops", "import scipy"),
        ("ops", "def late():\n    import matplotlib"),
        ("io", "from safetensors import safe_open"),
        ("ops", "from ..adapters import LayerAdapter"),
        ("ops", "from .. import adapters"),
        ("ops", "from ..io.reader import read_all"),
        ("io", "from ..formats import split_key"),
        ("formats", "from ..io import read_tensors"),
        ("formats", "from .. import LayerAdapter"),
        ("structures", "from ..adapters import LayerAdapter"),
        ("adapters", "from ..network import load"),
        ("merge", "from ..adapters.lokr import LoKr"),
        ("network", "from ..adapters._base import Algorithm"),
        ("network", "from ..merge import plan"),
        ("network", "from ..model_files import LayerIndex"),
        ("models", "from ..model_files import LayerIndex"),
        ("model_files", "from ..merge import plan"),
        ("network", "from ..inspection import describe"),
        ("inspection", "from ..merge import plan"),
        ("errors", "from .ops import rows"),
        ("ops", "from ...nodes import apply"),
        ("newcomer", "from ..ops import rows"),
    ],
)
def test_the_walk_sees_a_wrong_import(piece: str, source: str) -> None:
    package = "pack.lycoris_algos" if piece == "errors" else f"pack.lycoris_algos.{piece}"
    assert library_problems(source, package, piece)


@pytest.mark.parametrize(
    ("piece", "source"),
    [
        ("ops", "from ..errors import LycorisError"),
        ("ops", "from . import rows\nimport torch\nfrom collections.abc import Mapping"),
        (
            "adapters",
            "from ..ops.rows import matrix_view\nfrom ._base import Algorithm\nfrom .lora import LoRA",
        ),
        ("network", "from ..adapters import LayerAdapter\nfrom ..io import read_tensors"),
        ("inspection", "from ..network import AdapterSet\nfrom ..formats import DIALECTS"),
        ("cli", "from .merge import plan\nfrom . import load"),
    ],
)
def test_the_walk_lets_right_imports_be(piece: str, source: str) -> None:
    package = "pack.lycoris_algos" if piece in DOORS else f"pack.lycoris_algos.{piece}"
    assert library_problems(source, package, piece) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("pack.nodes", "import comfy.sd"),
        ("pack.nodes", "import folder_paths"),
        ("pack.nodes", "import torch"),
        ("pack.nodes", "from lycoris_algos import load"),
        ("pack.nodes", "from ..lycoris_algos.adapters._base import Core"),
        ("pack.nodes", "from ..tests import x"),
        ("pack.nodes", "from .load import LoadLyCORIS"),
        ("pack.nodes", "from . import load"),
        ("pack.nodes.host", "import numpy"),
        ("pack.nodes.host", "from ..apply import NODES"),
        ("pack.nodes.host", "from nodes import NODE_CLASS_MAPPINGS"),
    ],
)
def test_the_walk_sees_a_wrong_import_of_nodes(package: str, source: str) -> None:
    assert nodes_problems(source, package)


def test_every_piece_of_the_library_is_in_the_table() -> None:
    pieces = {piece_of(path) for path in LIBRARY.rglob("*.py")} - DOORS
    assert pieces <= ALLOWED.keys()


# ---- the library without ComfyUI ----------------------------------------------------------------------

_IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_after_importing(package: str, folder: Path) -> set[str]:
    """The names in sys.modules of a fresh interpreter that imported every module of ``package``."""
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT_EVERYTHING, package],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def of_the_host(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] in HOST}


def test_the_library_imports_nothing_of_comfyui() -> None:
    modules = modules_after_importing("lycoris_algos", ROOT)
    assert {"lycoris_algos.adapters.lokr", "lycoris_algos.network.save"} <= modules
    assert of_the_host(modules) == set()
    assert "matplotlib" not in modules


def test_an_import_of_comfyui_would_be_seen(tmp_path: Path) -> None:
    for name, text in {"comfy/__init__.py": "", "lib/__init__.py": "", "lib/deep.py": "import comfy"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert of_the_host(modules_after_importing("lib", tmp_path)) == {"comfy"}
