"""Says which weights a patch takes beyond the largest number of the type that they are loaded in.

ComfyUI rounds a patched weight to the type of the loaded one: in fp16 what is too large becomes infinite, and
the picture black or noise; in fp8 it is cut. Patches of earlier nodes and hooks are not looked at, nor layers
that ComfyUI scales into fp8 by itself, which hold any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from comfy.model_patcher import get_key_weight

from ...lycoris_algos import Unmatched
from ...lycoris_algos.inspection import unmatched_lines
from ...lycoris_algos.model_files import Spot
from ...lycoris_algos.ops.rounding import beyond
from ...lycoris_algos.structures import overflow
from .keymap import Target, Targets, key_and_part
from .patch import FUNCTION, LycorisPatch


def overflow_lines(
    targets: Targets | None, made: Mapping[Target, LycorisPatch], strength: float
) -> list[str]:
    """Lines for a report about the weights that ``made``, at ``strength``, takes too far; mostly none."""
    if targets is None:
        return []
    lines = unmatched_lines(_beyond(targets, made, strength))
    return (
        ["some weights get too large for the loaded model, so lower the strength:", *lines] if lines else []
    )


def _beyond(targets: Targets, made: Mapping[Target, LycorisPatch], strength: float) -> Iterator[Unmatched]:
    for target, patch in made.items():
        spot = Spot(*key_and_part(target))
        stored, scaled_by_host, _ = get_key_weight(targets.patcher.model, spot.key)
        if scaled_by_host is not None or patch.weights[0] == FUNCTION:
            continue
        entries = [(change, multiplier * strength) for change, multiplier in patch.entries]
        reached = overflow(entries, stored.dtype, lambda spot=spot: targets.base_weight(spot))
        if reached is not None:
            yield Unmatched(min(patch.loaded_keys), beyond(reached, stored.dtype))
