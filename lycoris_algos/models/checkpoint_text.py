"""Text encoders of a checkpoint under the names that adapter files give their layers.

Files spell an encoder's layers as the transformers library does. A checkpoint may hold an encoder in that
form, or as OpenCLIP stores it (Stable Diffusion 2 and the large one of XL): other names, q, k and v as one
weight, and the projection transposed.

An encoder is recognised by its keys, wherever it is; a CLIP by its width as well (768 is CLIP-L, 1024 the one
of Stable Diffusion 2, 1280 CLIP-G). ``lora_te_`` means the only or first one, ``lora_te2_`` the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .checkpoint import Place, Shapes, Spot, flat, place


@dataclass(frozen=True)
class _Encoder:
    """One encoder: its layers by the path that transformers gives them, and the keys that are its own."""

    #: clip_l, clip_h, clip_g, t5, bert or other
    kind: str
    #: What follows ``text_encoders.`` in ComfyUI's own names: "clip_l.transformer."
    root: str
    layers: Mapping[str, Place]
    keys: tuple[str, ...]


_CLIP = re.compile(r"(.*?)(text_model\.)?encoder\.layers\.\d+\.self_attn\.q_proj\.weight")
_OPENCLIP = re.compile(r"(.*?)transformer\.resblocks\.\d+\.attn\.in_proj_weight")
_T5 = re.compile(r"(.*?)encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight")
_BERT = re.compile(r"(.*?)(bert\.)?encoder\.layer\.\d+\.attention\.self\.query\.weight")
_NAMED = re.compile(r"text_encoders\.([^.]+)\.")
_VISION = re.compile(r"(^|\.)(visual|vision_model)\.")
_CLIP_WIDTHS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_OPENCLIP_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPENCLIP_REST = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "text_projection.weight": "text_projection.weight",
}
_HOST_NAMES = {"t5": "t5xxl", "bert": "hydit_clip"}
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def text_names(shapes: Shapes) -> tuple[dict[str, Place], tuple[str, ...]]:
    """({name in a file: place} of all text encoders, the keys that belong to one)."""
    encoders = list(_encoders(shapes))
    kinds = {encoder.kind for encoder in encoders}
    names: dict[str, Place] = {}
    for encoder in encoders:
        flat_prefixes, prefixes = _prefixes(encoder.kind, kinds)
        for path, where in encoder.layers.items():
            layer = path.removesuffix(".weight")
            # Files leave out the name of the model around a BERT.
            short = flat(path.removeprefix("bert."))
            names.update(dict.fromkeys((prefix + short for prefix in flat_prefixes), where))
            names.update(dict.fromkeys((prefix + layer for prefix in prefixes), where))
            names[f"text_encoders.{encoder.root}{layer}"] = where
    return names, tuple(key for encoder in encoders for key in encoder.keys)


def _encoders(shapes: Shapes) -> Iterator[_Encoder]:
    roots: dict[tuple[str, str], str] = {}
    for key in shapes:
        if _VISION.search(key):
            continue
        for form, pattern in (("openclip", _OPENCLIP), ("clip", _CLIP), ("t5", _T5), ("bert", _BERT)):
            match = pattern.fullmatch(key)
            if match is not None:
                roots.setdefault((form, match[1]), key)
    for (form, root), key in roots.items():
        own = [k for k in shapes if k.startswith(root) and not _VISION.search(k)]
        # A file that is nothing but an encoder has no root, and all of it belongs to the encoder.
        named = _NAMED.match(root)
        name = named[1] if named is not None else None
        if form in ("clip", "openclip"):
            kind = _CLIP_WIDTHS.get(shapes[key][1], "clip_l")
            layers = (_clip if form == "clip" else _openclip)(root, own, shapes)
        else:
            kind = form
            layers = {k[len(root) :]: place(k, shapes) for k in own if not k.endswith(".bias")}
        yield _Encoder(kind, f"{name or _HOST_NAMES.get(kind, kind)}.transformer.", layers, tuple(own))
    yield from _others(shapes, [root for _, root in roots])


def _others(shapes: Shapes, known: Iterable[str]) -> Iterator[_Encoder]:
    """Encoders that only ComfyUI's own names reach: language models below ``text_encoders.``."""
    found: dict[str, list[str]] = {}
    for key in shapes:
        match = _NAMED.match(key)
        if match is not None and not any(root and key.startswith(root) for root in known):
            found.setdefault(match[1], []).append(key)
    for name, keys in found.items():
        start = len(f"text_encoders.{name}.")
        layers = {key[start:]: place(key, shapes) for key in keys if not key.endswith(".bias")}
        yield _Encoder("other", f"{name}.", layers, tuple(keys))


def _clip(root: str, own: Iterable[str], shapes: Shapes) -> dict[str, Place]:
    """One in the transformers library's form; very old files leave ``text_model.`` out."""
    layers: dict[str, Place] = {}
    for key in own:
        path = key[len(root) :]
        if not path.startswith(("text_model.", "text_projection", "logit_scale")):
            path = f"text_model.{path}"
        if not key.endswith(".bias"):
            layers[path] = place(key, shapes)
    return layers


def _openclip(root: str, own: Iterable[str], shapes: Shapes) -> dict[str, Place]:
    layers: dict[str, Place] = {}
    for key in own:
        path = key[len(root) :]
        match = _RESBLOCK.fullmatch(path)
        if path == "text_projection":
            layers["text_projection.weight"] = Place(Spot(key, transposed=True))
        elif path in _OPENCLIP_REST:
            layers[_OPENCLIP_REST[path]] = place(key, shapes)
        elif match is not None:
            layers.update(_resblock(key, match[1], match[2], shapes))
    return layers


def _resblock(key: str, number: str, rest: str, shapes: Shapes) -> Iterator[tuple[str, Place]]:
    layer = f"text_model.encoder.layers.{number}"
    if rest == "attn.in_proj_weight":
        bias = key.removesuffix("weight") + "bias"
        width = shapes[key][0] // 3
        for place_of, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            part = (0, place_of * width, width)
            own_bias = Spot(bias, part) if bias in shapes else None
            yield f"{layer}.self_attn.{projection}.weight", Place(Spot(key, part), own_bias)
    elif rest.endswith(".weight"):
        name = _OPENCLIP_NAMES.get(rest.removesuffix(".weight"))
        if name is not None:
            yield f"{layer}.{name}.weight", place(key, shapes)


def _prefixes(kind: str, kinds: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the flat and the dotted names of an encoder's layers begin with."""
    if kind in ("clip_l", "clip_h"):
        return ("lora_te_", "lora_te1_"), ("text_encoder.",)
    if kind == "clip_g":
        if "clip_l" in kinds:
            return ("lora_te2_",), ("text_encoder_2.",)
        # The only encoder of SDXL's refiner and of Stable Cascade; or a file of its own.
        return ("lora_te2_", "lora_te_", "lora_prior_te_"), ("text_encoder_2.", "text_encoder.")
    if kind == "t5":
        # Trainers number it by what else they trained; no other encoder has layers of these names.
        return ("lora_te1_", "lora_te2_", "lora_te3_"), ("text_encoder_2.", "text_encoder_3.")
    return (("lora_te1_",), ()) if kind == "bert" else ((), ())
