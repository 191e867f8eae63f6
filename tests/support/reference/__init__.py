"""What a trained file means: the tensors as they are stored, and the change of the weight that training made.

Three sources, and nothing of this project's library in any:

- ``CASES`` (modules.py): every algorithm × variant × kind of layer of the real lycoris-lora 4.1.3.
- ``FORMS`` (forms.py, forms_rotating.py): files of other programs, and of older LyCORIS, by their formulas.
- ``peft_models.CASES``: small models wrapped, saved and merged by the real PEFT 0.21.2. Imported by its own
  test only, since PEFT takes seconds to import.

The first two give a ``Reference`` each; building is lazy and cached, one seed per name.
"""

from __future__ import annotations

from . import forms_rotating  # noqa: F401 - it registers its forms
from ._case import Case, NoReference, Reference
from ._form import FORMS
from .forms import FOREIGN, SPELLINGS
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
