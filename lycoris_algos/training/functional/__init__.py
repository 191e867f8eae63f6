"""LyCORIS' functional interface: the weights of an algorithm as plain tensors, and what they do.

Each algorithm has ``weight_gen`` (start values for a weight), ``diff_weight`` (ΔW) and mostly
``bypass_forward_diff``
(what ΔW adds to a layer's output), with LyCORIS' order of tensors. They are the stored forms of ``adapters``,
computed by ``structures``.
"""

from . import boft, diag_oft, glora, locon, loha, lokr
from .general import (
    FUNC_LIST,
    add_scaled,
    apply_dora_scale,
    factorization,
    power2factorization,
    rebuild_tucker,
    tucker_weight,
    tucker_weight_from_conv,
    weight_decompose,
)

__all__ = [
    "FUNC_LIST",
    "add_scaled",
    "apply_dora_scale",
    "boft",
    "diag_oft",
    "factorization",
    "glora",
    "locon",
    "loha",
    "lokr",
    "power2factorization",
    "rebuild_tucker",
    "tucker_weight",
    "tucker_weight_from_conv",
    "weight_decompose",
]
