"""Compare pictures by their pixels, and lay several out on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def pixels(picture: bytes) -> Pixels:
    """The decoded RGB values of a picture file, height x width x 3, whatever else the file holds."""
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


def identical(a: Pixels, b: Pixels) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def mean_difference(a: Pixels, b: Pixels) -> float:
    """Mean absolute difference in grey levels, 0 to 255."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


def max_difference(a: Pixels, b: Pixels) -> int:
    """Largest absolute difference in grey levels, 0 to 255."""
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def contact_sheet(rows: Sequence[Sequence[tuple[str, Pixels]]], gap: int = 12) -> Image.Image:
    """Captioned pictures in rows; the size of the first is the size of each cell."""
    height, width, _ = rows[0][0][1].shape
    caption = 16
    sheet = Image.new(
        "RGB",
        (
            max(map(len, rows)) * (width + gap) + gap,
            len(rows) * (height + caption + gap) + gap,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (title, picture) in enumerate(row):
            left, top = gap + x * (width + gap), gap + y * (height + caption + gap)
            draw.text((left, top), title, fill="black")
            sheet.paste(Image.fromarray(picture), (left, top + caption))
    return sheet
