"""What may stand in a source file, held by walking its syntax tree: no maths in nodes, nothing dangerous.

Every check is a function of source text and is itself tested on text that breaks it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, NODES = ROOT / "lycoris_algos", ROOT / "nodes"
SOURCES = sorted([*LIBRARY.rglob("*.py"), *NODES.rglob("*.py")])

#: All that nodes/ may say about torch: types, dtypes, and that a function is not to be compiled.
_TORCH_NAMES = {"Tensor", "dtype", "device", "float32", "float16", "bfloat16", "float64", "compiler.disable"}
_IN_PLACE = {"add_", "mul_", "sub_", "div_", "copy_", "matmul", "addmm", "mm", "einsum", "lerp_", "addcmul_"}
_SCRAP = re.compile(r"""[fr]*("[^"]{0,14}"|'[^']{0,14}')""")
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


def scraps(source: str) -> list[tuple[int, str]]:
    """(line, text) of lines of a wrapped string that hold next to nothing, such as ``"with "``."""
    lines = source.encode().splitlines()
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Constant, ast.JoinedStr)) or node.end_lineno in (None, node.lineno):
            continue
        for row in range(node.lineno, node.end_lineno + 1):
            line = lines[row - 1]
            start = node.col_offset if row == node.lineno else 0
            end = node.end_col_offset if row == node.end_lineno else len(line)
            piece = line[start:end].decode().strip()
            if _SCRAP.fullmatch(piece):
                found.add((row, piece))
    return sorted(found)


#: What may stand in quotes in a message without coming through ``text.quoted``: our own words.
_OWN_WORDS = {"options.method", "plan.options.method", "self.method", "OnUnmatched.NOTHING.value", "_BUDGET"}
_OWN_WORDS |= {"cls.algo", "cls.kind"}
#: In adapters/: what an algorithm's own tensors are called.
_OWN_KEYS = {"name", "key", "found[0]"}


def names_past_the_door(source: str) -> list[str]:
    """Values that an f-string puts into quotes by hand, as names of files and layers once were."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        texts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
        around = zip(["", *texts], node.values, [*texts[1:], ""], strict=False)
        for before, part, after in around:
            if isinstance(part, ast.FormattedValue):
                by_hand = before.endswith("'") and after.startswith("'")
                found += [ast.unparse(part.value)] if by_hand or part.conversion == ord("r") else []
    return [value for value in found if value not in _OWN_WORDS]


def markup(script: str) -> list[str]:
    """Ways by which a script of the page makes elements or code out of a text."""
    elements = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser")
    return [way for way in (*elements, "eval(", "new Function") if way in script]


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
    spoken = (LIBRARY / "cli", LIBRARY / "__main__.py")
    modules = [path for path in LIBRARY.rglob("*.py") if not {*path.parents, path} & {*spoken}]
    assert {
        str(path.relative_to(ROOT)): prints(text_of(path)) for path in modules if prints(text_of(path))
    } == {}


def test_no_file_outgrows_its_subject() -> None:
    lengths = {str(path.relative_to(ROOT)): len(text_of(path).splitlines()) for path in SOURCES}
    assert {path: count for path, count in lengths.items() if count > 400} == {}


def test_wrapped_texts_have_full_lines() -> None:
    found = {str(path.relative_to(ROOT)): scraps(text_of(path)) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_names_go_into_messages_through_the_door() -> None:
    found = {}
    for path in SOURCES:
        own = _OWN_KEYS if path.parent.name == "adapters" else set()
        if path.name != "text.py":
            found[str(path.relative_to(ROOT))] = set(names_past_the_door(text_of(path))) - own
    assert {path: names for path, names in found.items() if names} == {}


def test_the_scripts_of_the_page_put_texts_in_as_texts() -> None:
    scripts = list((ROOT / "web").rglob("*.js"))
    assert scripts
    assert {path.name: markup(text_of(path)) for path in scripts if markup(text_of(path))} == {}


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


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('print(\n    "a text that goes on and on "\n    "with "\n    "something"\n)', 3),
        ('print("a text that goes on and on and "\n      f"ends{1}")', 2),
        ('print("so "\n      "it begins")', 1),
        ("print('ä', 'a text that is long'\n      ' and ends')", 2),
    ],
)
def test_scraps_would_be_seen(source: str, line: int) -> None:
    assert line in [row for row, _ in scraps(source)]


def test_short_texts_are_no_scraps() -> None:
    assert scraps('names = [\n    "save",\n    "load",\n]') == []
    assert scraps('print("a text that is wrapped "\n      "where it is full")') == []


def test_names_past_the_door_would_be_seen() -> None:
    assert names_past_the_door("""x = f"layer '{name}' is lost" """) == ["name"]
    assert names_past_the_door('x = f"{name!r} is lost"') == ["name"]
    assert names_past_the_door('x = f"layer {quoted(name)} is lost, it has {count}"') == []


def test_markup_would_be_seen() -> None:
    assert markup("box.innerHTML = text;") == ["innerHTML"]
    assert markup("box.textContent = text;") == []
