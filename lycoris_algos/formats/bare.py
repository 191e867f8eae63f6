"""No prefix at all: the dotted paths of the model itself, original or diffusers'.

Written by OneTrainer ("original"), DiffSynth, Mochi, BFL's control adapters, XLabs and others, mostly with
PEFT's tensors. XLabs' Flux adapters sit on attention processors: ``double_blocks.0.processor.qkv_lora1``.
"""

from __future__ import annotations

from ._base import PEFT_SUFFIXES, TEXT_PATHS, Dialect

DIALECT = Dialect(
    name="bare",
    title="the model itself",
    model_prefixes=(
        "double_blocks.",
        "single_blocks.",
        "transformer_blocks.",
        "single_transformer_blocks.",
        "joint_blocks.",
        "double_stream_blocks.",
        "single_stream_blocks.",
        "blocks.",
        "layers.",
        "noise_refiner.",
        "context_refiner.",
        "down_blocks.",
        "mid_block.",
        "up_blocks.",
        "input_blocks.",
        "middle_block.",
        "output_blocks.",
        "final_layer.",
    ),
    text_prefixes={path: path for path in TEXT_PATHS},
    bare=True,
    suffixes=PEFT_SUFFIXES,
)
