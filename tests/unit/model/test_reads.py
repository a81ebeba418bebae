"""Reads in the engine: one step a canvas, answers from the logits at the slots, nothing kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from piecework_model import kinds, limits
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.engine import Engine
from piecework_model.engine.executor import SequenceStep
from piecework_model.engine.scheduler import SequenceWork, prompt_chunks
from piecework_model.errors import ContextOverflowError, InvalidRequestError
from piecework_model.requests import (
    HOLE,
    CanvasEvent,
    CanvasFinish,
    GenerationRequest,
    ReadSlot,
)
from piecework_model.sampling.philox import Moment, initial_ids
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.read import ONE, Label, Question, ReadContent
from tests.support.model.model_runs import (
    canvases,
    make_request,
    run,
    run_alone,
    run_readable,
    run_together,
    torch_threads,
)

Prompt = tuple[int, ...]
YES_NO = (Label("yes"), Label("no"))


def content(questions: int = 3, draws: int = 2, state: str = "The fox is happy.") -> ReadContent:
    asked = tuple(Question(f"Is fox no. {n} happy?", YES_NO) for n in range(questions))
    return ReadContent(Conversation((Message("user", state),)), asked, draws)


def read(
    loaded: LoadedModel, name: str = "job", given: ReadContent | None = None, **changes: Any
) -> GenerationRequest:
    chosen = given or content()
    size = loaded.limits.canvas_size
    encoded = kinds.encode(loaded, chosen, size, loaded.limits.max_context)
    fields = {
        "template": encoded.template,
        "reads": encoded.reads,
        "max_tokens": size * chosen.canvases(size),
        "max_steps": 1,
        "stability_steps": 0,
    }
    return make_request(encoded.prompt_ids, name, **{**fields, **changes})


def test_a_read_answers_each_question_on_each_draw_in_one_step(bundled: LoadedModel) -> None:
    events = canvases(run_alone(bundled, read(bundled)))
    given = content()
    assert [len(event.answers) for event in events] == [
        len(given.on_canvas(canvas, 32)) for canvas in range(given.canvases(32))
    ]
    assert all((event.steps, event.charged_ids, event.segments) == (1, (), ()) for event in events)
    assert [event.finish for event in events] == [
        *[CanvasFinish.MORE] * 3,
        CanvasFinish.END_OF_TEXT,
    ]
    assert all(sum(answer) == ONE for event in events for answer in event.answers)


def test_answers_are_the_softmax_of_the_capped_logits_at_the_slots(bundled: LoadedModel) -> None:
    request = read(bundled, seed=21)
    denoiser = Denoiser(bundled.model)
    with torch.inference_mode():
        cache = denoiser.new_cache()
        for chunk in prompt_chunks(request.prompt_ids, bundled.limits.chunk_tokens):
            denoiser.prefill(cache, chunk)
        for canvas, event in enumerate(canvases(run_alone(bundled, request))):
            slots = request.reads[canvas // 2]
            noise = initial_ids([Moment(21, canvas, 0)], 32, bundled.limits.vocab_size)[0]
            start = 32 * (canvas // 2)
            pinned = torch.tensor(request.template[start : start + 32])
            ids = torch.where(pinned == HOLE, torch.from_numpy(noise), pinned)
            raw = denoiser.raw_logits(cache, ids, None).double()
            for slot, answer in zip(slots, event.answers, strict=True):
                logits = 30.0 * torch.tanh(raw[slot.position, list(slot.label_ids)] / 30.0)
                for share, exact in zip(answer, logits.softmax(0).tolist(), strict=True):
                    assert math.isclose(share / ONE, exact, abs_tol=1e-4)


def test_draws_differ_by_their_noise_and_a_read_repeats_itself(bundled: LoadedModel) -> None:
    wanted = read(bundled, given=content(1, draws=4))
    answers = [event.answers for event in canvases(run_alone(bundled, wanted))]
    assert len(set(answers)) == 4
    assert [event.answers for event in canvases(run_alone(bundled, wanted))] == answers
    again = canvases(run_alone(bundled, replace(wanted, seed=2)))
    assert [event.answers for event in again] != answers


def test_the_temperature_of_the_step_moves_no_answer(bundled: LoadedModel) -> None:
    cool, hot = (
        canvases(run_alone(bundled, read(bundled, temperature_start=heat, temperature_end=heat)))
        for heat in (0.1, 2.0)
    )
    assert [event.answers for event in cool] == [event.answers for event in hot]
    assert cool[0].step_leaves != hot[0].step_leaves


@pytest.mark.parametrize("threads", [1, 2])
def test_reads_and_texts_in_one_batch_have_the_transcripts_of_their_own(
    bundled: LoadedModel, prompt: Prompt, threads: int
) -> None:
    with torch_threads(threads):
        wanted = [
            make_request(prompt, "text", max_steps=4, max_tokens=64),
            read(bundled, "read", seed=5),
            read(bundled, "other", content(5, 1, "A wolf is sad."), seed=6),
            make_request(prompt, "held", template=(*[HOLE] * 9, *[5] * 23), max_steps=6),
        ]
        together = run_together(bundled, wanted)
        assert together == {request.request_id: run_alone(bundled, request) for request in wanted}


def test_the_readable_executor_reads_the_same_bits() -> None:
    halved = load(device="cpu", dtype="bfloat16")
    wanted = read(halved, seed=8)
    assert run_readable(halved, wanted) == run_alone(halved, wanted)


def test_all_canvases_stand_behind_one_prompt_and_leave_nothing_there(
    bundled: LoadedModel,
) -> None:
    made = BatchedExecutor(bundled.model, bundled.limits)
    request = read(bundled)
    made.open(request)
    chunks = -(-len(request.prompt_ids) // made.chunk_tokens)
    for canvas in range(4):
        pending = 0 if canvas else chunks
        (step,) = made.step([SequenceWork("job", pending, denoise=True)])
        assert isinstance(step, SequenceStep)
        made.commit("job", step.argmax)
        assert made._sequences["job"].cache.length == len(request.prompt_ids)
    assert made.footprint(request) == made.footprint(replace(request, max_tokens=32))


def test_reads_of_one_state_share_its_prefill_within_a_tenant(bundled: LoadedModel) -> None:
    shared = BatchedExecutor(bundled.model, bundled.limits)
    engine = Engine(bundled, max_sequences=1, executor=shared)
    state = "The fox and the owl are happy by the river. " * 12
    first, second = content(2, 1, state), content(3, 2, state)
    hits = []
    for name, given, tenant in (("a", first, "one"), ("b", second, "one"), ("c", first, "two")):
        engine.submit(read(bundled, name, given, tenant=tenant))
        alone = canvases(run_alone(bundled, read(bundled, name, given)))
        assert canvases(run(engine)[name]) == alone
        hits.append(shared.prefix_hits)
    assert hits[0] == 0
    assert hits[1] >= 1
    assert hits[2] == hits[1]


def test_reads_of_one_state_that_come_together_copy_what_the_first_have_prefilled(
    bundled: LoadedModel,
) -> None:
    shared = BatchedExecutor(bundled.model, bundled.limits)
    engine = Engine(bundled, max_sequences=1, executor=shared)
    state = "The fox and the owl are happy by the river. " * 12
    wanted = [
        read(bundled, f"read-{n}", content(1, 1, f"{state} {n} times"), tenant="one", seed=n)
        for n in range(8)
    ]
    for request in wanted:
        engine.submit(request)
    assert shared.prefix_hits == 0
    events = run(engine)
    for request in wanted:
        alone = canvases(run_alone(bundled, replace(request, tenant="")))
        assert canvases(events[request.request_id]) == alone
    shared_chunks = len(bundled.tokenizer.encode_content(state)) // bundled.limits.chunk_tokens
    first = limits.PREFILL_STEP_CHUNKS  # that prefill it in the same step
    assert shared.prefix_hits >= (8 - first) * shared_chunks > 0


def test_a_read_goes_on_behind_the_canvases_that_are_done(bundled: LoadedModel) -> None:
    whole = canvases(run_alone(bundled, read(bundled)))
    for done in range(1, 4):
        committed = tuple(event.token_ids for event in whole[:done])
        assert canvases(run_alone(bundled, read(bundled, committed=committed))) == whole[done:]


def test_a_read_pauses_before_its_canvas_limit(bundled: LoadedModel) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(read(bundled, canvas_limit=1))
    events = canvases(run(engine)["job"])
    assert len(events) == 1
    engine.allow("job", 4)
    events += canvases(run(engine)["job"])
    assert events == canvases(run_alone(bundled, read(bundled)))


def test_a_read_is_answered_in_the_next_step_beside_any_number_of_long_texts(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    long: dict[str, Any] = {"max_tokens": 320, "max_steps": 48, "confidence_threshold": 0.0}
    engine = Engine(bundled, max_sequences=2, max_queued=3)
    for number in range(2):
        engine.submit(make_request(prompt, f"runs-{number}", **long))
    engine.step()
    engine.submit(make_request((9,) * 700, "waits", **long))
    engine.submit(make_request(prompt, "waits-too", **long))
    wanted = read(bundled, "read", content(1, 1, "x"))
    chunks = -(-len(wanted.prompt_ids) // bundled.limits.chunk_tokens)
    engine.submit(wanted)
    for _ in range(chunks - 1):
        engine.step()
    (answer,) = [event for event in engine.step() if isinstance(event, CanvasEvent)]
    assert (answer.request_id, answer.finish) == ("read", CanvasFinish.END_OF_TEXT)
    assert (engine.sequences, engine.queued) == (2, 2)


@pytest.mark.parametrize(
    ("chunks", "share", "beside"), [(8, 8, True), (9, 8, False), (8, 7, False)]
)
def test_only_a_read_of_a_short_prompt_and_little_memory_runs_beside_the_texts(
    bundled: LoadedModel, prompt: Prompt, chunks: int, share: int, beside: bool
) -> None:
    wanted = make_request((9,) * 64 * chunks, "read", **slotted())
    footprint = BatchedExecutor(bundled.model, bundled.limits).footprint(wanted)
    engine = Engine(bundled, max_sequences=1, memory_bytes=share * footprint)
    engine.submit(make_request(prompt, "text"))
    engine.submit(wanted)
    assert (engine.sequences, engine.queued) == ((2, 0) if beside else (1, 1))


def slotted(position: int = 0, labels: tuple[Any, ...] = (8, 9)) -> dict[str, Any]:
    return {
        "template": (HOLE, *[9] * 31),
        "reads": ((ReadSlot(position, labels),),),
        "max_steps": 1,
        "max_tokens": 32,
    }


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("max_steps", {"max_steps": 2}),
        ("max_tokens", {"max_tokens": 33}),
        ("max_tokens", {"max_tokens": 32 * 8193}),
        ("reads", {"template": ()}),
        ("reads", {"template": (HOLE,) * 64, "max_tokens": 64}),
        ("reads", slotted(position=1)),
        ("reads", slotted(position=-1)),
        ("reads", slotted(position=32)),
        ("reads", slotted(labels=(8,))),
        ("reads", slotted(labels=(8, 8))),
        ("reads", slotted(labels=(8, 99_999))),
        ("reads", slotted(labels=(8, "9"))),
        ("reads", slotted(labels=tuple(range(256)))),
        ("reads", slotted(labels=(8, ["9"]))),
        ("reads", {"reads": ((0,),)}),
        ("committed", {"committed": ((9,) * 32,)}),
        ("committed", {"committed": ((8,) * 32,), "max_tokens": 64}),
    ],
)
def test_a_read_out_of_bounds_is_refused_by_name(
    bundled: LoadedModel, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Engine(bundled, max_sequences=1).submit(make_request((9,), **{**slotted(), **changes}))
    assert caught.value.field == field


def test_a_read_takes_the_context_of_its_prompt_and_one_canvas(bundled: LoadedModel) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request((9,) * 992, **{**slotted(), "max_tokens": 64}))
    with pytest.raises(ContextOverflowError):
        engine.submit(make_request((9,) * 993, "next", **slotted()))
