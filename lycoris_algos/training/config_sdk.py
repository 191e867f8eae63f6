"""Presets as values: which layers are trained, and which of them by another algorithm or other options."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..adapters import trainable, training_options
from ..errors import LycorisError
from ..text import Brief, listed, quoted
from .modules import MODULE_LIST

VALID_PRESET_KEYS: tuple[str, ...] = (
    "enable_conv",
    "target_module",
    "target_name",
    "module_algo_map",
    "name_algo_map",
    "lora_prefix",
    "use_fnmatch",
    "unet_target_module",
    "unet_target_name",
    "text_encoder_target_module",
    "text_encoder_target_name",
    "exclude_name",
)
_MAPS = ("module_algo_map", "name_algo_map")
_GENERAL = ("dropout", "rank_dropout", "rank_dropout_scale", "module_dropout", "bypass_mode")


class PresetValidationError(LycorisError, ValueError):
    """A preset that says something which nothing understands."""


@dataclass(frozen=True)
class AlgoSpec(Brief):
    """An algorithm, and the options that its layers may be given."""

    name: str
    description: str
    supported_args: tuple[str, ...] = ()
    required_args: tuple[str, ...] = ()
    notes: str | None = None

    def supports(self, arg: str) -> bool:
        """Whether ``arg`` means something to it."""
        return arg in self.supported_args


def _spec(name: str) -> AlgoSpec:
    kind = trainable()[name]
    decomposes = any(face.decomposes for face in MODULE_LIST if face.algorithm == name)
    renamed = {"lora_dim": "dim", "wd_on_out": "wd_on_output"}
    own = [renamed.get(option, option) for option in training_options(name)]
    if not (decomposes or name == "locon"):
        own = [option for option in own if option not in ("weight_decompose", "wd_on_output")]
    return AlgoSpec(name, f"{kind.title}: {kind.reference}", (*own, *_GENERAL))


#: What a preset may ask for, by LyCORIS' names.
ALGO_REGISTRY: dict[str, AlgoSpec] = {
    name: _spec(name)
    for name in (
        *("lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft", "ia3", "tlora"),
    )
}


def describe_algo(name: str) -> AlgoSpec:
    """What ``name`` is. Raises KeyError for another name."""
    return ALGO_REGISTRY[name.lower()]


def list_algorithms() -> Iterable[AlgoSpec]:
    """All algorithms."""
    return ALGO_REGISTRY.values()


@dataclass
class AlgoOverride(Brief):
    """Another algorithm, or other options, for some layers."""

    algo: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> AlgoOverride:
        """From a preset's own table: ``algo``, and everything else is an option."""
        options = dict(mapping)
        return cls(options.pop("algo", None), options)

    def to_dict(self) -> dict[str, Any]:
        """The preset's table."""
        return {**copy.deepcopy(self.options), **({} if self.algo is None else {"algo": self.algo})}

    def validate(self) -> None:
        """Raises PresetValidationError for an algorithm that is not known, and options that it has not."""
        if self.algo is None:
            return
        if self.algo.lower() not in ALGO_REGISTRY:
            raise PresetValidationError(
                f"{quoted(self.algo)} is no algorithm. Choose one of {', '.join(ALGO_REGISTRY)}"
            )
        spec = describe_algo(self.algo)
        unknown = [option for option in self.options if not spec.supports(option)]
        if unknown:
            raise PresetValidationError(
                f"{quoted(self.algo)} does not understand {listed(unknown)}. "
                f"Its options are {', '.join(spec.supported_args)}"
            )


@dataclass
class PresetConfig(Brief):
    """A preset. What is None (or an empty table) is not in it, and changes nothing when it is applied."""

    enable_conv: bool | None = None
    target_module: list[str] | None = None
    target_name: list[str] | None = None
    module_algo_map: dict[str, AlgoOverride] = field(default_factory=dict)
    name_algo_map: dict[str, AlgoOverride] = field(default_factory=dict)
    lora_prefix: str | None = None
    use_fnmatch: bool | None = None
    unet_target_module: list[str] | None = None
    unet_target_name: list[str] | None = None
    text_encoder_target_module: list[str] | None = None
    text_encoder_target_name: list[str] | None = None
    exclude_name: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> PresetConfig:
        """From a table. Raises PresetValidationError for keys that no preset has.

        ``strict`` checks the algorithms and options in it as well.
        """
        unknown = sorted(set(data) - set(VALID_PRESET_KEYS))
        if unknown:
            raise PresetValidationError(
                f"no preset has {listed(unknown)}. A preset may have {', '.join(VALID_PRESET_KEYS)}"
            )
        values = {key: copy.deepcopy(value) for key, value in data.items() if key not in _MAPS}
        for key in _MAPS:
            table = data.get(key) or {}
            values[key] = {name: AlgoOverride.from_mapping(own or {}) for name, own in table.items()}
            for override in values[key].values() if strict else ():
                override.validate()
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The table: only what is in the preset."""
        values = {key: getattr(self, key) for key in VALID_PRESET_KEYS}
        for key in _MAPS:
            values[key] = {name: own.to_dict() for name, own in values[key].items()} or None
        return {key: copy.deepcopy(value) for key, value in values.items() if value is not None}

    def list_algorithms(self) -> Iterable[str]:
        """The algorithms that it names."""
        overrides = (*self.module_algo_map.values(), *self.name_algo_map.values())
        return dict.fromkeys(own.algo for own in overrides if own.algo is not None)
