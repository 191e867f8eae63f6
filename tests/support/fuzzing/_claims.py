"""What must hold of any file at all: it is refused in clean words, or it is right in everything.

"Right" means what can be said without knowing the file: that every change can be computed or is refused,
that what was saved says the same when it is read again, in any dialect, and that texts are harmless.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from strangers import problems
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet, LayerAdapter, LycorisError, convert, describe, with_rank
from lycoris_algos.errors import ShapeMismatchError
from lycoris_algos.formats import dialect_of
from lycoris_algos.io import SafetensorsReader, facts, read_header, title, trigger_words
from lycoris_algos.merge.bake import bake_report, plan_bake, plan_report, run_bake
from lycoris_algos.network import StackEntry, content_hash
from lycoris_algos.network.peft_form import WITHOUT_ALPHA
from lycoris_algos.network.respelling import WRITABLE

#: Numbers of a weight, beyond which only the shape is looked at.
_LARGEST = 2**20
_CONVERTED = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)
_T = TypeVar("_T")


def attempt(work: Callable[[], _T]) -> _T | LycorisError:
    """What ``work`` answers, or the clean error that it raises."""
    try:
        return work()
    except LycorisError as error:
        text = str(error)
        assert text, "an error without words"
        assert problems(text) == [], text
        return error


@contextmanager
def in_time(path: Path) -> Iterator[None]:
    """Fails if the block takes more processor time than a file of that size may."""
    start = time.process_time()
    yield
    seconds, size = time.process_time() - start, path.stat().st_size
    assert seconds < 2 + 50e-9 * size, f"{seconds:.1f} s for {size:,} bytes"


def adapter_file(path: Path, folder: Path, choice: int = 0) -> str:
    """Holds the file ``path`` to all claims, with ``folder`` for copies; "refused" or "loaded".

    ``choice`` says which of the dialects and number types it is converted to.
    """
    with in_time(path):
        adapters = attempt(lambda: lycoris_algos.load(path))
        if isinstance(adapters, LycorisError):
            return "refused"
        _texts(adapters)
    before = _changes(adapters)
    _copy(adapters, before, folder / "copy.safetensors")
    content_hash(adapters)
    dialect = WRITABLE[choice % len(WRITABLE)]
    spelled = attempt(lambda: convert(adapters, dialect=dialect))
    if not isinstance(spelled, LycorisError):
        assert len(spelled) == len(adapters), "a layer was lost"
        _same(before, _changes(spelled, like=adapters), _rounding(adapters))
        _copy(spelled, _changes(spelled), folder / f"{dialect}.safetensors")
    attempt(lambda: convert(adapters, dtype=_CONVERTED[choice // 4 % len(_CONVERTED)], strength_model=-0.5))
    attempt(lambda: with_rank(adapters, 1 + choice % 3))
    return "loaded"


def model_file(path: Path, adapters: AdapterSet, folder: Path) -> str:
    """Bakes ``adapters`` into the model ``path``; "refused" with nothing left behind, or "baked"."""
    target = folder / "baked.safetensors"
    before = sorted(folder.rglob("*"))

    def bake() -> str:
        plan = plan_bake(read_header(path), [StackEntry(adapters)], base=path.name)
        assert problems(plan_report(plan)) == []
        result = run_bake(plan, path, target)
        assert problems(bake_report(result)) == []
        with SafetensorsReader(result.path) as written:
            assert written.all().keys() == {item.info.name for item in plan.tensors}
        return "baked"

    with in_time(path):
        done = attempt(bake)
    if isinstance(done, LycorisError):
        assert sorted(folder.rglob("*")) == before, "something was left behind"
        return "refused"
    target.unlink()
    return done


# ---- texts ------------------------------------------------------------------------------------------------


def _texts(adapters: AdapterSet) -> None:
    words = (title(adapters.metadata) or "", *trigger_words(adapters.metadata))
    said = {"report": describe(adapters), "set": repr(adapters), "facts": str(len(facts(adapters.metadata)))}
    said |= {f"layer {number}": repr(layer) for number, layer in enumerate(adapters.values())}
    assert {what: problems(text) for what, text in said.items() if problems(text)} == {}
    assert all(len(text) < 500 for what, text in said.items() if what != "report")
    assert all(len(word) <= 200 and word.isprintable() for word in words)


# ---- changes ----------------------------------------------------------------------------------------------


def _shape(layer: LayerAdapter) -> tuple[int, ...]:
    """Of a weight that the layer may be for."""
    return layer.weight_shape or layer.matrix_shape or _guess(layer)


def _guess(layer: LayerAdapter) -> tuple[int, ...]:
    for component in layer.weight_components:
        rows, columns = component.matrix_shape
        if rows is not None or columns is not None:
            return (rows or 8, columns or 8)
    return (24, 16)


def _weight(shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    return ((torch.arange(count, dtype=torch.float32) * 0.7548777).frac() - 0.45).reshape(shape)


_Change = Tensor | LycorisError | None


def _changes(adapters: AdapterSet, like: AdapterSet | None = None) -> list[_Change]:
    """ΔW of every layer and of every bias, in order; ``like`` tells of which weights."""
    shapes = [_shape(layer) for layer in (adapters if like is None else like).values()]
    return [
        change
        for layer, shape in zip(adapters.values(), shapes, strict=True)
        for change in (_change(layer, shape), _bias(layer, shape), _elsewhere(layer))
    ]


def _change(layer: LayerAdapter, shape: tuple[int, ...]) -> _Change:
    if math.prod(shape) > _LARGEST:
        return None
    delta = attempt(lambda: layer.delta(_weight(shape)))
    if isinstance(delta, Tensor):
        assert tuple(delta.shape) == layer.new_shape(shape)
        assert delta.dtype == torch.float32
    return delta


def _bias(layer: LayerAdapter, shape: tuple[int, ...]) -> _Change:
    if layer.bias is None:
        return None
    own = layer.bias.weight_shape or shape[:1]
    return attempt(lambda: layer.bias.delta(_weight(own))) if math.prod(own) < _LARGEST else None


def _elsewhere(layer: LayerAdapter) -> None:
    """On a weight of a shape that it was hardly trained for."""
    for shape in ((7, 5), (24, 16, 3, 3), (3,)):
        weight = _weight(shape)
        changed = attempt(lambda weight=weight: layer.add_to_(weight, 0.5))
        if isinstance(changed, ShapeMismatchError):
            assert torch.equal(weight, _weight(shape)), "refused, but changed"


def _same(before: list[_Change], after: list[_Change], share: float) -> None:
    """The same changes, up to ``share`` of the largest number; errors of the same kind."""
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        if isinstance(one, Tensor):
            assert isinstance(other, Tensor), f"could be computed before: {other}"
            assert one.shape == other.shape
            if not torch.equal(one, other):
                _close(one, other, share)
        else:
            assert type(one) is type(other), (one, other)


def _close(one: Tensor, other: Tensor, share: float) -> None:
    finite = one.isfinite() & other.isfinite()
    largest = float(one[finite].abs().max()) if finite.any() else 0.0
    error = float((one - other)[finite].abs().max()) if finite.any() else 0.0
    assert error <= share * largest + 1e-6, f"off by {error:g} of {largest:g}"
    # What overflows does so on both sides, but for the last step before the largest number.
    edge = torch.where(one.isfinite(), one, other)[~finite].abs()
    assert not (edge < 1e37).any(), "a number became infinite"


def _rounding(adapters: AdapterSet) -> float:
    """How far a change may move when the factors are rounded once to what the file stores."""
    stored = [
        value.dtype
        for layer in adapters.values()
        for item in layer.components()
        for _, value in item.tensors()
    ]
    return max((64 * torch.finfo(dtype).eps for dtype in stored if dtype.is_floating_point), default=1e-4)


def _copy(adapters: AdapterSet, before: list[_Change], path: Path) -> None:
    """``adapters`` saved and read again: everything is as it was."""
    path.unlink(missing_ok=True)
    saved = attempt(lambda: lycoris_algos.save(adapters, path))
    if isinstance(saved, LycorisError):
        assert not list(path.parent.glob(f".*{path.stem}*")), "a part was left behind"
        return
    again = lycoris_algos.load(saved)
    assert sorted(again) == sorted(adapters)
    assert again.dialect == adapters.dialect
    assert again.unread.keys() == adapters.unread.keys()
    assert {name: set(parts) for name, parts in again.embeddings.items()} == {
        name: set(parts) for name, parts in adapters.embeddings.items()
    }
    _texts(again)
    inside = {name: again[name] for name in adapters}
    rounded = any(
        dialect_of(name).name in WITHOUT_ALPHA for name in adapters
    )  # alpha is in the factors there
    share = _rounding(adapters) if rounded else 1e-5
    _same(before, _changes(type(again)(inside), like=adapters), share)
