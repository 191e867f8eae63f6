"""The nodes ExtractLyCORIS and ExtractLyCORISFromModels: an adapter set out of two models."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lycoris_algos.extract import ALGORITHMS, MODES, ExtractOptions, rule_for
from ..lycoris_algos.ops.dtypes import STORED_DTYPES
from .host.baking import base_fingerprint, base_names, check_base
from .host.combining import AS_STORED, DIALECT_CHOICES
from .host.compat import LYCORIS, schema, socket, text_ui
from .host.extracting import extract_files, extract_models

_USUAL = "usual"
_DIALECTS = {_USUAL: None} | {name: own for name, own in DIALECT_CHOICES.items() if name != AS_STORED}
_FIXED, _SIZE, _NOISE_FLOOR = "fixed rank", "size", "noise floor"


def _combo(name: str, options: list[str], default: str, tooltip: str) -> Any:
    return socket(io.Combo, name, options=options, default=default, tooltip=tooltip)


def _rank(name: str, default: int, what: str) -> Any:
    tooltip = f"For 'fixed rank' only: the rank of {what}."
    return socket(io.Int, name, default=default, min=1, max=4096, tooltip=tooltip)


def _value(name: str, what: str) -> Any:
    return socket(
        io.Float,
        name,
        default=0.95,
        min=0.0,
        max=1000.0,
        step=0.001,
        tooltip=f"For threshold, ratio, quantile and energy only, of {what}. threshold: keep singular values "
        "above it. ratio: above this share of the largest. quantile: this share of their sum. energy: this "
        "share of the sum of their squares.",
    )


def _patterns(name: str, what: str) -> Any:
    return socket(
        io.String,
        name,
        default="",
        multiline=True,
        tooltip=f"{what}: a part of a layer's name in each line, or a pattern with * and ?.",
    )


def _widgets() -> list[Any]:
    """What both nodes ask."""
    return [
        _combo(
            "algorithm",
            list(ALGORITHMS),
            "lora",
            "What changes are stored as. auto chooses for each layer what keeps most per byte: for the size "
            "or the energy that is asked for, else in as many bytes as a LoRA of these ranks takes.",
        ),
        _combo(
            "mode",
            list(MODES),
            _FIXED,
            "How the rank of each layer is found. energy keeps a share of each layer's change, "
            "'noise floor' what stands out of the rounding noise, size fills a file of size_mb.",
        ),
        _rank("linear_rank", 32, "linear layers and 1×1 convolutions"),
        _rank("conv_rank", 16, "larger convolutions"),
        _value("linear_value", "linear layers and 1×1 convolutions"),
        _value("conv_value", "larger convolutions"),
        socket(
            io.Float,
            "size_mb",
            default=100.0,
            min=0.01,
            max=100000.0,
            step=0.1,
            tooltip="For 'size' only: the size of the whole file in megabytes.",
        ),
        socket(
            io.Int,
            "lokr_factor",
            default=0,
            min=-1,
            max=1024,
            tooltip="For lokr and auto only: LyCORIS' factor, -1 for its default, "
            "0 to choose what keeps most.",
        ),
        socket(
            io.Boolean,
            "sparse_bias",
            default=False,
            tooltip="Whether the largest elements of what a fit leaves are stored beside it. ComfyUI's own "
            "loader ignores them, this pack uses them. Not with dora.",
        ),
        socket(
            io.Float,
            "sparsity",
            default=0.98,
            min=0.0,
            max=0.9999,
            step=0.001,
            tooltip="For sparse_bias only: the share of elements that is not stored.",
        ),
        _patterns("include", "Only these layers (empty: all)"),
        _patterns("exclude", "Not these layers"),
        socket(
            io.Boolean,
            "text_encoders",
            default=True,
            tooltip="Whether changes of text encoders are extracted, where both models have them.",
        ),
        socket(
            io.Boolean,
            "norms_and_biases",
            default=True,
            tooltip="Whether changes of norms and biases are extracted: small, and stored whole.",
        ),
        _combo("dtype", list(STORED_DTYPES), "fp16", "The number type of the result."),
        _combo(
            "dialect",
            list(_DIALECTS),
            _USUAL,
            "How layers are called. usual: kohya's names for Stable Diffusion 1, 2 and XL, "
            "ComfyUI's own for other models.",
        ),
    ]


def _outputs() -> list[Any]:
    return [
        LYCORIS.Output(
            display_name="LYCORIS", tooltip="The result, as a stack of one at strength 1: apply or save it."
        ),
        io.String.Output(
            display_name="report",
            tooltip="What each family of layers is stored as, what it keeps, and what was left out and why.",
        ),
    ]


def _options(
    algorithm: str,
    mode: str,
    linear_rank: int,
    conv_rank: int,
    linear_value: float,
    conv_value: float,
    size_mb: float,
    lokr_factor: int,
    sparse_bias: bool,
    sparsity: float,
    include: str,
    exclude: str,
    text_encoders: bool,
    norms_and_biases: bool,
    dtype: str,
    dialect: str,
) -> ExtractOptions:
    """What the widgets ask for; those that the mode does not use count for nothing."""
    numbers: dict[str, tuple[float, float]] = {_FIXED: (linear_rank, conv_rank), _SIZE: (size_mb, size_mb)}
    linear, conv = (0, 0) if algorithm == "full" else numbers.get(mode, (linear_value, conv_value))
    mode = _NOISE_FLOOR if algorithm == "full" else mode
    return ExtractOptions(
        algorithm=algorithm,
        linear=rule_for(mode, linear),
        convolution=rule_for(mode, conv),
        factor=lokr_factor,
        sparsity=sparsity if sparse_bias else None,
        include=_lines(include),
        exclude=_lines(exclude),
        text_encoders=text_encoders,
        norms_and_biases=norms_and_biases,
        dtype=STORED_DTYPES[dtype],
        dialect=_DIALECTS[dialect],
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _node_id(cls: Any) -> str | None:
    hidden = getattr(cls, "hidden", None)
    return getattr(hidden, "unique_id", None) if hidden else None


class ExtractLyCORIS(io.ComfyNode):
    """What one model file has more than another, as an adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExtractLyCORIS",
            display_name="Extract LyCORIS",
            category="LyCORIS",
            description="Makes an adapter of what a tuned model file has more than its base, of any "
            "algorithm, by rank, energy or file size. Reads both files layer by layer, so it needs little "
            "memory, and reports what is kept.",
            search_aliases=["extract lora", "extract locon", "model difference", "svd"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(
                    io.Combo,
                    "base",
                    options=base_names(),
                    tooltip="The model file that the tuned one was made from. Press R to refresh.",
                ),
                socket(io.Combo, "tuned", options=base_names(), tooltip="The tuned model file."),
                *_widgets(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, base: str, tuned: str, **_: object) -> str:
        return f"{base_fingerprint(base)} {base_fingerprint(tuned)}"

    @classmethod
    def validate_inputs(cls, base: str, tuned: str) -> bool | str:
        checked = check_base(base)
        return check_base(tuned) if checked is True else checked

    @classmethod
    def execute(cls, base: str, tuned: str, **widgets: Any) -> io.NodeOutput:
        stack, report = extract_files(base, tuned, _options(**widgets), _node_id(cls))
        return io.NodeOutput(stack, report, ui=text_ui(report))


class ExtractLyCORISFromModels(io.ComfyNode):
    """The same of two models in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExtractLyCORISFromModels",
            display_name="Extract LyCORIS from Models",
            category="LyCORIS",
            description="Makes an adapter of what one model in the graph has more than another, with all "
            "the patches that both carry (adapters, merges, hooks of a CLIP), also where they are "
            "quantised. One weight is patched at a time, so no second copy of a model is made.",
            search_aliases=["extract lora", "model difference", "bake patches to lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Model, "base_model", tooltip="The model to start from."),
                socket(io.Model, "tuned_model", tooltip="The model that has more, patches included."),
                *_widgets(),
                socket(
                    io.Clip,
                    "base_clip",
                    optional=True,
                    tooltip="The text encoders to start from. Both CLIPs or none.",
                ),
                socket(io.Clip, "tuned_clip", optional=True, tooltip="The text encoders that have more."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        base_model: Any,
        tuned_model: Any,
        base_clip: Any = None,
        tuned_clip: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        stack, report = extract_models(
            (base_model, base_clip), (tuned_model, tuned_clip), _options(**widgets), _node_id(cls)
        )
        return io.NodeOutput(stack, report, ui=text_ui(report))


NODES = [ExtractLyCORIS, ExtractLyCORISFromModels]
