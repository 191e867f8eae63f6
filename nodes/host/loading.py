"""What ComfyUI's loaders leave out of a patched model, done right after them.

Loaders patch the parameters of modules that have no children. They pass over one that stands beside
sub-modules (Wan's ``modulation``) without a word, and newer hosts' dynamic loader over modules that do not
cast their weights (norms of queries and keys, of T5, of Llama); so does a partial load where these do not
fit. A clone that we patched therefore completes each load. It uses ComfyUI's own ``patch_weight_to_device``,
whose backup brings a parameter back like all others. Then it looks whether all that Apply's report calls
applied is in place: the report was written before.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import comfy.utils
from comfy.patcher_extension import CallbacksMP

from ...lycoris_algos.text import listed
from .compat import is_dynamic, is_patched_late
from .patch import LycorisPatch

_KEY = "lycoris"


def complete_loads(patcher: Any) -> None:
    """Has ``patcher``, a clone of ours, and all clones of it complete their loads."""
    patcher.remove_callbacks_with_key(CallbacksMP.ON_LOAD, _KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, _KEY, _complete)


def _complete(patcher: Any, *_: Any) -> None:
    """Patches what the load that just ended left out, where each parameter is now."""
    unchanged: list[str] = []
    for path, keys in _patched_modules(patcher).items():
        module = patcher.model.get_submodule(path)
        if hasattr(module, "comfy_cast_weights") and not _has_parameters_inside(module):
            # A loader sees to these, now or each time that they run.
            unchanged += [
                key for key in keys if key not in patcher.backup and not is_patched_late(module, key)
            ]
            continue
        # The dynamic loader backs up what it merely moves, and starts each load from its backups.
        left_out = [key for key in keys if is_dynamic(patcher) or key not in patcher.backup]
        for key in left_out:
            device = comfy.utils.get_attr(patcher.model, key).device
            patcher.patch_weight_to_device(key, device_to=device)
        if left_out and not is_dynamic(patcher):
            module.comfy_patched_weights = True  # or a later load, with more memory, patches it again
    if unchanged:
        logging.warning(
            f"LyCORIS: this ComfyUI left {len(unchanged)} of the parameters that are reported as applied "
            f"unchanged: {listed(unchanged)}"
        )


def _patched_modules(patcher: Any) -> dict[str, list[str]]:
    """{path: keys of its patched parameters} of the modules that a patch of ours changes."""
    modules: dict[str, list[str]] = defaultdict(list)
    for key in patcher.patches:
        modules[key.rpartition(".")[0]].append(key)
    return {
        path: keys
        for path, keys in modules.items()
        if any(isinstance(held[1], LycorisPatch) for key in keys for held in patcher.patches[key])
    }


def _has_parameters_inside(module: Any) -> bool:
    return any("." in name for name, _ in module.named_parameters())
