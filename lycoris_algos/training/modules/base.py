"""What LyCORIS' module classes have in common: a constructor, attributes, the way from a state dict."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...adapters import LayerAdapter, begin, change_in_step, trainable, training_options
from ...errors import BadValueError
from ...ops.dtypes import compute_dtype
from ...text import quoted
from ..layers import Layer
from ..module import AdapterModule
from ..parameters import ParameterAdapter, parametrize
from ..quantised import dequantised, is_fp8_linear, is_linear

_log = logging.getLogger("LyCORIS")
_OPERATIONS = {
    "linear": functional.linear,
    "conv1d": functional.conv1d,
    "conv2d": functional.conv2d,
    "conv3d": functional.conv3d,
    "layernorm": functional.layer_norm,
    "groupnorm": functional.group_norm,
}
#: What every class takes, whatever the algorithm.
_GENERAL = ("multiplier", "dropout", "rank_dropout", "rank_dropout_scale", "module_dropout", "bypass_mode")
_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})

is_weight_only_fp8_linear = is_fp8_linear
is_linear_like_module = is_linear


class LycorisBaseModule(AdapterModule):
    """``AdapterModule`` by LyCORIS' constructor: (lora_name, org_module, …, and any keywords at all).

    Keywords that the algorithm does not know are ignored, since networks hand all of theirs to all classes.
    """

    #: LyCORIS' name of the class, and the algorithm that it trains.
    name: ClassVar[str]
    algorithm: ClassVar[str]
    #: The kinds of layers that it takes.
    support_module: ClassVar[frozenset[str]] = _LAYERS
    #: Suffixes of its tensors, in the order of ``extract_state_dict``, and those that tell that it is this.
    weight_list: ClassVar[tuple[str, ...]]
    weight_list_det: ClassVar[tuple[str, ...]]
    #: Its positional arguments after the name and the module.
    order: ClassVar[tuple[str, ...]] = (
        "multiplier",
        "lora_dim",
        "alpha",
        "dropout",
        "rank_dropout",
        "module_dropout",
        "use_tucker",
        "use_scalar",
    )
    #: Whether DoRA stands around it.
    decomposes: ClassVar[bool] = False

    def __init__(self, lora_name: str, org_module: nn.Module, *args: Any, **kwargs: Any) -> None:
        kwargs = {**dict(zip(self.order, args, strict=False)), **kwargs}
        module = _base_layer(org_module)
        layer = Layer.of(module)
        if layer is None or layer.kind not in self.support_module:
            kind = type(module).__name__ if layer is None else layer.kind
            raise BadValueError(f"{quoted(self.name)} does not train a layer of the kind {quoted(kind)}")
        general = {name: kwargs[name] for name in _GENERAL if kwargs.get(name) is not None}
        if "mask_group_id" in kwargs:
            general["mask_group_id"] = kwargs["mask_group_id"]
        general["bypass_mode"] = _bypass(layer, kwargs.get("bypass_mode"))
        adapter = begin(self.algorithm, layer.weight(), layer.bias, **self._own_options(kwargs))
        scalar = bool(kwargs.get("use_scalar")) and "use_scalar" in training_options(self.algorithm)
        super().__init__(module, adapter, scalar=scalar, **general)
        self._describe(lora_name, kwargs)

    @classmethod
    def _own_options(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``given`` that the algorithm knows."""
        own = set(training_options(cls.algorithm))
        if not cls.decomposes:
            own -= {"weight_decompose", "wd_on_out"}
        return {name: _plain(given[name]) for name in own & given.keys() if given[name] is not None}

    def _describe(self, lora_name: str, options: Mapping[str, Any]) -> None:
        """LyCORIS' attributes, for those who read them."""
        self.lora_name = lora_name
        self.not_supported = False
        self.lora_dim = options.get("lora_dim", 4)
        self.full_matrix = bool(options.get("full_matrix"))
        self.is_quant = self.layer.is_quantised or (
            self.layer.kind == "linear" and type(self.layer.module).__name__ != "Linear"
        )
        self.module_type = self.layer.kind
        self.shape = self.layer.shape
        self.dim = self.layer.shape[0]
        self.op = _OPERATIONS.get(self.layer.kind)
        self.kw_dict = dict(self.layer.options)

    @property
    def wd(self) -> bool:
        """Whether DoRA stands around it."""
        return self._template.magnitude is not None

    @property
    def alpha(self) -> Tensor:
        """Its alpha, as a file has it."""
        stored = self._template.to_tensors()
        return stored.get("alpha", torch.tensor(1.0))

    # ---- on activations ------------------------------------------------------------------------------

    def bypass_forward_diff(self, x: Tensor, scale: float = 1) -> Tensor:
        """``scale``·(what the change adds to the output for ``x``), computed on activations."""
        return self._bypass(x, self.org_forward(x), scale)

    def bypass_forward(self, x: Tensor, scale: float = 1) -> Tensor:
        """The layer's output with that."""
        y = self.org_forward(x)
        return y + self._bypass(x, y, scale)

    def _bypass(self, x: Tensor, y: Tensor, scale: float) -> Tensor:
        adapter, kept = self.in_step(self.layer.shape[0])
        change = change_in_step(adapter, self.layer.shape, compute_dtype(self.dtype), kept)
        return self._on_activations(change, x, y) * scale

    # ---- from elsewhere --------------------------------------------------------------------------------

    @classmethod
    def of(
        cls, lora_name: str, org_module: nn.Module, adapter: LayerAdapter, multiplier: float = 1.0
    ) -> LycorisBaseModule:
        """One that goes on with ``adapter`` of a file."""
        made = cls.__new__(cls)
        module = _base_layer(org_module)
        layer = Layer.of(module)
        bypass = None if layer is None else _bypass(layer, None)
        AdapterModule.__init__(made, module, adapter, multiplier=multiplier, bypass_mode=bypass)
        algorithm = adapter.algorithm
        made._describe(lora_name, {"lora_dim": 4 if algorithm is None else algorithm.rank})
        return made

    @classmethod
    def algo_check(cls, state_dict: Mapping[str, Tensor], lora_name: str) -> bool:
        """Whether the tensors of the layer ``lora_name`` are those of this class."""
        own = {suffix: state_dict.get(f"{lora_name}.{suffix}") for suffix in cls.weight_list_det}
        there = {suffix: value for suffix, value in own.items() if value is not None}
        shaped = getattr(trainable()[cls.algorithm], "shape_problems", None)
        return bool(there) and not (shaped(there) if shaped else ())

    @classmethod
    def extract_state_dict(cls, state_dict: Mapping[str, Tensor], lora_name: str) -> list[Tensor | None]:
        """The tensors of the layer ``lora_name`` in the order of ``weight_list``, or None."""
        return [state_dict.get(f"{lora_name}.{suffix}") for suffix in cls.weight_list]

    @classmethod
    def make_module_from_state_dict(
        cls, lora_name: str, orig_module: nn.Module, *weights: Tensor | None
    ) -> LycorisBaseModule:
        """One that goes on with the tensors that ``extract_state_dict`` took."""
        named = zip(cls.weight_list, weights, strict=False)
        stored = {suffix: value.detach() for suffix, value in named if value is not None}
        return cls.of(lora_name, orig_module, LayerAdapter.from_tensors(stored))

    @classmethod
    def parametrize(cls, org_module: nn.Module, attr: str, *args: Any, **kwargs: Any) -> ParameterAdapter:
        """Puts it on the parameter ``attr`` of ``org_module`` instead; arguments are the constructor's."""
        kwargs = {**dict(zip(cls.order, args, strict=False)), **kwargs}
        general = ("multiplier", "rank_dropout", "rank_dropout_scale")
        options = {name: kwargs[name] for name in general if kwargs.get(name) is not None}
        return parametrize(org_module, attr, cls.algorithm, **options, **cls._own_options(kwargs))


def dequantize_weight_only_fp8(module: nn.Module) -> Tensor:
    """The weight of a linear layer of fp8 numbers and a scale, in float32."""
    return dequantised(module, torch.float32)


def _bypass(layer: Layer, asked: bool | None) -> bool | None:
    """``bypass_mode``: a linear layer of another class may do more than its weight says."""
    other = layer.kind == "linear" and type(layer.module).__name__ != "Linear"
    if layer.is_quantised or (other and asked is None):
        if not asked:
            _log.info("a %s is trained with bypass_mode", quoted(type(layer.module).__name__))
        return True
    return bool(asked) or None


def _base_layer(module: nn.Module) -> nn.Module:
    """The layer inside of what PEFT put around it."""
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else module


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
