"""What every test shares: seeds, threads, hypothesis' profiles, and the pack as ComfyUI loads it."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import warnings
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

# Shared machines, and tensors so small that a second thread costs more than it does.
torch.set_num_threads(1)

# No deadlines: a first call may compile or load something. No database: nothing is left in the repository.
_COMMON: dict[str, Any] = {"deadline": None, "database": None}
hypothesis.settings.register_profile("dev", max_examples=100, **_COMMON)
hypothesis.settings.register_profile("ci", max_examples=150, derandomize=True, print_blob=True, **_COMMON)
hypothesis.settings.register_profile("thorough", max_examples=2000, **_COMMON)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers in every test, in whatever order and selection they run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """This node pack in the real ComfyUI, loaded by path as ComfyUI's ``load_custom_node`` does it."""
    from lab.pack import load_pack
    from lab.prime import prime_comfy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ComfyUI's own imports warn
        prime_comfy()
        # Both are there before ComfyUI loads any pack; its ``nodes`` is not ours.
        for name in ("comfy.sd", "nodes"):
            importlib.import_module(name)
        return load_pack()


@pytest.fixture(scope="session")
def comfy_nodes(pack: ModuleType) -> dict[str, Any]:
    """The pack's node classes by node id, through its entry point."""

    async def ask() -> list[Any]:
        extension = await pack.comfy_entrypoint()
        return list(await extension.get_node_list())

    return {node.define_schema().node_id: node for node in asyncio.run(ask())}
