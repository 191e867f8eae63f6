"""Training: the adapters of ``lycoris_algos`` on the layers of any PyTorch model.

>>> from lycoris_algos import training
>>> adapter = training.train(model.proj, "lokr", lora_dim=8, alpha=4)
>>> adapter.apply_to()
"""

from .module import AdapterModule, train
from .parameters import ParameterAdapter, parametrize
from .timesteps import clear_timestep_mask, compute_timestep_mask, get_timestep_mask, set_timestep_mask

__all__ = [
    "AdapterModule",
    "ParameterAdapter",
    "clear_timestep_mask",
    "compute_timestep_mask",
    "get_timestep_mask",
    "parametrize",
    "set_timestep_mask",
    "train",
]
