"""The options of a network as they come from scripts and command lines, where everything may be a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import PRESET
from .logging import logger
from .networks import deprecated_arg_dict
from .utils import str_bool
from .utils.preset import read_preset

#: {what scripts call it: (what the algorithms call it, how a text is read)}.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "dropout": ("dropout", float),
    "rank_dropout": ("rank_dropout", float),
    "rank_dropout_scale": ("rank_dropout_scale", str_bool),
    "module_dropout": ("module_dropout", float),
    "use_tucker": ("use_tucker", str_bool),
    "use_scalar": ("use_scalar", str_bool),
    "block_size": ("block_size", int),
    "train_norm": ("train_norm", str_bool),
    "constraint": ("constraint", float),
    "rescaled": ("rescaled", str_bool),
    "dora_wd": ("weight_decompose", str_bool),
    "wd_on_output": ("wd_on_out", str_bool),
    "full_matrix": ("full_matrix", str_bool),
    "bypass_mode": ("bypass_mode", str_bool),
    "rs_lora": ("rs_lora", str_bool),
    "unbalanced_factorization": ("unbalanced_factorization", str_bool),
    "decompose_both": ("decompose_both", str_bool),
    "factor": ("factor", int),
    "train_on_input": ("train_on_input", str_bool),
    "sig_type": ("sig_type", str),
    "use_data_init": ("use_data_init", str_bool),
    "mask_group_id": ("mask_group_id", int),
    "train_llm_adapter": ("train_llm_adapter", str_bool),
}


def network_options(rank: int | None, alpha: float | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of a network, from a script's. Options that nothing knows are left out."""
    given = dict(given)
    for old, new in deprecated_arg_dict.items():
        if old in given:
            logger.warning("%s is called %s now", old, new)
            value = given.pop(old)
            given.setdefault(new, not str_bool(value) if old == "disable_conv_cp" else value)
    options = {
        name: read(given[key]) for key, (name, read) in _OPTIONS.items() if given.get(key) not in (None, "")
    }
    rank = int(rank or 4)
    alpha = 1.0 if alpha is None else float(alpha)
    return {
        **options,
        "lora_dim": rank,
        "alpha": alpha,
        "conv_lora_dim": int(given.get("conv_dim") or rank),
        "conv_alpha": float(given.get("conv_alpha") or alpha),
        "network_module": str(given.get("algo") or "lora").lower(),
    }


def preset_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset that a script asks for by name or as a file; "full" where it does not."""
    name = given.get("preset") or "full"
    return PRESET[name] if name in PRESET else read_preset(name)
