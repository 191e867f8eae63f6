"""How a key of a file is cut into a layer and a suffix, near enough for a mutation."""

from __future__ import annotations

from lycoris_algos.adapters import known_suffixes

#: As any program spells them.
SUFFIXES = (
    *sorted(known_suffixes()),
    "lora_A.weight",
    "lora_B.weight",
    "lora_A.default.weight",
    "lora_B.other_name.weight",
    "lora_B.bias",
    "lora.up.weight",
    "lora_up",
    "___.layer.W_up",
    "___.alpha",
    "modules_to_save.weight",
    "weight",
    "bias",
    "scale",
    "diff_m",
    "emb_params",
    "nobody_knows.this",
)


def halves(name: str) -> tuple[str, str]:
    """(layer, suffix) of a key."""
    ends = [suffix for suffix in SUFFIXES if name.endswith(f".{suffix}")]
    suffix = max(ends, key=len, default=name.rpartition(".")[2])
    return name[: -len(suffix) - 1], suffix
