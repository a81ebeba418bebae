"""Audits with the engine: replay finds anything, and a forced pass has the worker's numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.audit_workers import ServedCanvas, cut_otherwise, serve
from piecework_model.audit.forced import CanvasFigures, ForcedPass
from piecework_model.audit.opening import OpenedStep, read_soft
from piecework_model.audit.openings import opened_steps
from piecework_model.audit.replay import Replayer, alone, first_difference
from piecework_model.audit.scores import (
    ENTROPIES,
    LOGIT_CAP,
    USUAL_GAPS,
    USUAL_SOFTS,
    scores,
)
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.errors import InvalidRequestError, NonFiniteError, OpeningError
from piecework_model.requests import HOLE, GenerationRequest, ReadSlot
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import Kind
from piecework_protocol.openings import (
    OpenedCanvas,
    StepOpening,
    read_openings,
    write_openings,
)
from piecework_protocol.trace import CanvasRecord
from tests.support.model.model_runs import make_request

Prompt = tuple[int, ...]
SIZE = 32


@pytest.fixture(scope="module")
def replayer(bundled: LoadedModel) -> Replayer:
    return Replayer(bundled)


@pytest.fixture(scope="module")
def forced(bundled: LoadedModel) -> ForcedPass:
    return ForcedPass(bundled)


@pytest.fixture(scope="module")
def requests(bundled: LoadedModel, prompt: Prompt) -> list[GenerationRequest]:
    """Free text, a template over two canvases, and a read with two draws."""
    end = min(bundled.eos_ids)
    form = (9, 10, *[HOLE] * 20, 11, *[HOLE] * 20, *[end] * 21)
    slots = (ReadSlot(3, (20, 21)), ReadSlot(6, (22, 23)))
    canvas = (9, 10, 11, HOLE, 12, 13, HOLE, *[end] * 25)
    return [
        make_request(prompt, "text", max_steps=6),
        make_request(prompt, "form", seed=5, max_tokens=64, max_steps=5, template=form),
        make_request(
            prompt,
            "read",
            seed=6,
            max_tokens=64,
            max_steps=1,
            stability_steps=0,
            template=canvas,
            reads=(slots,),
        ),
    ]


@pytest.fixture(scope="module")
def shown(bundled: LoadedModel, requests: list[GenerationRequest]) -> list[ServedCanvas]:
    """What a worker shows that ran all of them together, free text first."""
    made = serve(bundled, requests)
    return sorted(made, key=lambda canvas: canvas.request.request_id, reverse=True)


def test_every_canvas_of_a_batched_worker_replays_to_its_leaves(
    replayer: Replayer, shown: list[ServedCanvas]
) -> None:
    assert {canvas.request.request_id for canvas in shown} == {"text", "form", "read"}
    for canvas in shown:
        replayed = replayer.replay(canvas.request)
        assert replayed.leaves == canvas.leaves
        assert replayed.token_ids == canvas.token_ids
        assert replayed.finished


def test_a_cancelled_canvas_replays_to_the_leaves_that_it_has(
    replayer: Replayer, shown: list[ServedCanvas]
) -> None:
    canvas = shown[0]
    for steps in (1, len(canvas.records) - 1):
        replayed = replayer.replay(canvas.request, steps=steps)
        assert replayed.leaves == canvas.leaves[:steps]
        assert not replayed.finished


def test_a_replay_holds_the_memory_of_its_canvas_and_not_of_the_whole_job(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    limits = bundled.limits
    asked = make_request(prompt, "long", max_tokens=10 * SIZE)
    for canvas in (0, 3, 9):
        one = alone(replace(asked, committed=((7,) * SIZE,) * canvas), limits)
        assert limits.sequence_tokens(one) == len(prompt) + (canvas + 1) * SIZE
    form = make_request(prompt, "form", max_tokens=64, template=(HOLE,) * 64)
    assert limits.sequence_tokens(alone(form, limits)) == limits.sequence_tokens(form)


CHANGES = st.sampled_from(
    [
        {"seed": 2},
        {"temperature_start": 0.81},
        {"temperature_end": 0.39},
        {"entropy_bound": 0.2},
        {"max_steps": 4},
        {"committed": ((7,) * SIZE,)},
    ]
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(change=CHANGES, token=st.integers(6, 700), place=st.integers(0, 5))
def test_a_worker_that_ran_anything_else_is_found(
    replayer: Replayer,
    shown: list[ServedCanvas],
    change: dict[str, object],
    token: int,
    place: int,
) -> None:
    canvas = next(one for one in shown if one.request.request_id == "text")
    other = replace(canvas.request, **change)  # type: ignore[arg-type]
    assert first_difference(replayer.replay(other).leaves, canvas.leaves) is not None
    prompt = list(canvas.request.prompt_ids)
    if prompt[place] != token:
        prompt[place] = token
        asked = replace(canvas.request, prompt_ids=tuple(prompt))
        assert first_difference(replayer.replay(asked).leaves, canvas.leaves) == 0


def test_another_precision_or_other_weights_are_found(shown: list[ServedCanvas]) -> None:
    for loaded in (
        load(device="cpu", dtype="bfloat16"),
        load(device="cpu", dtype="float32", quantization="fp8"),
    ):
        replayed = Replayer(loaded).replay(shown[0].request)
        assert first_difference(replayed.leaves, shown[0].leaves) == 0


def test_there_is_no_canvas_behind_the_last(replayer: Replayer, prompt: Prompt) -> None:
    request = make_request(prompt, max_tokens=32, committed=((7,) * SIZE,))
    with pytest.raises(InvalidRequestError, match="committed"):
        replayer.replay(request)
    with pytest.raises(ValueError, match="0 steps"):
        replayer.replay(make_request(prompt), steps=0)


def test_the_first_difference_is_a_step_or_the_length() -> None:
    assert first_difference([b"a", b"b"], [b"a", b"b"]) is None
    assert first_difference([b"a", b"b"], [b"a", b"c"]) == 1
    assert first_difference([b"a"], [b"a", b"b"]) == 1


# Forced


def figures(forced: ForcedPass, loaded: LoadedModel, canvas: ServedCanvas) -> CanvasFigures:
    return forced.figures(canvas.request, canvas.opened(loaded.limits))


def test_a_forced_pass_of_the_worker_s_own_arithmetic_finds_its_numbers(
    bundled: LoadedModel, forced: ForcedPass, shown: list[ServedCanvas]
) -> None:
    for canvas in shown:
        seen = figures(forced, bundled, canvas)
        assert seen.steps == len(canvas.records)
        # What is left is the rounding of float16: the gap goes up to 60.
        assert np.abs(seen.gap).max() < 0.04
        assert np.abs(seen.entropy).max() < 0.005
        assert np.nanmax(seen.distance, initial=0) < 1e-4
        assert seen.deficit[seen.free].max(initial=0) < 1e-3
        assert np.nanmax(seen.soft) < 1e-4


def test_every_step_has_the_numbers_that_it_has_alone(
    bundled: LoadedModel, forced: ForcedPass, shown: list[ServedCanvas]
) -> None:
    canvas = shown[0]
    opened = canvas.opened(bundled.limits)
    whole = forced.figures(canvas.request, opened)
    for step in range(1, len(opened)):
        pair = [opened[step - 1], opened[step]]
        alone = forced.figures(canvas.request, pair)
        last = alone.steps - 1
        np.testing.assert_allclose(alone.gap[last], whole.gap[step], atol=2e-3)
        np.testing.assert_allclose(alone.soft[last], whole.soft[step], atol=2e-4)


def test_prompts_that_are_cut_at_other_places_are_near(
    bundled: LoadedModel, forced: ForcedPass, prompt: Prompt
) -> None:
    request = make_request((*prompt, *prompt, *prompt), max_tokens=32, max_steps=4)
    (canvas,) = serve(cut_otherwise(bundled), [request])
    assert scores(figures(forced, bundled, canvas)).logits < 0.5, "1 is usual for a precision"


def test_a_prompt_and_canvases_of_several_chunks_are_near_in_one(
    bundled: LoadedModel, forced: ForcedPass, prompt: Prompt
) -> None:
    """An auditor in float32 prefills them together. A worker cut them."""
    repeated = prompt * (2 * bundled.limits.chunk_tokens // len(prompt) + 1)
    shown = serve(bundled, [make_request(repeated, "long", max_tokens=3 * SIZE, max_steps=4)])
    assert len(shown[-1].request.committed) == len(shown) - 1 > 0
    for canvas in shown:
        seen = figures(forced, bundled, canvas)
        assert np.abs(seen.gap).max() < 0.04
        assert np.nanmax(seen.soft) < 1e-4


def test_other_weights_are_far(
    bundled: LoadedModel, forced: ForcedPass, requests: list[GenerationRequest]
) -> None:
    honest = serve(load(device="cpu", dtype="bfloat16"), requests[:1])
    cheat = serve(load(device="cpu", dtype="bfloat16", quantization="int4"), requests[:1])
    near = max(scores(figures(forced, bundled, canvas)).logits for canvas in honest)
    far = min(scores(figures(forced, bundled, canvas)).logits for canvas in cheat)
    assert far > 1.3 * near
    assert far <= LOGIT_CAP


def test_sure_and_unsure_positions_count_alike_and_few_steps_less(
    bundled: LoadedModel, forced: ForcedPass, shown: list[ServedCanvas]
) -> None:
    """What is usual at each entropy gives 1 for any mixture of positions."""
    seen = figures(forced, bundled, shown[0])
    steps = len(seen.gap)
    for level in (0.001, 0.55, 3.4):
        entropies = np.full_like(seen.level, level)
        gap = np.interp(level, ENTROPIES, USUAL_GAPS) / seen.temperature[:, None]
        soft = np.full_like(seen.soft, np.interp(level, ENTROPIES, USUAL_SOFTS))
        usual = replace(seen, level=entropies, gap=np.broadcast_to(gap, seen.gap.shape), soft=soft)
        assert scores(usual).logits == pytest.approx(1.0, rel=1e-4)
        assert scores(usual).soft == pytest.approx(1.0, rel=1e-4)
        twice = replace(usual, gap=2 * usual.gap, soft=2 * usual.soft)
        assert 1 < scores(twice).logits < 2
        assert scores(twice).soft == pytest.approx(2.0, rel=1e-4)
        longer = replace(
            twice,
            **{
                field.name: np.concatenate([getattr(twice, field.name)] * 12)
                for field in fields(twice)
            },
        )
        assert longer.steps == 12 * steps
        assert scores(longer).logits == pytest.approx(2.0, rel=1e-4)


def test_an_edited_token_has_a_deficit(
    bundled: LoadedModel, forced: ForcedPass, shown: list[ServedCanvas]
) -> None:
    canvas = shown[0]
    last = canvas.records[-1]
    argmax = np.frombuffer(last.argmax, "<u4").copy()
    argmax[3] = (argmax[3] + 77) % 1000
    edited = replace(canvas, records=(*canvas.records[:-1], replace(last, argmax=argmax.tobytes())))
    found, honest = (scores(figures(forced, bundled, one)) for one in (edited, canvas))
    assert found.argmax is not None and honest.argmax is not None
    assert found.argmax > 1 > honest.argmax


def test_a_soft_embedding_that_is_not_the_model_s_is_far(
    bundled: LoadedModel, forced: ForcedPass, shown: list[ServedCanvas]
) -> None:
    canvas = shown[0]
    opened = canvas.opened(bundled.limits)
    soft = opened[1].soft
    assert soft is not None
    opened[1] = replace(opened[1], soft=soft + 0.1 * torch.ones_like(soft))
    found = scores(forced.figures(canvas.request, opened)).soft
    honest = scores(figures(forced, bundled, canvas)).soft
    assert found is not None and honest is not None and found > 10 * honest + 0.01


def test_an_auditor_that_rounds_as_the_worker_did_is_nearer_than_another(
    forced: ForcedPass, bundled: LoadedModel, requests: list[GenerationRequest]
) -> None:
    loaded = load(device="cpu", dtype="bfloat16")
    alike = ForcedPass(loaded)
    for canvas in serve(loaded, requests[:1]):
        near, far = figures(alike, loaded, canvas), figures(forced, bundled, canvas)
        assert np.abs(near.gap).mean() < 0.8 * np.abs(far.gap).mean()
        assert np.nanmean(near.soft) < 0.8 * np.nanmean(far.soft)
        assert np.nanmax(near.distance, initial=0) < 0.05


def test_a_logit_that_is_infinite_gives_no_numbers(shown: list[ServedCanvas]) -> None:
    """The cap on logits would hide it."""
    canvas, loaded = shown[0], load(device="cpu", dtype="float32")
    opened = canvas.opened(loaded.limits)
    known = set(canvas.request.prompt_ids).union(*(step.before.tolist() for step in opened))
    unused = max(set(range(loaded.limits.vocab_size)) - known)
    weight = loaded.model.lm_head.weight
    with torch.no_grad():
        weight[unused] = 0
        weight[unused, 0] = torch.finfo(torch.float32).max
    with pytest.raises(NonFiniteError):
        ForcedPass(loaded).figures(canvas.request, opened)


# Openings


def width_of(loaded: LoadedModel) -> int:
    """Elements of an embedding."""
    width: int = loaded.model.config.text_config.hidden_size
    return width


def openings_of(canvas: ServedCanvas) -> list[StepOpening]:
    return [
        StepOpening(record.fields(), soft.view(torch.uint8).numpy().tobytes())
        for record, soft in zip(canvas.records, canvas.softs, strict=True)
    ]


def test_an_openings_file_comes_back_as_it_was_written(
    bundled: LoadedModel, shown: list[ServedCanvas]
) -> None:
    canvas, width = shown[0], width_of(bundled)
    made = openings_of(canvas)
    record = CanvasRecord(0, SIZE, 7, Kind.TEXT, 1, *(bytes(32),) * 3, 5)
    again = read_openings(write_openings(record, made))
    assert again == OpenedCanvas(record, tuple(made))
    leaves = (bytes(32), *canvas.leaves)
    opened = opened_steps(again.steps, leaves, bundled.limits, width)
    assert len(opened) == len(canvas.records)
    assert torch.equal(opened[0].soft, canvas.softs[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("field", range(1, 7))
def test_a_step_that_was_not_committed_is_refused(
    bundled: LoadedModel, shown: list[ServedCanvas], field: int
) -> None:
    canvas = shown[0]
    first, *rest = openings_of(canvas)
    fields = list(first.fields)
    changed = bytearray(fields[field])
    changed[-1] ^= 1
    fields[field] = bytes(changed)
    with pytest.raises(OpeningError):
        opened_steps(
            [StepOpening(tuple(fields), first.soft), *rest],
            (bytes(32), *canvas.leaves),
            bundled.limits,
            width_of(bundled),
        )


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"format": "piecework-openings/1", "steps": [{}]}']
)
def test_another_file_is_no_openings_file(data: bytes) -> None:
    with pytest.raises(MalformedInput, match="openings file"):
        read_openings(data)


def test_a_soft_embedding_is_held_to_its_field(
    bundled: LoadedModel, shown: list[ServedCanvas]
) -> None:
    opening, width = openings_of(shown[0])[0], width_of(bundled)
    assert opening.soft is not None
    field = opening.fields[5]
    assert read_soft(field, opening.soft, positions=SIZE, width=width).shape == (SIZE, width)
    for rows in (opening.soft[:-4], opening.soft[:-1] + b"\x01"):
        with pytest.raises(OpeningError):
            read_soft(field, rows, positions=SIZE, width=width)


def test_an_opening_of_another_model_is_refused(
    bundled: LoadedModel, forced: ForcedPass, shown: list[ServedCanvas]
) -> None:
    canvas = shown[0]
    record = canvas.records[0]
    beyond = np.full(SIZE, bundled.limits.vocab_size, "<u4").tobytes()
    with pytest.raises(OpeningError, match="vocabulary"):
        OpenedStep.of(dataclasses.replace(record, after=beyond), None, bundled.limits)
    nan = np.full(3 * SIZE, np.nan, "<f2").tobytes()
    with pytest.raises(OpeningError, match="finite"):
        OpenedStep.of(dataclasses.replace(record, fingerprint=nan), None, bundled.limits)
    alone = OpenedStep.of(canvas.records[1], None, bundled.limits)
    with pytest.raises(OpeningError, match="before it"):
        forced.figures(canvas.request, [alone])
    other = replace(canvas.request, committed=((7,) * SIZE,))
    with pytest.raises(OpeningError, match="not one of this"):
        forced.figures(other, canvas.opened(bundled.limits))
