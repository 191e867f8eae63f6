"""Training: the adapters of ``lycoris_algos`` on the layers of any PyTorch model.

One layer:

    >>> adapter = training.train(model.proj, "lokr", lora_dim=8, alpha=4)
    >>> adapter.apply_to()

A model, with LyCORIS' names (``import lycoris_algos.training as lycoris`` is all that a script changes):

    >>> network = training.create_lycoris(model, linear_dim=16, linear_alpha=8, algo="lokr")
    >>> network.apply_to()
"""

from . import functional, kohya, modules, utils
from .config import list_builtin_presets
from .config_sdk import (
    AlgoOverride,
    PresetConfig,
    PresetValidationError,
    describe_algo,
    list_algorithms,
)
from .logging import logger
from .module import AdapterModule, train
from .modules import (
    ButterflyOFTModule,
    DiagOFTModule,
    DyLoraModule,
    FullModule,
    GLoRAModule,
    IA3Module,
    LoConModule,
    LohaModule,
    LokrModule,
    NormModule,
    TLoraModule,
    make_module,
)
from .parameters import ParameterAdapter, parametrize
from .timesteps import clear_timestep_mask, compute_timestep_mask, get_timestep_mask, set_timestep_mask
from .wrapper import LycorisNetwork, create_lycoris, create_lycoris_from_weights

__all__ = [
    "AdapterModule",
    "AlgoOverride",
    "ButterflyOFTModule",
    "DiagOFTModule",
    "DyLoraModule",
    "FullModule",
    "GLoRAModule",
    "IA3Module",
    "LoConModule",
    "LohaModule",
    "LokrModule",
    "LycorisNetwork",
    "NormModule",
    "ParameterAdapter",
    "PresetConfig",
    "PresetValidationError",
    "TLoraModule",
    "clear_timestep_mask",
    "compute_timestep_mask",
    "create_lycoris",
    "create_lycoris_from_weights",
    "describe_algo",
    "functional",
    "get_timestep_mask",
    "kohya",
    "list_algorithms",
    "list_builtin_presets",
    "logger",
    "make_module",
    "modules",
    "parametrize",
    "set_timestep_mask",
    "train",
    "utils",
]
