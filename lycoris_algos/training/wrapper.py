"""LyCORIS' wrapper: adapters on the layers of any PyTorch model.

>>> network = create_lycoris(model, 1.0, linear_dim=16, linear_alpha=8, algo="lokr", factor=8)
>>> network.apply_to()
>>> optimizer = torch.optim.AdamW(network.prepare_optimizer_params(lr=1e-4))
>>> ...
>>> network.save_weights("trained.safetensors", torch.bfloat16, {})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .config import PRESET
from .config_sdk import VALID_PRESET_KEYS
from .networks import AdapterNetwork, deprecated_arg_dict, layers_of, network_module_dict, tensors_of
from .options import network_options, preset_of

__all__ = [
    "PRESET",
    "VALID_PRESET_KEYS",
    "LycorisNetwork",
    "create_lycoris",
    "create_lycoris_from_weights",
    "deprecated_arg_dict",
    "network_module_dict",
]


class LycorisNetwork(AdapterNetwork):
    """Adapters on the layers of ``module``; see ``AdapterNetwork``, and ``create_lycoris`` for options."""

    TARGET_REPLACE_MODULE: ClassVar[list[str]] = [
        "Linear",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "GroupNorm",
        "LayerNorm",
    ]
    TARGET_REPLACE_NAME: ClassVar[list[str]] = []
    LORA_PREFIX: ClassVar[str] = "lycoris"
    preset_keys: ClassVar[dict[str, str]] = {
        **AdapterNetwork.preset_keys,
        "target_module": "TARGET_REPLACE_MODULE",
        "target_name": "TARGET_REPLACE_NAME",
        "lora_prefix": "LORA_PREFIX",
    }

    def __init__(
        self,
        module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        conv_lora_dim: int = 4,
        alpha: float = 1,
        conv_alpha: float = 1,
        *args: Any,
        init_only: bool = False,
        warn_on_unmatched: bool = True,
        train_llm_adapter: bool = False,
        **options: Any,
    ) -> None:
        named = ("use_tucker", "dropout", "rank_dropout", "module_dropout", "network_module")
        options = {**dict(zip(named, args, strict=False)), **options}
        super().__init__(multiplier, lora_dim, conv_lora_dim, alpha, conv_alpha, **options)
        if init_only:
            return
        targets = [
            name
            for name in self.TARGET_REPLACE_MODULE
            if train_llm_adapter or name != "LLMAdapterTransformerBlock"
        ]
        rules = self.rules(targets, self.TARGET_REPLACE_NAME)
        self.adopt(self.create(self.LORA_PREFIX, module, rules))
        if warn_on_unmatched:
            self._warn_about(rules, "the model")

    def apply_to(self) -> None:
        """Puts all adapters on their layers."""
        for lora in self.loras:
            lora.apply_to()

    def merge_to(self, weight: float = 1.0, *, precise: bool = False) -> None:
        """Adds all changes to the model's weights, for good. Raises MergeError before any is added."""
        self._merge(weight, precise)

    def prepare_optimizer_params(self, lr: float | None) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer: one, of all of them."""
        self.requires_grad_(True)
        group: dict[str, Any] = {"params": list(self.parameters())}
        return [group if lr is None else {**group, "lr": lr}]


def create_lycoris(
    module: nn.Module,
    multiplier: float = 1.0,
    linear_dim: int | None = 4,
    linear_alpha: float = 1,
    warn_on_unmatched: bool = True,
    **kwargs: Any,
) -> LycorisNetwork:
    """A network on ``module`` from start values, which changes nothing before ``apply_to``.

    ``kwargs``: ``algo`` and ``preset`` (a built-in one's name or a TOML file's), ``conv_dim``,
    ``conv_alpha``, ``train_norm``, the options of the algorithm, ``dora_wd`` with ``wd_on_output``,
    ``dropout``, ``rank_dropout``, ``module_dropout``, ``bypass_mode``. Others are ignored.
    """
    LycorisNetwork.apply_preset(preset_of(kwargs))
    options = network_options(linear_dim, linear_alpha, kwargs)
    return LycorisNetwork(module, multiplier, warn_on_unmatched=warn_on_unmatched, **options)


def create_lycoris_from_weights(
    multiplier: float,
    file: str | Path | None,
    module: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    **kwargs: Any,
) -> tuple[LycorisNetwork, Mapping[str, Tensor]]:
    """(a network that goes on with a file, or with its tensors; those tensors).

    Layers that ``module`` does not have are left out.
    """
    network = LycorisNetwork(module, multiplier, init_only=True)
    prefix = LycorisNetwork.LORA_PREFIX
    modules = {f"{prefix}_{path}".replace(".", "_"): own for path, own in module.named_modules()}
    network.go_on(layers_of(file, weights_sd), modules)
    if weights_sd is None:
        assert file is not None
        weights_sd = tensors_of(file)
    return network, weights_sd
