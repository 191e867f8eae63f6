"""The ways in which ComfyUI loads a model, and what a parameter is worth after each step of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

#: The value of the parameter of a key, as the module that holds it computes with it.
Value = Callable[[str], Tensor]


def whole(patcher: Any) -> Iterator[Value]:
    """Everything is loaded, as with memory enough."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    yield _value(patcher)
    comfy.model_management.unload_all_models()


def in_parts(patcher: Any) -> Iterator[Value]:
    """With no memory to speak of, so that layers are patched each time that they run; then with enough."""
    patcher.patch_model(device_to=patcher.load_device, lowvram_model_memory=1)
    yield _value(patcher)
    patcher.partially_load(patcher.load_device, 10**12)
    yield _value(patcher)
    patcher.unpatch_model(patcher.offload_device)


def dynamically(patcher: Any) -> Iterator[Value]:
    """As newer hosts stream weights to a card (dynamic VRAM), twice over; there is no card here."""
    made = dynamic(patcher)
    for _ in range(2):
        made.partially_load(made.load_device)
        yield _value(made)
    made.unpatch_model(made.offload_device)


WAYS = {"whole": whole, "in parts": in_parts, "dynamically": dynamically}


def has_dynamic() -> bool:
    """Whether the host can stream weights."""
    import comfy.model_patcher

    return hasattr(comfy.model_patcher, "ModelPatcherDynamic")


def dynamic(patcher: Any) -> Any:
    """``patcher`` as the host's dynamic one, which it makes for no CPU of its own accord."""
    from comfy.model_patcher import ModelPatcherDynamic

    class OnTheCpu(ModelPatcherDynamic):
        def __new__(cls, *_: Any, **__: Any) -> Any:
            return object.__new__(cls)

        def partially_unload(self, *_: Any, **__: Any) -> int:
            """What is left of it where no memory of a card is to be freed."""
            return self.restore_loaded_backups()

    made = OnTheCpu(patcher.model, patcher.load_device, patcher.offload_device)
    for name in ("patches", "patches_uuid", "object_patches", "callbacks"):
        setattr(made, name, getattr(patcher, name))
    return made


def _value(patcher: Any) -> Value:
    def value(key: str) -> Tensor:
        path, _, name = key.rpartition(".")
        module = patcher.model.get_submodule(path)
        found = getattr(module, name).detach().clone()
        late = [*getattr(module, f"{name}_function", ()), getattr(module, f"{name}_lowvram_function", None)]
        for function in filter(None, late):
            found = function(found)
        return found

    return value
