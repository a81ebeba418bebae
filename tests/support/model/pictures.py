"""Images for tests. Needs no torch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image as Pillow

from piecework_protocol.conversation import Image


def picture(width: int, height: int, seed: int = 0) -> Pillow.Image:
    """Draw an image of coloured noise over a gradient."""
    draw = np.random.default_rng(seed)
    noise = draw.integers(0, 96, (height, width, 3))
    ramp = np.linspace(0, 159, width)[None, :, None]
    return Pillow.fromarray((noise + ramp).astype(np.uint8))


def as_file(image: Pillow.Image, kind: str = "png", **options: Any) -> Image:
    """Write an image as the part of a message."""
    file = io.BytesIO()
    image.save(file, format=kind.upper(), **options)
    return Image(f"image/{kind}", file.getvalue())


def image_of(width: int, height: int, seed: int = 0, kind: str = "png") -> Image:
    """Draw an image and write it as the part of a message."""
    return as_file(picture(width, height, seed), kind)
