"""A LYCORIS stack into a checkpoint of ComfyUI's model folders.

The library does all of it from the files; nothing is loaded as a model. Here is which files there are, where
the new one goes, and ComfyUI's device, progress bar and stop button.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

import comfy.model_management
import folder_paths

from ...lycoris_algos import CancelledError, LycorisError, __version__
from ...lycoris_algos.io import is_first_shard, is_shard
from ...lycoris_algos.merge.bake import bake_report, plan_bake, run_bake
from ...lycoris_algos.model_files import checkpoint_header, model_files
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
# Where ComfyUI lists folders, those with such a file in them.
_DIFFUSERS, _PIPELINE = "diffusers", "model_index.json"
_SUFFIXES = (".safetensors", ".sft")


class OnOverflow(str, Enum):
    """What to do about weights that the number type of the new file cannot hold."""

    ERROR = "error"
    REPORT = "report only"


def base_names() -> list[str]:
    """Every safetensors file of the three folders, as ``folder/name``, and every folder of diffusers.

    Shards of a model are one: the first stands for all.
    """
    files = [
        f"{folder}/{name_on_page(name)}"
        for folder in _FOLDERS
        for name in folder_paths.get_filename_list(folder)
        if name.lower().endswith(_SUFFIXES) and (is_first_shard(name) or not is_shard(name))
    ]
    return [*files, *_pipelines()]


def _pipelines() -> dict[str, Path]:
    """{name as listed: folder of diffusers}, as ComfyUI finds them."""
    known: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(_DIFFUSERS)):
        for place, _, files in os.walk(root, followlinks=True):
            if _PIPELINE in files:
                inner = Path(place).relative_to(root).as_posix()
                known.setdefault(f"{_DIFFUSERS}/{name_on_page(inner)}", Path(place))
    return known


def base_path(name: str) -> Path:
    """The file or folder that ``name`` (as listed) stands for.

    Raises FileNotFoundError, in words, if there is none.
    """
    require_chosen(name)
    folder, _, inner = name.partition("/")
    path = folder_paths.get_full_path(folder, file_called(folder, inner)) if folder in _FOLDERS else None
    if folder == _DIFFUSERS:
        path = _pipelines().get(name)
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
    """Changes when a file of it is replaced; never raises."""
    try:
        files = model_files(base_path(name))
        return repr([fingerprint(files.folder / file.path) for file in files.weights])
    except (OSError, LycorisError):
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
        checkpoint_header(source),
        [entry.scaled(strength_model, strength_clip) for entry in stack],
        None if save_dtype == AS_BASE else STORED_DTYPES[save_dtype],
        base=base,
        program=f"LyCORIS for ComfyUI {__version__}",
    )
    if on_unmatched is not OnUnmatched.REPORT:
        plan.require(everything=on_unmatched is OnUnmatched.ANYTHING)
    folder = base.partition("/")[0]
    suffix = "" if model_files(source).is_folder else ".safetensors"
    target = output_path(_FOLDERS.get(folder, folder), filename_prefix, suffix)
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
