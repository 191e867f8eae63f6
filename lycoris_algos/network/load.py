"""From a file to an ``AdapterSet``: split the keys, build one adapter per layer, drop nothing silently.

Three kinds of trouble are told apart. A layer whose tensors contradict each other (half of a LoRA, ranks
that differ, NaN) means a damaged file and is an error. A tensor that no algorithm knows is no error, but it
is listed with the reason, and so is the rest of its layer: a layer is used whole or not at all. A file
without a single adapter is an error that says what the file seems to be instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..adapters import LayerAdapter, known_suffixes, modifiers, parts
from ..errors import LycorisError, NotAnAdapterError
from ..formats import canonical_suffix, common_dialect, split_key
from ..io import read_tensors
from .adapter_set import AdapterSet, Unmatched
from .corrections import corrected

# What a file without adapters may be, by keys that such a file has.
_OTHER_FILES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("a checkpoint", "load it with Load Checkpoint", ("model.diffusion_model.", "cond_stage_model.")),
    ("a diffusion model", "load it with Load Diffusion Model", ("diffusion_model.", "double_blocks.")),
    ("a diffusion model in diffusers' form", "load it as a model", ("down_blocks.", "transformer_blocks.")),
    ("a text encoder", "load it with Load CLIP", ("text_model.", "encoder.block.", "model.layers.")),
    ("a VAE", "load it with Load VAE", ("encoder.down.", "decoder.up.", "first_stage_model.")),
    ("an embedding", "put it into the embeddings folder", ("emb_params", "string_to_param", "clip_")),
    ("a ControlNet", "load it with Load ControlNet Model", ("control_model.", "controlnet_")),
)


def load(path: str | Path) -> AdapterSet:
    """Reads ``path`` (.safetensors, or .pt, .ckpt, .bin without code) into an ``AdapterSet``.

    The file is closed when this returns; the tensors own their memory and keep their stored dtypes.
    Raises FileFormatError, NotAnAdapterError, UnknownAdapterError, AmbiguousAdapterError,
    ShapeMismatchError or BadValueError; every message names the file and, where there is one, the layer.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    return from_tensors(tensors, metadata, name=path.name)


def from_tensors(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    name: str = "adapter",
) -> AdapterSet:
    """Builds an ``AdapterSet`` from {key: tensor} as a file holds them. Raises as ``load`` does."""
    grouped, strangers = _group(tensors)
    layers: dict[str, LayerAdapter] = {}
    unmatched = list(strangers)
    for layer, own in grouped.items():
        unusable = _unusable(layer, own, unmatched)
        if unusable:
            continue
        try:
            adapter = LayerAdapter.from_tensors(own)
            adapter.require_finite()
        except LycorisError as error:
            raise error.with_context(f"file '{name}', layer '{layer}'") from error
        layers[layer] = adapter
    if not layers:
        raise NotAnAdapterError(_no_adapter(name, tensors, unmatched))
    layers, described, notes = corrected(layers, metadata or {})
    return AdapterSet(layers, tuple(unmatched), described, common_dialect(layers).name, name, notes)


def _group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[Unmatched]]:
    """Tensors by layer and suffix; and the keys that belong to no layer at all."""
    suffixes = known_suffixes()
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    rest: list[str] = []
    strangers: list[Unmatched] = []
    for key, value in tensors.items():
        found = split_key(key, suffixes)
        if found is None:
            rest.append(key)
        elif found[1] in grouped[found[0]]:
            strangers.append(Unmatched(key, f"the layer has a second '{found[1]}'"))
        else:
            grouped[found[0]][found[1]] = value
    for key in rest:  # a weak suffix, or an unknown tensor, which spoils its layer: see _unusable
        owner = next((layer for layer in _prefixes(key) if layer in grouped), None)
        if owner is None:
            strangers.append(Unmatched(key, "no known algorithm stores a tensor of this name"))
        else:
            grouped[owner][canonical_suffix(key[len(owner) + 1 :])] = tensors[key]
    return grouped, strangers


def _prefixes(key: str) -> Iterable[str]:
    """The possible layer names of ``key``, longest first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _unusable(layer: str, own: dict[str, Tensor], unmatched: list[Unmatched]) -> bool:
    """Reports what cannot be used of a layer; True if that is all of it. May drop a stray alpha."""
    unknown = sorted(own.keys() - known_suffixes())
    if unknown:
        reason = f"this layer also has '{unknown[0]}', which no known algorithm stores"
        unmatched += [Unmatched(f"{layer}.{suffix}", reason) for suffix in own]
        return True
    parts_only = frozenset().union(*(kind.keys.names for kind in (*parts(), *modifiers())))
    if own.keys() - parts_only == {"alpha"}:
        unmatched.append(Unmatched(f"{layer}.alpha", "nothing in this layer is scaled by an alpha"))
        del own["alpha"]
        return not own
    return False


def _no_adapter(name: str, tensors: Mapping[str, Tensor], unmatched: list[Unmatched]) -> str:
    if not tensors:
        return f"file '{name}' is empty: it holds no tensors. Download or export it again"
    for what, advice, marks in _OTHER_FILES:
        if any(key.startswith(marks) for key in tensors):
            return f"file '{name}' is {what}, not a LyCORIS or LoRA file: {advice}"
    first = unmatched[0] if unmatched else Unmatched(next(iter(tensors)), "unknown")
    return (
        f"file '{name}' holds no adapter that this pack knows: {len(tensors)} tensors, "
        f"the first is '{first.key}' ({first.reason})"
    )
