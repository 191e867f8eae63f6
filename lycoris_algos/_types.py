"""Type aliases that the folders of this library share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

#: What a change is multiplied by: a number, or a tensor () that is trained.
Factor: TypeAlias = float | Tensor

#: Tensors of one file, by their key in the file.
StateDict: TypeAlias = Mapping[str, Tensor]

#: ``progress(done, total, what)``: called before each step of long work, which it names, and at the end.
Progress: TypeAlias = Callable[[int, int, str], None]

#: ``cancel()`` answers True when the user wants long work to stop.
Cancel: TypeAlias = Callable[[], bool]
