"""Trains a small model in each of several processes; run by ``torch.distributed.run``.

    … distributed_training.py ddp|fsdp ALGORITHM FILE

Every process sees its share of the same batch. The first one saves FILE; without a launcher there is one
process, which sees all of the batch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lycoris_algos.training import create_lycoris  # noqa: E402

STEPS = 4


class Trained(nn.Module):
    """A frozen model and the network on it."""

    def __init__(self, algorithm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).requires_grad_(False)
        self.network = create_lycoris(self.model, linear_dim=4, linear_alpha=2, algo=algorithm)
        self.network.apply_to()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def main(how: str, algorithm: str, file: str) -> None:
    """Trains, and saves what one process would have saved."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    trained = Trained(algorithm)
    module: nn.Module = trained
    if count > 1:
        dist.init_process_group("gloo")
    if count > 1 and how == "ddp":
        module = DistributedDataParallel(trained)
    elif count > 1:
        mesh = init_device_mesh("cpu", (count,))
        for lora in trained.network.loras:
            fully_shard(lora, mesh=mesh)
        fully_shard(trained.network, mesh=mesh)
    optimizer = torch.optim.SGD(trained.network.parameters(), lr=0.1)
    batches = torch.randn(STEPS, 4, 8, generator=torch.Generator().manual_seed(1))
    for batch in batches:
        own = batch.chunk(count)[rank]
        optimizer.zero_grad()
        (module(own) - 1).square().mean().backward()
        optimizer.step()
    network = trained.network
    if count > 1 and how == "fsdp":
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(network, options=options)
        network = Trained(algorithm).network
        if rank == 0:
            network.load_state_dict(whole)
    if rank == 0:
        network.save_weights(file, None, None)
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
