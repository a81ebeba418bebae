"""Random requests for the bundled checkpoint: free text, templates, reads."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from piecework_model.requests import HOLE, GenerationRequest, ReadSlot
from tests.support.model.model_runs import make_request

CANVAS = 32
TURN_END = 5
words = st.integers(14, 700)  # behind the ids that end a text, 1, 5 and 13


@st.composite
def templates(draw: st.DrawFn) -> tuple[int, ...]:
    """One to three canvases: runs of fixed and of free positions, then the end."""
    runs = draw(st.lists(st.tuples(words | st.just(HOLE), st.integers(1, 40)), min_size=1))
    form = [entry for entry, length in runs for _ in range(length)][: 3 * CANVAS]
    return (*form, *[TURN_END] * (-len(form) % CANVAS))


@st.composite
def templated(draw: st.DrawFn, /, **fields: st.SearchStrategy[Any]) -> GenerationRequest:
    """A request with a template."""
    prompt = draw(st.lists(words, min_size=1, max_size=90))
    chosen = {name: draw(values) for name, values in fields.items()}
    return make_request(tuple(prompt), **chosen, template=draw(templates()))


@st.composite
def reads(draw: st.DrawFn, /, **fields: st.SearchStrategy[Any]) -> GenerationRequest:
    """A read of up to two batches and three draws."""
    prompt = draw(st.lists(words, min_size=1, max_size=150))
    chosen = {name: draw(values) for name, values in fields.items()}
    template: list[int] = []
    slots: list[tuple[ReadSlot, ...]] = []
    for _ in range(draw(st.integers(1, 2))):
        canvas = draw(st.lists(words, min_size=CANVAS, max_size=CANVAS))
        places = draw(st.lists(st.integers(0, CANVAS - 1), min_size=1, max_size=4, unique=True))
        labels = draw(st.lists(words, min_size=2, max_size=5, unique=True))
        slots.append(tuple(ReadSlot(place, tuple(labels)) for place in sorted(places)))
        template += [HOLE if at in places else token for at, token in enumerate(canvas)]
    return make_request(
        tuple(prompt),
        **chosen,
        template=tuple(template),
        reads=tuple(slots),
        max_tokens=len(template) * draw(st.integers(1, 3)),
        max_steps=1,
        stability_steps=0,
    )
