"""What a change of a weight is: each kind with its maths once, whatever file it came from.

A structure is a plain value: tensors and numbers from which ΔW follows. It says the same things for every
kind: ΔW as a matrix, added to some rows in place, as two factors, its norm and singular values, and what it
does to activations. Adapters (the stored forms) are turned into structures; everything that uses a change
is written against them.
"""

from __future__ import annotations

from ._base import Structure, pays
from .apply import apply_, enlarged
from .butterfly import ColumnButterfly, RowButterfly
from .composed import Enlarged, RowSlice, RowStack, ScaledRows, Sum, require_enlargement
from .decomposed import ColumnDecomposed, Decomposed, RowDecomposed
from .dense import Dense
from .hadamard import Hadamard
from .kronecker import Kronecker
from .low_rank import LowRank
from .operation import LayerOperation
from .overflow import overflow
from .product import BlockProduct, KroneckerProduct, Product
from .rotation import ColumnRotation, RowRotation
from .scaling import ColumnScaling, RowScaling
from .sparse import Sparse

__all__ = [
    "BlockProduct",
    "ColumnButterfly",
    "ColumnDecomposed",
    "ColumnRotation",
    "ColumnScaling",
    "Decomposed",
    "Dense",
    "Enlarged",
    "Hadamard",
    "Kronecker",
    "KroneckerProduct",
    "LayerOperation",
    "LowRank",
    "Product",
    "RowButterfly",
    "RowDecomposed",
    "RowRotation",
    "RowScaling",
    "RowSlice",
    "RowStack",
    "ScaledRows",
    "Sparse",
    "Structure",
    "Sum",
    "apply_",
    "enlarged",
    "overflow",
    "pays",
    "require_enlargement",
]
