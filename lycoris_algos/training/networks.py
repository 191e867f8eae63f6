"""Adapters on many layers of a model, as one module: what LyCORIS' wrapper and kohya's network share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters import LayerAdapter
from ..errors import LycorisError
from ..io import save_tensors
from ..network import load, to_tensors
from ..text import listed, quoted
from .config_sdk import VALID_PRESET_KEYS
from .layers import Layer
from .logging import logger
from .modules import MODULE_LIST, LycorisBaseModule, NormModule
from .targets import Override, Rules

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
#: Says that the numbers of a file are what its training used, whatever its other metadata say.
_EXACT = {"lycoris_algos.corrected": "written by lycoris_algos.training: every number is in its tensors"}

#: LyCORIS' names of the algorithms.
network_module_dict: dict[str, type[LycorisBaseModule]] = {
    **{kind.algorithm: kind for kind in MODULE_LIST if kind is not NormModule},
    "locon": next(kind for kind in MODULE_LIST if kind.algorithm == "lora"),
}
deprecated_arg_dict = {
    "disable_conv_cp": "use_tucker",
    "use_cp": "use_tucker",
    "use_conv_cp": "use_tucker",
    "constrain": "constraint",
}


class AdapterNetwork(nn.Module):
    """Adapters by the names that a file has for their layers (``loras``), each on a layer of a model.

    Class attributes are the preset: ``apply_preset`` sets them for all networks that are made afterwards.
    """

    ENABLE_CONV: ClassVar[bool] = True
    MODULE_ALGO_MAP: ClassVar[Mapping[str, Override]] = {}
    NAME_ALGO_MAP: ClassVar[Mapping[str, Override]] = {}
    USE_FNMATCH: ClassVar[bool] = False
    TARGET_EXCLUDE_NAME: ClassVar[list[str]] = []
    #: {a preset's key: the class attribute that it sets}.
    preset_keys: ClassVar[dict[str, str]] = {
        "enable_conv": "ENABLE_CONV",
        "module_algo_map": "MODULE_ALGO_MAP",
        "name_algo_map": "NAME_ALGO_MAP",
        "use_fnmatch": "USE_FNMATCH",
        "exclude_name": "TARGET_EXCLUDE_NAME",
    }

    @classmethod
    def apply_preset(cls, preset: Mapping[str, Any]) -> type[AdapterNetwork]:
        """Sets what ``preset`` has; other settings stay. Raises KeyError for what no preset has."""
        unknown = [key for key in preset if key not in VALID_PRESET_KEYS]
        if unknown:
            raise KeyError(f"Unknown preset key {listed(unknown)}. Valid keys: {VALID_PRESET_KEYS}")
        for key, attribute in cls.preset_keys.items():
            if key in preset:
                setattr(cls, attribute, preset[key])
        return cls

    def __init__(
        self,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        conv_lora_dim: int = 4,
        alpha: float = 1,
        conv_alpha: float = 1,
        network_module: str = "locon",
        train_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.lora_dim = int(lora_dim)
        self.conv_lora_dim = int(conv_lora_dim) if self.ENABLE_CONV else 0
        self.alpha = alpha
        self.conv_alpha = float(conv_alpha)
        self.network_module = network_module
        self.train_norm = train_norm
        self.options = options
        self.loras: list[LycorisBaseModule] = []
        self.weights_sd: Mapping[str, LayerAdapter] | None = None

    # ---- making it ------------------------------------------------------------------------------------

    def rules(self, modules: Iterable[str], names: Iterable[str]) -> Rules:
        """The class's preset, with these classes and names to train."""
        return Rules(
            list(modules),
            list(names),
            self.MODULE_ALGO_MAP,
            self.NAME_ALGO_MAP,
            self.TARGET_EXCLUDE_NAME,
            self.USE_FNMATCH,
        )

    def create(self, prefix: str, root: nn.Module, rules: Rules) -> Iterator[LycorisBaseModule]:
        """An adapter for every layer of ``root`` that ``rules`` mean and an algorithm takes."""
        for path, module, override in rules.layers(root):
            made = self._single(f"{prefix}_{path}".replace(".", "_"), module, dict(override))
            if made is not None:
                yield made

    def _single(self, name: str, module: nn.Module, override: dict[str, Any]) -> LycorisBaseModule | None:
        layer = Layer.of(module)
        own = {**self.options, **override, "multiplier": self.multiplier}
        if layer is None:
            return None
        if layer.is_norm:
            trained = self.train_norm and "Norm" in type(module).__name__
            return NormModule(name, module, **own) if trained else None
        if layer.kind == "embedding":
            return None
        kind = network_module_dict[str(override.get("algo", self.network_module)).lower()]
        if layer.is_quantised and kind.algorithm == "full":
            return None  # nothing that could be saved would be the change
        spatial = layer.kind in _CONVOLUTIONS and layer.shape[2] != 1
        rank, alpha = (self.conv_lora_dim, self.conv_alpha) if spatial else (self.lora_dim, self.alpha)
        rank = override.get("dim") or rank
        if not rank:
            return None
        own.update(lora_dim=int(rank), alpha=override.get("alpha") or alpha)
        return kind(name, module, **own)

    def adopt(self, loras: Iterable[LycorisBaseModule]) -> None:
        """Makes ``loras`` its adapters. AssertionError where two have one name."""
        for lora in loras:
            assert lora.lora_name not in self._modules, f"duplicated lora name: {lora.lora_name}"
            self.loras.append(lora)
            self.add_module(lora.lora_name, lora)
        logger.info("%d adapters: %s", len(self.loras), self.algo_table)

    def go_on(self, layers: Mapping[str, LayerAdapter], modules: Mapping[str, nn.Module]) -> None:
        """Makes an adapter of every layer of a file that ``modules`` has, by the file's name."""
        made = []
        for name, adapter in layers.items():
            if name in modules:
                stored = {f"{name}.{suffix}": value for suffix, value in adapter.to_tensors().items()}
                kind = next((kind for kind in MODULE_LIST if kind.algo_check(stored, name)), None)
                made.append((kind or LycorisBaseModule).of(name, modules[name], adapter, self.multiplier))
        self.adopt(made)

    def _warn_about(self, rules: Rules, what: str) -> None:
        missed = rules.unmatched()
        if missed:
            logger.warning("%s has nothing for %s of the preset", what, listed(missed))

    @property
    def algo_table(self) -> dict[str, int]:
        """How many adapters of each class it has."""
        return dict(Counter(type(lora).__name__ for lora in self.loras))

    def match_fn(self, pattern: str, name: str) -> bool:
        """Whether the preset's ``pattern`` means ``name``."""
        return self.rules((), ()).matches(pattern, name)

    def find_conf_for_name(self, name: str) -> Override | None:
        """What the preset says of ``name``; None for nothing."""
        return self.rules((), ()).override(name)

    def is_excluded(self, name: str) -> bool:
        """Whether the preset leaves ``name`` out."""
        return self.rules((), ()).excludes(name)

    # ---- on the model ---------------------------------------------------------------------------------

    def set_multiplier(self, multiplier: float) -> None:
        """The strength of all adapters."""
        self.multiplier = multiplier
        for lora in self.loras:
            lora.multiplier = multiplier

    def restore(self) -> None:
        """Takes all adapters off their layers."""
        for lora in self.loras:
            lora.restore()

    def is_mergeable(self) -> bool:
        """Whether every layer's weight is plain numbers."""
        return not any(lora.layer.is_quantised for lora in self.loras)

    def onfly_merge(self, weight: float = 1.0) -> None:
        """Merges all adapters until ``onfly_restore``. Raises MergeError before any is merged."""
        for lora in self.loras:
            lora.require_mergeable()
        for lora in self.loras:
            lora.onfly_merge(weight)

    def onfly_restore(self) -> None:
        """Takes ``onfly_merge`` back."""
        for lora in reversed(self.loras):
            lora.onfly_restore()

    def _merge(self, weight: float, precise: bool) -> None:
        for lora in self.loras:
            lora.require_mergeable()
        for lora in self.loras:
            lora.merge_to(weight, precise=precise)

    # ---- training ---------------------------------------------------------------------------------------

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any) -> tuple[int, Any, Any]:
        """(how many changes were larger than that and were made smaller, mean and largest norm)."""
        told = [lora.apply_max_norm(max_norm_value, device) for lora in self.loras]
        norms = [norm for scaled, norm in told if scaled is not None and norm is not None]
        count = sum(bool(scaled) for scaled, _ in told)
        return (count, sum(norms) / len(norms), max(norms)) if count else (0, 0, 0)

    def enable_gradient_checkpointing(self) -> None:
        """From now on adapters compute again, going back, what they would have kept."""
        for lora in self.loras:
            lora.grad_ckpt = True

    def prepare_grad_etc(self, *args: Any) -> None:
        """Every parameter is trained."""
        self.requires_grad_(True)

    def on_epoch_start(self, *args: Any) -> None:
        """Dropout is on."""
        self.train()

    def on_step_start(self, *args: Any) -> None:
        """Nothing to do."""

    def get_trainable_params(self, *args: Any) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self.parameters()

    # ---- files ------------------------------------------------------------------------------------------

    def load_weights(self, file: str | Path) -> dict[str, list[str]]:
        """Goes on with a file of the same algorithms. Says which names it misses, and which are others."""
        return self.load_layers(layers_of(file))

    def load_layers(self, layers: Mapping[str, LayerAdapter]) -> dict[str, list[str]]:
        """The same with a file's layers."""
        own = {lora.lora_name: lora for lora in self.loras}
        for name, lora in own.items():
            try:
                if name in layers:
                    lora.load_adapter(layers[name])
            except LycorisError as error:
                raise error.with_context(f"layer {quoted(name)}") from error
        told = {
            "missing keys": sorted(own.keys() - layers.keys()),
            "unexpected keys": sorted(layers.keys() - own.keys()),
        }
        return {what: names for what, names in told.items() if names}

    def save_weights(
        self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None
    ) -> None:
        """Writes ``file``, safetensors, in the place of one of that name that may be there.

        What it stores says everything in its tensors, and its metadata say that.
        """
        path = Path(file)
        stored = self.stored(dtype)
        described = {**{key: str(value) for key, value in (metadata or {}).items()}, **_EXACT}
        written = save_tensors(path, stored, described)
        if written != path:
            written.replace(path)

    def stored(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of a file on the CPU, real ones in ``dtype`` but for numbers such as alpha."""
        return {
            key: (value if dtype is None or not value.dim() else value.to(dtype)).detach().cpu().contiguous()
            for key, value in self.state_dict().items()
        }


def layers_of(
    file: str | Path | None, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, LayerAdapter]:
    """The layers of a file, as its training used them; or of its tensors, by key."""
    if tensors is None:
        assert file is not None
        return dict(load(file).layers)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, suffix = key.partition(".")
        layers.setdefault(name, {})[suffix] = value.detach()
    return {name: LayerAdapter.from_tensors(own) for name, own in layers.items()}


def tensors_of(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by key, as its training used them."""
    return to_tensors(load(file))
