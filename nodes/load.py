"""The node LoadLyCORIS: reads an adapter file and outputs it as a stack of one."""

from __future__ import annotations

from comfy_api.latest import io

from ..lycoris_algos import describe, with_rank
from ..lycoris_algos.io import trigger_words
from ..lycoris_algos.network import StackEntry
from .host.compat import LYCORIS, schema, socket, text_ui
from .host.files import check_name, file_fingerprint, load_adapters
from .host.inputs import file_input, strength_input
from .host.multipliers import multipliers_fingerprint, multipliers_input, with_multipliers


class LoadLyCORIS(io.ComfyNode):
    """Reads an adapter file of any supported algorithm and says what it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoadLyCORIS",
            display_name="Load LyCORIS",
            category="LyCORIS",
            description="Loads a LyCORIS or LoRA file of any algorithm (LoCon, LoHa, LoKr, GLoRA, OFT, BOFT, "
            "(IA)³, DoRA …) and tells what is in it. Connect it to Apply LyCORIS to Model, or to Stack "
            "LyCORIS to combine several.",
            search_aliases=["locon", "loha", "lokr", "lora", "lycoris loader"],
            is_output_node=True,
            inputs=[
                file_input(),
                strength_input("strength_model", "this file changes the diffusion model"),
                strength_input("strength_clip", "this file changes the text encoder"),
                socket(
                    io.Int,
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Use only so many ranks: the first ones of a DyLoRA, the best ones of a LoRA or "
                    "LoKr. 0 uses all of them.",
                ),
                multipliers_input("this file"),
            ],
            outputs=[
                LYCORIS.Output(display_name="LYCORIS", tooltip="The file, as a stack of one."),
                io.String.Output(display_name="report", tooltip="What the file holds, in words."),
                io.String.Output(
                    display_name="trigger words",
                    tooltip="Words the file was trained on, from its metadata, separated by commas.",
                ),
            ],
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
        lycoris_name: str,
        strength_model: float,
        strength_clip: float,
        rank: int = 0,
        multipliers: str = "",
    ) -> io.NodeOutput:
        adapters = with_rank(load_adapters(lycoris_name), rank)
        report = describe(adapters)
        stack = with_multipliers((StackEntry(adapters, strength_model, strength_clip),), multipliers)
        words = ", ".join(trigger_words(adapters.metadata))
        return io.NodeOutput(stack, report, words, ui=text_ui(report))


NODES = [LoadLyCORIS]
