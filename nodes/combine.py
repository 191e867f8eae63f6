"""The node CombineLyCORIS: makes one adapter set of a stack, by a method, in a form and size of choice."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lycoris_algos.merge.combine import (
    METHODS,
    PARAMETERS,
    SAME,
    CombineOptions,
    RankKind,
    RankRule,
    explained,
    outputs,
)
from ..lycoris_algos.network import Stack
from ..lycoris_algos.ops.dtypes import STORED_DTYPES
from .host.baking import base_fingerprint, base_names, check_base
from .host.combining import AS_STORED, NO_BASE, combine_stack
from .host.compat import LYCORIS, node_id, schema, socket, text_ui
from .host.multipliers import multipliers_fingerprint, multipliers_input, with_multipliers

_BUDGET = "size budget in MB"
#: Names of the rank controls, as the node has them, and the library's.
_CONTROLS = {kind.value: kind for kind in RankKind if kind is not RankKind.BUDGET} | {
    _BUDGET: RankKind.BUDGET
}
_ORDER = ("exact", "fixed rank", "energy", _BUDGET, "sv_ratio", "sv_fro", "sv_cumulative")
#: Parameters of the first version: their widgets stay where saved workflows have their values.
_PLACED = ("density", "epsilon", "gamma", "seed")


def _number(name: str, default: float, low: float, high: float, step: float, tooltip: str) -> Any:
    return socket(io.Float, name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def _combo(name: str, options: list[str], default: str, tooltip: str) -> Any:
    return socket(io.Combo, name, options=options, default=default, tooltip=tooltip)


def _parameter(name: str, *, optional: bool = False) -> Any:
    """The widget of one of the methods' parameters."""
    parameter = PARAMETERS[name]
    return socket(
        io.Int if isinstance(parameter.default, int) else io.Float,
        name,
        default=parameter.default,
        min=parameter.low,
        max=parameter.high,
        step=parameter.step,
        control_after_generate=False,
        optional=optional,
        tooltip=f"{explained(parameter)}.",
    )


def _caps(kind: RankKind, max_rank: int, conv_rank: int) -> tuple[int, int]:
    """What of both widgets counts: they keep their values while another rank control is chosen."""
    if kind is RankKind.EXACT:
        return 0, 0
    return (0 if kind is RankKind.FIXED else max_rank), conv_rank


class CombineLyCORIS(io.ComfyNode):
    """Merges, resizes and converts adapters, on their deltas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CombineLyCORIS",
            display_name="Combine LyCORIS",
            category="LyCORIS",
            description="Makes one adapter of a stack: merges several of any algorithm, or resizes and "
            "converts one. Works on what the adapters do to the weights, exactly where that is possible, "
            "and reports how much is kept.",
            search_aliases=["merge lora", "resize lora", "ties", "dare", "lora to lokr"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(
                    LYCORIS,
                    "lycoris",
                    tooltip="The adapters, with their strengths as weights: from Stack LyCORIS, or from Load "
                    "LyCORIS to resize or convert a single one.",
                ),
                _combo(
                    "method",
                    list(METHODS),
                    "sum",
                    "\n".join(f"{method.name}: {method.summary}" for method in METHODS.values()),
                ),
                _parameter("density"),
                _number("lambda", 1.0, -100.0, 100.0, 0.01, "The result is multiplied by this."),
                _parameter("epsilon"),
                _parameter("gamma"),
                _parameter("seed"),
                _combo(
                    "output",
                    list(outputs()),
                    SAME,
                    "What the result is stored as. same keeps the algorithm where that is possible, auto "
                    "takes what is smallest, full stores whole changes.",
                ),
                _combo(
                    "rank_control",
                    list(_ORDER),
                    "exact",
                    "How many ranks the result gets: all that are needed, a number, as many as keep a share "
                    "of the energy, as many as fit in a file of a size, or kohya's rules.",
                ),
                socket(io.Int, "rank", default=32, min=1, max=4096, tooltip="For 'fixed rank'."),
                _number(
                    "threshold",
                    0.95,
                    0.0,
                    100000.0,
                    0.01,
                    "For 'energy', sv_fro and sv_cumulative the share to keep (0 to 1); for sv_ratio how "
                    "many times smaller than the largest the smallest singular value may be.",
                ),
                _number("budget_mb", 100.0, 0.01, 100000.0, 0.1, f"For '{_BUDGET}': the size of the file."),
                _combo(
                    "dtype",
                    [AS_STORED, *STORED_DTYPES],
                    AS_STORED,
                    "The number type of the result. 'as stored' takes that of the files.",
                ),
                socket(
                    io.Model,
                    "model",
                    optional=True,
                    tooltip="The model that the adapters were trained on. Needed for those that depend on "
                    "its weights (DoRA, OFT, BOFT, GLoRA, (IA)³ …), "
                    "and to match files of different trainers.",
                ),
                socket(io.Clip, "clip", optional=True, tooltip="The same for layers of the text encoder."),
                socket(
                    io.Int,
                    "lokr_factor",
                    default=0,
                    min=-1,
                    max=1024,
                    optional=True,
                    tooltip="For output lokr: LyCORIS' factor, -1 for its default, "
                    "0 to choose what keeps most.",
                ),
                socket(
                    io.Boolean,
                    "live_order",
                    default=False,
                    optional=True,
                    tooltip="For sum with adapters that depend on the weights: take each change from the "
                    "weight as the adapters before it left it, as Apply LyCORIS does.",
                ),
                socket(
                    io.Combo,
                    "base",
                    options=[NO_BASE, *base_names()],
                    default=NO_BASE,
                    optional=True,
                    tooltip="The file of the model that the adapters were trained on, in place of 'model' "
                    "and 'clip': it is read layer by layer and not loaded.",
                ),
                socket(
                    io.Int,
                    "max_rank",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="For 'energy', the size budget and kohya's rules: "
                    "the most ranks that a layer may get, 0 for any number.",
                ),
                socket(
                    io.Int,
                    "conv_rank",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="On convolutions with a kernel larger than 1×1, in the place of 'rank' or of "
                    "'max_rank'. 0 treats them like other layers.",
                ),
                *(_parameter(name, optional=True) for name in PARAMETERS if name not in _PLACED),
                multipliers_input("the whole stack"),
            ],
            outputs=[
                LYCORIS.Output(
                    display_name="LYCORIS", tooltip="The result, as a stack of one at strength 1."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How each family of layers was combined, how much is kept, "
                    "and the largest error.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, base: str = NO_BASE, multipliers: str = "", **_: object) -> str:
        file = "" if base == NO_BASE else base_fingerprint(base)
        return f"{file} {multipliers_fingerprint(multipliers)}"

    @classmethod
    def validate_inputs(cls, base: str = NO_BASE) -> bool | str:
        return True if base == NO_BASE else check_base(base)

    @classmethod
    def execute(
        cls,
        lycoris: Stack,
        method: str,
        output: str,
        rank_control: str,
        rank: int,
        threshold: float,
        budget_mb: float,
        dtype: str,
        model: Any = None,
        clip: Any = None,
        lokr_factor: int = 0,
        live_order: bool = False,
        base: str = NO_BASE,
        max_rank: int = 0,
        conv_rank: int = 0,
        multipliers: str = "",
        **numbers: float,
    ) -> io.NodeOutput:
        kind = _CONTROLS[rank_control]
        values = {RankKind.EXACT: 0.0, RankKind.FIXED: float(rank), RankKind.BUDGET: budget_mb}
        options = CombineOptions(
            method=method,
            scaling=numbers.pop("lambda"),  # a word that Python keeps for itself
            output=output,
            rank=RankRule(kind, values.get(kind, threshold), *_caps(kind, max_rank, conv_rank)),
            dtype=STORED_DTYPES.get(dtype),
            factor=lokr_factor,
            live_order=live_order,
            **numbers,
        )
        weighted = with_multipliers(lycoris, multipliers)
        stack, report = combine_stack(weighted, options, model, clip, base, node_id(cls))
        return io.NodeOutput(stack, report, ui=text_ui(report))


NODES = [CombineLyCORIS]
