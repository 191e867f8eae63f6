"""A whole file of adapters: what it is (``AdapterSet``), how it is read and written."""

from .adapter_set import AdapterSet, Unmatched
from .content import content_hash, to_tensors
from .convert import convert
from .load import from_tensors, load
from .rank import with_rank
from .save import save

__all__ = [
    "AdapterSet",
    "Unmatched",
    "content_hash",
    "convert",
    "from_tensors",
    "load",
    "save",
    "to_tensors",
    "with_rank",
]
