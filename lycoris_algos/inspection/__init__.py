"""What is in adapter sets, as numbers and as text."""

from .report import algorithm_lines, describe, unmatched_lines

__all__ = ["algorithm_lines", "describe", "unmatched_lines"]
