"""What is in adapter sets: values, and the texts and pictures made of them."""

from .pictures import ADVICE, blank, can_draw, draw, save_picture
from .report import algorithm_lines, describe, doubled_lines, unmatched_lines, unread_lines
from .run import inspect
from .texts import Detail, text_of
from .values import Inspection, LayerValues, View

__all__ = [
    "ADVICE",
    "Detail",
    "Inspection",
    "LayerValues",
    "View",
    "algorithm_lines",
    "blank",
    "can_draw",
    "describe",
    "doubled_lines",
    "draw",
    "inspect",
    "save_picture",
    "text_of",
    "unmatched_lines",
    "unread_lines",
]
