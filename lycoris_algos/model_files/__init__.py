"""Models, as files or loaded: which of their weights the layer names of adapters mean.

One file per concern: ``places`` where numbers are, ``names`` what a path may mean, ``layers`` one half of a
model (its diffusion model, or its text encoders), ``index`` both halves, ``overlaps`` which layers of a file
meet there, ``families`` whether the file was made for it, ``spelling`` from places back to names. Of files:
``files`` which of them a model is made of, ``opened`` and ``written`` all of them as one, ``checkpoint``
their index, ``text_encoders`` what they call the layers of those, ``storage`` how they store weights,
``fingerprint`` what tells them apart. ``known`` is what a whole model answers to those who combine or save
adapters, ``base_file`` one that is read from its files.
"""

from __future__ import annotations

from .base_file import BaseFile
from .checkpoint import CheckpointIndex, index_checkpoint, index_header
from .families import advice, doubts, family_title
from .files import ModelFiles, model_files
from .index import Found, ModelIndex, Placement
from .known import IndexedModel, KnownModel, WeightsInMemory, meaning
from .layers import LayerIndex, Paths, UnsuitableError
from .names import NameIndex
from .opened import Checkpoint, checkpoint_header
from .overlaps import Overlaps, overlap
from .places import Shape, Spot, Spots, family_spot
from .written import CheckpointWriter

__all__ = [
    "BaseFile",
    "Checkpoint",
    "CheckpointIndex",
    "CheckpointWriter",
    "Found",
    "IndexedModel",
    "KnownModel",
    "LayerIndex",
    "ModelFiles",
    "ModelIndex",
    "NameIndex",
    "Overlaps",
    "Paths",
    "Placement",
    "Shape",
    "Spot",
    "Spots",
    "UnsuitableError",
    "WeightsInMemory",
    "advice",
    "checkpoint_header",
    "doubts",
    "family_spot",
    "family_title",
    "index_checkpoint",
    "index_header",
    "meaning",
    "model_files",
    "overlap",
]
