"""What a trained file means: the tensors as they are stored, and the change of the weight that training made.

Two sources, and nothing of this project's library in either:

- ``CASES`` (modules.py): every algorithm × variant × kind of layer of the real lycoris-lora 4.1.3.
- ``FORMS`` (forms.py): files of other programs, and of older LyCORIS, by their formulas.

Each gives a ``Reference``; building is lazy and cached, one seed per name.
"""

from __future__ import annotations

from ._case import Case, NoReference, Reference
from .forms import FOREIGN, FORMS, SPELLINGS
from .modules import CASES, IRRECOVERABLE

__all__ = [
    "CASES",
    "FOREIGN",
    "FORMS",
    "IRRECOVERABLE",
    "SPELLINGS",
    "Case",
    "NoReference",
    "Reference",
]
