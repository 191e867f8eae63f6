"""The nodes that change a model: ApplyLyCORISToModel for stacks, LyCORISLoader for one file in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lycoris_algos.network import Stack, StackEntry
from .host.applying import Applied, OnUnmatched, apply_stack
from .host.compat import LYCORIS, schema, socket, text_ui
from .host.files import check_name, file_fingerprint, load_adapters
from .host.inputs import file_input, strength_input
from .host.multipliers import multipliers_fingerprint, multipliers_input, with_multipliers

_MODEL_TIP = "The diffusion model. It stays as it is: what comes out is a patched copy of it."
_CLIP_TIP = "The text encoder, for files that change it. Optional; it stays as it is."


def _outputs() -> list[Any]:
    return [
        io.Model.Output(tooltip="The model with the change. Weights are patched when it is used."),
        io.Clip.Output(tooltip="The text encoder with the change; nothing if no CLIP is connected."),
        io.String.Output(
            display_name="report",
            tooltip="Algorithms, how many layers were applied, and every layer that was not, with why.",
        ),
    ]


def _result(applied: Applied) -> io.NodeOutput:
    return io.NodeOutput(applied.model, applied.clip, applied.report, ui=text_ui(applied.report))


class ApplyLyCORISToModel(io.ComfyNode):
    """Patches a stack onto a model, and onto a text encoder if one is connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ApplyLyCORISToModel",
            display_name="Apply LyCORIS to Model",
            category="LyCORIS",
            description="Applies a LyCORIS stack to a model and optionally to a text encoder, exactly as "
            "trained, at any strength, and reports what was applied and what was not.",
            search_aliases=["apply lora", "apply lycoris", "lokr", "loha"],
            is_output_node=True,
            inputs=[
                socket(io.Model, "model", tooltip=_MODEL_TIP),
                socket(LYCORIS, "lycoris", tooltip="From Load LyCORIS or Stack LyCORIS."),
                strength_input("strength_model", "the whole stack changes the diffusion model"),
                strength_input("strength_clip", "the whole stack changes the text encoder"),
                socket(
                    io.Combo,
                    "on_unmatched",
                    options=[choice.value for choice in OnUnmatched],
                    default=OnUnmatched.NOTHING.value,
                    tooltip="What to do about layers that this model does not have. Layers of a text "
                    "encoder do not count when no CLIP is connected.",
                ),
                socket(io.Clip, "clip", optional=True, tooltip=_CLIP_TIP),
                multipliers_input("the whole stack"),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, multipliers: str = "", **_: object) -> str:
        return multipliers_fingerprint(multipliers)

    @classmethod
    def execute(
        cls,
        model: Any,
        lycoris: Stack,
        strength_model: float,
        strength_clip: float,
        on_unmatched: str,
        clip: Any = None,
        multipliers: str = "",
    ) -> io.NodeOutput:
        choice = OnUnmatched(on_unmatched)
        stack = with_multipliers(lycoris, multipliers)
        return _result(apply_stack(model, clip, stack, strength_model, strength_clip, choice))


class LyCORISLoader(io.ComfyNode):
    """The one-node way, with the inputs of core's Load LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LyCORISLoader",
            display_name="LyCORIS Loader",
            category="LyCORIS",
            description="Loads a LyCORIS or LoRA file and applies it, in one node: put it where Load LoRA "
            "was. Reports what was applied and what was not.",
            search_aliases=["load lora", "locon", "loha", "lokr", "lora loader"],
            is_output_node=True,
            inputs=[
                socket(io.Model, "model", tooltip=_MODEL_TIP),
                socket(io.Clip, "clip", optional=True, tooltip=_CLIP_TIP),
                file_input(),
                strength_input("strength_model", "the file changes the diffusion model"),
                strength_input("strength_clip", "the file changes the text encoder"),
                multipliers_input("the file"),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, lycoris_name: str, multipliers: str = "", **_: object) -> str:
        return f"{file_fingerprint(lycoris_name)} {multipliers_fingerprint(multipliers)}"

    @classmethod
    def validate_inputs(cls, lycoris_name: str) -> bool | str:
        return check_name(lycoris_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        lycoris_name: str,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        multipliers: str = "",
    ) -> io.NodeOutput:
        stack = with_multipliers((StackEntry(load_adapters(lycoris_name)),), multipliers)
        return _result(apply_stack(model, clip, stack, strength_model, strength_clip, OnUnmatched.NOTHING))


NODES = [ApplyLyCORISToModel, LyCORISLoader]
