"""What is in adapter sets, as numbers and as text."""

from .report import algorithm_lines, describe, doubled_lines, unmatched_lines, unread_lines

__all__ = ["algorithm_lines", "describe", "doubled_lines", "unmatched_lines", "unread_lines"]
