"""Entry point of the node pack: ComfyUI imports this file by path and asks for these two names."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
