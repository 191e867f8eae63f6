"""The weights of a model by name, read one at a time from however many files they are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..errors import FileFormatError
from ..io import MAX_TENSORS, Header, SafetensorsReader, TensorInfo
from ..text import quoted
from .files import ModelFiles, WeightsFile, model_files
from .fingerprint import model_record


class Checkpoint(Mapping[str, Tensor]):
    """A model's tensors: one file, shards with their index, or a folder of diffusers (files.py).

    Tensors of a folder's components are called ``unet/…``, ``text_encoder/…``. Reads as ``SafetensorsReader``
    does; a context manager. Raises FileFormatError, naming the file, for what is wrong or missing.
    """

    #: The tensors of all files, in their order, each at its place in its own; and their metadata.
    header: Header
    #: The files by their paths (``ModelFiles``).
    readers: dict[str, SafetensorsReader]

    def __init__(self, path: Path) -> None:
        self.files: ModelFiles = model_files(Path(path))
        self.readers = {}
        self._places: dict[str, tuple[str, str]] = {}
        with ExitStack() as opened:
            for file in self.files.weights:
                reader = SafetensorsReader(self.files.folder / file.path)
                self.readers[file.path] = opened.enter_context(reader)
                self._take(file, reader)
            self._opened = opened.pop_all()
        self.header = self._joined()

    @property
    def path(self) -> Path:
        """What was opened."""
        return self.files.path

    @property
    def metadata(self) -> dict[str, str]:
        """What the files carry besides their tensors; of several that say the same, the first counts."""
        return self.header.metadata

    def place(self, name: str) -> tuple[str, str]:
        """The file (as ``readers`` has it) that holds the tensor ``name``, and what that calls it."""
        return self._places[name]

    def read_into(self, name: str, out: Tensor) -> None:
        """See ``SafetensorsReader``."""
        path, own = self._places[name]
        self.readers[path].read_into(own, out)

    def record(self, name: str) -> dict[str, Any]:
        """What recipes say about the model, called ``name``: its size and a hash."""
        return model_record(self.readers, name)

    def close(self) -> None:
        """Closes all files. May be called twice."""
        self._opened.close()

    def __getitem__(self, name: str) -> Tensor:
        path, own = self._places[name]
        return self.readers[path][own]

    def __contains__(self, name: object) -> bool:
        # Mapping would answer by reading the tensor.
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, file: WeightsFile, reader: SafetensorsReader) -> None:
        if file.index is not None:
            try:
                file.index.check(reader.path.name, reader.header.tensors)
            except FileFormatError as error:
                raise error.with_context(f"file {quoted(file.index.path.name)}") from error
        for name in reader.header.tensors:
            # Shards hold each name once, as their index says; components have names of their own.
            self._places[file.component + name] = file.path, name
        if len(self._places) > MAX_TENSORS:
            raise FileFormatError(
                f"{quoted(self.path.name)} holds more than {MAX_TENSORS:,} tensors, and no model has so "
                "many: it is not read"
            )

    def _joined(self) -> Header:
        headers = [reader.header for reader in self.readers.values()]
        if not self.files.is_folder:
            return headers[0]
        tensors: dict[str, TensorInfo] = {}
        for name, (path, own) in self._places.items():
            tensors[name] = replace(self.readers[path].header.tensors[own], name=name)
        metadata: dict[str, str] = {}
        for header in reversed(headers):
            metadata.update(header.metadata)
        return Header(tensors, metadata, 0, sum(header.file_size for header in headers))


def checkpoint_header(path: Path) -> Header:
    """What the model at ``path`` holds, without its tensors. Raises as ``Checkpoint`` does."""
    with Checkpoint(path) as checkpoint:
        return checkpoint.header
