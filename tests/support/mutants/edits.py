"""The small mistakes that can be made in a source file, each as a node put in the place of another.

Left out is what no test could or should notice: annotations and docstrings, what an error or a ``repr`` says,
assertions (they are for the type checker), and constants and options that change the speed alone.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

#: Module constants that decide which of two equal ways is taken, how large a block is, or what is kept.
FOR_SPEED = frozenset(
    {
        "_AS_LOW_RANK",
        "_COLUMNS",
        "_CPU_THREAD_BLOCK",
        "_GPU_BLOCK",
        "_KEPT",
        "_LARGEST",
        "_MANY",
        "_MERGED",
        "_SKETCH_FROM",
        "_SWEEPS",
        "_WHOLE_FROM",
        "FEW",
    }
)
#: Keywords of calls that change no result.
_WITHOUT_EFFECT = frozenset({"strict", "non_blocking", "full_matrices"})
#: Parts of a node that do nothing when the code runs, or what a class or function is before it does.
_NOT_RUN = frozenset({"annotation", "returns", "decorator_list", "bases"})
#: Functions that answer a text for people.
_TEXTS = frozenset({"__repr__", "__str__"})

_EITHER = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitOr, ast.BitAnd), (ast.And, ast.Or)),
    (ast.Continue, ast.Break),
)
_OTHER: dict[type[ast.AST], type[ast.AST]] = dict(_EITHER) | {second: first for first, second in _EITHER}
_OTHER |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult}
_OTHER_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Edit:
    """One mistake in ``line`` of a source: ``other`` in the place of a part of ``parent``.

    ``function`` is the first line of the outermost function around it, decorators included; None where the
    code runs when the module is imported, or where what it answered once is kept.
    """

    module: ast.Module = field(repr=False)
    statement: ast.stmt
    parent: ast.AST
    name: str
    index: int | None
    other: ast.AST
    line: int
    function: int | None

    def compiled(self, file: str) -> CodeType:
        """The code of the module with this mistake in it; its functions begin where those of ``file`` do."""
        with self._made():
            return compile(self.module, file, "exec", dont_inherit=True)

    def difference(self) -> str:
        """The lines that it changes, as a diff."""
        before = ast.unparse(self.statement).splitlines()
        with self._made():
            # A statement that is replaced as a whole is no longer what its parent holds.
            after = ast.unparse(
                self.other if isinstance(self.other, ast.stmt) else self.statement
            ).splitlines()
        lines = difflib.unified_diff(before, after, n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))

    @contextlib.contextmanager
    def _made(self) -> Iterator[None]:
        holder: Any = getattr(self.parent, self.name) if self.index is not None else vars(self.parent)
        place = self.name if self.index is None else self.index
        part, holder[place] = holder[place], self.other
        try:
            yield
        finally:
            holder[place] = part


def edits_of(source: str) -> list[Edit]:
    """Every mistake that can be made in ``source``, in its order."""
    module = ast.parse(source)
    return list(_edits(module, module, None, None, None))


def _edits(
    module: ast.Module, node: ast.AST, statement: ast.stmt | None, line: int | None, function: int | None
) -> Iterator[Edit]:
    """Those in the parts of ``node``, which is (in) ``statement``, on ``line``, run by ``function``."""
    for name, value in ast.iter_fields(node):
        if name in _NOT_RUN or (name == "keywords" and isinstance(node, ast.ClassDef)):
            continue
        # A function's defaults are made on import; what one has kept is not made again.
        kept = any("cache" in ast.unparse(item) for item in getattr(node, "decorator_list", ()))
        inside = function
        if isinstance(node, ast.FunctionDef) and name == "body" and not kept:
            inside = function or min((item.lineno for item in node.decorator_list), default=node.lineno)
        for index, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(part, ast.AST) or _left_out(part):
                continue
            around = part if isinstance(part, ast.stmt) else statement
            at = getattr(part, "lineno", line)
            for other in _instead_of(part, condition=name in ("test", "ifs")):
                ast.fix_missing_locations(ast.copy_location(other, part if hasattr(part, "lineno") else node))
                yield Edit(module, around, node, name, index, other, at, inside)
            if not isinstance(part, ast.Raise):  # what an error says
                yield from _edits(module, part, around, at, inside)


def _left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert | ast.JoinedStr):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in _TEXTS
    if isinstance(node, ast.keyword):
        return node.arg in _WITHOUT_EFFECT
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(target, ast.Name) and target.id in FOR_SPEED for target in targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _instead_of(node: ast.AST, condition: bool) -> Iterator[ast.AST]:
    """What may stand in the place of ``node``."""
    if isinstance(node, ast.Raise | ast.Expr | ast.AugAssign):
        yield ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield ast.Return(ast.Constant(None))
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    if isinstance(node, ast.Name) and node.id in _OTHER_CALLS:
        yield ast.Name(_OTHER_CALLS[node.id], ast.Load())
    if type(node) in _OTHER:  # an operator, break or continue
        yield _OTHER[type(node)]()
    if (
        condition
        and not isinstance(node, ast.Constant | ast.UnaryOp)
        and not _is_negated_by_its_operator(node)
    ):
        yield ast.UnaryOp(ast.Not(), node)


def _is_negated_by_its_operator(node: ast.AST) -> bool:
    ordered = ast.Lt | ast.LtE | ast.Gt | ast.GtE
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and not isinstance(node.ops[0], ordered)
