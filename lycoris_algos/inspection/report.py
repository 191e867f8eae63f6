"""Texts about adapter sets, for people: what a file is, what was applied, and what was not and why.

Nodes and the command line show these strings as they are. A report stays short however large the file:
layers that differ only in their numbers are one line ("family"), and of very many families the largest.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import starmap

from torch import Tensor

from ..adapters import LayerAdapter
from ..formats import DIALECTS, is_text_layer
from ..io import base_model, facts, trigger_words
from ..network import AdapterSet, Unmatched
from ..network.bundles import encoder_of, is_output
from ..text import LINES, as_report, capped, listed, plain_line, quoted, single_line

_NUMBER = re.compile(r"\d+")
_MAX_REASON = 500
# What the tensors say more reliably than the metadata.
_KNOWN_BETTER = frozenset({"Algorithm", "Rank", "Alpha"})


def describe(adapter_set: AdapterSet) -> str:
    """What a file holds: algorithms with layer counts and ranks, dtype, size, dialect, metadata."""
    count, text = len(adapter_set), sum(map(is_text_layer, adapter_set))
    where = f" ({count - text} in the model, {text} in the text encoder)" if text else ""
    lines = [
        f"{single_line(adapter_set.name)}: {_plural(count, 'layer')}{where}",
        *(f"  {line}" for line in algorithm_lines(adapter_set.values())),
        f"  stored as {_dtypes(adapter_set)}, {_size(adapter_set.size_bytes)}",
        f"  names as {_dialect_title(adapter_set.dialect)} spells them",
    ]
    base = base_model(adapter_set.metadata)
    if base:
        lines.append(f"  trained for {base}")
    words = trigger_words(adapter_set.metadata)
    if words:
        lines.append(f"  trigger words: {listed(words, len(words))}")
    lines += [f"  {line}" for line in embedding_lines(adapter_set)]
    lines += [
        f"  {name}: {value}" for name, value in facts(adapter_set.metadata) if name not in _KNOWN_BETTER
    ]
    lines += [f"  note: {note}" for note in adapter_set.notes]
    if adapter_set.unmatched:
        lines += ["Not used:", *unmatched_lines(adapter_set.unmatched)]
    return as_report(lines)


def algorithm_lines(layers: Iterable[LayerAdapter]) -> list[str]:
    """One line per combination of algorithms: "LoKr: 152 layers, rank 4, alpha 1"."""
    totals: Counter[str] = Counter()
    facts_of: dict[str, dict[str, Counter[float]]] = defaultdict(lambda: defaultdict(Counter))
    for layer in layers:
        title = " + ".join(_titles(layer))
        totals[title] += 1
        for name, value in ({} if layer.algorithm is None else layer.algorithm.facts()).items():
            facts_of[title][name][value] += 1
    return [
        ", ".join([f"{title}: {_plural(total, 'layer')}", *starmap(_values, facts_of[title].items())])
        for title, total in totals.most_common()
    ]


def _titles(layer: LayerAdapter) -> Iterable[str]:
    """The layer's titles, DoRA with its axis."""
    for title in layer.titles:
        magnitude = layer.magnitude
        axis = "" if magnitude is None else " on inputs" if magnitude.over_rows else " on outputs"
        yield title + axis if magnitude is not None and title == magnitude.title else title


def embedding_lines(adapter_set: AdapterSet) -> list[str]:
    """One line per embedding: "embedding 'foo': 4 vectors of 768 for clip_l, 4 of 1280 for clip_g"."""
    return capped(
        [
            f"embedding {quoted(name)}: {', '.join(starmap(_vectors, parts.items()))}"
            for name, parts in adapter_set.embeddings.items()
        ]
    )


def _vectors(part: str, value: Tensor) -> str:
    count = value.shape[0] if value.dim() == 2 else 1
    encoder = encoder_of(part)
    purpose = "" if encoder is None else f" for {'the output of ' if is_output(part) else ''}{encoder}"
    return f"{_plural(count, 'vector')} of {value.shape[-1]}{purpose}"


def unmatched_lines(unmatched: Iterable[Unmatched]) -> list[str]:
    """One line per family of keys and reason: "- 19× lora_unet_double_blocks_*_img_mod: reason".

    The largest families only, where there are very many, and how many more.
    """
    families: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for item in unmatched:
        family = (_NUMBER.sub("*", item.key), item.reason)
        families[family] += 1
        example.setdefault(family, item.key)
    lines = []
    for family, count in families.most_common(LINES):
        name = single_line(example[family] if count == 1 else family[0])
        lines.append(f"  - {'' if count == 1 else f'{count}× '}{name}: {plain_line(family[1], _MAX_REASON)}")
    more = len(families) - len(lines)
    return [*lines, f"  … and {more} more"] if more else lines


def unread_lines(name: str, unread: Sequence[Unmatched], what: str) -> list[str]:
    """What nothing here reads of the file ``name``; ``what`` says what becomes of it: "not in the result"."""
    if not unread:
        return []
    count = _plural(len(unread), "tensor")
    return [f"{count} of {quoted(name)} that nothing here reads: {what}", *unmatched_lines(unread)]


def doubled_lines(doubled: Iterable[Unmatched]) -> list[str]:
    """The layers that change the same weight as others of their file, and what was done about it."""
    lines = unmatched_lines(doubled)
    return ["some layers of this file change the same weight:", *lines] if lines else []


def _values(name: str, counts: Counter[float]) -> str:
    values = sorted(counts)
    if len(values) == 1:
        return f"{name} {values[0]:g}"
    return f"{name} {values[0]:g} to {values[-1]:g} (mostly {counts.most_common(1)[0][0]:g})"


def _dtypes(adapter_set: AdapterSet) -> str:
    counts = Counter(
        str(tensor.dtype).removeprefix("torch.")
        for layer in adapter_set.values()
        for item in layer.components()
        for _, tensor in item.tensors()
    )
    return " and ".join(name for name, _ in counts.most_common())


def _dialect_title(name: str) -> str:
    return next((dialect.title for dialect in DIALECTS if dialect.name == name), "an unknown program")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
