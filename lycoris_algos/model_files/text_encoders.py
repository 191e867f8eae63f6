"""Text encoders of a checkpoint under the paths that adapter files have for their layers.

Files spell an encoder's layers as the transformers library does. A checkpoint may hold an encoder in that
form, or as OpenCLIP stores it (Stable Diffusion 2 and the large one of XL): other names, q, k and v as one
weight, and the projection transposed.

An encoder is recognised by its keys, wherever it is; a CLIP by its width as well (768 is CLIP-L, 1024 the one
of Stable Diffusion 2, 1280 CLIP-G).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from ..text import Brief
from .places import Shapes, Spot

#: A language model that is all that its file holds, so that nothing tells what ComfyUI calls it.
UNNAMED = "llm"

# Modules that wrap the layers in some versions of the transformers library, and not in others.
_WRAPPERS = ("text_model.", "model.", "bert.")
_LANGUAGE_MODELS = ("", "language_model.", "model.language_model.")
_IN_ENCODER = re.compile(r"([^.]+)\.transformer\.(.+)", re.DOTALL)


def encoder_and_path(path: str) -> tuple[str, str] | None:
    """The encoder and the path inside it, of a path in ComfyUI's module of a CLIP; None if it names none."""
    match = _IN_ENCODER.fullmatch(path)
    return None if match is None else (match[1], match[2])


def encoder_paths(name: str, path: str) -> Iterator[str]:
    """Every path that files have for the layer ``path`` of ComfyUI's module of the encoder ``name``.

    ComfyUI's own comes first.
    """
    yield f"{name}.transformer.{path}"
    yield f"{name}.{path}"
    yield f"transformer.{path}"
    yield path
    for wrapper in _WRAPPERS:
        if path.startswith(wrapper):
            for outer in _LANGUAGE_MODELS if wrapper == "model." else ("",):
                yield outer + path.removeprefix(wrapper)


@dataclass(frozen=True)
class Encoder(Brief):
    """One encoder: its layers by their path in ComfyUI's module of it, and the keys that are its own."""

    #: As ComfyUI calls it: clip_l, clip_g, t5xxl …
    name: str
    layers: Mapping[str, Spot]
    keys: tuple[str, ...]


_CLIP = re.compile(r"(|.*?[./])(text_model\.)?encoder\.layers\.\d+\.self_attn\.q_proj\.weight")
_OPENCLIP = re.compile(r"(|.*?[./])transformer\.resblocks\.\d+\.attn\.in_proj_weight")
_T5 = re.compile(r"(|.*?[./])encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight")
_BERT = re.compile(r"(|.*?[./])(bert\.)?encoder\.layer\.\d+\.attention\.self\.query\.weight")
_NAMED = re.compile(r"text_encoders\.([^.]+)\.")
# What begins the names of an encoder in a folder of diffusers.
_COMPONENT = re.compile(r"(?:text_encoder(?:_\d+)?/)?")
_VISION = re.compile(r"(^|[./])(visual|vision_model)\.")
_CLIP_WIDTHS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_OPENCLIP_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPENCLIP_REST = {
    "positional_embedding": "text_model.embeddings.position_embedding",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection",
}
_FORMS = {"openclip": _OPENCLIP, "clip": _CLIP, "t5": _T5, "bert": _BERT}
# More than any model has: each costs a look at all keys.
_MOST_ENCODERS = 16
_ORDER = ("clip_l", "clip_h", "clip_g", "hydit_clip", "t5xxl")
# A file that is nothing but a language model, such as Qwen, Llama or Gemma.
_LANGUAGE_MODEL = re.compile(
    r"(language_)?model\.(language_model\.)?"
    r"(layers\.\d+\.(self_attn|mlp|\w+_layernorm)|embed_tokens|norm)\."
)
# What it has besides, to see images.
_EYES = re.compile(r"(model\.)?(visual|vision_model|vision_tower|multi_modal_projector)\.")
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def encoders(shapes: Shapes) -> list[Encoder]:
    """The text encoders of a checkpoint, in the order in which ComfyUI has them: CLIPs, then others."""
    roots: dict[tuple[str, str], str] = {}
    for key in shapes:
        if _VISION.search(key) or len(shapes[key]) != 2:  # another shape is no encoder's
            continue
        for form, pattern in _FORMS.items():
            match = pattern.fullmatch(key)
            if match is not None:
                roots.setdefault((form, match[1]), key)
    first = islice(roots.items(), _MOST_ENCODERS)
    recognised = [_encoder(form, root, key, shapes) for (form, root), key in first]
    recognised += _others(shapes, {key for encoder in recognised for key in encoder.keys})
    return sorted(recognised, key=lambda encoder: _ORDER.index(encoder.name) if encoder.name in _ORDER else 9)


def _encoder(form: str, root: str, key: str, shapes: Shapes) -> Encoder:
    # A file that is nothing but an encoder has no root, and all of it belongs to the encoder.
    own = [k for k in shapes if k.startswith(root) and not _VISION.search(k)]
    named = _NAMED.match(root)
    if form in ("clip", "openclip"):
        name = _CLIP_WIDTHS.get(shapes[key][1], "clip_l")
        layers = (_clip if form == "clip" else _openclip)(root, own, shapes)
    else:
        name = {"t5": "t5xxl", "bert": "hydit_clip"}[form]
        layers = {_path(k, root): Spot(k) for k in own if not k.endswith(".bias")}
    return Encoder(named[1] if named is not None else name, layers, tuple(own))


def _others(shapes: Shapes, known: set[str]) -> list[Encoder]:
    """Encoders of other kinds, language models above all, where the key itself says that it is one."""
    keys_of: dict[tuple[str, str], list[str]] = {}
    eyes: dict[str, list[str]] = {}
    for key in shapes:
        if key in known:
            continue
        component = _component(key)
        named = _NAMED.match(key)
        if named is not None:
            keys_of.setdefault((named[1], named.group()), []).append(key)
        elif _LANGUAGE_MODEL.match(key, len(component)):
            keys_of.setdefault((UNNAMED, component), []).append(key)
        elif _EYES.match(key, len(component)):
            eyes.setdefault(component, []).append(key)
    for (name, root), keys in keys_of.items():
        if name == UNNAMED:
            keys += eyes.get(root, ())
    return [
        Encoder(
            name,
            {
                _path(key, root).removeprefix("transformer."): Spot(key)
                for key in keys
                if not key.endswith(".bias")
            },
            tuple(keys),
        )
        for (name, root), keys in keys_of.items()
    ]


def _component(key: str) -> str:
    match = _COMPONENT.match(key)
    return "" if match is None else match.group()


def _path(key: str, root: str) -> str:
    """The path of the layer ``key`` below ``root``."""
    return key[len(root) :].removesuffix(".weight")


def _clip(root: str, own: Iterable[str], shapes: Shapes) -> dict[str, Spot]:
    """One in the transformers library's form; very old files leave ``text_model.`` out."""
    layers: dict[str, Spot] = {}
    for key in own:
        path = _path(key, root)
        if not path.startswith(("text_model.", "text_projection", "logit_scale")):
            path = f"text_model.{path}"
        if not key.endswith(".bias"):
            layers[path] = Spot(key)
    return layers


def _openclip(root: str, own: Iterable[str], shapes: Shapes) -> dict[str, Spot]:
    layers: dict[str, Spot] = {}
    for key in own:
        path = _path(key, root)
        match = _RESBLOCK.fullmatch(path)
        if key == f"{root}text_projection":
            layers["text_projection"] = Spot(key, transposed=True)
        elif path in _OPENCLIP_REST:
            layers[_OPENCLIP_REST[path]] = Spot(key)
        elif match is not None:
            layers.update(_resblock(key, match[1], match[2], shapes))
    return layers


def _resblock(key: str, number: str, rest: str, shapes: Shapes) -> Iterator[tuple[str, Spot]]:
    layer = f"text_model.encoder.layers.{number}"
    if rest == "attn.in_proj_weight" and len(shapes[key]) == 2:
        width = shapes[key][0] // 3
        for position, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            yield f"{layer}.self_attn.{projection}", Spot(key, (0, position * width, width))
    elif rest in _OPENCLIP_NAMES and key.endswith(".weight"):
        yield f"{layer}.{_OPENCLIP_NAMES[rest]}", Spot(key)
