"""Templates in the engine: pinned positions, alone and among others, resumed, refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from piecework_model import kinds
from piecework_model.bounds import ModelLimits
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.engine import Engine
from piecework_model.engine.sequence import CanvasDecision, SequenceState, decide, to_host
from piecework_model.errors import ContextOverflowError, InvalidRequestError
from piecework_model.requests import HOLE, CanvasFinish, DraftEvent, GenerationRequest
from piecework_model.sampling import sampler
from piecework_model.sampling.sampler import SampleOutput
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.text import Fixed, Hole, TextContent
from tests.support.model.model_runs import (
    canvases,
    make_request,
    run_alone,
    run_readable,
    run_together,
    torch_threads,
)

Prompt = tuple[int, ...]
STORY = TextContent(
    Conversation((Message("user", "Write a story about a fox, a lantern and a river."),)),
    (
        Fixed("Once upon a time,"),
        Hole(25),
        Fixed(" The owl laughed."),
        Hole(20),
        Fixed(" The end."),
    ),
)
TURN_END = 5


def story(loaded: LoadedModel, name: str = "job", **changes: Any) -> GenerationRequest:
    encoded = kinds.encode(loaded, STORY, 32, 1024)
    return make_request(encoded.prompt_ids, name, template=encoded.template, **changes)


def test_a_limit_of_the_prompt_says_nothing_about_the_template(bundled: LoadedModel) -> None:
    whole = kinds.encode(bundled, STORY, 32, 1024)
    prompt = len(whole.prompt_ids)
    assert prompt < whole.positions
    assert kinds.encode(bundled, STORY, 32, 1024, prompt) == whole
    assert kinds.encode(bundled.tokenizer, STORY, 32, 1024, prompt) == whole
    assert len(kinds.encode(bundled, STORY, 32, 1024, prompt - 1).prompt_ids) == prompt


def test_a_story_is_filled_between_its_fixed_parts(bundled: LoadedModel) -> None:
    events = canvases(run_alone(bundled, story(bundled, max_steps=48)))
    text = "".join(event.text for event in events)
    first, rest = text.split(" The owl laughed.")
    assert first.startswith("Once upon a time, ")
    assert rest.endswith(" The end.")
    assert len(first.split()) > 10  # the hole has words
    assert text == bundled.tokenizer.decode(tuple(id_ for e in events for id_ in e.charged_ids))
    assert [event.finish for event in events] == [CanvasFinish.MORE, CanvasFinish.END_OF_TEXT]


def test_a_template_without_a_pin_is_written_as_free_text_is(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    free = canvases(run_alone(bundled, make_request(prompt, max_tokens=64)))
    held = canvases(run_alone(bundled, make_request(prompt, template=(HOLE,) * 64)))
    assert free[0].finish is CanvasFinish.MORE
    for ours, theirs in zip(held, free, strict=False):
        assert (ours.token_ids, ours.step_leaves) == (theirs.token_ids, theirs.step_leaves)


@pytest.mark.parametrize("threads", [1, 2])
def test_templates_and_free_texts_in_one_batch_have_the_transcripts_of_their_own(
    bundled: LoadedModel, prompt: Prompt, threads: int
) -> None:
    with torch_threads(threads):
        wanted = [
            story(bundled, "story", max_steps=4),
            make_request(prompt, "free", max_steps=4, max_tokens=64),
            story(bundled, "other", max_steps=5, seed=7, entropy_bound=3.0),
        ]
        together = run_together(bundled, wanted)
        assert together == {request.request_id: run_alone(bundled, request) for request in wanted}


def test_the_readable_executor_fills_a_template_to_the_same_bits() -> None:
    halved = load(device="cpu", dtype="bfloat16")
    wanted = story(halved, max_steps=48)
    assert run_readable(halved, wanted) == run_alone(halved, wanted)


def test_a_canvas_without_a_free_position_takes_one_step(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    template = (*range(100, 132), *[HOLE] * 8, *[TURN_END] * 24)
    fixed, held = canvases(run_alone(bundled, make_request(prompt, template=template)))
    assert (fixed.steps, fixed.token_ids, fixed.charged_ids) == (1, template[:32], template[:32])
    assert held.steps > 1


LONG = (*[HOLE] * 240, *range(100, 116))
"""A hole that no story fills, and words behind it: eight canvases."""


def test_a_canvas_of_what_is_left_of_an_ended_hole_takes_one_step(
    prompt: Prompt,
) -> None:
    halved = load(device="cpu", dtype="bfloat16")
    wanted = make_request(prompt, template=LONG, max_tokens=256, max_steps=48)
    events = run_alone(halved, wanted)
    made = canvases(events)
    assert run_readable(halved, wanted) == events
    ended = next(i for i, c in enumerate(made) if not halved.eos_ids.isdisjoint(c.token_ids))
    written, given = made[: ended + 1], made[ended + 1 :]
    assert ended < 6 and all(canvas.steps > 1 for canvas in written)
    (end,) = set(made[-2].token_ids)
    assert end in halved.eos_ids
    assert [canvas.steps for canvas in given] == [1] * len(given)
    assert [canvas.charged_ids for canvas in given[:-1]] == [()] * (len(given) - 1)
    assert made[-1].token_ids == (*[end] * 16, *LONG[-16:])
    assert (made[-1].charged_ids, made[-1].finish) == (LONG[-16:], CanvasFinish.END_OF_TEXT)
    for index in (ended, ended + 1, ended + 2):  # a job that was interrupted goes on alike
        committed = tuple(canvas.token_ids for canvas in made[:index])
        again = canvases(run_alone(halved, replace(wanted, committed=committed)))
        assert [c.step_leaves for c in again] == [c.step_leaves for c in made[index:]]


def test_a_hole_that_begins_anew_is_written_although_the_one_before_had_ended(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    template = (*[HOLE] * 160, *range(100, 110), *[HOLE] * 22)
    wanted = make_request(prompt, template=template, max_tokens=192, max_steps=48)
    made = canvases(run_alone(bundled, wanted))
    assert made[-2].steps == 1
    assert made[-1].steps > 1  # its first ten positions are fixed, and then a new hole begins


def test_drafts_show_the_fixed_tokens_from_the_first_step_on(bundled: LoadedModel) -> None:
    drafts = [e for e in run_alone(bundled, story(bundled)) if isinstance(e, DraftEvent)]
    assert drafts[0].step == 0
    assert all(draft.text.startswith("Once upon a time,") for draft in drafts if draft.canvas == 0)
    assert all(draft.text.endswith("The end.") for draft in drafts if draft.canvas == 1)


def decided(template: Prompt, entropies: list[float], **changes: Any) -> CanvasDecision:
    """What a step decides about a canvas of such entropies; token 7 is sampled everywhere."""
    size = len(entropies)
    model = ModelLimits(64, size, 48, 100)
    state = SequenceState.of(make_request((9,), template=template, **changes), model)
    state.start(size, 100)
    every = torch.full((size,), 7)
    entropy = torch.tensor(entropies)
    zero = torch.zeros(size)
    output = SampleOutput(every, every, entropy, zero, zero, torch.empty(0))
    _uniforms, renoise = state.draws(size, 100)
    made = decide([state], output, torch.ones(1, size, 3), renoise[None], torch.empty(0))
    (decision,) = to_host([made])
    return decision


def test_pinned_positions_hold_their_token_are_accepted_and_condition_nothing() -> None:
    decision = decided((50, HOLE, 51, HOLE), [4.0, 0.0, 9.0, 5.0], entropy_bound=0.1)
    assert decision.before[[0, 2]].tolist() == [50, 51]
    assert decision.after[[0, 1, 2]].tolist() == [50, 7, 51]
    assert decision.argmax.tolist() == [50, 7, 51, 7]
    assert decision.accepted.tolist() == [True, True, True, True]
    soft = torch.frombuffer(bytearray(decision.soft), dtype=torch.float32).view(4, 3)
    assert soft[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert decision.fingerprint[:, 0].tolist() == [4.0, 0.0, 9.0, 5.0]  # what the model said


def test_free_positions_are_accepted_as_if_there_were_no_pinned_ones() -> None:
    free = [0.03, 0.3, 0.04, 0.2, 0.05]
    alone = sampler.accept(torch.tensor([free]), torch.tensor([0.1]))[0].tolist()
    pinned = [(50, entropy) for entropy in (0.01, 0.07, 5.0)]
    template = (50, *[HOLE] * 3, 50, *[HOLE] * 2, 50)
    entropies = [pinned[0][1], *free[:3], pinned[1][1], *free[3:], pinned[2][1]]
    decision = decided(template, entropies, entropy_bound=0.1)
    accepted = decision.accepted.tolist()
    assert accepted[1:4] + accepted[5:7] == alone
    assert not all(alone)


@pytest.mark.parametrize(("threshold", "confident"), [(0.31, True), (0.3, False)])
def test_confidence_is_the_mean_over_the_free_positions(threshold: float, confident: bool) -> None:
    entropies = [9.0, 0.25, 9.0, 0.375]  # the free ones have a mean of 0.3125
    decision = decided((50, HOLE, 51, HOLE), entropies, confidence_threshold=threshold + 0.01)
    assert decision.confident is confident


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("template", {"template": (HOLE,) * 33}),
        ("template", {"template": (99_999,) * 32}),
        ("template", {"template": (-2,) * 32}),
        ("template", {"template": ("9",) * 32}),
        ("template", {"template": [HOLE] * 32}),
        ("template", {"template": (HOLE, TURN_END, HOLE, *[TURN_END] * 29)}),
        ("template", {"template": (*[HOLE] * 32, *[TURN_END] * 32)}),
        ("max_tokens", {"template": (*[HOLE] * 40, *[TURN_END] * 24), "max_tokens": 39}),
        ("committed", {"template": (9,) * 64, "committed": ((8,) * 32,)}),
        ("committed", {"template": (9,) * 32, "committed": ((9,) * 32,)}),
    ],
)
def test_a_template_out_of_bounds_is_refused_by_name(
    bundled: LoadedModel, prompt: Prompt, field: str, changes: dict[str, Any]
) -> None:
    engine = Engine(bundled, max_sequences=1)
    with pytest.raises(InvalidRequestError) as caught:
        engine.submit(make_request(prompt, **changes))
    assert caught.value.field == field


def test_a_refused_template_says_how_many_tokens_it_needs(bundled: LoadedModel) -> None:
    with pytest.raises(InvalidRequestError, match="needs 53"):
        Engine(bundled, max_sequences=1).submit(
            make_request((9,), template=(*[HOLE] * 53, *[TURN_END] * 11), max_tokens=52)
        )


def test_a_template_beyond_the_context_is_refused_with_both_figures(bundled: LoadedModel) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        Engine(bundled, max_sequences=1).submit(
            make_request((9,) * 1000, template=(HOLE,) * 32, max_tokens=32)
        )
    assert (caught.value.needed, caught.value.available) == (1032, 1024)


def test_a_template_goes_on_behind_its_committed_canvases_far_beyond_the_window(
    bundled: LoadedModel,
) -> None:
    template = tuple(HOLE if n % 3 else 100 + n % 50 for n in range(160))
    wanted = make_request((9,) * 100, template=template, max_tokens=160, max_steps=3, tenant="one")
    whole = canvases(run_alone(bundled, wanted))
    assert len(whole) == 5
    for done in (1, 4):
        committed = tuple(event.token_ids for event in whole[:done])
        rest = canvases(run_alone(bundled, replace(wanted, committed=committed)))
        assert rest == whole[done:]
