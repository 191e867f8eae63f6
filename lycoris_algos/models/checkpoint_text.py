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
from dataclasses import dataclass, replace

from .checkpoint import Place, Shapes, Spot, place


@dataclass(frozen=True)
class Encoder:
    """One encoder: its layers by their path in ComfyUI's module of it, and the keys that are its own."""

    #: As ComfyUI calls it: clip_l, clip_g, t5xxl …
    name: str
    layers: Mapping[str, Place]
    keys: tuple[str, ...]

    def names(self) -> Iterator[tuple[str, Place]]:
        """(path, place) of every layer, under every path that ComfyUI's names and trainers' have for it."""
        for key, where in self.layers.items():
            own = replace(where, encoder=self.name)
            path = key.removesuffix(".weight")
            yield f"{self.name}.transformer.{path}", own
            yield f"{self.name}.{path}", own
            yield path, own
            # Modules that wrap the layers in some versions of the library, and not in others.
            for wrapper in _WRAPPERS:
                if path.startswith(wrapper):
                    for outer in _LANGUAGE_MODELS if wrapper == "model." else ("",):
                        yield outer + path.removeprefix(wrapper), own


_WRAPPERS = ("text_model.", "model.", "bert.")
_LANGUAGE_MODELS = ("", "language_model.", "model.language_model.")
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
_FORMS = {"openclip": _OPENCLIP, "clip": _CLIP, "t5": _T5, "bert": _BERT}
_ORDER = ("clip_l", "clip_h", "clip_g", "hydit_clip", "t5xxl")
# A file that is nothing but a language model, such as Qwen, Llama or Gemma.
_LANGUAGE_MODEL = re.compile(
    r"(language_)?model\.(language_model\.)?"
    r"(layers\.\d+\.(self_attn|mlp|\w+_layernorm)|embed_tokens|norm)\."
)
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def encoders(shapes: Shapes) -> list[Encoder]:
    """The text encoders of a checkpoint, in the order in which ComfyUI has them: CLIPs, then others."""
    roots: dict[tuple[str, str], str] = {}
    for key in shapes:
        if _VISION.search(key):
            continue
        for form, pattern in _FORMS.items():
            match = pattern.fullmatch(key)
            if match is not None:
                roots.setdefault((form, match[1]), key)
    found = [_encoder(form, root, key, shapes) for (form, root), key in roots.items()]
    found += _others(shapes, {key for encoder in found for key in encoder.keys})
    return sorted(found, key=lambda encoder: _ORDER.index(encoder.name) if encoder.name in _ORDER else 9)


def _encoder(form: str, root: str, key: str, shapes: Shapes) -> Encoder:
    # A file that is nothing but an encoder has no root, and all of it belongs to the encoder.
    own = [k for k in shapes if k.startswith(root) and not _VISION.search(k)]
    named = _NAMED.match(root)
    if form in ("clip", "openclip"):
        name = _CLIP_WIDTHS.get(shapes[key][1], "clip_l")
        layers = (_clip if form == "clip" else _openclip)(root, own, shapes)
    else:
        name = {"t5": "t5xxl", "bert": "hydit_clip"}[form]
        layers = {k[len(root) :]: place(k, shapes) for k in own if not k.endswith(".bias")}
    return Encoder(named[1] if named is not None else name, layers, tuple(own))


def _others(shapes: Shapes, known: set[str]) -> list[Encoder]:
    """Encoders of other kinds, language models above all, where the key itself says that it is one."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in shapes:
        match = _NAMED.match(key) or _LANGUAGE_MODEL.match(key)
        if match is not None and key not in known:
            name, root = (match[1], match.group()) if match.re is _NAMED else ("llm", "")
            found.setdefault((name, root), []).append(key)
    return [
        Encoder(
            name,
            {
                key[len(root) :].removeprefix("transformer."): place(key, shapes)
                for key in keys
                if not key.endswith(".bias")
            },
            tuple(keys),
        )
        for (name, root), keys in found.items()
    ]


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
