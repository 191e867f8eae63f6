"""A network module for kohya's sd-scripts: ``--network_module lycoris_algos.training.kohya``.

``--network_args`` are those of LyCORIS: ``algo=lokr``, ``preset=attn-mlp``, ``factor=8``, ``dora_wd=True`` …
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import FULL_TEXT_ENCODER_MODULES, FULL_UNET_MODULES, FULL_UNET_NAMES
from .logging import logger
from .modules import LycorisBaseModule
from .networks import AdapterNetwork, layers_of, tensors_of
from .options import network_options, preset_of
from .utils import precalculate_safetensors_hashes

TextEncoders = nn.Module | Sequence[nn.Module] | None


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module,
    warn_on_unmatched: bool = True,
    *,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> LycorisNetworkKohya:
    """A network from start values on both models, which changes nothing before ``apply_to``.

    ``kwargs`` are the network arguments, as texts or values; those that nothing knows are ignored.
    ``neuron_dropout`` is kohya's ``--network_dropout``.
    """
    kwargs.setdefault("dropout", neuron_dropout)
    LycorisNetworkKohya.apply_preset(preset_of(kwargs))
    options = network_options(network_dim, network_alpha, kwargs)
    if options["network_module"] == "ia3" and kwargs.get("preset") != "ia3":
        logger.warning("(IA)³ is meant for the layers of preset=ia3")
    network = LycorisNetworkKohya(
        text_encoder, unet, multiplier, warn_on_unmatched=warn_on_unmatched, **options
    )
    network.train_t5xxl = str(kwargs.get("train_t5xxl", False)).lower() == "true"
    network.set_loraplus_lr_ratio(*(_number(kwargs.get(key)) for key in _RATIOS))
    return network


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[LycorisNetworkKohya, Mapping[str, Tensor]]:
    """(a network that goes on with a file, or with its tensors; those tensors).

    Layers that the models do not have are left out.
    """
    network = LycorisNetworkKohya(text_encoder, unet, multiplier, init_only=True)
    modules: dict[str, nn.Module] = {}
    for prefix, root in network.roots(text_encoder, unet):
        own = root.named_modules()
        modules.update({f"{prefix}_{path}".replace(".", "_"): module for path, module in own})
    network.go_on(layers_of(file, weights_sd), modules)
    if weights_sd is None:
        assert file is not None
        weights_sd = tensors_of(file)
    return network, weights_sd


class LycorisNetworkKohya(AdapterNetwork):
    """Adapters on the layers of text encoders and a diffusion model; ``create_network`` has the options."""

    UNET_TARGET_REPLACE_MODULE: ClassVar[list[str]] = FULL_UNET_MODULES
    UNET_TARGET_REPLACE_NAME: ClassVar[list[str]] = FULL_UNET_NAMES
    TEXT_ENCODER_TARGET_REPLACE_MODULE: ClassVar[list[str]] = FULL_TEXT_ENCODER_MODULES
    TEXT_ENCODER_TARGET_REPLACE_NAME: ClassVar[list[str]] = []
    LORA_PREFIX_UNET: ClassVar[str] = "lora_unet"
    LORA_PREFIX_TEXT_ENCODER: ClassVar[str] = "lora_te"
    preset_keys: ClassVar[dict[str, str]] = {
        **AdapterNetwork.preset_keys,
        "unet_target_module": "UNET_TARGET_REPLACE_MODULE",
        "unet_target_name": "UNET_TARGET_REPLACE_NAME",
        "text_encoder_target_module": "TEXT_ENCODER_TARGET_REPLACE_MODULE",
        "text_encoder_target_name": "TEXT_ENCODER_TARGET_REPLACE_NAME",
    }

    def __init__(
        self,
        text_encoder: TextEncoders,
        unet: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        conv_lora_dim: int = 4,
        alpha: float = 1,
        conv_alpha: float = 1,
        *,
        init_only: bool = False,
        warn_on_unmatched: bool = True,
        train_llm_adapter: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(multiplier, lora_dim, conv_lora_dim, alpha, conv_alpha, **options)
        self.train_t5xxl = False
        self.set_loraplus_lr_ratio(None, None, None)
        if init_only:
            return
        targets = [
            name
            for name in self.UNET_TARGET_REPLACE_MODULE
            if train_llm_adapter or name != "LLMAdapterTransformerBlock"
        ]
        of_unet = self.rules(targets, self.UNET_TARGET_REPLACE_NAME)
        of_encoders = self.rules(
            self.TEXT_ENCODER_TARGET_REPLACE_MODULE, self.TEXT_ENCODER_TARGET_REPLACE_NAME
        )
        for prefix, root in self.roots(text_encoder, unet):
            is_unet = prefix == self.LORA_PREFIX_UNET
            self.adopt(self.create(prefix, root, of_unet if is_unet else of_encoders))
        if warn_on_unmatched:
            self._warn_about(of_unet, "the diffusion model")
            if text_encoder:
                self._warn_about(of_encoders, "the text encoder")

    def roots(self, text_encoder: TextEncoders, unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """(prefix of its layers' names, model), the text encoders first; several are numbered."""
        if isinstance(text_encoder, nn.Module):
            yield self.LORA_PREFIX_TEXT_ENCODER, text_encoder
        else:
            for number, encoder in enumerate(text_encoder or (), 1):
                if encoder is not None:
                    yield f"{self.LORA_PREFIX_TEXT_ENCODER}{number}", encoder
        yield self.LORA_PREFIX_UNET, unet

    @property
    def unet_loras(self) -> list[LycorisBaseModule]:
        """The adapters of the diffusion model."""
        return [lora for lora in self.loras if lora.lora_name.startswith(self.LORA_PREFIX_UNET)]

    @property
    def text_encoder_loras(self) -> list[LycorisBaseModule]:
        """The adapters of the text encoders."""
        return [lora for lora in self.loras if not lora.lora_name.startswith(self.LORA_PREFIX_UNET)]

    def apply_to(
        self,
        text_encoder: TextEncoders,
        unet: nn.Module,
        apply_text_encoder: bool = True,
        apply_unet: bool = True,
    ) -> None:
        """Puts the adapters on their layers. Those of a model that is not trained are dropped."""
        self._keep(apply_text_encoder, apply_unet)
        for lora in self.loras:
            lora.apply_to()

    def merge_to(
        self,
        text_encoder: TextEncoders = None,
        unet: nn.Module | None = None,
        weights_sd: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        """Adds all changes to the models' weights, for good. Raises MergeError before any is added."""
        self._merge(self.multiplier, precise=False)

    def _keep(self, text_encoder: bool, unet: bool) -> None:
        kept = [*(self.text_encoder_loras if text_encoder else []), *(self.unet_loras if unet else [])]
        for lora in self.loras:
            if lora not in kept:
                delattr(self, lora.lora_name)
        self.loras = kept

    # ---- training -------------------------------------------------------------------------------------

    def set_loraplus_lr_ratio(
        self,
        loraplus_lr_ratio: float | None,
        loraplus_unet_lr_ratio: float | None,
        loraplus_text_encoder_lr_ratio: float | None,
    ) -> None:
        """LoRA+: the outer factors learn so many times as fast. A model's own ratio goes before the first."""
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.loraplus_unet_lr_ratio = loraplus_unet_lr_ratio
        self.loraplus_text_encoder_lr_ratio = loraplus_text_encoder_lr_ratio

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None = None,
        unet_lr: float | None = 1e-4,
        learning_rate: float | None = None,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """(groups of parameters for an optimizer, what each is). A rate of 0 trains nothing.

        ``text_encoder_lr`` may be a rate for each text encoder.
        """
        self.requires_grad_(True)
        own_unet, own_encoder = self.loraplus_unet_lr_ratio, self.loraplus_text_encoder_lr_ratio
        rates = _rates(self.text_encoder_loras, text_encoder_lr, learning_rate)
        parts = [("textencoder", loras, rate, own_encoder) for loras, rate in rates]
        parts.append(("unet", self.unet_loras, learning_rate if unet_lr is None else unet_lr, own_unet))
        groups: list[dict[str, Any]] = []
        names: list[str] = []
        for name, loras, rate, own in parts:
            ratio = own or self.loraplus_lr_ratio
            for plus, parameters in _outer_and_other(loras, ratio is not None):
                if parameters and rate:
                    groups.append({"params": parameters, "lr": rate * ratio if plus and ratio else rate})
                    names.append(f"{name} plus" if plus else name)
        return groups, names

    def save_weights(
        self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None
    ) -> None:
        """As any network's, with the hash by which web UIs know the file."""
        hashed = {"sshs_model_hash": precalculate_safetensors_hashes(self.stored(dtype))}
        super().save_weights(file, dtype, {**(metadata or {}), **hashed})


_RATIOS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _rates(
    loras: Sequence[LycorisBaseModule], rates: float | Sequence[float] | None, default: float | None
) -> Iterator[tuple[list[LycorisBaseModule], float | None]]:
    """(adapters, their rate) for each text encoder whose rate is its own; else all of them."""
    if rates is None or isinstance(rates, (int, float)):
        yield list(loras), default if rates is None else rates
        return
    prefixes = [f"{LycorisNetworkKohya.LORA_PREFIX_TEXT_ENCODER}{n}_" for n in range(1, len(rates) + 1)]
    for n, (prefix, rate) in enumerate(zip(prefixes, rates, strict=True)):
        own = [lora for lora in loras if lora.lora_name.startswith(prefix)]
        rest = [lora for lora in loras if not lora.lora_name.startswith(tuple(prefixes))]
        yield [*own, *(rest if n == 0 else ())], rate


def _outer_and_other(
    loras: Iterable[LycorisBaseModule], apart: bool
) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    """(False, parameters), and where LoRA's outer factors go ``apart`` (True, those)."""
    named = [item for lora in loras for item in lora.named_parameters()]
    yield False, [value for name, value in named if not (apart and "lora_up" in name)]
    yield True, [value for name, value in named if apart and "lora_up" in name]
