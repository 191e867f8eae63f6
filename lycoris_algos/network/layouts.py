"""Rewrites files of an unusual layout into the form that every other file has.

BFL's control adapters for Flux (depth, canny) are LoRAs without a prefix, beside the finished scales of all
norms under the model's own keys. Their ``img_in`` takes more channels than the model's, which has to grow.
Old files of lightx2v for Wan call the change of a block's modulation ``diff_m``, as if it were the block's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_INPUT_UP, _INPUT_DOWN = "img_in.lora_B.weight", "img_in.lora_A.weight"
_SCALE = "_norm.scale"
_MODULATION = ".diff_m"


def plain(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``tensors`` of a file as others store them, with what is implied written out."""
    if any(key.endswith(_MODULATION) for key in tensors):
        return {_own_modulation(key): value for key, value in tensors.items()}
    scales = [key for key in tensors if key.endswith(_SCALE)]
    if not scales or not {_INPUT_UP, _INPUT_DOWN} <= tensors.keys():
        return tensors
    said = {f"{key}.set_weight" if key.endswith(_SCALE) else key: value for key, value in tensors.items()}
    up, down = tensors[_INPUT_UP], tensors[_INPUT_DOWN]
    if up.dim() == down.dim() == 2:
        said["img_in.reshape_weight"] = torch.tensor([up.shape[0], down.shape[1]])
    return said


def _own_modulation(key: str) -> str:
    if not key.endswith(_MODULATION):
        return key
    block = key.removesuffix(_MODULATION)
    return f"{block}{'.' if '.' in block else '_'}modulation.diff"
