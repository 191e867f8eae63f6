"""The node MergeLyCORIS: writes a checkpoint file with a stack baked into it."""

from __future__ import annotations

from comfy_api.latest import io

from ..lycoris_algos.network import Stack
from ..lycoris_algos.ops.dtypes import STORED_DTYPES
from .host.applying import OnUnmatched
from .host.baking import AS_BASE, OnOverflow, bake_stack, base_fingerprint, base_names, check_base
from .host.compat import LYCORIS, schema, socket, text_ui
from .host.inputs import strength_input
from .host.multipliers import multipliers_fingerprint, multipliers_input, with_multipliers
from .host.saving import WRITTEN


class MergeLyCORIS(io.ComfyNode):
    """Bakes a stack into a checkpoint, a diffusion model or a text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MergeLyCORIS",
            display_name="Merge LyCORIS into Checkpoint",
            category="LyCORIS",
            description="Writes a new model file with a LyCORIS stack baked into its weights, exactly as "
            "Apply LyCORIS to Model would change them. Works from file to file, tensor by tensor, so it "
            "needs little memory; what was written is read back and checked. Never replaces a file.",
            search_aliases=["bake lora", "merge lora into checkpoint", "save checkpoint"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(
                    io.Combo,
                    "base",
                    options=base_names(),
                    tooltip="The model to start from, which stays as it is: a file, shards (the first stands "
                    "for all), or a folder of diffusers. Press R to refresh.",
                ),
                socket(LYCORIS, "lycoris", tooltip="From Load LyCORIS or Stack LyCORIS."),
                strength_input("strength_model", "the whole stack changes the diffusion model"),
                strength_input("strength_clip", "the whole stack changes the text encoders"),
                socket(
                    io.Combo,
                    "save_dtype",
                    options=[AS_BASE, *STORED_DTYPES],
                    default=AS_BASE,
                    tooltip="The number type of the new file. As base: every tensor as it was, and what is "
                    "not changed copied byte for byte. fp8 is rounded at random, "
                    "so that small changes survive.",
                ),
                socket(
                    io.String,
                    "filename_prefix",
                    default="merged",
                    tooltip="The name of the new file; 'folder/name' puts it into a folder. A number is "
                    "added where the name is taken.",
                ),
                socket(
                    io.Combo,
                    "on_unmatched",
                    options=[choice.value for choice in OnUnmatched],
                    default=OnUnmatched.NOTHING.value,
                    tooltip="What to do about layers that the model file does not have. Layers of a text "
                    "encoder do not count where the file has none.",
                ),
                socket(
                    io.Combo,
                    "on_overflow",
                    options=[choice.value for choice in OnOverflow],
                    default=OnOverflow.ERROR.value,
                    optional=True,
                    tooltip="What to do about weights that the number type cannot hold, such as 70000 in "
                    "fp16, or that are not numbers in the base: stop, or write the file and name them.",
                ),
                multipliers_input("the whole stack"),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file or folder that was written."),
                io.String.Output(
                    display_name="report",
                    tooltip="What was changed, what was not and why, "
                    "and how far the new file is from the live weights.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        base: str,
        strength_model: float,
        strength_clip: float,
        save_dtype: str,
        filename_prefix: str,
        on_unmatched: str,
        on_overflow: str = OnOverflow.ERROR.value,
        multipliers: str = "",
        **_: object,
    ) -> str:
        widgets = (
            base,
            strength_model,
            strength_clip,
            save_dtype,
            filename_prefix,
            on_unmatched,
            on_overflow,
            multipliers,
        )
        presets = multipliers_fingerprint(multipliers)
        return f"{base_fingerprint(base)} {presets} {WRITTEN.fingerprint(*widgets)}"

    @classmethod
    def validate_inputs(cls, base: str) -> bool | str:
        return check_base(base)

    @classmethod
    def execute(
        cls,
        base: str,
        lycoris: Stack,
        strength_model: float,
        strength_clip: float,
        save_dtype: str,
        filename_prefix: str,
        on_unmatched: str,
        on_overflow: str = OnOverflow.ERROR.value,
        multipliers: str = "",
    ) -> io.NodeOutput:
        hidden = getattr(cls, "hidden", None)
        path, report = bake_stack(
            base,
            with_multipliers(lycoris, multipliers),
            strength_model,
            strength_clip,
            save_dtype,
            filename_prefix,
            OnUnmatched(on_unmatched),
            OnOverflow(on_overflow),
            getattr(hidden, "unique_id", None),
        )
        WRITTEN.remember(
            path,
            base,
            strength_model,
            strength_clip,
            save_dtype,
            filename_prefix,
            on_unmatched,
            on_overflow,
            multipliers,
        )
        return io.NodeOutput(str(path), report, ui=text_ui(report))


NODES = [MergeLyCORIS]
