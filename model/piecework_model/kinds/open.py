"""Kind `open` for the engine: steps of a canvas that was made before, and no prompt.

The engine computes nothing for it but a replay, if it has to. What is charged as the prompt are the
tokens before the canvas.
"""

from __future__ import annotations

from piecework_model.requests import EncodedContent, OpeningAsked
from piecework_protocol.kinds.open import OpenContent


def encode(content: OpenContent) -> EncodedContent:
    """Return what is asked for."""
    steps = tuple(wanted.step for wanted in content.steps)
    asked = OpeningAsked(content.job, content.canvas, steps, content.soft, content.context)
    return EncodedContent((), opening=asked)
