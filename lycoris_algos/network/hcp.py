"""HCP-Diffusion's files, there and back: one for the UNet and one for the text encoders, with tables in them.

``lora`` holds HCP's own LoRA, ``plugin`` LyCORIS modules, ``base`` whole weights. HCP multiplies its LoRA by
what it stores as alpha, but puts that of its own configuration (1 unless it is set) over the rank in its
place when it loads a file; so the factors are written in such a way that both come to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..adapters import LayerAdapter
from ..errors import LycorisError, NotAnAdapterError
from ..formats import dialect_of, is_text_layer, model_paths
from ..formats.hcp import JOINT
from ..models.unet import dotted, sdxl_diffusers, sdxl_original
from ..text import Brief, quoted
from .adapter_set import AdapterSet
from .convert import convert
from .load import from_tensors
from .respelling import KnownNames, Part, respelled, writable

#: The tables that are read and written.
TABLES = ("lora", "plugin", "base")
#: The two files: the UNet's, and that of all text encoders.
UNET, TEXT = "unet", "text_encoder"

_DOWN, _UP = "lora_down.weight", "lora_up.weight"
_SUFFIXES = {_DOWN: "layer.W_down", _UP: "layer.W_up"}
# By diffusers: what HCP calls the encoders of SDXL.
_SDXL_ENCODERS = {"text_encoder.": "clip_B.", "text_encoder_2.": "clip_bigG."}
_TEXT_PREFIXES = {"lora_te2_": "text_encoder_2.", "lora_te1_": "text_encoder.", "lora_te_": "text_encoder."}
# How paths of the original code begin.
_ORIGINAL = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_NUMBERED = {"clip_B.": "lora_te1_", "clip_bigG.": "lora_te2_"}


class KnownWeights(KnownNames, Protocol):
    """Who also knows the weights that were trained on: any ``KnownModel`` does."""

    def shape(self, layer: str, what: str) -> tuple[int, ...] | None:
        """The shape of the "weight" or "bias" of ``layer``; None if there is none."""

    def fetch(self, layer: str, what: str) -> Tensor:
        """Itself."""


@dataclass(frozen=True)
class StableDiffusionNames(Brief):
    """What names of Stable Diffusion mean without a model: its words are few, and SDXL has one layout."""

    sdxl: bool

    def is_text(self, layer: str) -> bool:
        """See ``KnownNames``."""
        return is_text_layer(layer)

    def role(self, layer: str) -> None:
        """See ``KnownNames``: no model is there to tell."""

    def spelled(self, layer: str, dialect: str) -> tuple[Part, ...] | None:
        """See ``KnownNames``: HCP's and flattened names for kohya and diffusers."""
        if dialect == "kohya" and dialect_of(layer).name == "hcp":
            return self._kohya(layer.replace(":", ".", 1).partition(".")[2])
        if dialect == "diffusers":
            return self._diffusers(layer)
        return None

    def _kohya(self, path: str) -> tuple[Part, ...]:
        for encoder, prefix in _NUMBERED.items():
            if path.startswith(encoder):
                return (Part(prefix + path.removeprefix(encoder).replace(".", "_")),)
        if path.startswith("text_model."):
            return (Part(f"lora_te_{path.replace('.', '_')}"),)
        own = sdxl_original(path) if self.sdxl else None
        return (Part(f"lora_unet_{(own or path).replace('.', '_')}"),)

    def _diffusers(self, layer: str) -> tuple[Part, ...] | None:
        for prefix, own in _TEXT_PREFIXES.items():
            path = dotted(layer.removeprefix(prefix)) if layer.startswith(prefix) else None
            if path is not None:
                return (Part(own + path),)
        if is_text_layer(layer):
            return None
        flat = min(model_paths(layer), key=len)
        path = dotted(flat.replace(".", "_"))
        if path is not None and path.startswith(_ORIGINAL):
            path = sdxl_diffusers(path)
        return None if path is None else (Part(f"unet.{path}"),)


# ---- to HCP ---------------------------------------------------------------------------------------------


def to_hcp(
    adapters: AdapterSet, table: str, known: KnownWeights | None = None
) -> dict[str, dict[str, Tensor]]:
    """``adapters`` as HCP stores them in ``table``: {``UNET`` or ``TEXT``: {key: tensor}}; no empty one.

    ``base`` are the changed weights of ``known``, which ``lora`` and ``plugin`` do without where the names
    are Stable Diffusion's. Raises LycorisError, naming the layer, for what HCP has no name or no form for.
    """
    if table == "base" and known is None:
        raise LycorisError("whole weights are made of those of the base model: give it")
    sdxl = any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in adapters)
    names = known or StableDiffusionNames(sdxl)
    files: dict[str, dict[str, Tensor]] = {}
    for name, layer in respelled(adapters, writable("diffusers"), names).items():
        file, path = _hcp_path(name, sdxl)
        try:
            if table == "lora":
                stored = {f"{JOINT}{suffix}": value for suffix, value in _own_lora(layer.adapter).items()}
            elif table == "plugin":
                stored = {f"{JOINT}{suffix}": value for suffix, value in layer.adapter.to_tensors().items()}
            else:
                assert known is not None
                stored = _whole(layer.adapter, name, known)
        except LycorisError as error:
            raise error.with_context(f"layer {quoted(layer.source)}") from error
        own = files.setdefault(file, {})
        own.update((f"{table}:{path}.{suffix}", value) for suffix, value in stored.items())
    return files


def _hcp_path(name: str, sdxl: bool) -> tuple[str, str]:
    """(which file, the path in it) of a layer in diffusers' spelling."""
    for prefix, encoder in _SDXL_ENCODERS.items():
        if name.startswith(prefix):
            return TEXT, (encoder if sdxl else "") + name.removeprefix(prefix)
    if not name.startswith("unet."):
        raise LycorisError(f"layer {quoted(name)}: HCP-Diffusion has only UNets and CLIP's text encoders")
    return UNET, name.removeprefix("unet.")


def _own_lora(layer: LayerAdapter) -> dict[str, Tensor]:
    """HCP's LoRA: U·D is r times the change, and alpha 1/r, whether HCP reads it or puts 1/r there itself."""
    stored = layer.to_tensors()
    down, up = stored.get(_DOWN), stored.get(_UP)
    if down is None or up is None or stored.keys() - {_DOWN, _UP, "alpha", "scale"}:
        titles = " + ".join(layer.titles)
        raise LycorisError(f"{titles} is more than HCP's own LoRA can hold: write it as plugin")
    rank = down.shape[0]
    factor = float(stored["scale"]) if "scale" in stored else float(stored.get("alpha", rank)) / rank
    factor *= rank
    root = math.sqrt(abs(factor))
    scaled = {_UP: up.float() * math.copysign(root, factor), _DOWN: down.float() * root}
    fitting = LayerAdapter.from_tensors(scaled).stored_as(up.dtype).to_tensors()
    return {**{own: fitting[name] for name, own in _SUFFIXES.items()}, "alpha": torch.tensor(1.0 / rank)}


def _whole(layer: LayerAdapter, name: str, known: KnownWeights) -> dict[str, Tensor]:
    """{"weight" or "bias": itself with the change}, in the base's dtype."""
    changed: dict[str, Tensor] = {}
    weight = layer if layer.weight_components or layer.magnitude else None
    for what, adapter in (("weight", weight), ("bias", layer.bias)):
        if adapter is None:
            continue
        if known.shape(name, what) is None:
            raise LycorisError(f"the base model has no {what} for it")
        changed[what] = adapter.add_to_(known.fetch(name, what).clone(), 1.0)
    return changed


# ---- from HCP -------------------------------------------------------------------------------------------


def from_hcp(
    files: Mapping[str, Mapping[str, Tensor]],
    name: str,
    dialect: str = "kohya",
    known: KnownWeights | None = None,
    *,
    dtype: torch.dtype | None = None,
    sdxl: bool = False,
) -> dict[str, AdapterSet]:
    """{table: adapter set in ``dialect``} of all tables in HCP's files {``UNET`` or ``TEXT``: {key: tensor}}.

    Of the table ``base`` the differences to the weights of ``known`` are taken. ``dtype`` is as for
    ``convert``; ``sdxl`` is only needed for UNets alone. Raises LycorisError for files that hold no table,
    and as ``convert`` does.
    """
    tables: dict[str, dict[str, Tensor]] = {}
    for tensors in files.values():
        for key, value in tensors.items():
            table, separator, rest = _split(key)
            if table in TABLES:
                own = tables.setdefault(table, {})
                if own.setdefault(f"{table}{separator}{rest}", value) is not value:
                    raise LycorisError(f"both files of {quoted(name)} hold {quoted(key)}")
    if not tables:
        raise NotAnAdapterError(
            f"file {quoted(name)}: it has none of HCP-Diffusion's tables {', '.join(TABLES)}"
        )
    sdxl = sdxl or any(_split(key)[2].startswith(tuple(_NUMBERED)) for own in tables.values() for key in own)
    names = known or StableDiffusionNames(sdxl)
    result: dict[str, AdapterSet] = {}
    for table, own in tables.items():
        if table == "base":
            own = _differences(own, known)
        adapters = _with_alpha(from_tensors(own, name=name))
        result[table] = convert(adapters, dtype=dtype, dialect=dialect, known=names, title=name)
    return result


def _split(key: str) -> tuple[str, str, str]:
    """(table, what follows it, the rest)."""
    place = min((key.find(mark) for mark in ".:" if mark in key), default=len(key))
    return key[:place], key[place : place + 1], key[place + 1 :]


def _differences(tensors: Mapping[str, Tensor], known: KnownWeights | None) -> dict[str, Tensor]:
    """Whole weights as changes of ``known``, in their dtype, where they are any."""
    if known is None:
        raise LycorisError("the file holds whole weights, which are changes of a base model: give it")
    changes: dict[str, Tensor] = {}
    for key, value in tensors.items():
        path, _, what = _split(key)[2].rpartition(".")
        layer = f"plugin:{path}"
        shape = known.shape(layer, what) if what in ("weight", "bias") else None
        if shape is None or shape != tuple(value.shape):
            raise LycorisError(f"the base model has no {quoted(key)} of shape {tuple(value.shape)}")
        change = value.float() - known.fetch(layer, what).float()
        if bool(change.any()):
            changes[f"{layer}.{JOINT}{'diff' if what == 'weight' else 'diff_b'}"] = change.to(value.dtype)
    if not changes:
        raise LycorisError("all weights are those of the base model: there is no change to store")
    return changes


def _with_alpha(adapters: AdapterSet) -> AdapterSet:
    """``adapters`` with alphas in the place of HCP's own scales, which few programs read."""
    layers: dict[str, LayerAdapter] = {}
    for name, layer in adapters.items():
        stored = layer.to_tensors()
        scale = stored.pop("scale", None)
        if scale is not None and _DOWN in stored:
            stored["alpha"] = scale.float() * stored[_DOWN].shape[0]
            layer = LayerAdapter.from_tensors(stored)
        layers[name] = layer
    return replace(adapters, layers=layers)
