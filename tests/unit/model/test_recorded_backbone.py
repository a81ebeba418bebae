"""The stack of layers with its pieces recorded: steps of changing rows have the bits of plain
calls.

Recordings replay by calling (tests/support/model/recorder.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.random_model import SMALL, RandomModel, build
from piecework_model.layers.backbone import Backbone, Segment
from piecework_model.layers.cache import SequenceCache
from piecework_model.layers.graphs import EagerPieceRunner, GraphPieceRunner
from piecework_model.layers.projections import products_of
from piecework_model.layout import cache_layout
from tests.support.model.recorder import EchoRecorder

CPU = torch.device("cpu")
ROOM_BYTES = 10**8
PROMPT_TOKENS = 40


class Rows:
    """Rows of one model and stack, each behind a prompt of its own."""

    def __init__(self, random: RandomModel, stack: Backbone, count: int) -> None:
        self._stack, self._canvas = stack, random.limits.canvas_size
        layout = cache_layout(
            random.model.config.text_config, self._canvas, random.limits.chunk_tokens
        )
        room = PROMPT_TOKENS + count + 2 * self._canvas
        self._caches = [SequenceCache(layout, room, CPU, torch.bfloat16) for _ in range(count)]
        for row, cache in enumerate(self._caches):
            tokens = PROMPT_TOKENS + row  # so that no two rows see as many keys
            prompt = torch.arange(tokens) * 17 % random.limits.vocab_size
            cache.reserve(tokens)
            stack.run(stack.embed(prompt), [Segment(cache, 0, tokens, 0, causal=True)], 0)
            cache.commit(tokens)

    def step(self, count: int, seed: int) -> Tensor:
        """Final states of the canvases of the first `count` rows."""
        size = self._canvas
        ids = torch.randint(0, 5000, (count * size,), generator=torch.Generator().manual_seed(seed))
        segments = []
        for row, cache in enumerate(self._caches[:count]):
            cache.reserve(size)
            segments.append(Segment(cache, row * size, size, 0, causal=False))
        embedded = self._stack.embed(ids)
        hidden = self._stack.condition(embedded, torch.zeros_like(embedded))
        return self._stack.run(hidden, segments, count * size).clone()


def test_recorded_steps_have_the_bits_of_plain_ones() -> None:
    random = build(SMALL, CPU, "none")
    pieces = GraphPieceRunner(EchoRecorder(), ROOM_BYTES)
    with torch.inference_mode():
        stack = Backbone(random.model, products_of(random.model, pack=False), pieces=pieces)
        stack.record([1, 3], random.limits.canvas_size)
        recorded = Rows(random, stack, 3)
        plain = Rows(
            random,
            Backbone(
                random.model, products_of(random.model, pack=False), pieces=EagerPieceRunner()
            ),
            3,
        )
        for step, rows in enumerate([1, 3, 1, 3, 2]):
            assert torch.equal(recorded.step(rows, step), plain.step(rows, step)), step
    each = SMALL.layers + 1
    assert pieces.recordings == 2 * each  # for one row and for three, and not for two
    assert pieces.replays == 4 * each
    assert pieces.held_bytes < 3 * 12 * random.model.config.canvas_length * SMALL.hidden * 4
