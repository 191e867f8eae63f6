"""Small models adapted and saved by the real PEFT 0.21.2, and what each of their layers computes with then.

PEFT wraps a model with one layer of every kind, its trainable tensors are drawn at random, and its own
``save_pretrained`` writes the folder that a user gets: adapter_model.safetensors and adapter_config.json. The
truth is what PEFT's own ``merge_and_unload`` makes of the layers, computed in float64 from the stored float32
numbers, and what its modules give out before that, which is the forward that training ran.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from samples import PEFT_SAMPLES
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of transformers and accelerate, while they are imported
    import peft
    import peft.tuners.boft.layer

#: As PEFT writes the names of layers.
PREFIX = "base_model.model."


class Layers(nn.Module):
    """One layer of every kind; PEFT needs them named, and nothing runs them together."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 16)
        self.square = nn.Linear(16, 16)
        self.wide = nn.Linear(64, 64)
        self.conv1d = nn.Conv1d(12, 16, 3, padding=1)
        self.point1d = nn.Conv1d(12, 16, 1)
        self.point2d = nn.Conv2d(12, 16, 1)
        self.conv2d = nn.Conv2d(12, 16, 3, padding=1)
        self.conv3d = nn.Conv3d(4, 8, 3, padding=1)


LINEAR = ("linear", "square")
CONV1D, CONV2D = ("conv1d", "point1d"), ("point2d", "conv2d")


@dataclass(frozen=True, eq=False)
class Adapted:
    """One adapted layer: before and after, in float64, and a run of PEFT's own module."""

    weight: Tensor
    bias: Tensor
    merged_weight: Tensor
    merged_bias: Tensor
    input: Tensor
    output: Tensor
    #: The layer before, to run with other parameters.
    plain: nn.Module

    def run(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The output of the layer with these parameters."""
        return torch.func.functional_call(self.plain, {"weight": weight, "bias": bias}, (self.input,))


@dataclass(frozen=True, eq=False)
class PeftCase:
    """A configuration, and the layers that it is put on."""

    name: str
    config: Callable[..., Any]
    layers: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Standard deviation of what is trained, and its middle.
    spread: float = 0.5
    middle: float = 0.0

    def save(self, folder: Path) -> dict[str, Adapted]:
        """PEFT's files in ``folder``; {layer: before and after}."""
        with torch.random.fork_rng(devices=[]), _butterflies_on_the_cpu():
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return self._save(folder)

    def _save(self, folder: Path) -> dict[str, Adapted]:
        base = Layers()
        for parameter in base.parameters():
            nn.init.normal_(parameter)
        plain = copy.deepcopy(base).double()
        config = self.config(target_modules=list(self.layers), **self.options)
        adapted = peft.get_peft_model(base, config).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, self.middle, self.spread)
        with warnings.catch_warnings():
            # A bias of lora_B, which PEFT itself makes, looks to PEFT like a matrix that was not gathered.
            warnings.filterwarnings("ignore", ".*have invalid shape.*lora_B.bias")
            adapted.save_pretrained(str(folder))
        adapted.double()
        inputs = {layer: _input(plain.get_submodule(layer)) for layer in self.layers}
        with torch.no_grad():
            runs = {layer: adapted.base_model.model.get_submodule(layer)(inputs[layer]) for layer in inputs}
            merged = adapted.merge_and_unload()
        return {
            layer: Adapted(
                *_parameters(plain, layer),
                *_parameters(merged, layer),
                inputs[layer],
                runs[layer],
                plain.get_submodule(layer),
            )
            for layer in self.layers
        }


@contextmanager
def _butterflies_on_the_cpu() -> Iterator[None]:
    """PEFT's BOFT has butterflies with a compiled CUDA kernel only, which lays blocks along a diagonal."""

    class BlockDiagonals:
        @staticmethod
        def apply(stages: Tensor) -> Tensor:
            return torch.stack([torch.block_diag(*blocks) for blocks in stages])

    layer = "peft.tuners.boft.layer"
    with (
        mock.patch(f"{layer}.get_fbd_cuda", return_value=True),
        mock.patch(f"{layer}.FastBlockDiag", BlockDiagonals),
    ):
        yield


def _parameters(model: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
    module = model.get_submodule(layer)
    return module.weight.detach().clone(), module.bias.detach().clone()


def _input(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.randn(3, module.in_features).double()
    return torch.randn(2, module.in_channels, *(5,) * len(module.kernel_size)).double()


_EVERY = (*LINEAR, *CONV1D, *CONV2D)
_FACTORS = {"r": 4, "lora_alpha": 2}

CASES = (
    PeftCase("LoRA", peft.LoraConfig, (*_EVERY, "conv3d"), _FACTORS),
    PeftCase("LoRA, rslora", peft.LoraConfig, _EVERY, {**_FACTORS, "use_rslora": True}),
    PeftCase("LoRA, alpha 0", peft.LoraConfig, LINEAR, {"r": 4, "lora_alpha": 0}),
    PeftCase("LoRA, lora_bias", peft.LoraConfig, _EVERY, {**_FACTORS, "lora_bias": True}),
    PeftCase("LoRA, bias", peft.LoraConfig, _EVERY, {**_FACTORS, "bias": "lora_only"}),
    PeftCase(
        "LoRA, patterns of names",
        peft.LoraConfig,
        LINEAR,
        {**_FACTORS, "alpha_pattern": {"linear": 8}, "rank_pattern": {"square": 2}},
    ),
    PeftCase(
        "LoRA, patterns that are expressions",
        peft.LoraConfig,
        _EVERY,
        {**_FACTORS, "alpha_pattern": {r"^conv\dd": 8, "(square|linear)": 3, ".*oint2d": 5, "point1d": 7}},
    ),
    PeftCase("DoRA", peft.LoraConfig, (*_EVERY, "conv3d"), {**_FACTORS, "use_dora": True}),
    PeftCase("DoRA, rslora", peft.LoraConfig, LINEAR, {**_FACTORS, "use_dora": True, "use_rslora": True}),
    PeftCase("LoHa", peft.LoHaConfig, _EVERY, {"r": 4, "alpha": 2}),
    PeftCase("LoHa, effective", peft.LoHaConfig, _EVERY, {"r": 4, "alpha": 2, "use_effective_conv2d": True}),
    PeftCase(
        "LoHa, patterns",
        peft.LoHaConfig,
        LINEAR,
        {"r": 4, "alpha": 2, "alpha_pattern": {"square": 3}, "rank_pattern": {"linear": 2}},
    ),
    PeftCase("LoKr", peft.LoKrConfig, (*_EVERY, "wide"), {"r": 1, "alpha": 0.5}),
    PeftCase("LoKr, both", peft.LoKrConfig, _EVERY, {"r": 1, "alpha": 0.5, "decompose_both": True}),
    PeftCase(
        "LoKr, effective",
        peft.LoKrConfig,
        _EVERY,
        {"r": 2, "alpha": 0.5, "use_effective_conv2d": True, "decompose_factor": 2},
    ),
    PeftCase("LoKr, factor 8", peft.LoKrConfig, ("wide",), {"r": 2, "alpha": 3, "decompose_factor": 8}),
    PeftCase(
        "LoKr, whole",  # alpha/r counts in PEFT, and not in LyCORIS
        peft.LoKrConfig,
        (*LINEAR, *CONV2D),
        {"r": 8, "alpha": 3, "rank_pattern": {"square": 16}, "alpha_pattern": {"conv2d": 5}},
    ),
    PeftCase("OFT", peft.OFTConfig, (*LINEAR, "wide", "point2d"), {"oft_block_size": 4}, 0.1),
    PeftCase("OFT, r", peft.OFTConfig, LINEAR, {"oft_block_size": 0, "r": 4}, 0.1),
    PeftCase("OFT, shared", peft.OFTConfig, LINEAR, {"oft_block_size": 8, "block_share": True}, 0.1),
    PeftCase("OFT, coft", peft.OFTConfig, LINEAR, {"oft_block_size": 4, "coft": True, "eps": 0.4}, 0.1),
    PeftCase(
        "OFT, exact",
        peft.OFTConfig,
        (*LINEAR, "point2d"),
        {"oft_block_size": 4, "use_cayley_neumann": False},
        0.3,
    ),
    PeftCase("BOFT", peft.BOFTConfig, (*LINEAR, *CONV2D), {"boft_block_size": 4}, 0.3),
    PeftCase(
        "BOFT, butterfly",
        peft.BOFTConfig,
        ("square", "wide"),
        {"boft_block_size": 4, "boft_n_butterfly_factor": 3},
        0.3,
    ),
    PeftCase(
        "BOFT, butterfly of a kernel",
        peft.BOFTConfig,
        ("conv2d",),
        {"boft_block_size": 2, "boft_n_butterfly_factor": 2},
        0.3,
    ),
    PeftCase("IA3, outputs", peft.IA3Config, LINEAR, {"feedforward_modules": []}, 0.3, 1.0),
    PeftCase("IA3, inputs", peft.IA3Config, LINEAR, {"feedforward_modules": list(LINEAR)}, 0.3, 1.0),
    *(  # those that stand beside the samples of their algorithm
        PeftCase(s.name, getattr(peft, s.config), s.layers, s.options, s.spread, s.middle)
        for s in PEFT_SAMPLES
    ),
)

#: What a reader must not apply, with a part of the reason it has to give.
REFUSED = (
    (PeftCase("GLoRA", peft.GloraConfig, LINEAR, {}, 0.1), "glora_A.Xd' .no known algorithm stores"),
    (
        PeftCase("IA3 of convolutions", peft.IA3Config, CONV2D, {"feedforward_modules": ["point2d"]}),
        "does not say which side it scales",
    ),
    (
        PeftCase("PiSSA", peft.LoraConfig, LINEAR, {**_FACTORS, "init_lora_weights": "pissa"}),
        "'pissa', which changes the base weight too",
    ),
    (
        PeftCase("OLoRA", peft.LoraConfig, LINEAR, {**_FACTORS, "init_lora_weights": "olora"}),
        "'olora', which changes the base weight too",
    ),
    (
        PeftCase("OFT, terms", peft.OFTConfig, LINEAR, {"oft_block_size": 4, "num_cayley_neumann_terms": 7}),
        "with 7 terms",
    ),
    (PeftCase("OFT of kernels", peft.OFTConfig, CONV2D, {"oft_block_size": 4}, 0.1), "overlapping patches"),
    (
        PeftCase("LoKr, whole, of a Conv1d", peft.LoKrConfig, CONV1D, {"r": 8, "alpha": 3}),
        "across outputs and kernel",
    ),
    (
        PeftCase("VeRA", peft.VeraConfig, ("linear",), {"r": 4}),
        "vera_lambda_b' .no known algorithm stores",
    ),
)
