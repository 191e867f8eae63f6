"""One training step of a layer: time and peak memory, against lycoris-lora and PEFT.

    python benchmarks/train.py [--repeat 5] [--threads 1] [--quick]

A step is one forward and one backward to the adapter and the input. Times are of the processor, so that other
programs count little; the median of steps that take turns. Memory is what the step holds at most beyond what
there was before it.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import statistics
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lycoris_algos.training import train  # noqa: E402

_TWO: dict[str, Any] = {"lora_dim": 16, "alpha": 8.0}
ALGORITHMS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "LoRA": ("lora", _TWO, {"kind": "LoraConfig", "r": 16, "lora_alpha": 8}),
    "DoRA": ("lora", {**_TWO, "weight_decompose": True}, {"kind": "LoraConfig", "r": 16, "use_dora": True}),
    "LoHa": ("loha", {**_TWO, "lora_dim": 8}, {"kind": "LoHaConfig", "r": 8, "alpha": 8}),
    "LoKr": (
        "lokr",
        {**_TWO, "factor": 16},
        {"kind": "LoKrConfig", "r": 16, "alpha": 8, "decompose_factor": 16},
    ),
    "OFT": ("diag-oft", {"lora_dim": 16}, {"kind": "OFTConfig", "r": 0, "oft_block_size": 16}),
    "BOFT": ("boft", {"lora_dim": 16}, None),
}
_LYCORIS = {
    "lora": ("locon", "LoConModule"),
    "loha": ("loha", "LohaModule"),
    "lokr": ("lokr", "LokrModule"),
    "diag-oft": ("diag_oft", "DiagOFTModule"),
    "boft": ("boft", "ButterflyOFTModule"),
}


def layers(quick: bool) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """(name, frozen layer, shape of an input)."""
    for size in (1280,) if quick else (1280, 3072):
        for tokens in (1, 256, 1024) if quick else (1, 64, 1024, 4096):
            yield f"linear {size}, {tokens} tokens", nn.Linear(size, size), (tokens, size)
    yield "conv 320 3x3, 32x32", nn.Conv2d(320, 320, 3, padding=1), (1, 320, 32, 32)


def lycoris_module(algorithm: str, layer: nn.Module, options: dict[str, Any]) -> nn.Module:
    """The same training in lycoris-lora, in its default form."""
    file, name = _LYCORIS[algorithm]
    module = __import__(f"lycoris.modules.{file}", fromlist=[name])
    made: nn.Module = getattr(module, name)("x", copy.deepcopy(layer), 1.0, **options)
    return made


def peft_module(layer: nn.Module, options: dict[str, Any] | None) -> nn.Module | None:
    """The same training in PEFT, where it has it for such a layer."""
    if options is None:
        return None
    import peft

    own = dict(options)
    config = getattr(peft, own.pop("kind"))(target_modules=["0"], **own)
    try:
        return peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config)  # type: ignore[no-any-return]
    except (ValueError, NotImplementedError):
        return None


def step(module: nn.Module, x: Tensor) -> None:
    """One forward and one backward."""
    for parameter in module.parameters():
        parameter.grad = None
    x.grad = None
    module(x).sum().backward()


class _Held(TorchDispatchMode):
    """The most bytes that tensors made in it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, Tensor):  # a view of it is nothing new
                self.seen.add(value.untyped_storage().data_ptr())
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                key = storage.data_ptr()
                if key and key not in self.seen:
                    self.seen.add(key)
                    size = storage.nbytes()
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def memory(module: nn.Module, x: Tensor) -> int:
    """Bytes that a step makes at most."""
    with _Held() as held:
        step(module, x)
    return held.most


def times(modules: list[nn.Module], x: Tensor, repeat: int) -> list[float]:
    """Seconds of a step of each."""
    taken: list[list[float]] = [[] for _ in modules]
    for module in modules:
        step(module, x)
    for _ in range(repeat):
        for own, module in zip(taken, modules, strict=True):
            start = time.process_time()
            step(module, x)
            own.append(time.process_time() - start)
    return [statistics.median(own) for own in taken]


def main() -> None:
    """Prints a table: milliseconds here, how many times as long the others take, and memory likewise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    ratios: dict[str, list[float]] = {"LyCORIS": [], "PEFT": []}
    print("| layer | algorithm | ms | LyCORIS | PEFT | MB | LyCORIS | PEFT |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, layer, shape in layers(arguments.quick):
        layer.requires_grad_(False)
        x = torch.randn(shape, requires_grad=True)
        for title, (algorithm, options, peft_options) in ALGORITHMS.items():
            made: dict[str, Callable[[], nn.Module | None]] = {
                "here": lambda a=algorithm, o=options, own=layer: train(own, a, **o),
                "LyCORIS": lambda a=algorithm, o=options, own=layer: lycoris_module(a, own, o),
                "PEFT": lambda o=peft_options, own=layer: peft_module(own, o),
            }
            modules = {who: module for who, make in made.items() if (module := make()) is not None}
            seconds = dict(zip(modules, times(list(modules.values()), x, arguments.repeat), strict=True))
            held = {who: memory(module, x) for who, module in modules.items()}
            for who in ratios.keys() & seconds.keys():
                ratios[who].append(seconds[who] / seconds["here"])
            row = [name, title, f"{seconds['here'] * 1e3:.1f}"]
            row += [f"×{seconds[who] / seconds['here']:.2f}" if who in seconds else "" for who in ratios]
            row += [f"{held['here'] / 1e6:.1f}"]
            row += [f"×{held[who] / held['here']:.2f}" if who in held else "" for who in ratios]
            print(f"| {' | '.join(row)} |", flush=True)
    for who, own in ratios.items():
        mean = math.exp(sum(map(math.log, own)) / len(own))
        print(f"{who} takes ×{mean:.2f} the time (geometric mean; at least ×{min(own):.2f})")


if __name__ == "__main__":
    main()
