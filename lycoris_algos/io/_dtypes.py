"""Which tensor dtypes a safetensors file can hold here, and under which name.

The table is in the order of the official library's own list, because that library sorts a file by
it (last first): so the same tensors give the same bytes with either writer. Dtypes that an older
PyTorch lacks are left out, and dtypes that do not fill whole bytes are known by name only, so that
their error can say what they are.
"""

from __future__ import annotations

import torch

from ..errors import FileFormatError
from ..text import quoted

_OFFICIAL_ORDER = (
    ("BOOL", "bool"),
    ("U8", "uint8"),
    ("I8", "int8"),
    ("F8_E5M2", "float8_e5m2"),
    ("F8_E4M3", "float8_e4m3fn"),
    ("F8_E8M0", "float8_e8m0fnu"),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
    ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ("I16", "int16"),
    ("U16", "uint16"),
    ("F16", "float16"),
    ("BF16", "bfloat16"),
    ("I32", "int32"),
    ("U32", "uint32"),
    ("F32", "float32"),
    ("C64", "complex64"),
    ("F64", "float64"),
    ("I64", "int64"),
    ("U64", "uint64"),
)

_PACKED = {
    "F4": "4-bit",
    "F6_E2M3": "6-bit",
    "F6_E3M2": "6-bit",
}

#: Name in a file -> dtype, in the official order (small dtypes first).
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute) for name, attribute in _OFFICIAL_ORDER if hasattr(torch, attribute)
}

#: dtype -> name in a file.
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

#: dtype -> its place in the official order; a file is sorted by it, highest first.
DTYPE_RANKS: dict[torch.dtype, int] = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def dtype_from_name(name: str) -> torch.dtype:
    """The dtype that a file calls ``name``; FileFormatError that says why there is none."""
    dtype = DTYPES.get(name)
    if dtype is not None:
        return dtype
    if name in _PACKED:
        raise FileFormatError(
            f"holds packed {_PACKED[name]} numbers (dtype {name}), which cannot be read here: "
            "use a version of the file in 8 bits or more"
        )
    if name in dict(_OFFICIAL_ORDER):
        raise FileFormatError(f"dtype {name} needs a newer PyTorch than {torch.__version__}")
    raise FileFormatError(f"unknown dtype {quoted(name)}: the file is damaged, or a newer program wrote it")


def name_of_dtype(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in a file; FileFormatError if a safetensors file cannot hold it."""
    name = DTYPE_NAMES.get(dtype)
    if name is None:
        raise FileFormatError(f"safetensors files cannot hold tensors of dtype {dtype}")
    return name
