"""Canvases that stand behind the same committed tokens: in groups, and with their chunks joined."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from piecework_model.engine.scheduler import PrefillChunk, joined_chunks
from piecework_model.layers.attention import attend, attend_each
from piecework_model.layers.backbone import CanvasesSegment
from piecework_model.layers.cache import SequenceCache
from piecework_model.layout import CacheLayout, LayerLayout
from piecework_model.requests import PromptImage

HEADS, DIM, WINDOW = 2, 16, 8
LAYOUT = CacheLayout(
    (LayerLayout(HEADS, DIM, window=0), LayerLayout(HEADS, DIM, window=WINDOW)), canvas=4, chunk=64
)


def committed(tokens: int) -> SequenceCache:
    cache = SequenceCache(LAYOUT, tokens, torch.device("cpu"), torch.float32)
    cache.reserve(tokens)
    generator = torch.Generator().manual_seed(tokens)
    for layer in range(len(LAYOUT.layers)):
        parts = torch.randn((2, tokens, HEADS, DIM), generator=generator)
        cache.write(layer, 0, *parts)
    cache.commit(tokens)
    return cache


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 400))
def test_groups_of_canvases_are_all_of_them_in_order_and_bounded(
    tokens: int, canvases: int, size: int, most: int
) -> None:
    segment = CanvasesSegment(committed(tokens), 7, canvases, size)
    groups = list(segment.groups(most))
    seen = [place for group in groups for place in range(group.start, group.stop)]
    assert seen == list(range(7, 7 + canvases * size))
    for group in groups:
        count, rest = divmod(group.stop - group.start, size)
        assert rest == 0
        assert count == 1 or count * (tokens + size) <= most


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 1))
def test_a_canvas_sees_the_committed_tokens_and_itself(
    tokens: int, canvases: int, layer: int
) -> None:
    size, cache = 4, committed(tokens)
    generator = torch.Generator().manual_seed(canvases)
    asked, keys, values = torch.randn((3, canvases * size, HEADS, DIM), generator=generator)
    seen = cache.view_behind(layer, keys, values, size)
    together = attend_each(asked.view(canvases, size, HEADS, DIM), *seen)
    before_keys, before_values, _ = cache.view(layer, 0, 0)
    if layer:
        assert before_keys.shape[1] == min(tokens, WINDOW - 1)
    for canvas in range(canvases):
        own = slice(canvas * size, (canvas + 1) * size)
        alone = attend(
            asked[own],
            torch.cat([before_keys, keys[own].transpose(0, 1)], dim=1),
            torch.cat([before_values, values[own].transpose(0, 1)], dim=1),
            None,
        )
        torch.testing.assert_close(together[canvas], alone)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=8), st.integers(0, 20))
def test_joined_chunks_have_the_same_tokens_and_no_image_among_others(
    made: list[tuple[int, bool]], most: int
) -> None:
    image = PromptImage(0, 1, 1, 1, b"")
    chunks = [
        PrefillChunk(tuple(range(length)), (image,) if shown else ()) for length, shown in made
    ]
    joined = joined_chunks(chunks, most)
    assert [i for chunk in joined for i in chunk.ids] == [i for c in chunks for i in c.ids]
    for chunk in joined:
        assert chunk in chunks or (len(chunk) <= most and not chunk.images)
    for first, second in itertools.pairwise(joined):
        assert first.images or second.images or len(first) + len(second) > most
