"""Prompts of the bundled checkpoint, without its weights."""

from __future__ import annotations

from functools import cache

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.text.chat import encode_prompt
from piecework_model.text.tokens import load_codec
from tests.support.protocol.conversations import said


@cache
def story_prompt() -> tuple[int, ...]:
    """A request that the bundled model answers with a story of several canvases."""
    codec = load_codec(bundled_checkpoint_path(), frozenset())
    return encode_prompt(codec, said("Write a story about a fox, a lantern and a river."))
