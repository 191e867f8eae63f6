"""The forms that a layer can be stored in, by the names that users choose from."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from ..adapters import FitRequest, Fits, component
from .options import LORA, TUCKER


def fits(form: str) -> Fits:
    """What fits ``form``."""
    return cast("Fits", component(LORA if form == TUCKER else form))


def asked(request: FitRequest, form: str) -> FitRequest:
    """``request`` for ``form``."""
    return replace(request, tucker=True) if form == TUCKER else request
