"""Which layers of a model are trained, and by what: LyCORIS' rules of classes, names and tables."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..text import Brief

Override = Mapping[str, Any]


@dataclass
class Rules(Brief):
    """Layers inside of modules of the classes ``modules``, and those whose own path matches ``names``.

    ``by_module`` and ``by_name`` say what is different for those of a class or a path. Patterns are regular
    expressions for the beginning of a path, or (``shell``) shell patterns for all of it.
    """

    modules: Sequence[str]
    names: Sequence[str] = ()
    by_module: Mapping[str, Override] = field(default_factory=dict)
    by_name: Mapping[str, Override] = field(default_factory=dict)
    excluded: Sequence[str] = ()
    shell: bool = False
    #: The classes and the patterns that something matched.
    matched: set[str] = field(default_factory=set)

    def matches(self, pattern: str, path: str) -> bool:
        """Whether ``path`` is one that ``pattern`` means."""
        if self.shell:
            return fnmatch.fnmatch(path, pattern)
        return path == pattern or re.match(pattern, path) is not None

    def excludes(self, path: str) -> bool:
        """Whether nothing at ``path`` is trained."""
        return bool(path) and any(path == own or self.matches(own, path) for own in self.excluded)

    def override(self, path: str) -> Override | None:
        """What is different for the name ``path``."""
        if path in self.by_name:
            return self.by_name[path]
        return next((own for pattern, own in self.by_name.items() if self.matches(pattern, path)), None)

    def layers(self, root: nn.Module) -> Iterator[tuple[str, nn.Module, Override]]:
        """(path, module, what is different for it), once for each path, by the first rule that meets it."""
        seen: set[str] = set()
        for path, module, override in self._all(root):
            if path not in seen:
                seen.add(path)
                yield path, module, override

    def _all(self, root: nn.Module) -> Iterator[tuple[str, nn.Module, Override]]:
        names = (*self.names, *self.by_name)
        modules = {*self.modules, *self.by_module}
        for path, module in root.named_modules():
            if self.excludes(path):
                continue
            kind = type(module).__name__
            patterns = [name for name in names if path == name or self.matches(name, path)]
            if patterns:
                self.matched.update((kind, *patterns))
                own = self.override(path)
                yield path, module, self.by_module.get(kind, {}) if own is None else own
            elif kind in modules:
                self.matched.add(kind)
                yield from self._inside(module, path, self.by_module.get(kind, {}))

    def _inside(
        self, root: nn.Module, path: str, override: Override
    ) -> Iterator[tuple[str, nn.Module, Override]]:
        for name, module in root.named_modules():
            full = ".".join(part for part in (path, name) if part)
            if self.excludes(full):
                continue
            kind = type(module).__name__
            if kind in self.by_module and module is not root:
                yield from self._inside(module, full, self.by_module[kind])
            else:
                yield full, module, override

    def unmatched(self) -> list[str]:
        """Classes and patterns that nothing matched."""
        return sorted({*self.modules, *self.names, *self.by_module, *self.by_name} - self.matched)
