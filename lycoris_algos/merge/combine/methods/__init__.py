"""Merge methods, one decorated function each: ways to make one weight change out of several.

Notation: Dᵢ (o, i·∏k) is the delta of adapter i at multiplier 1, wᵢ its multiplier, D the result. λ (the
option ``scaling``) multiplies every D at the end, outside of these functions.

A file without a leading underscore that lies here is found by itself. Files in the order of their names, and
functions in the order in which they stand in them, are the order in which a user is offered the methods.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ._parameters import PARAMETERS, Parameter, Parameters
from ._registry import METHODS, Kind, MergeMethod, explained, find, method

for _module in sorted(module.name for module in iter_modules(__path__)):
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)

__all__ = [
    "METHODS",
    "PARAMETERS",
    "Kind",
    "MergeMethod",
    "Parameter",
    "Parameters",
    "explained",
    "find",
    "method",
]
