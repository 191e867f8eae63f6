"""LyCORIS' own wrapper (``create_lycoris``), and SimpleTuner through it: ``lycoris_…``.

The path is the one inside the wrapped module, flattened with underscores. One file holds one wrapped model,
so no prefix says whether that is a diffusion model or a text encoder. Some paths do.
"""

from __future__ import annotations

from ._base import Dialect

DIALECT = Dialect(
    name="lycoris",
    title="LyCORIS wrapper",
    model_prefixes=("lycoris_",),
    any_component=True,
)
