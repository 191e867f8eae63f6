"""The node StackLyCORIS: joins several stacks into one."""

from __future__ import annotations

from comfy_api.latest import io

from ..lycoris_algos.network import Stack
from .host.compat import LYCORIS, schema, socket

_SLOTS = 8


class StackLyCORIS(io.ComfyNode):
    """Joins stacks in the order of the inputs, which is the order of application."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StackLyCORIS",
            display_name="Stack LyCORIS",
            category="LyCORIS",
            description="Joins up to eight LyCORIS stacks into one. The order of the inputs is the order "
            "in which they are applied.",
            inputs=[
                socket(
                    LYCORIS,
                    f"lycoris_{number}",
                    optional=number > 1,
                    tooltip="A file from Load LyCORIS, or another stack."
                    if number == 1
                    else f"Applied after lycoris_{number - 1}.",
                )
                for number in range(1, _SLOTS + 1)
            ],
            outputs=[LYCORIS.Output(display_name="LYCORIS", tooltip="All of them, in order.")],
        )

    @classmethod
    def execute(cls, **lycoris: Stack | None) -> io.NodeOutput:
        slots = (lycoris.get(f"lycoris_{number}") for number in range(1, _SLOTS + 1))
        return io.NodeOutput(tuple(entry for stack in slots for entry in stack or ()))


NODES = [StackLyCORIS]
