"""The node SaveLyCORIS: writes one adapter set to a file."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lycoris_algos.network import Stack
from ..lycoris_algos.ops.dtypes import STORED_DTYPES
from .host.combining import AS_STORED, DIALECT_CHOICES, save_stack
from .host.compat import LYCORIS, schema, socket, text_ui
from .host.saving import WRITTEN, output_path


class SaveLyCORIS(io.ComfyNode):
    """Writes a stack of one as .safetensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaveLyCORIS",
            display_name="Save LyCORIS",
            category="LyCORIS",
            description="Writes an adapter as .safetensors into the folder 'loras' of ComfyUI's output "
            "folder, in the number type and the spelling of choice. Never replaces a file.",
            search_aliases=["save lora", "convert lora", "export lora"],
            is_output_node=True,
            inputs=[
                socket(
                    LYCORIS,
                    "lycoris",
                    tooltip="One adapter: from Combine LyCORIS or Load LyCORIS. Its strength is written "
                    "into the file where the algorithm allows that.",
                ),
                socket(
                    io.String,
                    "filename_prefix",
                    default="lycoris",
                    tooltip="The name of the file; 'folder/name' puts it into a folder. A number is added "
                    "where the name is taken.",
                ),
                socket(
                    io.Combo,
                    "dtype",
                    options=[AS_STORED, *STORED_DTYPES],
                    default=AS_STORED,
                    tooltip="The number type. fp16 is what most files use.",
                ),
                socket(
                    io.Combo,
                    "dialect",
                    options=list(DIALECT_CHOICES),
                    default=AS_STORED,
                    tooltip="How layers are called: kohya for most programs, ComfyUI's own names, or "
                    "diffusers and PEFT. Connect the model where names alone do not tell.",
                ),
                socket(
                    io.Boolean,
                    "include_embeddings",
                    default=True,
                    optional=True,
                    tooltip="Whether embeddings that came with the file are written into the new one.",
                ),
                socket(
                    io.Model,
                    "model",
                    optional=True,
                    tooltip="Tells how another dialect calls the layers. Needed only for some conversions.",
                ),
                socket(io.Clip, "clip", optional=True, tooltip="The same for layers of the text encoder."),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.String.Output(display_name="report", tooltip="What was written, and how."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        filename_prefix: str,
        dtype: str,
        dialect: str,
        include_embeddings: bool = True,
        **_: object,
    ) -> str:
        return WRITTEN.fingerprint(filename_prefix, dtype, dialect, include_embeddings)

    @classmethod
    def execute(
        cls,
        lycoris: Stack,
        filename_prefix: str,
        dtype: str,
        dialect: str,
        include_embeddings: bool = True,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        wanted = output_path("loras", filename_prefix)
        path, report = save_stack(lycoris, wanted, dtype, dialect, include_embeddings, model, clip)
        WRITTEN.remember(path, filename_prefix, dtype, dialect, include_embeddings)
        return io.NodeOutput(str(path), report, ui=text_ui(report))


NODES = [SaveLyCORIS]
