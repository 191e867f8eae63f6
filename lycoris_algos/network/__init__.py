"""A whole file of adapters (``AdapterSet``), how it is read and written, and several in a stack."""

from .adapter_set import AdapterSet, Unmatched
from .content import content_hash, to_tensors
from .convert import convert
from .hcp import from_hcp, to_hcp
from .load import from_tensors, load, outline
from .multipliers import Multipliers
from .packing import load_embedding, pack, unpack
from .rank import with_rank
from .respelling import Part
from .save import save
from .stack import Stack, StackEntry, check_multipliers

__all__ = [
    "AdapterSet",
    "Multipliers",
    "Part",
    "Stack",
    "StackEntry",
    "Unmatched",
    "check_multipliers",
    "content_hash",
    "convert",
    "from_hcp",
    "from_tensors",
    "load",
    "load_embedding",
    "outline",
    "pack",
    "save",
    "to_hcp",
    "to_tensors",
    "unpack",
    "with_rank",
]
