"""Lumina 2 and Z-Image, which is built like it: queries, keys and values in one weight.

Lumina 2 has fewer keys and values than queries. Z-Image's diffusers names are close to its own, with the
sizes of patches in the names of what comes first and last.
"""

from __future__ import annotations

from ._base import GROUPED_QKV, QKV, Family, FusedRows, Rule, aliases, fused, renamed

_STACKS = ("layers.{}.", "noise_refiner.{}.", "context_refiner.{}.")


def _attention(other: str, parts: tuple[FusedRows, ...]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for stack in _STACKS:
        names = [f"{stack}{other}.to_{part}" for part in "qkv"]
        rules += fused(f"{stack}attention.qkv", names, parts)
        rules += renamed(
            {"norm_q": "q_norm", "norm_k": "k_norm", "to_out.0": "out"},
            within=(f"{stack}{other}.", f"{stack}attention."),
        )
    return tuple(rules)


LUMINA_2 = Family(
    name="lumina2",
    title="Lumina 2",
    marks=("layers.0.attention.qkv.weight", "layers.0.adaLN_modulation.1.weight", "cap_embedder.1.weight"),
    rules=(
        *_attention("attn", GROUPED_QKV),
        *aliases(_attention("attention", GROUPED_QKV)),
        *(
            rule
            for stack in _STACKS
            for rule in renamed(
                {
                    "feed_forward.linear_1": "feed_forward.w1",
                    "feed_forward.linear_2": "feed_forward.w2",
                    "feed_forward.linear_3": "feed_forward.w3",
                    "norm1.linear": "adaLN_modulation.1",
                    "norm1.norm": "attention_norm1",
                    "norm1": "attention_norm1",
                    "norm2": "attention_norm2",
                },
                within=(stack, stack),
            )
        ),
        *renamed(
            {
                "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
                "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
                "time_caption_embed.caption_embedder.0": "cap_embedder.0",
                "time_caption_embed.caption_embedder.1": "cap_embedder.1",
                "norm_out.linear_1": "final_layer.adaLN_modulation.1",
                "norm_out.linear_2": "final_layer.linear",
            }
        ),
    ),
    signs=(r"(layers|noise_refiner|context_refiner)_\d+_(attention_(qkv|out)$|adaLN_modulation_)",),
    labels=("lumina",),
)

Z_IMAGE = Family(
    name="z_image",
    title="Z-Image",
    marks=("layers.0.attention.qkv.weight", "layers.0.adaLN_modulation.0.weight", "cap_embedder.1.weight"),
    rules=(
        *_attention("attention", QKV),
        *renamed(
            {
                "all_x_embedder.2-1": "x_embedder",
                "all_final_layer.2-1.linear": "final_layer.linear",
                "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
            }
        ),
    ),
    signs=(
        r"(layers|noise_refiner)_\d+_adaLN_modulation_0$",
        r"(layers|noise_refiner|context_refiner)_\d+_attention_(to|norm)_",
        r"all_(x_embedder|final_layer)_2-1",
    ),
    labels=("z-image", "zimage", "z_image"),
    keeps_names=True,
)
