"""Layers to train, and everything that can be trained on them: each with the options that change its form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Small enough for gradcheck; outputs are divided by powers of two, for BOFT.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 8), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), (2, 4, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, padding=1, stride=2), (2, 4, 5, 5)),
    "conv2d_1x1": (lambda: nn.Conv2d(4, 8, 1), (2, 4, 3, 3)),
    "conv2d_groups": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 4, 4)),
    "conv2d_circular": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), (2, 4, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 8, 3, padding=1), (1, 2, 3, 3, 3)),
    "layernorm": (lambda: nn.LayerNorm(8), (3, 8)),
    "groupnorm": (lambda: nn.GroupNorm(2, 8), (2, 8, 4)),
    "embedding": (lambda: nn.Embedding(16, 8), (2, 3)),
}
_NORMS = ("layernorm", "groupnorm")
_TWO: dict[str, Any] = {"lora_dim": 2, "alpha": 1.0}
_DORA = ({"weight_decompose": True}, {"weight_decompose": True, "wd_on_out": False})

#: {algorithm: its options, one dict for each variant}.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "lora": tuple(
        _TWO | own for own in ({}, {"use_tucker": True}, {"use_scalar": True}, {"rs_lora": True}, *_DORA)
    ),
    "loha": tuple(_TWO | own for own in ({}, {"use_tucker": True}, {"use_scalar": True}, *_DORA)),
    "lokr": tuple(
        {"lora_dim": 1, "alpha": 0.5} | own
        for own in (
            {},
            {"use_tucker": True},
            {"use_scalar": True},
            {"decompose_both": True},
            {"factor": 2, "unbalanced_factorization": True},
            {"full_matrix": True},
            *_DORA,
        )
    ),
    "dylora": ({"lora_dim": 4, "alpha": 2.0, "block_size": 2},),
    "glora": tuple(_TWO | own for own in ({}, {"use_tucker": True}, {"use_scalar": True})),
    "tlora": (_TWO, _TWO | {"sig_type": "last"}, _TWO | {"use_data_init": False}),
    "full": ({}, {"weight_decompose": True}),
    "diag-oft": tuple(
        {"lora_dim": 4} | own
        for own in ({}, {"constraint": 1.0}, {"rescaled": True}, {"weight_decompose": True})
    ),
    "boft": tuple({"lora_dim": 4} | own for own in ({}, {"constraint": 1.0}, {"rescaled": True})),
    "ia3": ({}, {"train_on_input": True}),
    "norm": ({},),
}


class Trial(NamedTuple):
    """An algorithm with options on a kind of layer."""

    algorithm: str
    layer: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        own = "+".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.algorithm}-{self.layer}-{own}"

    def made(self) -> tuple[nn.Module, Tensor]:
        """(a layer with random weights, an input for it)."""
        make, shape = LAYERS[self.layer]
        module = make()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_()
        if self.layer == "embedding":
            return module, torch.randint(12, shape)
        return module, torch.randn(shape)


def trials() -> Iterator[Trial]:
    """Every algorithm and variant on every layer that it fits."""
    for algorithm, variants in VARIANTS.items():
        for layer in LAYERS:
            if (layer in _NORMS) != (algorithm == "norm"):
                continue
            if layer == "conv2d_groups" and algorithm == "ia3":
                continue  # input channels of a group are not those of the layer
            for options in variants:
                yield Trial(algorithm, layer, options)


def moved(module: nn.Module, spread: float = 0.3) -> None:
    """Moves every trained tensor away from its start, as training does."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
