"""Every algorithm × variant × kind of layer of the real lycoris-lora 4.1.3.

LyCORIS' own module is built, given random parameters and asked for its own state dict. The truth is what
its *rebuild forward* hands to the layer's operation, caught there: its ``merge_to`` scales LoHa and LoKr
twice and is never used.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ._case import ALPHA, OFT_SPREAD, RANK, Case, NoReference, Reference

SCALAR = 1.7

# ---- the layers that are adapted ------------------------------------------------------------------------

_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(96, 64),
    "linear_sq": lambda: nn.Linear(64, 64),
    "conv2d_3x3": lambda: nn.Conv2d(48, 64, 3, padding=1),
    "conv2d_1x1": lambda: nn.Conv2d(48, 64, 1),
    "conv1d_3": lambda: nn.Conv1d(48, 64, 3, padding=1),
    "conv3d_3": lambda: nn.Conv3d(16, 32, 3, padding=1),
    "conv2d_3x3_g4": lambda: nn.Conv2d(48, 64, 3, padding=1, groups=4),
    "layernorm": lambda: nn.LayerNorm(64),
    "groupnorm": lambda: nn.GroupNorm(8, 64),
    # Four times as many outputs as inputs: there a LoKr can have a large first factor and a small second one.
    "linear_tall": lambda: nn.Linear(16, 128),
    "conv2d_3x3_tall": lambda: nn.Conv2d(16, 128, 3, padding=1),
}
_PLAIN = ("linear", "conv2d_3x3", "conv2d_1x1", "conv1d_3", "conv3d_3")
_TUCKER = ("conv2d_3x3", "conv1d_3", "conv3d_3")
_TWO = ("linear", "conv2d_3x3")


def _layer(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer with random weights, and an input for it."""
    module = _LAYERS[kind]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    if isinstance(module, nn.Linear):
        return module, torch.randn(3, module.in_features)
    if isinstance(module, nn.LayerNorm):
        return module, torch.randn(3, 64)
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.in_channels
    dimensions = 2 if isinstance(module, nn.GroupNorm) else len(module.kernel_size)
    return module, torch.randn(2, channels, *(4,) * dimensions)


# ---- LyCORIS' own modules -------------------------------------------------------------------------------

#: algo: (module, class)
_MODULES = {
    "lora": ("locon", "LoConModule"),
    "loha": ("loha", "LohaModule"),
    "lokr": ("lokr", "LokrModule"),
    "full": ("full", "FullModule"),
    "ia3": ("ia3", "IA3Module"),
    "diag-oft": ("diag_oft", "DiagOFTModule"),
    "boft": ("boft", "ButterflyOFTModule"),
    "glora": ("glora", "GLoRAModule"),
    "norm": ("norms", "NormModule"),
    "dylora": ("dylora", "DyLoraModule"),
    "tlora": ("tlora", "TLoraModule"),
}


def _module_class(algo: str) -> type[nn.Module]:
    module, name = _MODULES[algo]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported = __import__(f"lycoris.modules.{module}", fromlist=[name])
    return getattr(imported, name)  # type: ignore[no-any-return]


def _lycoris(
    name: str, algo: str, kind: str, options: dict[str, Any], needs_metadata: bool
) -> Reference | NoReference:
    original, x = _layer(kind)
    weight, bias = original.weight.detach().clone(), original.bias.detach().clone()
    module = _module_class(algo)("x", original, 1.0, **options)
    if algo == "full":
        module.apply_to()  # only then does its state dict hold differences, and its forward the whole weight
    with torch.no_grad():
        _fill(module, algo)
        stored = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
        metadata = _kohya_metadata(algo, options)
        try:
            (seen_weight, seen_bias), output = _watch(module, x)
        except RuntimeError as error:
            keys = {f"lora_unet_x.{suffix}": value for suffix, value in stored.items()}
            return NoReference(name, f"LyCORIS' own forward fails: {error}", keys, weight, metadata)
    delta, bias_delta = seen_weight.double(), None if seen_bias is None else seen_bias.double()
    if algo == "full":
        assert bias_delta is not None
        delta, bias_delta = delta - weight.double(), bias_delta - bias.double()
    reference = Reference(
        name=name,
        tensors=stored,
        weight=weight,
        bias=bias,
        delta=delta.reshape(weight.shape),
        bias_delta=bias_delta,
        metadata=metadata,
        needs_metadata=needs_metadata,
    )
    _same_output(module, x, output, reference)
    return reference


def _fill(module: nn.Module, algo: str) -> None:
    """Random parameters, sized so that ΔW is about as large as W."""
    for name, parameter in module.named_parameters():
        if name == "scalar":
            parameter.fill_(SCALAR)
        elif name in ("dora_scale", "rescale", "lambda_layer"):
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        elif name == "oft_blocks":
            parameter.normal_(std=OFT_SPREAD)
        elif algo == "tlora":  # training moves them away from where they started, but not to anywhere
            parameter.add_(torch.randn_like(parameter) * 0.3 * max(parameter.shape[:2]) ** -0.5)
        elif name == "a1.weight":  # W·a1·a2 would be much larger than b1·b2
            parameter.normal_(std=0.1)
        elif algo == "full":
            parameter.add_(torch.randn_like(parameter))
        else:
            parameter.normal_()


def _watch(module: nn.Module, x: Tensor) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
    """((weight, bias) that the module's forward gives to its operation, output)."""
    operation, calls = module.op, []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
        calls.append((weight.clone(), None if bias is None else bias.clone()))
        return operation(x, weight=weight, bias=bias, **geometry)

    def group_norm(
        x: Tensor, num_groups: int, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        calls.append((weight.clone(), None if bias is None else bias.clone()))
        return operation(x, num_groups, weight, bias, eps)

    module.op = group_norm if operation is nn.functional.group_norm else watched
    # DyLoRA trains a random rank at a time; the whole one is what a file is used at.
    with mock.patch("random.randint", side_effect=lambda _, most: most):
        output = module(x)
    module.op = operation
    (call,) = calls
    return call, output


def _same_output(module: nn.Module, x: Tensor, output: Tensor, reference: Reference) -> None:
    """What was caught is what the output was made with."""
    arguments: dict[str, Any] = {
        "weight": reference.forward_weight.float(),
        "bias": None if reference.bias is None else reference.forward_bias.float(),  # type: ignore[union-attr]
    }
    expected = module.op(x, **(module.kw_dict | arguments))
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _kohya_metadata(algo: str, options: dict[str, Any]) -> dict[str, str]:
    """As sd-scripts writes it: the network's options are all texts."""
    names = {
        "weight_decompose": "dora_wd",
        "wd_on_out": "wd_on_output",
    }
    own = {
        names.get(key, key): str(value) for key, value in options.items() if key not in ("lora_dim", "alpha")
    }
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": str(options.get("lora_dim", RANK)),
        "ss_network_alpha": str(options.get("alpha", ALPHA)),
        "ss_network_args": json.dumps({"algo": algo, **own}),
    }


def _case(
    algo: str, variant: str, kind: str, options: dict[str, Any], label: str = "", needs_metadata: bool = False
) -> Case:
    name = f"{algo} / {variant} / {label or kind}"
    return Case(name, algo, functools.partial(_lycoris, name, algo, kind, options, needs_metadata))


def _cases() -> Iterator[Case]:
    """The matrix, in the order of the algorithms."""
    two_factors = {"lora_dim": RANK, "alpha": ALPHA}
    dora_out = {"weight_decompose": True, "wd_on_out": True}
    dora_in = {"weight_decompose": True, "wd_on_out": False}
    for algo in ("lora", "loha"):
        variants: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
            ("plain", _PLAIN, {}),
            ("tucker", _TUCKER, {"use_tucker": True}),
            ("scalar", _TWO, {"use_scalar": True}),
            ("dora_out", _PLAIN, dora_out),
            ("dora_in", _PLAIN, dora_in),
            ("rs_lora", _TWO, {"rs_lora": True}),
            ("tucker+dora_out", ("conv2d_3x3",), {"use_tucker": True, **dora_out}),
        )
        for variant, kinds, options in variants:
            for kind in kinds:
                yield _case(algo, variant, kind, two_factors | options)
    yield _case("lora", "grouped_conv", "conv2d_3x3_g4", two_factors)
    yield _case("lora", "alpha0", "linear", two_factors | {"alpha": 0})
    yield _case("lora", "dora_out_sq", "linear_sq", two_factors | dora_out)
    yield _case("lora", "dora_in_sq", "linear_sq", two_factors | dora_in)

    low_rank = {"lora_dim": 2, "alpha": 1.0}
    whole = {"lora_dim": 100, "alpha": 1.0}
    lokr: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
        ("w1_full", _PLAIN, low_rank),
        ("tucker", _TUCKER, low_rank | {"use_tucker": True}),
        ("scalar", _TWO, low_rank | {"use_scalar": True}),
        ("decompose_both", _PLAIN[:-1], low_rank | {"decompose_both": True}),
        # The first factor of this small layer is 4×4: only rank 1 is low enough for it.
        ("decompose_both", ("conv3d_3",), {"lora_dim": 1, "alpha": 0.5, "decompose_both": True}),
        ("full_matrix", _PLAIN, whole),
        ("full_matrix_flag", _TWO, low_rank | {"full_matrix": True}),
        ("dora_out", _PLAIN, low_rank | dora_out),
        ("dora_in", _PLAIN, low_rank | dora_in),
        ("full+dora_out", ("linear",), whole | dora_out),
        ("rs_lora", _TWO, low_rank | {"rs_lora": True}),
        ("factor8", _TWO, low_rank | {"factor": 8}),
        ("unbalanced", _TWO, low_rank | {"factor": 4, "unbalanced_factorization": True}),
        ("grouped_conv", ("conv2d_3x3_g4",), low_rank),
    )
    for variant, kinds, options in lokr:
        for kind in kinds:
            yield _case("lokr", variant, kind, options)
    small_second = {
        "lora_dim": 5,
        "alpha": ALPHA,
        "decompose_both": True,
        "unbalanced_factorization": True,
    }
    yield _case("lokr", "w1lr_w2full", "linear_tall", small_second, "linear")
    yield _case("lokr", "w1lr_w2full", "conv2d_3x3_tall", small_second, "conv2d_3x3")
    yield _case(
        "lokr",
        "full+rs_lora",
        "linear",
        {"lora_dim": 64, "alpha": 1.0, "rs_lora": True},
        needs_metadata=True,
    )

    for kind in _PLAIN:
        yield _case("full", "plain", kind, {})
    for on_input in (False, True):
        for kind in _PLAIN:
            yield _case("ia3", "on_input" if on_input else "on_output", kind, {"train_on_input": on_input})
    blocks: dict[str, Any] = {"lora_dim": 4, "alpha": 1.0}
    constraint: dict[str, Any] = {"constraint": 0.01}
    for algo in ("diag-oft", "boft"):
        for kind in _PLAIN:
            yield _case(algo, "plain", kind, blocks)
        for kind in _TWO:
            yield _case(algo, "constraint", kind, blocks | constraint)
        for kind in _PLAIN:
            yield _case(algo, "rescaled", kind, blocks | {"rescaled": True})
        yield _case(algo, "constraint+rescaled", "linear", blocks | constraint | {"rescaled": True})

    for kind in (*_PLAIN, "linear_sq"):
        yield _case("glora", "plain", kind, two_factors)
    yield _case("glora", "tucker_asked", "conv2d_3x3", two_factors | {"use_tucker": True})
    yield _case("glora", "scalar", "linear", two_factors | {"use_scalar": True})
    yield _case("glora", "rs_lora", "linear", two_factors | {"rs_lora": True}, needs_metadata=True)
    yield _case("norm", "plain", "layernorm", {})
    yield _case("norm", "plain", "groupnorm", {})
    for kind in _PLAIN:
        blocked = {"lora_dim": 8, "alpha": ALPHA, "block_size": 4}
        yield _case("dylora", "bs4", kind, blocked, needs_metadata=True)
    yield _case("dylora", "bs1", "linear", two_factors | {"block_size": 1})
    for kind in ("linear", "conv2d_1x1", "conv2d_3x3", "conv1d_3"):
        yield _case("tlora", "principal", kind, two_factors)
    yield _case("tlora", "last", "linear", two_factors | {"sig_type": "last"}, needs_metadata=True)
    yield _case("tlora", "random_init", "linear", two_factors | {"use_data_init": False}, needs_metadata=True)


CASES: tuple[Case, ...] = tuple(_cases())

#: The file of these does not hold all that ΔW is made of, nor can it be computed from the base weight.
IRRECOVERABLE = frozenset({"tlora / random_init / linear"})
