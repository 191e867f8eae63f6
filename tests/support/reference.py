"""What a trained file means: the tensors as they are stored, and the change of the weight that training computed with.

Two sources, and nothing of this project's library in either:

- ``CASES``: every algorithm × variant × kind of layer of the real lycoris-lora 4.1.3. Its own module is built, given
  random parameters and asked for its own state dict. The truth is what its *rebuild forward* hands to the layer's
  operation, caught there: its ``merge_to`` scales LoHa and LoKr twice and is never used.
- ``FORMS``: files of other programs, and of older LyCORIS. Their formulas are written out below in float64.

Each gives a ``Reference``; building is lazy and cached, one seed per name.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

RANK, ALPHA = 4, 2.0  # not equal, so that a scale that is forgotten or applied twice shows
SCALAR = 1.7
OFT_SPREAD = 0.15


@dataclass(frozen=True, eq=False)
class Reference:
    """One layer of a file, and what it does to the layer it was trained for."""

    name: str
    #: {suffix: tensor}, exactly as saved.
    tensors: dict[str, Tensor]
    weight: Tensor
    bias: Tensor | None
    #: ΔW and Δb at multiplier 1, in float64. None: the bias stays as it is.
    delta: Tensor
    bias_delta: Tensor | None = None
    #: The file's metadata, as the trainer writes it.
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: Whether the tensors alone do not determine ΔW.
    needs_metadata: bool = False
    layer: str = "lora_unet_x"
    #: Keys of the file that belong to no layer.
    loose: dict[str, Tensor] = field(default_factory=dict)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """{key: tensor} of the whole file."""
        return {f"{self.layer}.{suffix}": value for suffix, value in self.tensors.items()} | self.loose

    @property
    def forward_weight(self) -> Tensor:
        """The weight that the trained layer computes with, in float64."""
        return self.weight.double() + self.delta

    @property
    def forward_bias(self) -> Tensor | None:
        """The bias that the trained layer computes with, in float64."""
        if self.bias is None or self.bias_delta is None:
            return None if self.bias is None else self.bias.double()
        return self.bias.double() + self.bias_delta


@dataclass(frozen=True, eq=False)
class NoReference:
    """A case that the reference can save but not compute, and why."""

    name: str
    reason: str
    state_dict: dict[str, Tensor]
    weight: Tensor
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Case:
    """A reference that is built when it is asked for."""

    name: str
    algo: str
    make: Callable[[], Reference | NoReference]

    def build(self) -> Reference | NoReference:
        """The reference; the same object each time."""
        return _build(self)


@functools.cache
def _build(case: Case) -> Reference | NoReference:
    with torch.random.fork_rng(devices=[]):  # the modules draw their start values from the global generator
        torch.manual_seed(zlib.crc32(case.name.encode()))
        return case.make()


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


# ---- files of other programs: formulas --------------------------------------------------------------------
#
# A form is a function that draws tensors and returns (tensors, ΔW, what else a Reference needs to know).

Form = Callable[[Tensor, Tensor], tuple[dict[str, Tensor], Tensor, dict[str, Any]]]
FORMS: list[Case] = []
_LINEAR, _SQUARE = (64, 96), (64, 64)
_CONV1, _CONV2 = (64, 48, 3), (64, 48, 3, 3)


def _form(name: str, shape: tuple[int, ...], algo: str = "lora") -> Callable[[Form], Form]:
    def register(formula: Form) -> Form:
        def make() -> Reference:
            weight, bias = torch.randn(shape), torch.randn(shape[0])
            tensors, delta, more = formula(weight.double(), bias.double())
            stored = {
                suffix: value if value.dtype != torch.float64 else value.float()
                for suffix, value in tensors.items()
            }
            return Reference(name, stored, weight, bias, delta.reshape(shape), **more)

        FORMS.append(Case(name, algo, make))
        return formula

    return register


def _draw(*shape: int, std: float = 1.0) -> Tensor:
    """Numbers that a float32 file holds exactly, to compute with in float64."""
    return (torch.randn(shape) * std).double()


def _number(value: float) -> Tensor:
    return torch.tensor(value)


def _product(up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def _kernel(core: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """Σ_ab core[a, b, k…]·outer[a, p]·inner[b, q]"""
    return torch.einsum("ab...,ap,bq->pq...", core, outer, inner)


def _rows_norm(value: Tensor) -> Tensor:
    """‖row‖ of every output, shaped to divide by."""
    return value.flatten(1).norm(dim=1).reshape(-1, *(1,) * (value.dim() - 1))


def _cayley(q: Tensor) -> Tensor:
    """(I + Q)(I − Q)⁻¹"""
    one = torch.eye(q.shape[-1], dtype=q.dtype)
    return (one + q) @ torch.linalg.inv(one - q)


def _skew(blocks: Tensor) -> Tensor:
    return blocks - blocks.transpose(-1, -2)


def _rotate_outputs(r: Tensor, weight: Tensor) -> Tensor:
    """W'[k, m] = Σ_n R[k, n, m]·W[k, n]"""
    count, size, _ = r.shape
    rows = weight.reshape(count, size, -1)
    return torch.einsum("knm,knx->kmx", r, rows).reshape(weight.shape)


def _butterfly(r: Tensor, weight: Tensor) -> Tensor:
    """BOFT: stage t mixes within 2^t·b rows; the rows are dealt out, multiplied by blocks and collected again."""
    stages, _, size, _ = r.shape
    rows = weight.flatten(1)
    for stage in range(stages):
        half = 2**stage * size // 2
        order = torch.arange(rows.shape[0]).reshape(-1, 2, half).transpose(1, 2).flatten()
        mixed = torch.block_diag(*r[stage]) @ rows[order]
        rows = torch.empty_like(rows).index_copy_(0, order, mixed)
    return rows.reshape(weight.shape)


def _upper(vectors: Tensor, size: int) -> Tensor:
    """Skew matrices out of their upper triangles, row by row."""
    full = torch.zeros(vectors.shape[0], size, size, dtype=vectors.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    full[:, rows, columns] = vectors
    return full - full.transpose(1, 2)


def _neumann(q: Tensor) -> Tensor:
    """PEFT's approximation of (I + Q)(I − Q)⁻¹ by five terms, the last one halved."""
    one = torch.eye(q.shape[-1], dtype=q.dtype)
    return one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q


def _rotate_inputs(r: Tensor, weight: Tensor) -> Tensor:
    """W·Rᵀ per block of inputs."""
    return weight @ torch.block_diag(*r).T


def _lora(weight: Tensor, rank: int = RANK) -> tuple[dict[str, Tensor], Tensor]:
    """Factors under kohya's names without an alpha, and up·down."""
    ones = (1,) * (weight.dim() - 2)
    up, down = _draw(weight.shape[0], rank, *ones), _draw(rank, *weight.shape[1:])
    return {"lora_up.weight": up, "lora_down.weight": down}, _product(up, down, weight)


def _args(module: str, dim: int = RANK, alpha: float = ALPHA, **arguments: str) -> dict[str, str]:
    return {
        "ss_network_module": module,
        "ss_network_dim": str(dim),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
    }


_PEFT = {"layer": "base_model.model.x"}


def _old_glora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i = weight.shape
    a1, a2 = _draw(RANK, i), _draw(i, RANK, std=0.1)
    b1, b2 = _draw(RANK, i), _draw(o, RANK)
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    tensors = {**dict(zip(names, (a1, a2, b1, b2), strict=True)), "alpha": _number(ALPHA)}
    return tensors, ALPHA / RANK * (b2 @ b1 + weight @ a2 @ a1), {}


_form("GLoRA, old order", _LINEAR, "glora")(_old_glora)
_form("GLoRA, old order, square", _SQUARE, "glora")(_old_glora)


@_form("GLoRA, Tucker", _CONV2, "glora")
def _glora_tucker(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i = weight.shape[:2]
    a1, a2 = _draw(i, RANK, 1, 1, std=0.1), _draw(RANK, i, 1, 1)
    b1, b2, bm = _draw(o, RANK, 1, 1), _draw(RANK, i, 1, 1), _draw(RANK, RANK, 3, 3, std=0.5)
    through = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    delta = ALPHA / RANK * (_kernel(bm, b1.flatten(1).T, b2.flatten(1)) + through)
    tensors = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "bm.weight": bm}
    return {**tensors, "alpha": _number(ALPHA)}, delta, {}


@_form("oft_diag (LyCORIS 2.0: the finished rotation, rescaled)", _CONV2, "diag-oft")
def _oft_diag(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    r = _cayley(_skew(_draw(16, 4, 4, std=OFT_SPREAD))) * (1 + 0.2 * _draw(16, 4, 1))
    r = r.float().double()
    return {"oft_diag": r}, _rotate_outputs(r, weight) - weight, {}


@_form("OFT of LyCORIS 2.1: no alpha, rescale is a vector", _CONV2, "diag-oft")
def _oft_without_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    blocks, rescale = _draw(16, 4, 4, std=OFT_SPREAD), 1 + 0.2 * _draw(64)
    rescale = rescale.float().double()
    rotated = rescale.reshape(-1, 1, 1, 1) * _rotate_outputs(_cayley(_skew(blocks)), weight)
    return {"oft_blocks": blocks, "rescale": rescale}, rotated - weight, {}


def _kohya_oft(alpha: float) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        blocks = _draw(4, 16, 16, std=OFT_SPREAD)
        q, bound = _skew(blocks), float(_number(alpha)) * weight.shape[0]
        q = q * ((min(float(q.norm()), bound) + 1e-8) / (float(q.norm()) + 1e-8))
        metadata = _args("networks.oft", 4, alpha)
        return (
            {"oft_blocks": blocks, "alpha": _number(alpha)},
            _rotate_outputs(_cayley(q), weight) - weight,
            {"metadata": metadata},
        )

    return formula


_form("kohya OFT, constraint holds", _LINEAR, "diag-oft")(_kohya_oft(1e-3))
_form("kohya OFT, constraint does not matter", _LINEAR, "diag-oft")(_kohya_oft(10.0))


@_form("kohya OFT, alpha 0: nothing turns", _LINEAR, "diag-oft")
def _kohya_oft_zero(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors = {"oft_blocks": _draw(4, 16, 16, std=OFT_SPREAD), "alpha": _number(0.0)}
    more = {"metadata": _args("networks.oft", 4, 0.0), "needs_metadata": True, "layer": "oft_unet_x"}
    return tensors, torch.zeros_like(weight), more


@_form("kohya OFT for Flux: each of q, k, v turned and constrained by itself", (96, 64), "diag-oft")
def _oft_flux(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    alpha, tensors, parts = 0.05, {}, []
    for number, rows in enumerate(weight.split(32)):
        blocks = _draw(4, 8, 8, std=OFT_SPREAD * (number + 0.5))
        q, bound = _skew(blocks), float(_number(alpha)) * 32
        q = q * (min(float(q.norm()), bound) / float(q.norm()))
        tensors[f"oft_blocks.{number}"] = blocks
        parts.append(_rotate_outputs(_cayley(q), rows))
    more = {"metadata": _args("networks.oft_flux", 4, alpha), "layer": "oft_unet_double_blocks_0_img_attn_qkv"}
    return {**tensors, "alpha": _number(alpha)}, torch.cat(parts) - weight, more


@_form("oft_diag in four dimensions (LyCORIS 2.0: a finished BOFT)", _LINEAR, "boft")
def _boft_diag(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    r = _cayley(_skew(_draw(5, 16, 4, 4, std=OFT_SPREAD))).float().double()
    return {"oft_diag": r}, _butterfly(r, weight) - weight, {}


def _oft_v2(*, scaled: bool = False, share: bool = False) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        size = 8
        count = weight.shape[1] // size
        vectors = _draw(1 if share else count, size * (size - 1) // 2, std=0.1)
        tensors, used = {"oft_R.weight": vectors}, vectors
        if scaled:  # OneTrainer
            tensors["oft_R.scaled_oft"] = torch.ones(())
            used = vectors / (2 * math.sqrt(size - 1))
        r = _neumann(_upper(used, size)).expand(count, size, size)
        more = {} if scaled else _PEFT
        return tensors, _rotate_inputs(r, weight) - weight, dict(more)

    return formula


_form("OFT v2 of PEFT: rotates inputs", _LINEAR, "oft_v2")(_oft_v2())
_form("OFT v2 of PEFT, one block shared", _LINEAR, "oft_v2")(_oft_v2(share=True))
_form("OFT v2 of OneTrainer, scaled", _LINEAR, "oft_v2")(_oft_v2(scaled=True))


@_form("BOFT of LyCORIS 2.1: no alpha", _CONV2, "boft")
def _boft_without_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    blocks = _draw(5, 16, 4, 4, std=OFT_SPREAD)
    return {"oft_blocks": blocks}, _butterfly(_cayley(_skew(blocks)), weight) - weight, {}


@_form("LoRA without alpha", _LINEAR)
def _no_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    return tensors, product, {}


@_form("LoRA of a Linear stored like a convolution", _LINEAR)
def _four_dimensions(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    tensors = {suffix: value[:, :, None, None] for suffix, value in tensors.items()}
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / RANK * product, {}


@_form("rs_lora of LyCORIS before 3.1: alpha without the root of the rank", _LINEAR)
def _raw_rs(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    metadata = _args("lycoris.kohya", algo="locon", rs_lora="True")
    more = {"metadata": metadata, "needs_metadata": True}
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / math.sqrt(RANK) * product, more


@_form("rs_lora of LyCORIS, linear alpha·√rank is what convolutions have as alpha", _LINEAR)
def _rs_like_conv(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 16)
    metadata = _args("lycoris.kohya", 16, 1.0, algo="locon", rs_lora="True", conv_dim="16", conv_alpha="4")
    return {**tensors, "alpha": _number(4.0)}, 4.0 / 16 * product, {"metadata": metadata}


@_form("LoRA with 'scale', which replaces alpha/rank", _LINEAR)
def _scale_key(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    return {**tensors, "alpha": _number(ALPHA), "scale": _number(0.75)}, 0.75 * product, {}


def _peft_dora(suffix: str) -> Form:
    def formula(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        tensors, product = _lora(weight)
        v = weight + product
        magnitude = (
            _rows_norm(weight) * (1 + 0.2 * _draw(64).reshape(-1, *(1,) * (weight.dim() - 1)))
        ).float()
        shape = (64,) if weight.dim() == 2 else (1, 64, 1, 1)
        names = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}
        renamed = {names[key]: value for key, value in tensors.items()}
        delta = v * magnitude.double() / _rows_norm(v) - weight
        return {**renamed, suffix: magnitude.reshape(shape)}, delta, dict(_PEFT)

    return formula


_form("DoRA of PEFT", _LINEAR)(_peft_dora("lora_magnitude_vector"))
_form("DoRA of PEFT, square", _SQUARE)(_peft_dora("lora_magnitude_vector"))
_form("DoRA of PEFT, convolution", _CONV2)(_peft_dora("lora_magnitude_vector"))
_form("DoRA of diffusers", _LINEAR)(_peft_dora("lora_magnitude_vector.weight"))
_form("DoRA of ai-toolkit", _LINEAR)(_peft_dora("magnitude"))


@_form("DoRA, dora_scale is a vector of outputs", _LINEAR)
def _flat_dora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    v = weight + ALPHA / RANK * product
    magnitude = (_rows_norm(weight) * (1 + 0.2 * _draw(64, 1))).float()
    delta = v * magnitude.double() / _rows_norm(v) - weight
    return {**tensors, "alpha": _number(ALPHA), "dora_scale": magnitude.flatten()}, delta, {}


@_form("LoRA and diff in one layer", _LINEAR)
def _lora_and_diff(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    diff, diff_b = _draw(*weight.shape), _draw(64)
    stored = {**tensors, "alpha": _number(ALPHA), "diff": diff, "diff_b": diff_b}
    return stored, ALPHA / RANK * product + diff, {"bias_delta": diff_b}


@_form("LoRA and diff_b in one layer", _CONV2)
def _lora_and_bias(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    diff_b = _draw(64)
    return (
        {**tensors, "alpha": _number(ALPHA), "diff_b": diff_b},
        ALPHA / RANK * product,
        {"bias_delta": diff_b},
    )


@_form("LoCon of extract_locon: sparse rest, everything half, alpha in a list", _CONV2)
def _sparse(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, _ = _lora(weight)
    tensors = {suffix: value.half() for suffix, value in tensors.items()}
    rows, columns = weight.shape[0], weight[0].numel()
    places = torch.randperm(rows * columns)[:500].sort().values
    indices = torch.stack((places // columns, places % columns))
    values = _draw(500).half()
    rest = torch.zeros(rows, columns, dtype=torch.float64)
    rest[indices[0], indices[1]] = values.double()
    up, down = (tensors[suffix].double() for suffix in ("lora_up.weight", "lora_down.weight"))
    tensors["alpha"] = torch.tensor([float(RANK)]).half()
    tensors["bias_indices"] = indices.to(torch.int16)
    tensors["bias_values"] = values
    tensors["bias_size"] = torch.tensor((rows, columns), dtype=torch.int16)
    return tensors, _product(up, down, weight) + rest.reshape(weight.shape), {}


@_form("LoCon of extract_locon: alpha in a list", _LINEAR)
def _alpha_list(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    return {**tensors, "alpha": torch.tensor([ALPHA]).half()}, ALPHA / RANK * product, {}


@_form("LoCon of extract_locon: sparse rest of a row longer than int16 counts", (4, 4096, 3, 3))
def _sparse_long(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 1)
    columns = weight[0].numel()
    indices = torch.stack((torch.tensor((0, 1, 3)), torch.tensor((5, 32768, columns - 1))))
    rest = torch.zeros(4, columns, dtype=torch.float64)
    rest[indices[0], indices[1]] = 2.0
    tensors["alpha"] = torch.ones(1).half()
    tensors["bias_indices"] = indices.to(torch.int16)
    tensors["bias_values"] = torch.full((3,), 2.0).half()
    tensors["bias_size"] = torch.tensor((4, columns)).to(torch.int16)
    return tensors, product + rest.reshape(weight.shape), {}


@_form("Norm without b_norm", (64,), "norm")
def _norm_alone(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    change = _draw(64)
    return {"w_norm": change}, change, {}


@_form("diff_b alone", _LINEAR, "full")
def _bias_alone(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    change = _draw(64)
    return {"diff_b": change}, torch.zeros_like(weight), {"bias_delta": change}


@_form("set_weight", _LINEAR, "full")
def _set_weight(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    wanted = _draw(*weight.shape)
    return {"set_weight": wanted}, wanted - weight, {}


@_form("bundled embeddings beside a LoRA", _LINEAR)
def _bundle(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    loose = {
        "bundle_emb.word.string_to_param.*": torch.randn(2, 768),
        "bundle_emb.other.clip_l": torch.randn(2, 768),
        "bundle_emb.other.clip_g": torch.randn(2, 1280),
    }
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / RANK * product, {"loose": loose}


@_form("LoHa of OneTrainer: convolutions in four dimensions", _CONV2, "loha")
def _onetrainer_loha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    o, i, *k = weight.shape
    w1_a, w2_a = _draw(o, RANK, 1, 1), _draw(o, RANK, 1, 1)
    w1_b, w2_b = _draw(RANK, i, *k), _draw(RANK, i, *k)
    tensors = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b}
    delta = ALPHA / RANK * _product(w1_a, w1_b, weight) * _product(w2_a, w2_b, weight)
    return {**tensors, "alpha": _number(ALPHA)}, delta, {}


@_form("LoKr of PEFT: Tucker kernel of a Conv1d in two dimensions", _CONV1, "lokr")
def _peft_lokr(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    w1 = _draw(8, 6)
    w2_a, w2_b, t2 = _draw(2, 8), _draw(2, 8), _draw(2, 2, 3, 1)
    w2 = _kernel(t2[..., 0], w2_a, w2_b)
    delta = torch.einsum("pq,rsk->prqsk", w1, w2).reshape(weight.shape)
    return {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "lokr_t2": t2}, delta, dict(_PEFT)


@_form("IA³ of PEFT: multiplies, on inputs", _LINEAR, "peft_ia3")
def _peft_ia3_in(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    factors = (1 + 0.5 * _draw(1, weight.shape[1])).float().double()
    return {"ia3_l": factors}, weight * (factors - 1), dict(_PEFT)


@_form("IA³ of PEFT: multiplies, on outputs and so the bias too", _LINEAR, "peft_ia3")
def _peft_ia3_out(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    factors = (1 + 0.5 * _draw(weight.shape[0], 1)).float().double()
    change = factors - 1
    return {"ia3_l": factors}, weight * change, {**_PEFT, "bias_delta": bias * change[:, 0]}


@_form("LoRA of diffusers, whose alpha stands in the metadata", _LINEAR)
def _diffusers_alpha(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    config = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.use_rslora": False}
    more = {
        "metadata": {"format": "pt", "lora_adapter_metadata": json.dumps(config)},
        "needs_metadata": True,
        "layer": "transformer.x",
    }
    renamed = {"lora_B.weight": tensors["lora_up.weight"], "lora_A.weight": tensors["lora_down.weight"]}
    return renamed, ALPHA / RANK * product, more


def _flux_blocks(*rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """The LoRA of q, k, v … in one: a block-sparse up, the downs under each other."""
    ups, downs = [_draw(o, RANK) for o in rows], [_draw(RANK, 64) for _ in rows]
    up, down = torch.block_diag(*ups), torch.cat(downs)
    product = torch.cat([u @ d for u, d in zip(ups, downs, strict=True)])
    return {"lora_up.weight": up, "lora_down.weight": down}, product


@_form("kohya Flux, split_qkv: alpha belongs to a third of the rank", (96, 64))
def _flux_split(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32)
    more = {
        "metadata": _args("networks.lora_flux", split_qkv="True"),
        "needs_metadata": True,
        "layer": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / RANK * product, more


@_form("kohya Flux, split_qkv: linear1 has four parts", (160, 64))
def _flux_single(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32, 64)
    more = {
        "metadata": _args("networks.lora_flux", split_qkv="True"),
        "needs_metadata": True,
        "layer": "lora_unet_single_blocks_0_linear1",
    }
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / RANK * product, more


@_form("kohya Flux, split_qkv, resized since: its rank is its own", (96, 64))
def _flux_resized(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight)
    more = {
        "metadata": _args("networks.lora_flux", split_qkv="True"),
        "layer": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / RANK * product, more


@_form("kohya Flux, split_qkv, alpha as large as the whole rank", (96, 64))
def _flux_split_whole(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _flux_blocks(32, 32, 32)
    more = {"layer": "lora_unet_double_blocks_0_img_attn_qkv"}
    return {**tensors, "alpha": _number(3.0 * RANK)}, product, more


@_form("DyLoRA through SimpleTuner, which writes lycoris_config", _LINEAR, "dylora")
def _simpletuner(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 8)
    config = {"algo": "dylora", "linear_dim": 8, "linear_alpha": ALPHA, "block_size": 4}
    more = {
        "metadata": {"lycoris_config": json.dumps(config)},
        "needs_metadata": True,
        "layer": "lycoris_x",
    }
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / 2 * product, more


@_form("DyLoRA of LyCORIS, block_size left at its default", _LINEAR, "dylora")
def _default_blocks(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 8)
    more = {"metadata": _args("lycoris.kohya", 8, algo="dylora"), "needs_metadata": True}
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / 2 * product, more


@_form("DyLoRA of kohya: an ordinary LoRA", _LINEAR, "dylora")
def _kohya_dylora(weight: Tensor, bias: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    tensors, product = _lora(weight, 8)
    more = {"metadata": _args("networks.dylora", 8, unit="4")}
    return {**tensors, "alpha": _number(ALPHA)}, ALPHA / 8 * product, more


#: How programs spell a LoRA's up and down, after the name of the layer; ComfyUI's Load LoRA reads them all.
SPELLINGS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)

#: Files of formats that are told apart but not computed: they must be refused, with the reason.
FOREIGN: tuple[tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]], ...] = (
    ("BOFT of PEFT", _LINEAR, {"boft_R": (5, 12, 8, 8), "boft_s": (64, 1)}),
    ("GLoRA of PEFT", _LINEAR, {"glora_A.Xd": (64, 4), "glora_A.Xu": (4, 96), "glora_D.X": (64,)}),
    ("VeRA", _LINEAR, {"vera_lambda_b": (64,), "vera_lambda_d": (4,)}),
)
