"""A whole file of adapters: what it is (``AdapterSet``), how it is read and written."""

from .adapter_set import AdapterSet, Unmatched
from .convert import convert
from .load import from_tensors, load
from .rank import with_rank
from .save import save, to_tensors

__all__ = ["AdapterSet", "Unmatched", "convert", "from_tensors", "load", "save", "to_tensors", "with_rank"]
