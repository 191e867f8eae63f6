"""From a file to an ``AdapterSet``: split the keys, build one adapter per layer, drop nothing silently.

Three kinds of trouble are told apart. A layer whose tensors contradict each other (half of a LoRA, ranks
that differ, NaN) means a damaged file and is an error. A tensor that no algorithm knows is no error, but it
is listed with the reason, and so is the rest of its layer: a layer is used whole or not at all. A file
without a single adapter is an error that says what the file seems to be instead.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import LayerAdapter, known_suffixes, suffixes_beside
from ..errors import LycorisError, NotAnAdapterError
from ..formats import UNKNOWN, canonical_suffix, common_dialect, dialect_of, split_key
from ..io import SafetensorsReader, is_safetensors, read_tensors
from ..ops.workers import one_thread
from ..text import quoted
from .adapter_set import AdapterSet, Unmatched
from .bundles import take_embeddings
from .corrections import corrected
from .layouts import plain

# What a file without adapters may be, by keys that such a file has: the first that fits.
_OTHER_FILES: tuple[tuple[str, str, str], ...] = (
    (
        "a ControlNet",
        "load it with Load ControlNet Model",
        r"(control_model|controlnet_\w+)\..*(weight|bias)",
    ),
    ("a checkpoint", "load it with Load Checkpoint", r"(model\.diffusion_model|cond_stage_model)\."),
    ("a VAE", "load it with Load VAE", r"(first_stage_model|(encoder\.down|decoder\.up)(_blocks)?)\."),
    (
        "a diffusion model",
        "load it with Load Diffusion Model",
        r"(diffusion_model|double_blocks)\..*\.(weight|bias)",
    ),
    (
        "a diffusion model in diffusers' form",
        "load it with Load Diffusion Model",
        r"(down_blocks|transformer_blocks)\..*\.(weight|bias)",
    ),
    ("a text encoder", "load it with Load CLIP", r"(text_model|encoder\.block|model\.layers)\."),
    (
        "an embedding",
        "put it into the embeddings folder",
        r"emb_params|string_to_param|bundle_emb|clip_.$",
    ),
)


# What only adapters have, whatever their names.
_ADAPTER_WORD = re.compile(r"(^|[._])(loras?|lora_[A-Za-z]+|hada|lokr|loha|glora|oft|boft|ia3|dora)([._]|$)")
# A parameter itself, and what PEFT wraps its module in: to train it whole, or to put an adapter beside it.
_PARAMETER = re.compile(r"(.+?)(?:\.modules_to_save(?:\.[^.]+)?|\.base_layer)?\.(weight|bias)", re.DOTALL)
# Who stores biases that were trained beside an adapter under their own names.
_WITH_BIASES = frozenset({"peft", "diffusers"})
# Bytes up to which a tensor is read for an outline: numbers, and vectors that say what is meant.
_SMALL = 4096
# PEFT's own file name; what it stores means little without the adapter_config.json beside it.
_PEFT_STEM = "adapter_model"


def load(path: str | Path) -> AdapterSet:
    """Reads ``path`` (.safetensors, or .pt, .ckpt, .bin without code) into an ``AdapterSet``.

    The file is closed when this returns; the tensors own their memory and keep their stored dtypes.
    Raises FileFormatError, NotAnAdapterError, UnknownAdapterError, AmbiguousAdapterError,
    ShapeMismatchError or BadValueError; every message names the file and, where there is one, the layer.
    """
    path = Path(path)
    return _of_file(path, *read_tensors(path))


def outline(path: str | Path) -> AdapterSet:
    """The same set with everything that its file's header and its small tensors tell, in no time.

    The large tensors are on PyTorch's meta device: they have dtype and shape, and no numbers. Nothing can be
    computed with them, and whether they hold NaN is not known. Raises as ``load`` does. A PyTorch file has no
    header, and is loaded.
    """
    path = Path(path)
    if not is_safetensors(path):
        return load(path)
    with SafetensorsReader(path) as reader:
        tensors = {
            name: reader[name]
            if info.nbytes <= _SMALL
            else torch.empty(info.shape, dtype=info.dtype, device="meta")
            for name, info in reader.header.tensors.items()
        }
        return _of_file(path, tensors, reader.metadata)


def _of_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> AdapterSet:
    if path.stem == _PEFT_STEM:
        metadata = {**_peft_config(path.with_name("adapter_config.json")), **metadata}
    return from_tensors(tensors, metadata, name=path.name)


def _peft_config(path: Path) -> dict[str, str]:
    """PEFT's configuration as metadata (network/corrections.py reads it), if there is one of a sane size."""
    try:
        return {"adapter_config": path.read_text("utf-8")} if path.stat().st_size < 2**20 else {}
    except (OSError, ValueError):
        return {}


# Thousands of small checks, each of which would wait for the slowest of several threads.
@one_thread()
def from_tensors(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    name: str = "adapter",
) -> AdapterSet:
    """Builds an ``AdapterSet`` from {key: tensor} as a file holds them. Raises as ``load`` does."""
    try:
        source = plain(tensors)
        embeddings, others, unmatched = take_embeddings(source)
    except LycorisError as error:
        raise error.with_context(f"file {quoted(name)}") from error
    known = known_suffixes()
    grouped, strangers = _group(others, known)
    layers: dict[str, LayerAdapter] = {}
    unmatched += strangers
    for layer, stored in grouped.items():
        own = _usable(stored, known, unmatched)
        if not own:
            continue
        try:
            adapter = LayerAdapter.from_tensors(own)
            adapter.require_finite()
        except LycorisError as error:
            raise error.with_context(f"file {quoted(name)}, layer {quoted(layer)}") from error
        layers[layer] = adapter
    if not layers:
        raise NotAnAdapterError(_no_adapter(name, tensors, unmatched, is_adapter=bool(grouped)))
    try:
        layers, described, notes = corrected(layers, metadata or {})
    except LycorisError as error:
        raise error.with_context(f"file {quoted(name)}") from error
    dialect = common_dialect(layers).name
    unread = still_unread({item.key: source[item.key] for item in unmatched if item.key in source}, layers)
    return AdapterSet(layers, tuple(unmatched), described, dialect, name, notes, embeddings, unread)


def _group(
    tensors: Mapping[str, Tensor], suffixes: Collection[str]
) -> tuple[dict[str, list[_Stored]], list[Unmatched]]:
    """What each layer stores; and the keys that belong to no layer at all."""
    grouped: dict[str, list[_Stored]] = defaultdict(list)
    rest: list[str] = []
    for key, value in tensors.items():
        pieces = split_key(key, suffixes)
        if pieces is None:
            rest.append(key)
        else:
            grouped[pieces[0]].append(_Stored(key, pieces[1], value))
    strangers: list[Unmatched] = []
    owners = _owners(rest, grouped)
    dialects = {dialect_of(layer).name for layer in grouped} - {UNKNOWN.name} if rest else set()
    for key in rest:  # a weak suffix, or an unknown tensor, which spoils its layer: see _usable
        owner = owners.get(key)
        whole = _whole_parameter(key, tensors[key], owner, dialects)
        if whole is not None:
            grouped[whole[0]].append(_Stored(key, whole[1], tensors[key]))
        elif owner is None:
            strangers.append(Unmatched(key, "no known algorithm stores a tensor of this name"))
        else:
            suffix = canonical_suffix(key[len(owner) + 1 :])
            grouped[owner].append(_Stored(key, suffix, tensors[key]))
    return grouped, strangers


def _whole_parameter(
    key: str, value: Tensor, owner: str | None, dialects: Set[str]
) -> tuple[str, str] | None:
    """(layer, suffix) of the parameter that ``key`` itself is, beside adapters in ``dialects``, or None.

    PEFT stores layers that were trained whole (``modules_to_save``) under their own names, and so does
    diffusers with norms. PEFT's option ``bias`` adds those of all layers, also of ``owner``'s.
    """
    match = _PARAMETER.fullmatch(key)
    if match is None or not value.dtype.is_floating_point or not value.dim():
        return None
    layer, what = match.groups()
    if owner is None:
        return (layer, f"set_{what}") if dialect_of(layer).name in dialects else None
    is_own = layer == owner and key != f"{layer}.weight"
    return (layer, f"set_{what}") if is_own and dialect_of(layer).name in _WITH_BIASES else None


def still_unread(unread: Mapping[str, Tensor], layers: Collection[str]) -> dict[str, Tensor]:
    """Those of ``unread`` that mean nothing in a file of ``layers`` either, whatever these are called now.

    A layer that was not used stays whole: half of one would be an error.
    """
    known = known_suffixes()
    dialects = {dialect_of(layer).name for layer in layers} - {UNKNOWN.name}
    owners = {key: pieces[0] for key in unread if (pieces := split_key(key, known)) is not None}
    owners |= _owners([key for key in unread if key not in owners], {*layers, *owners.values()})
    return {
        key: value
        for key, value in unread.items()
        if (
            owners[key] not in layers
            if key in owners
            else _whole_parameter(key, value, None, dialects) is None
        )
    }


@dataclass(frozen=True, eq=False)
class _Stored:
    """One tensor of a layer: its key in the file, its suffix in LyCORIS' spelling, and itself."""

    key: str
    suffix: str
    tensor: Tensor


def _owners(keys: Sequence[str], layers: Collection[str]) -> dict[str, str]:
    """{key: the longest of ``layers`` that it lies below}, for the keys that lie below any."""
    owners: dict[str, str] = {}
    above: list[str] = []
    # In the order of their words, what lies below a layer follows it at once.
    for name in sorted({*keys, *layers}, key=lambda name: name.split(".")):
        while above and not name.startswith(f"{above[-1]}."):
            above.pop()
        if name in layers:
            above.append(name)
        elif above:
            owners[name] = above[-1]
    return owners


def _usable(stored: list[_Stored], known: Set[str], unmatched: list[Unmatched]) -> dict[str, Tensor]:
    """{suffix: tensor} of a layer, whole or empty; what is left out is listed with the reason."""
    own = {item.suffix: item.tensor for item in stored}
    unknown = sorted(own.keys() - known)
    reason = ""
    if unknown:
        reason = f"this layer also has {quoted(unknown[0])}, which no known algorithm stores"
    elif len(own) < len(stored):
        twice = Counter(item.suffix for item in stored).most_common(1)[0][0]
        reason = f"this layer has a second {quoted(twice)}, in another spelling"
    if reason:
        unmatched += [Unmatched(item.key, reason) for item in stored]
        return {}
    if own.keys() - suffixes_beside() == {"alpha"}:
        key = next(item.key for item in stored if item.suffix == "alpha")
        unmatched.append(Unmatched(key, "nothing in this layer is scaled by an alpha"))
        del own["alpha"]
    return own


def _no_adapter(
    name: str, tensors: Mapping[str, Tensor], unmatched: list[Unmatched], *, is_adapter: bool
) -> str:
    if not tensors:
        return f"file {quoted(name)} is empty: it holds no tensors. Download or export it again"
    if "lora_controlnet" in tensors:
        return f"file {quoted(name)} is a ControlLoRA: load it with Load ControlNet Model"
    is_adapter = is_adapter or any(_ADAPTER_WORD.search(key) for key in tensors)
    for what, advice, pattern in () if is_adapter else _OTHER_FILES:
        if any(re.match(pattern, key) for key in tensors):
            return f"file {quoted(name)} is {what}, not a LyCORIS or LoRA file: {advice}"
    first = unmatched[0] if unmatched else Unmatched(next(iter(tensors)), "unknown")
    return (
        f"file {quoted(name)} holds no adapter that this pack knows: {len(tensors)} tensors, "
        f"the first is {quoted(first.key)} ({first.reason})"
    )
