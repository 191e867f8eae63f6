"""Splits a key of a file into the layer's name and the suffix that says which of its tensors it is."""

from __future__ import annotations

import re
from collections.abc import Collection

from .hcp import JOINT

# Other spellings of a suffix, as LyCORIS spells them.
_SPELLINGS = {
    # PEFT, and so diffusers, ai-toolkit and SimpleTuner
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "magnitude": "lora_magnitude_vector",
    # Mochi
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    # hand-made files
    "lora_down": "lora_down.weight",
    "lora_up": "lora_up.weight",
    # diffusers before PEFT
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    # HCP-Diffusion's own LoRA
    f"{JOINT}layer.W_down": "lora_down.weight",
    f"{JOINT}layer.W_up": "lora_up.weight",
    f"{JOINT}layer.lora_down.weight": "lora_down.weight",
    f"{JOINT}layer.lora_up.weight": "lora_up.weight",
}

#: Suffixes that a model's own tensors have too: they count only beside another tensor of an adapter.
WEAK_SUFFIXES = frozenset({"weight", "scale", "magnitude"})

#: Dots within the longest spelling of a suffix, at most.
MOST_DOTS = 5

# The name of the adapter, which PEFT leaves in a raw dump of its modules: mostly "default".
_ADAPTER_NAME = re.compile(r"\.default(?:_\d+)?(?=\.weight$|\.bias$|$)")
_NAMED_ADAPTER = re.compile(
    r"(\.(?:lora_(?:embedding_)?[AB]|lora_magnitude_vector|(?:oft|boft|hada|lokr|ia3|hra|miss)_\w+))"
    r"\.(?!weight$|bias$)[^.]+(?=\.weight$|\.bias$|$)"
)
# Adapters of attention processors: the suffix is glued to the projection's name, or (XLabs) to a number.
_GLUED = re.compile(r"(.*[^.])_lora\.(down|up)\.weight", re.DOTALL)
_NUMBERED = re.compile(r"(.*\.processor\.\w+_lora[12])\.(down|up)\.weight", re.DOTALL)


def split_key(key: str, suffixes: Collection[str]) -> tuple[str, str] | None:
    """``key`` as (layer, suffix in LyCORIS' spelling), or None if it ends in no known suffix.

    Both halves may hold dots, of which a suffix has few, so it is cut at the longest suffix that is among
    ``suffixes``. ``WEAK_SUFFIXES`` do not count.
    """
    return _split(_ADAPTER_NAME.sub("", key), suffixes) or _split(_NAMED_ADAPTER.sub(r"\1", key), suffixes)


def _split(plain: str, suffixes: Collection[str]) -> tuple[str, str] | None:
    glued = _GLUED.fullmatch(plain) or _NUMBERED.fullmatch(plain)
    if glued and f"lora_{glued[2]}.weight" in suffixes:
        return glued[1], f"lora_{glued[2]}.weight"
    if plain.startswith("."):
        return None
    words = plain.rsplit(".", MOST_DOTS + 1)[1:]
    for count in range(len(words)):
        stored = ".".join(words[count:])
        layer = plain[: -len(stored) - 1]
        suffix = _hcp_suffix(layer, stored) if stored.startswith(JOINT) else canonical_suffix(stored)
        if suffix in suffixes and stored not in WEAK_SUFFIXES:
            return layer, suffix
    return None


def canonical_suffix(suffix: str) -> str:
    """``suffix`` as LyCORIS spells it."""
    return _SPELLINGS.get(suffix, suffix)


def _hcp_suffix(layer: str, stored: str) -> str:
    if stored in _SPELLINGS:
        return _SPELLINGS[stored]
    suffix = stored.removeprefix(JOINT)
    return "scale" if suffix == "alpha" and layer.startswith("lora") else canonical_suffix(suffix)
