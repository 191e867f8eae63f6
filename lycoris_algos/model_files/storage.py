"""How a checkpoint stores a weight: as it is, as fp8 with one scale, or in a way that cannot be baked.

Scaled fp8 means W = stored × scale, with the scale beside the weight as ``scale_weight`` (ComfyUI's first
form, with a tensor ``scaled_fp8`` as the file's mark) or ``weight_scale`` (its second, with ``comfy_quant``).
Everything else that packs or scales blocks of a weight is refused by its name, because a change that is
rounded into it unseen is worse than an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import LycorisError
from ..io import TensorInfo
from ..ops.rounding import STOCHASTIC
from ..text import quoted

Tensors = Mapping[str, TensorInfo]

_SCALES = ("scale_weight", "weight_scale")
#: What only describes how the weight beside it is stored.
_COMPANION = re.compile(
    r"(.*\.)?(scale_weight|weight_scale|weight_scale_2|scale_input|input_scale|pre_quant_scale|comfy_quant)"
)
_MARK = re.compile(r"(.*\.)?scaled_fp8")
_WHOLE_FILE = (
    (".qweight", "SVDQuant (Nunchaku), GPTQ or AWQ"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
)
_ADVICE = "use the fp16, bf16 or fp8 version of the model"


def is_companion(key: str) -> bool:
    """Whether the tensor ``key`` only describes how another is stored."""
    return _COMPANION.fullmatch(key) is not None or is_mark(key)


def is_mark(key: str) -> bool:
    """Whether the tensor ``key`` marks a whole file as scaled fp8."""
    return _MARK.fullmatch(key) is not None


def companions(key: str, tensors: Tensors) -> list[str]:
    """The tensors that describe how the weight ``key`` is stored."""
    layer = key.removesuffix("weight")
    names = (*_SCALES, "weight_scale_2", "scale_input", "input_scale", "pre_quant_scale", "comfy_quant")
    return [layer + name for name in names if layer + name in tensors] if key != layer else []


def hides_shape(key: str, tensors: Tensors) -> bool:
    """Whether several numbers of the weight ``key`` may be packed into one, so that its shape says little."""
    return not tensors[key].dtype.is_floating_point and bool(companions(key, tensors))


def scale_of(key: str, tensors: Tensors) -> str | None:
    """The key of the scale of the fp8 weight ``key``; None for a weight that is stored as it is."""
    info = tensors[key]
    layer = key.removesuffix("weight")
    if info.dtype not in STOCHASTIC or key == layer:
        return None
    scales = [layer + name for name in _SCALES if layer + name in tensors]
    one = [
        name
        for name in scales
        if tensors[name].dtype.is_floating_point and math.prod(tensors[name].shape) == 1
    ]
    return one[0] if one and one == scales else None


def refuse_file(tensors: Tensors) -> None:
    """LycorisError, naming the layout, if the whole file is stored in a way that hides its weights."""
    for suffix, layout in _WHOLE_FILE:
        telling = next((key for key in tensors if key.endswith(suffix)), None)
        if telling is not None:
            raise LycorisError(
                f"it is quantised as {layout} ({quoted(telling)}), which cannot be changed: {_ADVICE}"
            )


def refuse_weight(key: str, tensors: Tensors) -> None:
    """LycorisError, naming the layout, unless the weight ``key`` can be changed."""
    info = tensors[key]
    beside = {name.removeprefix(key.removesuffix("weight")) for name in companions(key, tensors)}
    layout = ""
    if "weight_scale_2" in beside:
        layout = "NVFP4"
    elif not info.dtype.is_floating_point:
        layout = f"quantised whole numbers ({str(info.dtype).removeprefix('torch.')})"
    elif beside & set(_SCALES) and info.dtype in STOCHASTIC and scale_of(key, tensors) is None:
        layout = "fp8 with a scale for each block or row"
    elif beside & set(_SCALES) and info.dtype not in STOCHASTIC:
        layout = f"{str(info.dtype).removeprefix('torch.')} with a scale"
    if layout:
        raise LycorisError(
            f"its weight {quoted(key)} is stored as {layout}, which cannot be changed: {_ADVICE}"
        )


def new_scale(weight: Tensor, dtype: torch.dtype) -> float:
    """The scale that puts the largest finite number of ``weight`` at the end of what ``dtype`` can hold."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(largest):
        finite = weight[weight.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
    return largest / torch.finfo(dtype).max if largest > 0.0 else 1.0
