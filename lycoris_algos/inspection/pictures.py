"""The pictures of an inspection, drawn by matplotlib, which is imported only when a picture is asked for.

It need not be there (``can_draw``): texts and documents are made without it. Blocks go from left to right in
the order of the model. Colours are Okabe and Ito's and matplotlib's *cividis* and *PuOr*, which the
colour-blind tell apart; and no colour stands alone for something: lines differ in their markers as well.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LycorisError
from ..models import KINDS
from ..text import single_line
from .values import Inspection, LayerValues, View, by_block, in_order

#: What to do where ``can_draw`` answers False.
ADVICE = (
    "there is no picture, since matplotlib is not installed: run 'python -m pip install matplotlib' with the "
    "Python that runs this, and restart"
)
# A picture of 960 × 600 at the size at which a node shows it.
_INCHES, _DPI, _FONT, _SMALL = (8.0, 5.0), 120, 11, 8
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D1F")
_MARKERS = "osD^vP*X"
_MOST_TICKS, _MOST_PAIRS = 30, 6


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def blank() -> Tensor:
    """What stands for a picture where there is none, in the form of ``draw``."""
    return torch.zeros(1, 64, 64, 3)


def draw(found: Inspection) -> Tensor:
    """The picture as ComfyUI has images: (1, height, width, 3), 0 to 1. LycorisError without matplotlib."""
    with _figure(found) as figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return pixels.reshape(1, height, width, 4)[..., :3].float() / 255


def save_picture(found: Inspection, path: Path) -> None:
    """Writes the picture to ``path``, as its ending says (png, svg, pdf). LycorisError without matplotlib.

    Raises OSError where it cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise LycorisError("a picture is written as .png, .svg or .pdf: choose one of these endings")
    with _figure(found) as figure, path.open("xb") as file:
        figure.savefig(file, format=kind)


@contextmanager
def _figure(found: Inspection) -> Iterator[Any]:
    """A figure with the picture on it; nothing global of matplotlib's is touched for longer than that."""
    if not can_draw():
        raise LycorisError(ADVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters of a name that the font does not have are boxes
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"font.size": _FONT, "font.family": ["DejaVu Sans"]}):
            figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained", facecolor="white")
            _VIEWS[found.view](figure, found)
            yield figure


# ---- views ---------------------------------------------------------------------------------------------


def _overview(figure: Any, found: Inspection) -> None:
    """How many bytes each kind of layer takes, by algorithm."""
    axes = figure.add_subplot()
    _title(figure, found, "Size by kind of layer")
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for layer in found.layers:
        kinds[layer.kind][layer.algorithm] += layer.size_bytes
    names = sorted(kinds, key=lambda kind: sum(kinds[kind].values()))
    algorithms = sorted({layer.algorithm for layer in found.layers})
    left = [0.0] * len(names)
    for number, algorithm in enumerate(algorithms):
        sizes = [kinds[kind][algorithm] / 1e6 for kind in names]
        axes.barh(names, sizes, left=left, label=algorithm, color=_COLOURS[number % len(_COLOURS)])
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.set_xlabel("size in MB")
    axes.set_ylabel("kind of layer")
    axes.legend(title="algorithm", fontsize=_SMALL, loc="lower right")


def _energy(figure: Any, found: Inspection) -> None:
    """A heat map of ‖ΔW‖, kinds of layers by blocks."""
    from matplotlib.colors import LogNorm

    energies = found.energies
    present = {kind for own in energies.values() for kind in own}
    kinds = [kind for kind in KINDS if kind in present]
    axes = figure.add_subplot()
    _title(figure, found, "Where the strength sits")
    norms = [
        [math.sqrt(own[kind]) if own.get(kind) else math.nan for own in energies.values()] for kind in kinds
    ]
    known = [value for row in norms for value in row if value > 0]
    if not known:
        _nothing(axes, "nothing was measured")
        return
    low, high = min(known), max(known)
    scale = LogNorm(low, high) if low < high else None
    axes.set_facecolor("#e8e8e8")  # no layer there
    image = axes.imshow(norms, aspect="auto", cmap="cividis", norm=scale, interpolation="nearest")
    _block_axis(axes, list(energies))
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylabel("kind of layer")
    bar = figure.colorbar(image, ax=axes, label="‖ΔW‖ (Frobenius) at multiplier 1", format=_plain)
    bar.ax.yaxis.set_minor_formatter(_plain)
    bar.ax.tick_params(which="both", labelsize=_SMALL)


def _spectra(figure: Any, found: Inspection) -> None:
    """Singular values by kind (median of the layers), and effective rank by block."""
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _title(figure, found, "Singular values")
    measured = [layer for layer in found.layers if layer.singular_values and layer.singular_values[0] > 0]
    if not measured:
        _nothing(above, "nothing was measured")
        return
    for number, (kind, own) in enumerate(_by_kind(measured).items()):
        longest = max(len(layer.singular_values) for layer in own)
        middle = [
            statistics.median(
                layer.singular_values[place] / layer.singular_values[0]
                for layer in own
                if len(layer.singular_values) > place
            )
            for place in range(longest)
        ]
        shown = [value for value in middle if value > 1e-6]
        above.plot(range(1, len(shown) + 1), shown, label=kind, **_style(number, len(shown)))
    above.set_yscale("log")
    above.yaxis.set_major_formatter(_plain)
    above.set_xlabel("number of the singular value")
    above.set_ylabel("σ / largest σ (median)")
    above.grid(alpha=0.3)
    _legend(figure, above)
    blocks = by_block(measured)
    for number, own in enumerate(_by_kind(measured).values()):
        places = [list(blocks).index(layer.block) for layer in own]
        ranks = [layer.effective_rank for layer in own]
        below.scatter(places, ranks, s=16, color=_colour(number), marker=_marker(number), alpha=0.8)
    below.set_ylabel("effective rank")
    below.set_ylim(bottom=0)
    below.grid(alpha=0.3)
    _block_axis(below, list(blocks))


def _relative(figure: Any, found: Inspection) -> None:
    """‖ΔW‖/‖W‖ of every layer, by block, with those that stand out ringed."""
    axes = figure.add_subplot()
    _title(figure, found, "Change relative to the weight")
    measured = [layer for layer in found.layers if layer.relative]
    if not measured:
        _nothing(axes, "connect the model that it is for")
        return
    blocks = list(by_block(measured))
    for number, (kind, own) in enumerate(_by_kind(measured).items()):
        places = [blocks.index(layer.block) for layer in own]
        values = [layer.relative for layer in own]
        style = {"color": _colour(number), "marker": _marker(number)}
        axes.scatter(places, values, s=24, label=kind, alpha=0.85, **style)
    outliers = [layer for layer in measured if layer.outlier]
    if outliers:
        places = [blocks.index(layer.block) for layer in outliers]
        values = [layer.relative for layer in outliers]
        ring = {"facecolors": "none", "edgecolors": "#D55E00", "linewidths": 1.8}
        axes.scatter(places, values, s=130, label="stands out", **ring)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_percents)
    axes.set_ylabel("‖ΔW‖ / ‖W‖ at multiplier 1")
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    _block_axis(axes, blocks)


def _compare(figure: Any, found: Inspection) -> None:
    """Cosines of all pairs as a matrix, and by block; how much of the norms is left in the sum."""
    if len(found.files) < 2:
        _nothing(figure.add_subplot(), "one file only: connect a stack of two or more")
        return
    figure.suptitle("How the files of the stack meet")
    matrix, lines = figure.subplots(1, 2, width_ratios=(2, 3))
    count = len(found.files)
    cosines = [[1.0 if row == column else math.nan for column in range(count)] for row in range(count)]
    for pair in found.pairs:
        if pair.whole.cosine is not None:
            cosines[pair.first][pair.second] = cosines[pair.second][pair.first] = pair.whole.cosine
    matrix.set_facecolor("#e8e8e8")
    image = matrix.imshow(cosines, cmap="PuOr", vmin=-1, vmax=1)
    for row, values in enumerate(cosines):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            text = "–" if math.isnan(value) else f"{value:.2f}"
            matrix.text(column, row, text, ha="center", va="center", color=colour)
    names = [f"{number}: {_label(file.name, 14)}" for number, file in enumerate(found.files)]
    matrix.set_yticks(range(count), names, fontsize=_SMALL)
    matrix.set_xticks(range(count), [str(number) for number in range(count)])
    matrix.set_xlabel("file")
    figure.colorbar(image, ax=matrix, label="cosine of the changes", location="top")
    blocks = in_order({block for pair in found.pairs for block in pair.blocks})
    for number, pair in enumerate(found.pairs[:_MOST_PAIRS]):
        own = [(place, pair.blocks[b].cosine) for place, b in enumerate(blocks) if b in pair.blocks]
        places = [place for place, cosine in own if cosine is not None]
        values = [cosine for _, cosine in own if cosine is not None]
        lines.plot(places, values, label=f"cosine {pair.first}, {pair.second}", **_style(number, len(places)))
    left = [_left(found, block) for block in blocks]
    lines.plot(range(len(blocks)), left, "k--", label="norm of sum / sum of norms")
    lines.axhline(0, color="#888888", linewidth=0.8)
    lines.set_ylim(-1.05, 1.05)
    lines.set_ylabel("cosine; share of the norms")
    lines.legend(fontsize=_SMALL, loc="lower right")
    lines.grid(alpha=0.3)
    _block_axis(lines, blocks)


def _quantisation(figure: Any, found: Inspection) -> None:
    """The share of weights that move, by block, for every number type and both ways to round."""
    axes = figure.add_subplot()
    _title(figure, found, "What is left of the change when it is stored")
    measured = [layer for layer in found.layers if layer.survival]
    if not measured:
        _nothing(axes, "connect the model that it is for")
        return
    blocks = by_block(measured)
    for number, name in enumerate(measured[0].survival):
        for how, line in (("nearest", "-"), ("stochastic", ":")):
            shares = [
                statistics.fmean(
                    getattr(layer.survival[name], how) for layer in own if name in layer.survival
                )
                for own in blocks.values()
            ]
            style = _style(number, len(blocks)) | {"linestyle": line}
            label = name if how == "nearest" else f"{name}, at random"
            axes.plot(range(len(blocks)), shares, label=label, **style)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(_percents)
    axes.set_ylabel("share of weights that move")
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    _block_axis(axes, list(blocks))


_VIEWS: dict[View, Callable[[Any, Inspection], None]] = {
    View.OVERVIEW: _overview,
    View.ENERGY: _energy,
    View.SPECTRA: _spectra,
    View.RELATIVE: _relative,
    View.COMPARE: _compare,
    View.QUANTISATION: _quantisation,
}


# ---- pieces of a picture -------------------------------------------------------------------------------


def _title(figure: Any, found: Inspection, what: str) -> None:
    figure.suptitle(f"{what}\n{_label(found.name, 80)}", fontsize=_FONT)


def _legend(figure: Any, axes: Any) -> None:
    """What the colours and markers mean, beside the picture, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), fontsize=_SMALL, loc="outside right upper")


def _label(name: str, limit: int) -> str:
    """A stranger's name for a picture, where a dollar would begin a formula."""
    return single_line(name, limit).replace("$", r"\$")


def _block_axis(axes: Any, blocks: Sequence[str]) -> None:
    """Names of blocks below, as many as can be read."""
    step = -(-len(blocks) // _MOST_TICKS)
    axes.set_xticks(range(0, len(blocks), step or 1), blocks[:: step or 1], rotation=90, fontsize=_SMALL)
    axes.set_xlabel("block of the model")


def _nothing(axes: Any, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)


def _by_kind(layers: Sequence[LayerValues]) -> dict[str, list[LayerValues]]:
    groups = {kind: [layer for layer in layers if layer.kind == kind] for kind in KINDS}
    return {kind: own for kind, own in groups.items() if own}


def _left(found: Inspection, block: str) -> float:
    own = found.joint[block]
    return own.norm / own.apart if own.apart else math.nan


def _style(number: int, points: int) -> dict[str, Any]:
    every = max(1, points // 12)
    return {"color": _colour(number), "marker": _marker(number), "markersize": 4, "markevery": every}


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _marker(number: int) -> str:
    return _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]


def _plain(value: float, _: object = None) -> str:
    return f"{value:.3g}"


def _percents(value: float, _: object = None) -> str:
    return f"{100 * value:.3g} %"
