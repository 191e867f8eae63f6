"""The only folder that touches ComfyUI's internals; nodes above it see models, names and strings."""
