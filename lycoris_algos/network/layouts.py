"""Rewrites files of an unusual layout (BFL's control adapters) into the form that every other file has.

BFL's control adapters for Flux (depth, canny) are LoRAs without a prefix, beside the finished scales of all
norms under the model's own keys. Their ``img_in`` takes more channels than the model's, which has to grow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_INPUT_UP, _INPUT_DOWN = "img_in.lora_B.weight", "img_in.lora_A.weight"
_SCALE = "_norm.scale"


def plain(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``tensors`` of a file with what BFL leaves implied written out; of others as they are."""
    scales = [key for key in tensors if key.endswith(_SCALE)]
    if not scales or not {_INPUT_UP, _INPUT_DOWN} <= tensors.keys():
        return tensors
    said = {f"{key}.set_weight" if key.endswith(_SCALE) else key: value for key, value in tensors.items()}
    up, down = tensors[_INPUT_UP], tensors[_INPUT_DOWN]
    if up.dim() == down.dim() == 2:
        said["img_in.reshape_weight"] = torch.tensor([up.shape[0], down.shape[1]])
    return said
