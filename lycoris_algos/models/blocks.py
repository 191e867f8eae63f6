"""What a layer is in its model: its block, numbered as the model does, and its kind. Tables and two look-ups.

Paths are read with underscores for dots, so that flattened names serve as well. Stacks of blocks are called
alike in every family that has them, so one table does for all; what diffusers calls otherwise is led back by
the rules of its family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..text import Brief
from ._base import BLOCK, Family, FusedRows, Rule, layer_of
from ._fused import split_names

#: Kinds of layers, in the order in which a table has them. ``fused`` is attention and feed-forward in one,
#: ``proj`` leads into or out of a block or the model, ``text`` is any layer of a text encoder.
KINDS = (
    *(f"{module}.{part}" for module in ("attn", "cross") for part in ("q", "k", "v", "qkv", "out")),
    *("fused", "ff", "conv", "norm", "mod", "embed", "proj", "text", "other"),
)
#: Groups without numbers: what comes before all blocks, what comes after them, what no rule knows.
EMBED, FINAL, OTHER = "embed", "final", "other"


@dataclass(frozen=True)
class Role(Brief):
    """What a layer is in its model.

    ``group`` is the stack that its block is in (``double``, ``input``; ``te``, ``te2`` … are text encoders)
    and ``index`` the number of the block there, None for a part of the model that has none. ``kind`` is one
    of ``KINDS``.
    """

    group: str
    index: int | None
    kind: str

    @property
    def block(self) -> str:
        """The block in rules and reports: ``double.7``, ``te.11``, ``embed``."""
        return self.group if self.index is None else f"{self.group}.{self.index}"


UNKNOWN = Role(OTHER, None, "other")
# Longer than any path of a layer. Other names are not searched: that could take the square of their length.
_LONGEST = 200

#: {group: the names of its lists of blocks, each followed by the number of a block}.
_STACKS = {
    "input": "input_blocks",
    "output": "output_blocks",
    "double": "double_blocks|double_stream_blocks|double_layers|double_stream_layers",
    "single": "single_blocks|single_stream_blocks|single_layers|single_stream_layers",
    "joint": "joint_blocks",
    "blocks": "(?:transformer_)?blocks(?:_block(?=\\d))?",
    "layers": "(?:decoder_|transformer_|language_model_)?layers",
    "noise_refiner": "noise_refiner",
    "context_refiner": "context_refiner",
    "ref_refiner": "ref_image_refiner",
    "refiner": "txt_in_individual_token_refiner_blocks|txtfusion_refiner_blocks",
    "layerwise": "txtfusion_layerwise_blocks",
    "vace": "vace_blocks",
    "visual": "visual_transformer_blocks|visual_blocks",
    "txt": "text_transformer_blocks",
    "adapter": "llm_adapter_blocks",
    "video_connector": "video_embeddings_connector_transformer_1d_blocks",
    "audio_connector": "audio_embeddings_connector_transformer_1d_blocks",
    "injector": "(?:audio|music)_injector_injector(?:_adain_layers)?",
    "lyric": "encoder_lyric_encoder_layers|lyric_encoder_encoders",
    "timbre": "encoder_timbre_encoder_layers",
    "pooler": "tokenizer_attention_pooler_layers",
    "detokenizer": "detokenizer_layers",
    "music": "music_encoder",
    "patch": "patch_blocks",
    "pixel": "pixel_blocks",
    "nerf": "nerf_blocks",
    # Levels of Stable Cascade.
    "down": "down_blocks|down_downscalers",
    "up": "up_blocks|up_upscalers",
}
#: Beginnings that diffusers' UNets of Stable Diffusion have, which count within levels of three blocks each:
#: (with a level and a number if any, group, number of the first block).
_LEVELS = (
    ("conv_in", "input", 0),
    (r"down_blocks_(\d+)_(?:resnets|attentions)_(\d+)", "input", 1),
    (r"down_blocks_(\d+)_downsamplers_(\d+)", "input", 3),
    (r"up_blocks_(\d+)_(?:resnets|attentions)_(\d+)", "output", 0),
    (r"up_blocks_(\d+)_upsamplers_(\d+)", "output", 2),
)
#: {group: beginnings of what is in no numbered block}; most embeddings say by a word that they are one.
_PARTS = {
    "middle": "mid(?:dle)?_block",
    FINAL: (
        "out|out_layer|(?:audio_)?proj_out|transformer_project_out|conv_out|conv_norm_out|norm_out|norm_final|final_(?:layer|linear|norm)|head|last"
        "|(?:audio_)?scale_shift_table|clf|modF|nerf_final_layer_conv|detokenizer_(?:norm|proj_out)"
        "|decoder_(?:norm_out|proj_out|scale_shift_table)"
    ),
    EMBED: (
        "first|tmlp|tproj|txtmlp|txtfusion|t_block|mlp_t5|pooler|txt_norm|init_x_linear|cond_seq_linear|img_in_patch"
        "|distilled_guidance_layer|(?:double|single)_stream_modulation|adaLN_modulation|llm_adapter|tokenizer"
        "|detokenizer|frame_packer|control_adapter|trainable_cond_mask|pos_frequencies|positional_encoding"
        r"|\w*(?:adaln_single|emb|embed|embeds|embs|embedder|embedding|embeddings|in|proj|projection|projector"
        r"|mapper|token|tokens|encoder|connector)"
    ),
}
#: Where the number of a text encoder's block is, and what sees images in it.
_TEXT_STACK = r"(?:.*?_)?(?:layers|layer|blocks?|resblocks)_(\d+)"
_VISION = r"(?:.*_)?(?:visual|vision_model)"

_ATTENTION = r"_(?:[a-z]+_)?(?:attn\d?|attention)_(?:processor_)?"
_CROSS = (
    r"_(?:cross_attn|cross_attention|audio_to_video_attn|video_to_audio_attn|audio_cross_attn"
    r"|(?<!x_block_)(?:audio_)?attn2|injector_\d+)_"
)
_PROJECTIONS = {
    "qkv": r"(?:to_|proj_|img_|txt_)?(?:qkv|kv)(?:_[xy]|_linear|_proj|_vid|_txt|_all)?|Wqkv",
    **{
        part: rf"(?:\w+_)?to_{part}(?:{rest})?(?:_t|_\d)?|(?:add_)?{part}_(?:proj|linear)|w?{part}"
        rf"|w[12]{part}|{part}_img|{part}{rest}|linear_{part}"
        for part, rest in (("q", "uery"), ("k", "ey"), ("v", "alue"))
    },
    "out": (
        r"(?:to_out|to_add_out|(?:out|output|o)_proj|out_layer|img_out|instruct_out|linear_out|proj|out|w?o|w[12]o"
        r"|(?:to_)?gate)(?:_\d|_[txy])?|proj_out_\w+"
    ),
}
#: (kind, how the path goes on inside a block or part): the first that fits.
_KINDS: tuple[tuple[str, str], ...] = (
    (
        "mod",
        r".*(?:_mod(?:_.*|[CXF]+_\d+)?|modulation.*|scale_shift_table.*|norm(?:\d|_out)?(?:_context)?_linear(?:_\d)?"
        r"|adaln_single_linear|_t_block_\d|_time_proj(?:ection)?(?:_\d)?|_tproj_\d|_mapper_(?:sca|crp)"
        r"|blocks_\d+_\d+_mapper|_adain_layers_.*|_ada_.*|_adaln_proj|_param_generator)",
    ),
    (
        "norm",
        r"_out_0|.*(?:(?i:norm).*|_ln(?:_[qk])?|_(?:in|out)_layers_0|_channelwise_\d+_(?:gamma|beta))",
    ),
    ("fused", r"_single_.*_linear[12]"),
    *((f"cross.{part}", rf".*{_CROSS}(?:{ends})") for part, ends in _PROJECTIONS.items()),
    *((f"attn.{part}", rf".*{_ATTENTION}(?:{ends})") for part, ends in _PROJECTIONS.items()),
    *((f"attn.{part}", rf".*_\d+_(?:linear1_|\w+_attn_)?{part}") for part in "qkv"),
    ("attn.out", r".*_attn_out"),
    (
        "ff",
        r".*_(?:ff|ffn|ff_[it]|mlp|mlp[CX]|feed_forward|moe|channelwise|block_layer\d)(?:_.*)?|.*_linear\d",
    ),
    (
        "conv",
        r".*_(?:in_layers_2|out_layers_3|skip_connection|op|conv\d?|conv_shortcut|depthwise|input_blocks_0_0|conv_in"
        r"|(?:down|up)scalers_.*)",
    ),
    ("embed", r".*_(?:emb_layers_\d|time_emb_proj)"),
    (
        "proj",
        r".*_(?:proj_in|proj_out|skip_linear|(?:before|after)_proj|kv_mapper_\d|(?:expand_from|compress_to)_attn)",
    ),
)
#: What a part of the model is that has neither a modulation nor a norm's kind.
_KIND_OF = {EMBED: "embed", FINAL: "proj"}

_NUMBERED = tuple((re.compile(rf"(?:{names})_?(\d+)(?:_|$)"), group) for group, names in _STACKS.items())
_IN_LEVELS = tuple((re.compile(rf"{start}(?:_|$)"), group, first) for start, group, first in _LEVELS)
_UNNUMBERED = tuple((re.compile(rf"(?:{start})\d?(?:_|$)"), group) for group, start in _PARTS.items())
_BY_KIND = tuple((kind, re.compile(rest)) for kind, rest in _KINDS)
_NUMBER = re.compile(r"(?<=_)\d+(?=_|$)")
_TEXT_NUMBER, _IMAGES = re.compile(rf"{_TEXT_STACK}(?:_|$)"), re.compile(rf"{_VISION}_")


def role_of(path: str) -> Role:
    """What a layer or parameter of a diffusion model is, by its path in ComfyUI's module.

    The path may be dotted or flattened.
    """
    flat = _flat(path)
    group, index = _block(flat) if len(flat) <= _LONGEST else (OTHER, None)
    if group == OTHER:
        return UNKNOWN
    kind = _kind(flat)
    default = _KIND_OF.get(group)
    return Role(group, index, kind if default is None or kind in ("mod", "norm") else default)


def text_role(path: str, number: int = 1) -> Role:
    """What a layer of the text encoder ``number`` of a model (from 1) is, by its path there, in any form."""
    flat = path.replace(".", "_")
    match = _TEXT_NUMBER.match(flat)
    group = "te" if number == 1 else f"te{number}"
    if _IMAGES.match(flat):
        group = f"{group}_vision"
    return Role(group, None if match is None else int(match[1]), "text")


def role_in(path: str, family: Family) -> Role:
    """What a layer of a diffusion model of ``family`` is, by its path there or in diffusers, in any form.

    A part of a fused layer has its own kind, and the block of the whole.
    """
    flat = _flat(path)
    native, kind = _native(flat, family)
    if native is None:  # fused by the file, and apart in diffusers
        for first, *_ in split_names(flat):
            native, part = _native(first, family)
            kind = None if part is None else f"{part.partition('.')[0]}.qkv"
            if native is not None:
                break
    role = role_of(flat if native is None else native)
    return role if kind is None else replace(role, kind=kind)


def parts_of(path: str, shape: Sequence[int], family: Family) -> tuple[tuple[str, tuple[int, int]], ...]:
    """(kind, (start, count)) of the rows of each part of a fused weight, in order, as ``family`` has them.

    Nothing for any other layer. ``path`` is ComfyUI's, ``shape`` that of the weight.
    """
    forms = [form for form, _ in _forms(_flat(path))]
    rows, columns = (*shape, 0, 0)[:2]
    known = {
        located: kind
        for (native, part), kind in _part_kinds(family).items()
        if native in forms and part is not None and (located := part.of(rows, columns)) is not None
        if not kind.endswith(".qkv")
    }
    parts = sorted((located, kind) for located, kind in known.items())
    ends = [0, *(start + count for (start, count), _ in parts)]
    whole = [start for (start, _), _ in parts] == ends[:-1] and ends[-1] == rows
    return tuple((kind, located) for located, kind in parts) if whole and len(parts) > 1 else ()


def _flat(path: str) -> str:
    return layer_of(path).removesuffix(".bias").replace(".", "_")


def _kind(flat: str) -> str:
    return next((kind for kind, rest in _BY_KIND if rest.fullmatch(f"_{flat}")), "other")


def _block(flat: str) -> tuple[str, int | None]:
    """The group and the number of the block that the flattened path is in."""
    for pattern, group, first in _IN_LEVELS:
        if match := pattern.match(flat):
            level, number = (int(count) for count in match.groups() or (0, 0))
            return group, 3 * level + number + first
    for pattern, group in _NUMBERED:
        if match := pattern.match(flat):
            return group, int(match[1])
    for pattern, group in _UNNUMBERED:
        if pattern.match(flat):
            return group, None
    return OTHER, None


def _native(flat: str, family: Family) -> tuple[str | None, str | None]:
    """(ComfyUI's path of what a rule of ``family`` calls so, the kind if that is a part); None if unknown."""
    for form, number in _forms(flat):
        rule = _rules(family).get(form)
        if rule is not None:
            kind = _part_kinds(family).get((_flat(rule.native), rule.rows))
            return rule.native.replace(BLOCK, number), kind
    return None, None


def _forms(flat: str) -> Iterator[tuple[str, str]]:
    """The flattened path with its first number as rules have it, and that number; then as it stands."""
    match = _NUMBER.search(flat)
    if match:
        yield f"{flat[: match.start()]}{BLOCK}{flat[match.end() :]}", match.group()
    yield flat, ""


@cache
def _rules(family: Family) -> dict[str, Rule]:
    """{flattened name: the first rule that has it}."""
    return {_flat(rule.name): rule for rule in reversed(family.rules)}


@cache
def _part_kinds(family: Family) -> dict[tuple[str, FusedRows | None], str]:
    """{(flattened native path, rows): kind} of the parts of fused layers, by the first name that tells it."""
    kinds: dict[tuple[str, FusedRows | None], str] = {}
    for rule in family.rules:
        kind = _kind(_flat(rule.name.replace(BLOCK, "0")))
        if rule.rows is not None and kind != "other":
            module = role_of(rule.native.replace(BLOCK, "0")).kind.partition(".")[0]
            if module in ("attn", "cross"):  # SD 3 calls a second self-attention attn2
                kind = f"{module}.{kind.partition('.')[2]}"
            kinds.setdefault((_flat(rule.native), rule.rows), kind)
    return kinds
