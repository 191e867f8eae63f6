"""The texts of an inspection: what each view says to a person, short however large the files are.

``Detail.BLOCKS`` adds layers up by block, ``Detail.LAYERS`` names them, those that matter most first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum

from ..text import LINES, as_report, capped, human_size, listed, quoted, single_line
from .values import Inspection, Joint, LayerValues, Meeting, View, by_block


class Detail(str, Enum):
    """How finely a view tells what it found."""

    BLOCKS = "blocks"
    LAYERS = "layers"


def text_of(found: Inspection, detail: Detail = Detail.BLOCKS) -> str:
    """The report of an inspection."""
    lines = [*_VIEWS[found.view](found, detail)]
    if found.view is not View.OVERVIEW and found.warnings:
        lines += ["warnings:", *(f"  {line}" for line in capped(found.warnings))]
    return as_report(lines)


# ---- views ---------------------------------------------------------------------------------------------


def _overview(found: Inspection, detail: Detail) -> Iterator[str]:
    for number, file in enumerate(found.files):
        yield file.card
        own = [layer for layer in found.layers if layer.file == number]
        yield f"  made for {file.family or 'a model that its names do not tell'}"
        sizes = [f"{part} {human_size(size)}" for part, size in file.parts.items()]
        yield f"  size: {', '.join(sizes)}"
        if found.model is not None:
            fitting = sum(not layer.problem for layer in own)
            model = found.model or "of a family that is not known here"
            yield f"  the model is {model}: {fitting} of {len(own)} layers fit"
        if detail is Detail.LAYERS:
            yield from _table(
                ("layer", "block", "kind", "algorithm", "rank", "shape"),
                [
                    (
                        single_line(layer.layer),
                        layer.block,
                        layer.kind,
                        layer.algorithm,
                        "" if layer.rank is None else str(layer.rank),
                        _shape(layer.shape),
                    )
                    for layer in own
                ],
            )
        else:
            blocks = by_block(own)
            yield f"  blocks: {listed([f'{block} ({len(blocks[block])})' for block in blocks], 40)}"
    if found.model is not None and found.warnings:
        yield "does not fit:"
        yield from (f"  {line}" for line in capped(found.warnings))


def _energy(found: Inspection, detail: Detail) -> Iterator[str]:
    total = sum(layer.energy for layer in found.layers)
    yield f"Energy Σ‖ΔW‖² of {_files(found)}: {total:.4g} at multiplier 1"
    if detail is Detail.LAYERS:
        measured = _largest(found.layers, lambda layer: layer.norm)
        yield from _table(
            ("‖ΔW‖", "share", "layer"),
            [(_short(layer.norm), _share(layer.energy, total), _named(layer)) for layer in measured],
        )
        return
    rows = [
        (block, _short(math.sqrt(sum(kinds.values()))), _share(sum(kinds.values()), total), _strongest(kinds))
        for block, kinds in found.energies.items()
    ]
    yield from _table(("block", "‖ΔW‖", "share", "strongest kinds"), rows)


def _spectra(found: Inspection, detail: Detail) -> Iterator[str]:
    yield f"Singular values of {_files(found)}: how many directions each layer really uses"
    measured = [layer for layer in found.layers if layer.effective_rank is not None]
    if detail is Detail.LAYERS:
        yield from _table(
            ("effective rank", "rank", "σ₁", "layer"),
            [
                (_short(layer.effective_rank), _rank(layer), _short(_first(layer)), _named(layer))
                for layer in _largest(measured, lambda layer: layer.effective_rank)
            ],
        )
        return
    rows = [
        (
            block,
            str(len(own)),
            _range([layer.effective_rank for layer in own]),
            _range([float(layer.rank) for layer in own if layer.rank is not None]),
            _short(max(_first(layer) or 0.0 for layer in own)),
        )
        for block, own in by_block(measured).items()
    ]
    yield from _table(("block", "layers", "effective rank", "rank", "largest σ"), rows)


def _relative(found: Inspection, detail: Detail) -> Iterator[str]:
    yield f"‖ΔW‖/‖W‖ of {_files(found)}, at multiplier 1"
    measured = [layer for layer in found.layers if layer.relative is not None]
    if not measured:
        yield _NO_MODEL
        return
    outliers = [layer for layer in measured if layer.outlier]
    if outliers:
        yield f"{len(outliers)} layers stand out; a lower multiplier on them may calm the picture:"
        yield from _table(
            ("‖ΔW‖/‖W‖", "layer"),
            [(_percent(o.relative), _named(o)) for o in _largest(outliers, _of_relative)],
        )
    if detail is Detail.LAYERS:
        rows = [(_percent(layer.relative), _named(layer)) for layer in _largest(measured, _of_relative)]
        yield from _table(("‖ΔW‖/‖W‖", "layer"), rows)
        return
    values = {block: [layer.relative or 0.0 for layer in own] for block, own in by_block(measured).items()}
    yield from _table(
        ("block", "layers", "median", "largest"),
        [
            (block, str(len(own)), _percent(statistics.median(own)), _percent(max(own)))
            for block, own in values.items()
        ],
    )


def _compare(found: Inspection, detail: Detail) -> Iterator[str]:
    if len(found.files) < 2:
        yield "There is one file only: connect Stack LyCORIS with two or more to compare them."
        return
    for number, file in enumerate(found.files):
        yield f"{number}: {quoted(file.name)} at {file.strength_model:g} (clip {file.strength_clip:g})"
    for pair in found.pairs:
        yield f"{pair.first} and {pair.second}, on {pair.whole.layers} layers that both change:"
        yield f"  {_verdict(pair.whole)}"
        yield from _table(
            ("block", "layers", "cosine", "same outputs", "same inputs", "opposed"),
            [("all", *_meeting(pair.whole))]
            + [(block, *_meeting(own)) for block, own in pair.blocks.items()],
        )
    if not found.pairs:
        yield "No two of them change the same layer."
    if "" in found.joint:
        yield "All together: the norm of the sum, in parts of the sum of the norms"
        yield from _table(
            ("block", "norm of sum", "sum of norms", "left"),
            [(block or "all", *_joint(own)) for block, own in found.joint.items()],
        )


def _quantisation(found: Inspection, detail: Detail) -> Iterator[str]:
    measured = [layer for layer in found.layers if layer.survival]
    yield f"What number types leave of the changes of {_files(found)}, at the strengths of the stack"
    if not measured:
        yield _NO_MODEL
        return
    stored = sorted({layer.dtype for layer in measured if layer.dtype})
    yield f"The model is stored as {', '.join(stored)}. Share of weights that move, rounded to the nearest"
    yield "(in brackets: rounded at random, which keeps the mean of the change):"
    types = list(measured[0].survival)
    if detail is Detail.LAYERS:
        least = sorted(measured, key=lambda layer: layer.survival[types[-1]].nearest)[:LINES]
        yield from _table((*types, "layer"), [(*_survival([own], types), _named(own)) for own in least])
        return
    rows = [("all", *_survival(measured, types))]
    rows += [(block, *_survival(own, types)) for block, own in by_block(measured).items()]
    yield from _table(("block", *types), rows)


_VIEWS: dict[View, Callable[[Inspection, Detail], Iterator[str]]] = {
    View.OVERVIEW: _overview,
    View.ENERGY: _energy,
    View.SPECTRA: _spectra,
    View.RELATIVE: _relative,
    View.COMPARE: _compare,
    View.QUANTISATION: _quantisation,
}
_NO_MODEL = "Give the model that it is for: this compares with its weights."


# ---- pieces of text ------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, the largest families of lines only."""
    shown = rows[:LINES]
    widths = [max(len(row[column]) for row in (heads, *shown)) for column in range(len(heads))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *shown)
    ]
    more = len(rows) - len(shown)
    return [*lines, f"  … and {more} more"] if more > 0 else lines


def _verdict(own: Meeting) -> str:
    """One sentence of what a pair does together."""
    if own.cosine is None:
        return "one of them changes nothing there"
    if own.cosine > 0.3:
        return "they pull the same way: together they are stronger than each was meant to be"
    if own.cosine < -0.1:
        return "they pull against each other: each takes away from the other"
    if max(own.outputs or 0.0, own.inputs or 0.0) > 0.5:
        return "they use the same directions for different things, so each may disturb the other"
    return "they hardly meet: each does its own thing"


def _meeting(own: Meeting) -> tuple[str, ...]:
    shares = (_percent(own.outputs), _percent(own.inputs), _percent(own.conflict))
    return (str(own.layers), "" if own.cosine is None else f"{own.cosine:+.3f}", *shares)


def _joint(own: Joint) -> tuple[str, str, str]:
    return _short(own.norm), _short(own.apart), _percent(own.norm / own.apart if own.apart else None)


def _survival(layers: Sequence[LayerValues], types: Sequence[str]) -> list[str]:
    cells = []
    for name in types:
        known = [layer.survival[name] for layer in layers if name in layer.survival]
        nearest, stochastic = (
            statistics.fmean(values) if values else None
            for values in ([own.nearest for own in known], [own.stochastic for own in known])
        )
        cells.append(f"{_percent(nearest)} ({_percent(stochastic)})")
    return cells


def _largest(
    layers: Iterable[LayerValues], value: Callable[[LayerValues], float | None]
) -> list[LayerValues]:
    known = [layer for layer in layers if value(layer) is not None]
    return sorted(known, key=lambda layer: -(value(layer) or 0.0))


def _of_relative(layer: LayerValues) -> float | None:
    return layer.relative


def _first(layer: LayerValues) -> float | None:
    return layer.singular_values[0] if layer.singular_values else None


def _strongest(kinds: dict[str, float]) -> str:
    total = sum(kinds.values())
    leading = sorted(kinds, key=lambda kind: -kinds[kind])[:3]
    return ", ".join(f"{kind} {_share(kinds[kind], total)}" for kind in leading)


def _named(layer: LayerValues) -> str:
    return f"{single_line(layer.layer)} ({layer.block}, {layer.kind})"


def _files(found: Inspection) -> str:
    return listed([file.name for file in found.files], show=quoted)


def _range(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return ""
    low, high = _short(known[0]), _short(known[-1])
    return low if low == high else f"{low} to {high}"


def _rank(layer: LayerValues) -> str:
    return "" if layer.rank is None else str(layer.rank)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "×".join(map(str, shape))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value > 100 else f"{value:.2%}"
