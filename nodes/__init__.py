"""The node pack's extension: the list of nodes that ComfyUI asks for. Nodes are defined one file per task."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import apply, combine, extract, inspect, load, merge, save, stack
from .host.paths import register_folder

NODES: list[type[io.ComfyNode]] = [
    *load.NODES,
    *stack.NODES,
    *apply.NODES,
    *combine.NODES,
    *save.NODES,
    *merge.NODES,
    *extract.NODES,
    *inspect.NODES,
]

register_folder()


class LyCORISExtension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LyCORISExtension:
    """Called once by ComfyUI when it loads this pack."""
    return LyCORISExtension()
