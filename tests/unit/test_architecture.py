"""The shape of the project, held by walking its syntax trees: who may import whom, and what may stand where.

Every check is a function of source text and is itself tested on text that breaks it.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, NODES = ROOT / "lycoris_algos", ROOT / "nodes"
SOURCES = sorted([*LIBRARY.rglob("*.py"), *NODES.rglob("*.py")])

#: What each piece of the library may import of the others; everyone may import errors and _types.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "_types": set(),
    "ops": set(),
    "adapters": {"ops"},
    "io": set(),
    "formats": set(),
    "models": set(),
    "network": {"ops", "adapters", "io", "formats", "models"},
    "merge": {"ops", "adapters", "io", "formats", "models", "network", "inspection"},
    "extract": {"ops", "adapters", "io", "formats", "models", "network"},
    "inspection": {"ops", "adapters", "io", "formats", "models", "network"},
    "training": {"ops", "adapters", "io", "formats", "models", "network"},
}
#: The doors: the package itself and the command line may import everything.
DOORS = {"", "cli", "__main__"}
FOUNDATION = {"errors", "_types"}
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
LIBRARY_NEEDS = {"torch", "numpy", "typing_extensions"}


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of each import of a module in ``package``; relative ones are made absolute.

    ``from . import a, b`` yields package.a and package.b. The level is 0 for absolute ones.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield 0, node.module or ""
                continue
            parts = package.split(".")
            assert node.level <= len(parts), "a relative import leaves the pack"
            base = parts[: len(parts) - node.level + 1]
            if node.module:
                yield node.level, ".".join((*base, node.module))
            else:
                for alias in node.names:
                    yield node.level, ".".join((*base, alias.name))


def package_of(path: Path) -> str:
    return ".".join(("pack", *path.relative_to(ROOT).parent.parts))


def library_problems(source: str, package: str, piece: str) -> list[str]:
    """What is wrong with the imports of a library module in ``package``, which belongs to ``piece``."""
    problems = []
    for level, name in imports(source, package):
        top = name.split(".")[0]
        if level == 0:
            if top in {"lycoris_algos", "tests"} | HOST:
                problems.append(f"imports {name}")
            elif top not in sys.stdlib_module_names | LIBRARY_NEEDS:
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


def piece_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


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
        ("io", "from safetensors import safe_open"),
        ("ops", "from ..adapters import LayerAdapter"),
        ("ops", "from .. import adapters"),
        ("ops", "from ..io.reader import read_all"),
        ("io", "from ..formats import split_key"),
        ("formats", "from ..io import read_tensors"),
        ("formats", "from .. import LayerAdapter"),
        ("adapters", "from ..network import load"),
        ("network", "from ..merge import plan"),
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
        ("adapters", "from ..ops.rows import matrix_view\nfrom ._base import Core\nfrom . import _registry"),
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


def test_an_import_of_comfyui_would_be_seen(tmp_path: Path) -> None:
    for name, text in {"comfy/__init__.py": "", "lib/__init__.py": "", "lib/deep.py": "import comfy"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert of_the_host(modules_after_importing("lib", tmp_path)) == {"comfy"}


# ---- what may stand in a file -------------------------------------------------------------------------

#: All that nodes/ may say about torch: types, dtypes, and that a function is not to be compiled.
_TORCH_NAMES = {"Tensor", "dtype", "device", "float32", "float16", "bfloat16", "float64", "compiler.disable"}
_IN_PLACE = {"add_", "mul_", "sub_", "div_", "copy_", "matmul", "addmm", "mm", "einsum", "lerp_", "addcmul_"}
_DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__"}
_DANGEROUS_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "ctypes"}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def tensor_maths(source: str) -> list[str]:
    """Uses of torch (or of tensors) that are arithmetic."""
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            name = dotted(node)
            if name.startswith("torch.") and name.removeprefix("torch.") not in _TORCH_NAMES:
                found.append(name)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _IN_PLACE
        ):
            found.append(f".{node.func.attr}()")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "numpy"):
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in _TORCH_NAMES]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            found.append("@")
    return found


def dangers(source: str) -> list[str]:
    """Ways to run code out of data. Of pickle only the error may be named; torch.load is weights_only."""
    tree = ast.parse(source)
    allowed = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) == "pickle.UnpicklingError"
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in _DANGEROUS_CALLS or name in {f"builtins.{call}" for call in _DANGEROUS_CALLS}:
                found.append(name)
            if name == "torch.load":
                options = {keyword.arg: keyword.value for keyword in node.keywords}
                value = options.get("weights_only")
                if not (isinstance(value, ast.Constant) and value.value is True):
                    found.append("torch.load without weights_only=True")
        if isinstance(node, ast.Name) and node.id in _DANGEROUS_MODULES and id(node) not in allowed:
            found.append(node.id)
        if isinstance(node, ast.Import):
            found += [
                a.name
                for a in node.names
                if a.name in _DANGEROUS_MODULES - {"pickle"} or a.asname == "pickle"
            ]
            found += [f"pickle as {a.asname}" for a in node.names if a.name == "pickle" and a.asname]
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in _DANGEROUS_MODULES:
            found.append(f"from {node.module}")
    return found


def prints(source: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and dotted(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_nodes_do_no_tensor_maths() -> None:
    found = {str(path.relative_to(ROOT)): tensor_maths(text_of(path)) for path in NODES.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_nothing_runs_code_out_of_data() -> None:
    found = {str(path.relative_to(ROOT)): dangers(text_of(path)) for path in (*SOURCES, ROOT / "__init__.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_library_never_prints() -> None:
    # The command line is the one place whose output is its purpose.
    modules = [path for path in LIBRARY.rglob("*.py") if piece_of(path) not in ("cli", "__main__")]
    assert {
        str(path.relative_to(ROOT)): prints(text_of(path)) for path in modules if prints(text_of(path))
    } == {}


def test_no_file_outgrows_its_subject() -> None:
    lengths = {str(path.relative_to(ROOT)): len(text_of(path).splitlines()) for path in SOURCES}
    assert {path: count for path, count in lengths.items() if count > 400} == {}


def test_every_file_says_what_it_is_for() -> None:
    for path in SOURCES:
        assert (ast.get_docstring(ast.parse(text_of(path))) or "").strip(), path.relative_to(ROOT)


@pytest.mark.parametrize(
    "source",
    [
        "y = torch.mm(a, b)",
        "y = torch.linalg.svd(a)",
        "y = torch.float8_e4m3fn.to_complex()",
        "y = a @ b",
        "a.add_(b)",
        "from torch.nn import functional",
        "from torch import einsum",
        "torch.compiler.reset()",
    ],
)
def test_tensor_maths_would_be_seen(source: str) -> None:
    assert tensor_maths(source)


def test_types_are_no_maths() -> None:
    assert tensor_maths("import torch\ndef f(w: torch.Tensor, d: torch.dtype = torch.float32): ...") == []
    assert tensor_maths("@torch.compiler.disable\ndef f(): ...\nx: list[torch.Tensor]") == []
    assert tensor_maths("from torch import Tensor\ny = weight.shape[0] * 2") == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "__import__('os')",
        "builtins.eval('1')",
        "import pickle\npickle.load(f)",
        "import pickle\nload = pickle.loads",
        "import pickle\nf(pickle)",
        "import pickle as p",
        "from pickle import load",
        "import marshal",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
    ],
)
def test_dangers_would_be_seen(source: str) -> None:
    assert dangers(source)


def test_naming_an_error_is_no_danger() -> None:
    assert dangers("import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...") == []
    assert dangers("model.eval()\nre.compile('x')\ntorch.load(f, weights_only=True)") == []


def test_prints_would_be_seen() -> None:
    assert prints("print('x')") == [1]
    assert prints("\nsys.stdout.write('x')") == [2]
    assert prints("def print_report(): ...\nprint_report()") == []
