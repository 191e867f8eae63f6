"""A LYCORIS stack into a checkpoint of ComfyUI's model folders.

The library does all of it from the files; nothing is loaded as a model. Here is which files there are, where
the new one goes, and ComfyUI's device, progress bar and stop button.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import comfy.model_management
import folder_paths

from ...lycoris_algos import CancelledError, __version__
from ...lycoris_algos.io import read_header
from ...lycoris_algos.merge.bake import bake_report, plan_bake, run_bake
from ...lycoris_algos.network import Stack
from ...lycoris_algos.ops.dtypes import STORED_DTYPES
from ...lycoris_algos.text import quoted
from .applying import OnUnmatched
from .paths import file_called, fingerprint, name_on_page, require_chosen
from .progress import check_cancel, progress_bar, stop_if_cancelled
from .saving import folder_of, output_path

#: What the node calls "the number type that each tensor of the base has".
AS_BASE = "as base"
# Folder of models: the folder of ComfyUI's output folder that it lists as well.
_FOLDERS = {"checkpoints": "checkpoints", "diffusion_models": "diffusion_models", "text_encoders": "clip"}
_SUFFIXES = (".safetensors", ".sft")


class OnOverflow(str, Enum):
    """What to do about weights that the number type of the new file cannot hold."""

    ERROR = "error"
    REPORT = "report only"


def base_names() -> list[str]:
    """Every safetensors file of the three folders, as ``folder/name``."""
    return [
        f"{folder}/{name_on_page(name)}"
        for folder in _FOLDERS
        for name in folder_paths.get_filename_list(folder)
        if name.lower().endswith(_SUFFIXES)
    ]


def base_path(name: str) -> Path:
    """The file that ``name`` (as listed) stands for. Raises FileNotFoundError, in words, if there is none."""
    require_chosen(name)
    folder, _, inner = name.partition("/")
    path = folder_paths.get_full_path(folder, file_called(folder, inner)) if folder in _FOLDERS else None
    if path is None:
        raise FileNotFoundError(
            f"the model {quoted(name)} is not there any more. Put it back, or choose another one (press R to "
            "refresh the list)"
        )
    return Path(path)


def check_base(name: str) -> bool | str:
    """True, or why ``name`` cannot be used, for a node's validation before anything runs."""
    try:
        base_path(name)
    except FileNotFoundError as error:
        return str(error)
    return True


def base_fingerprint(name: str) -> str:
    """Changes when the file is replaced; never raises."""
    try:
        return repr(fingerprint(base_path(name)))
    except OSError:
        return f"missing: {name}"


def bake_stack(
    base: str,
    stack: Stack,
    strength_model: float,
    strength_clip: float,
    save_dtype: str,
    filename_prefix: str,
    on_unmatched: OnUnmatched,
    on_overflow: OnOverflow,
    node_id: str | None = None,
) -> tuple[Path, str]:
    """(the new file, the report). Raises as the library does, and what ComfyUI does on a stop."""
    source = base_path(base)
    plan = plan_bake(
        read_header(source),
        [entry.scaled(strength_model, strength_clip) for entry in stack],
        None if save_dtype == AS_BASE else STORED_DTYPES[save_dtype],
        base=base,
        program=f"LyCORIS for ComfyUI {__version__}",
    )
    if on_unmatched is not OnUnmatched.REPORT:
        plan.require(everything=on_unmatched is OnUnmatched.ANYTHING)
    target = output_path(_FOLDERS[base.partition("/")[0]], filename_prefix)
    try:
        with folder_of(target):
            result = run_bake(
                plan,
                source,
                target,
                device=comfy.model_management.get_torch_device(),
                progress=progress_bar(len(plan.tensors), node_id),
                cancel=check_cancel,
                refuse_overflow=on_overflow is OnOverflow.ERROR,
            )
    except CancelledError:
        stop_if_cancelled()
        raise
    report = f"strength: model {strength_model:g}, clip {strength_clip:g}\n{bake_report(result)}"
    return result.path, report
