"""Model families as data: what their layers are called elsewhere, and what a file was made for."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from . import diffusion_transformers, flux, hunyuan_video, ltx, lumina, stable_diffusion, wan
from ._base import Family, FusedRows, Located, Rule, layer_of
from ._fused import split_names
from .blocks import KINDS, UNKNOWN, Role, parts_of, role_in, role_of, text_role

#: A file that bears the signs of several is for the first that bears most.
FAMILIES: tuple[Family, ...] = (
    stable_diffusion.SD15,
    stable_diffusion.SDXL,
    stable_diffusion.CASCADE,
    flux.FLUX,
    flux.CHROMA,
    flux.FLUX_2,
    hunyuan_video.FAMILY,
    wan.FAMILY,
    lumina.LUMINA_2,
    lumina.Z_IMAGE,
    diffusion_transformers.SD3,
    diffusion_transformers.QWEN_IMAGE,
    ltx.LTX_2,
    ltx.LTXV,
    diffusion_transformers.MOCHI,
    diffusion_transformers.COSMOS_PREDICT_2,
    diffusion_transformers.HIDREAM,
    diffusion_transformers.PIXART,
    diffusion_transformers.AURA_FLOW,
    diffusion_transformers.KREA_2,
    diffusion_transformers.KANDINSKY_5,
    diffusion_transformers.ERNIE_IMAGE,
    diffusion_transformers.ACE_STEP_15,
    diffusion_transformers.HUNYUAN_DIT,
)

# Families that share the layers of another, so that one sign of their own decides.
_WITHIN = {
    "sdxl": "sd15",
    "chroma": "flux",
    "flux2": "flux",
    "hunyuan_video": "flux",
    "z_image": "lumina2",
}


def families_of(parameters: Container[str]) -> list[Family]:
    """The families that a model with these parameters is of: one, or none that is known by its parameters."""
    return [family for family in FAMILIES if family.owns(parameters)]


def names_in(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Located]]:
    """(name, what it stands for) that any family has for a model with parameters of ``shapes``."""
    for family in families_of(shapes):
        yield from family.names(shapes)


def diffusers_names_in(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Located]]:
    """The same, of the names in diffusers alone; the first of a layer is today's."""
    for family in families_of(shapes):
        yield from family.diffusers_names(shapes)


def native_names_in(
    shapes: Mapping[str, Sequence[int]],
) -> Iterator[tuple[str, tuple[Located, ...]]]:
    """(layer of ComfyUI's model, what it consists of) of a model whose parameters diffusers named.

    Of the families that know most of the parameters, and whose marks are there, if any are; nothing for a
    model that has ComfyUI's own names.
    """
    if families_of(shapes):
        return
    known = {family: list(family.native_names(shapes)) for family in FAMILIES}
    marked = {
        family: names
        for family, names in known.items()
        if family.owns({*shapes, *(f"{native}.weight" for native, _ in names)})
    }
    counts = {
        family: len(shapes) if marked and family.keeps_names else sum(len(located) for _, located in names)
        for family, names in (marked or known).items()
    }
    for family, count in counts.items():
        if count == max(counts.values()):
            yield from known[family]


def identify(layers: Iterable[str], metadata: Mapping[str, str] | None = None) -> str | None:
    """The title of ``family_of_file``; None if that is unclear."""
    family = family_of_file(layers, metadata)
    return None if family is None else family.title


def family_of_file(layers: Iterable[str], metadata: Mapping[str, str] | None = None) -> Family | None:
    """The family that a file was made for, by its layers' names and metadata; None if unclear.

    What the layers are called is believed before what the metadata says.
    """
    flat = [layer.replace(".", "_") for layer in layers]
    counts = {
        family.name: sum(any(re.search(sign, name) for sign in family.signs) for name in flat)
        for family in FAMILIES
    }
    best = max(FAMILIES, key=lambda family: counts[family.name])
    labelled = _labelled(metadata or {})
    if not counts[best.name]:
        return labelled
    for family in FAMILIES:
        if _WITHIN.get(family.name) == best.name and counts[family.name]:
            return family
    if labelled is not None and _WITHIN.get(labelled.name) == best.name:
        return labelled
    return best


def _labelled(metadata: Mapping[str, str]) -> Family | None:
    texts = [metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")]
    for label in filter(None, (text.lower() for text in texts)):
        for family in reversed(FAMILIES):  # "hunyuan-dit" before "hunyuan"
            if label.startswith(family.labels):
                return family
    return None


__all__ = [
    "FAMILIES",
    "KINDS",
    "UNKNOWN",
    "Family",
    "FusedRows",
    "Located",
    "Role",
    "Rule",
    "diffusers_names_in",
    "families_of",
    "family_of_file",
    "identify",
    "layer_of",
    "names_in",
    "native_names_in",
    "parts_of",
    "role_in",
    "role_of",
    "split_names",
    "text_role",
]
