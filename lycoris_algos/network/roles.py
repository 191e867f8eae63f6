"""What the layers of a file are in the model that it was made for, as far as their names tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ..formats import encoder_number, is_text_layer, model_paths
from ..models import Family, Role, family_of_file, role_in, role_of, text_role

# The numbers of encoders that files name instead, as kohya counts them.
_NUMBERS = {"clip_g": 2, "clip_bigG": 2, "t5xxl": 3, "t5": 3}


class KnownRoles(Protocol):
    """Who knows what layers are in a model: any ``KnownModel`` does."""

    def role(self, layer: str) -> Role | None:
        """What ``layer`` is in the model; None if that is not known."""


def roles_of(known: KnownRoles | None) -> Callable[[str], Role | None]:
    """What layers are in the model, as ``StackEntry`` asks; None for all of them where it is not known."""
    return (lambda _: None) if known is None else known.role


def named_roles(layers: Iterable[str], metadata: Mapping[str, str] | None = None) -> dict[str, Role]:
    """{layer: its role} of the layers of a file, in any dialect. What no rule knows is ``other``.

    A text encoder has the number that the file gives it, which may not be its place in a model.
    """
    names = list(layers)
    family = family_of_file(names, metadata)
    return {layer: _named(layer, family) for layer in names}


def _named(layer: str, family: Family | None) -> Role:
    if is_text_layer(layer):
        return text_role(layer, encoder_number(layer) or _number_of(layer))
    paths = sorted(model_paths(layer), key=len)
    roles = [role_of(path) if family is None else role_in(path, family) for path in paths]
    # A prefix that is still there may pass for a part of the model, but not for a block.
    return next((role for role in roles if role.index is not None), roles[0])


def _number_of(layer: str) -> int:
    words = layer.replace(":", ".").split(".")[:3]
    return next((_NUMBERS[word] for word in words if word in _NUMBERS), 1)
