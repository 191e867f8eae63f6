"""The node InspectLyCORIS: what files are and do, as a picture, a text and numbers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lycoris_algos.inspection import Detail, View
from ..lycoris_algos.network import Stack
from .host.compat import LYCORIS, node_id, schema, socket, text_ui
from .host.inspecting import inspect_stack


class InspectLyCORIS(io.ComfyNode):
    """Looks at a stack and changes nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InspectLyCORIS",
            display_name="Inspect LyCORIS",
            category="LyCORIS",
            description="Shows what LyCORIS files are and what they do: whether they fit the model, where "
            "their strength sits, their singular values, which layers stand out, how the files of a stack "
            "meet, and what number types leave of them.",
            search_aliases=["lora info", "lora block weight", "spectrum", "effective rank", "compare lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(
                    LYCORIS,
                    "lycoris",
                    tooltip="The files, with their strengths: from Load LyCORIS, or from Stack LyCORIS to "
                    "compare several.",
                ),
                socket(
                    io.Combo,
                    "view",
                    options=[view.value for view in View],
                    default=View.OVERVIEW.value,
                    tooltip="What to look at. overview computes nothing; relative to base and quantisation "
                    "need the model.",
                ),
                socket(
                    io.Combo,
                    "detail",
                    options=[detail.value for detail in Detail],
                    default=Detail.BLOCKS.value,
                    tooltip="How finely the report tells it: by block of the model, or layer by layer, "
                    "those first that matter most.",
                ),
                socket(
                    io.Model,
                    "model",
                    optional=True,
                    tooltip="The model that the files are for: tells what fits, and norms relative to its "
                    "weights. Files that depend on these (DoRA, OFT, (IA)³ …) cannot be measured without.",
                ),
                socket(io.Clip, "clip", optional=True, tooltip="The same for layers of the text encoder."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="picture",
                    tooltip="The picture; small and black where matplotlib is missing.",
                ),
                io.String.Output(display_name="report", tooltip="What was found, in words."),
                io.String.Output(
                    display_name="json",
                    tooltip="The same as numbers: one JSON document, described in the help page.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, lycoris: Stack, view: str, detail: str, model: Any = None, clip: Any = None
    ) -> io.NodeOutput:
        seen = inspect_stack(lycoris, View(view), Detail(detail), model, clip, node_id(cls))
        panel = {"lycoris_inspection": [seen.found.to_json(spectra=False)]}  # web/js/inspect.js
        shown = {**seen.shown, **text_ui(seen.report), **panel}
        return io.NodeOutput(seen.picture, seen.report, seen.found.to_json(), ui=shown)


NODES = [InspectLyCORIS]
