"""Runs the command line of ``cli``: ``python -m lycoris_algos``."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
