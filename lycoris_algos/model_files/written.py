"""Writes a model like another: one file as one file, several as a folder with the same files in it.

A folder is filled under a hidden name and appears whole or not at all. Its indices are written anew, and what
goes with the weights (configurations, tokenizers) is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import LycorisError
from ..io import (
    PartFolder,
    SafetensorsWriter,
    ShardIndex,
    explaining_writes,
    index_bytes,
    require_space,
)
from .opened import Checkpoint

#: {name: (dtype, shape)}
Announced = Mapping[str, tuple[torch.dtype, Sequence[int]]]


class CheckpointWriter:
    """Writes ``tensors``, in ``order``, to a new model at ``target`` with the files that ``base`` has.

    ``metadata`` makes of a file's metadata in the base those of the new file. Used as ``SafetensorsWriter``
    is, and raises as it does: names are written in order, leaving the block publishes, an exception removes
    every trace. ``finish`` comes after the last tensor.
    """

    def __init__(
        self,
        target: Path,
        base: Checkpoint,
        tensors: Announced,
        order: Sequence[str],
        metadata: Callable[[Mapping[str, str]], Mapping[str, str]],
    ) -> None:
        self._target, self._base, self._tensors, self._metadata = target, base, tensors, metadata
        self._orders: dict[str, list[str]] = {path: [] for path in base.readers}
        for name in order:
            self._orders[base.place(name)[0]].append(name)
        self._writers: dict[str, SafetensorsWriter] = {}
        self._opened = ExitStack()
        self._folder: PartFolder | None = None
        self._finished = False
        self._final: Path | None = None
        #: Size of all files with weights in bytes.
        self.file_size = 0

    @property
    def path(self) -> Path:
        """Where the finished model is; ValueError before the ``with`` block has ended well."""
        if self._folder is None:
            return next(iter(self._writers.values())).path
        if self._final is None:
            raise ValueError("the model is not finished")
        return self._final

    def __enter__(self) -> CheckpointWriter:
        try:
            if self._base.files.is_folder:
                self._folder = self._new_folder()
            for path, order in self._orders.items():
                self._writers[path] = self._writer(path, order)
            self.file_size = sum(writer.file_size for writer in self._writers.values())
            with explaining_writes(self._target, self.file_size):
                require_space(self._target.parent, self.file_size)
            for writer in self._writers.values():
                self._opened.enter_context(writer)
        except BaseException as error:
            self._opened.__exit__(type(error), error, None)
            self._discard()
            raise
        return self

    def _new_folder(self) -> PartFolder:
        with explaining_writes(self._target, 0):
            try:
                return PartFolder(self._target)
            except ValueError as error:
                raise LycorisError("this is not a possible name for a folder: choose another one") from error

    def _writer(self, path: str, order: Sequence[str]) -> SafetensorsWriter:
        where = self._target if self._folder is None else self._folder.place(path)
        own = {self._base.place(name)[1]: self._tensors[name] for name in order}
        return SafetensorsWriter(where, own, self._metadata(self._base.readers[path].metadata), list(own))

    def write(self, name: str, tensor: Tensor) -> None:
        """See ``SafetensorsWriter``."""
        path, own = self._base.place(name)
        self._writers[path].write(own, tensor)

    def copy(self, first: str, last: str) -> None:
        """Writes the base's tensors ``first`` to ``last``, which lie in one file, byte for byte."""
        (path, own), (_, end) = self._base.place(first), self._base.place(last)
        self._writers[path].copy(self._base.readers[path], own, end)

    def replace(self, name: str, tensor: Tensor) -> None:
        """See ``SafetensorsWriter``."""
        path, own = self._base.place(name)
        self._writers[path].replace(own, tensor)

    def finish(self) -> Path:
        """Ends the writing of tensors; the model, still hidden, to be read back before it gets its name."""
        if self._folder is None:
            return next(iter(self._writers.values())).unpublished
        files = self._base.files
        self._opened.close()  # every file gets its name within the hidden folder
        with explaining_writes(self._target, self.file_size):
            for path in files.beside:
                self._folder.copy(files.folder / path, path)
            for path, index in files.indices.items():
                self._folder.write(path, self._index(path, index))
        self._finished = True
        return self._folder.path

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None and self._folder is not None:
                if not self._finished:
                    self.finish()
                with explaining_writes(self._target, self.file_size):
                    self._final = self._folder.publish()
        finally:
            self._opened.__exit__(exc_type, exc, traceback)
            self._discard()

    def _discard(self) -> None:
        if self._folder is not None and self._final is None:
            self._folder.discard()

    def _index(self, path: str, index: ShardIndex) -> bytes:
        """The new index in the place of ``index`` at ``path``."""
        folder = path.removesuffix(index.path.name)
        weight_map: dict[str, str] = {}
        total = 0
        for file in self._base.files.weights:
            if file.index is index:
                writer = self._writers[file.path]
                weight_map.update(dict.fromkeys(writer.order, file.path.removeprefix(folder)))
                total += writer.data_size
        return index_bytes(weight_map, total, index.metadata)
