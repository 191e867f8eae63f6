"""The logger of training, by LyCORIS' name: messages go where the program that trains sends them."""

from __future__ import annotations

import logging

logger = logging.getLogger("LyCORIS")
