"""Images in the fast executor against the readable one, bit for bit, and how prompts are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.engine.scheduler import prompt_chunks
from piecework_model.requests import (
    CanvasEvent,
    Event,
    GenerationRequest,
    ProgressEvent,
    PromptImage,
)
from tests.support.model import image_models
from tests.support.model.image_models import BEGIN, END, MARK, SETTINGS
from tests.support.model.model_runs import make_request, run, run_readable

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.integers(20, 119)
PATCH_BYTES = 3 * SETTINGS.patch**2


@st.composite
def images(draw: st.DrawFn) -> PromptImage:
    """An image of any shape that has at most 70 tokens, with one of two contents."""
    columns = draw(st.integers(1, SETTINGS.most_tokens))
    rows = draw(st.integers(1, SETTINGS.most_tokens // columns))
    content = np.random.default_rng(draw(st.integers(0, 1)))
    patches = content.integers(0, 256, columns * rows * 9 * PATCH_BYTES, dtype=np.uint8)
    return PromptImage(0, columns * rows, 3 * columns, 3 * rows, patches.tobytes())


@st.composite
def prompts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[PromptImage, ...]]:
    """Words with up to three images among them."""
    ids: list[int] = draw(st.lists(words, min_size=1, max_size=50))
    placed: list[PromptImage] = []
    for image in draw(st.lists(images(), min_size=0, max_size=3)):
        placed.append(replace(image, start=len(ids) + 1))
        ids += [BEGIN, *[MARK] * image.tokens, END, *draw(st.lists(words, max_size=40))]
    return tuple(ids), tuple(placed)


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    ids, placed = draw(prompts())
    return make_request(
        ids,
        images=placed,
        seed=draw(st.integers(0, 3)),
        max_tokens=draw(st.integers(1, 40)),
        max_steps=draw(st.integers(1, 4)),
        draft_every=0,
        tenant=draw(st.sampled_from(["", "one"])),
    )


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def seeing(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LoadedModel:
    """Large random weights: the last bit of a sum changes the text."""
    folder = image_models.write_with_images(tmp_path_factory.mktemp("images"))
    return load(folder, device="cpu", dtype=request.param)


@few
@given(
    batch=st.lists(requests(), min_size=1, max_size=4),
    arrivals=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_a_sequence_with_images_has_the_trace_that_the_reference_gives_it_alone(
    seeing: LoadedModel, batch: list[GenerationRequest], arrivals: list[int]
) -> None:
    named = [replace(request, request_id=f"sequence-{n}") for n, request in enumerate(batch)]
    engine = Engine(seeing, max_sequences=3)
    events: dict[str, list[Event]] = {request.request_id: [] for request in named}
    for step in range(5):
        for request, arrival in zip(named, arrivals, strict=False):
            if arrival == step:
                engine.submit(request)
        for event in engine.step():
            events[event.request_id].append(event)
    for request_id, rest in run(engine).items():
        events[request_id] += rest
    for request in named:
        # What is cached need not be prefilled, and is not reported either.
        assert _results(events[request.request_id]) == _results(run_readable(seeing, request))


def _results(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, ProgressEvent)]


@given(prompts(), st.integers(1, 100))
def test_a_prompt_is_cut_into_bounded_chunks_and_never_through_an_image(
    prompt: tuple[tuple[int, ...], tuple[PromptImage, ...]], chunk_tokens: int
) -> None:
    ids, placed = prompt
    chunks = prompt_chunks(ids, chunk_tokens, placed)
    assert tuple(token for chunk in chunks for token in chunk.ids) == ids
    starts = [sum(map(len, chunks[:index])) for index in range(len(chunks))]
    found = [
        replace(image, start=start + image.start)
        for start, chunk in zip(starts, chunks, strict=True)
        for image in chunk.images
    ]
    assert tuple(found) == placed
    for chunk in chunks:
        largest = max((image.tokens for image in chunk.images), default=0)
        assert 0 < len(chunk) <= max(chunk_tokens, largest)
        assert all(image.start + image.tokens <= len(chunk) for image in chunk.images)


def test_a_cached_prefix_is_that_of_the_same_pixels_alone(seeing: LoadedModel) -> None:
    """One tenant asks the same of two images of one size, then of the first once more."""
    shape = (0, 60, 30, 18)
    pixels = [np.full(540 * PATCH_BYTES, value, dtype=np.uint8).tobytes() for value in (20, 200)]
    ids = (2, 30, BEGIN, *[MARK] * 60, END, *[40] * 40)
    asked = [
        make_request(
            ids,
            f"asked-{number}",
            images=(replace(PromptImage(*shape, pixels[of]), start=3),),
            tenant="one",
            max_tokens=16,
        )
        for number, of in enumerate((0, 1, 0))
    ]
    executor = BatchedExecutor(seeing.model, seeing.limits)
    engine = Engine(seeing, max_sequences=1, executor=executor)
    leaves, hits = [], []
    for request in asked:
        engine.submit(request)
        done = [e for e in run(engine)[request.request_id] if isinstance(e, CanvasEvent)]
        leaves.append([event.step_leaves for event in done])
        hits.append(executor.prefix_hits)
    assert leaves[0] == leaves[2] != leaves[1]
    assert hits == [0, 1, 5]  # what stands before the image, then all four chunks of the prompt
