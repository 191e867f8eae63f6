"""ComfyUI's door to this pack: it imports this file by path and asks for these two names, nothing else."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
