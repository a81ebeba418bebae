"""No rule is broken by an honest engine, whatever it is asked and wherever it is stopped."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piecework_model import kinds
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.requests import EncodedContent
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.read import Label, Question, ReadContent
from piecework_protocol.objects import Finish, Kind, Parameters, Service
from piecework_protocol.outlines import Outline
from piecework_protocol.rules import check
from piecework_protocol.trace import StepField
from piecework_protocol.types import Micros, Uint32, Uint64
from tests.support.model.model_strategies import CANVAS, templates, words
from tests.support.model.traced_jobs import TracedJob, honest_cases

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASKED = Conversation((Message("user", "A fox slept by the river."),))
prompts = st.lists(words, min_size=1, max_size=60).map(tuple)
stops = st.none() | st.integers(0, 12)


@st.composite
def parameters(draw: st.DrawFn, *, max_tokens: int, reads: bool = False) -> Parameters:
    """Anything that admission lets in."""
    start = draw(st.integers(500_000, 2_000_000))
    return Parameters(
        seed=Uint64(draw(st.integers(0, 2**64 - 1))),
        max_tokens=Uint32(max_tokens),
        max_steps=Uint32(1 if reads else draw(st.integers(1, 7))),
        temperature_start=Micros(start),
        temperature_end=Micros(draw(st.integers(100_000, 500_000))),
        entropy_bound=Micros(draw(st.integers(0, 20_000_000) | st.sampled_from([0, 100_000]))),
        confidence_threshold=Micros(draw(st.integers(0, 5_000_000) | st.just(5_000))),
        stability_steps=Uint32(0 if reads else draw(st.integers(0, 3))),
        service=Service.REPLAYABLE,
    )


@st.composite
def texts(draw: st.DrawFn) -> TracedJob:
    content = EncodedContent(draw(prompts))
    asked = draw(parameters(max_tokens=draw(st.integers(1, 70))))
    return TracedJob(asked, content, Kind.TEXT, Outline(1000), draw(stops))


@st.composite
def forms(draw: st.DrawFn) -> TracedJob:
    content = EncodedContent(draw(prompts), draw(templates()))
    asked = draw(parameters(max_tokens=len(content.template)))
    return TracedJob(asked, content, Kind.TEXT, Outline(1000, templated=True), draw(stops))


@st.composite
def reads(draw: st.DrawFn) -> tuple[ReadContent, Parameters, int | None]:
    labels = st.lists(
        st.sampled_from(["yes", "no", "maybe", "never"]), min_size=2, max_size=4, unique=True
    )
    asked = tuple(
        Question("Is it so?", tuple(map(Label, draw(labels))))
        for _ in range(draw(st.integers(1, 3)))
    )
    content = ReadContent(ASKED, asked, draws=draw(st.integers(1, 2)))
    positions = content.canvases(CANVAS) * CANVAS
    return content, draw(parameters(max_tokens=positions, reads=True)), draw(stops)


def check_honest(loaded: LoadedModel, asked: TracedJob) -> None:
    cases = honest_cases(loaded, asked)
    for case in cases:
        assert check(case) == ()
        if case.record is not None and not case.pins:
            assert check(replace(case, pins=None, vocabulary=None, outline=None)) == ()
    if asked.stop_after is None:
        assert cases[-1].receipt.finish in (Finish.END_OF_TEXT, Finish.TOKEN_LIMIT)


@few
@given(asked=texts())
def test_an_honest_text_breaks_no_rule(bundled: LoadedModel, asked: TracedJob) -> None:
    check_honest(bundled, asked)


@few
@given(asked=forms())
def test_an_honest_template_breaks_no_rule(bundled: LoadedModel, asked: TracedJob) -> None:
    check_honest(bundled, asked)


@few
@given(asked=reads())
def test_an_honest_read_breaks_no_rule(
    bundled: LoadedModel, asked: tuple[ReadContent, Parameters, int | None]
) -> None:
    content, chosen, stop_after = asked
    encoded = kinds.encode(bundled, content, CANVAS, bundled.limits.max_context)
    check_honest(bundled, TracedJob(chosen, encoded, Kind.READ, content.outline, stop_after))


@few
@given(asked=texts(), data=st.data())
def test_no_rule_is_broken_by_a_part_of_an_honest_trace(
    bundled: LoadedModel, asked: TracedJob, data: st.DataObject
) -> None:
    """A challenge opens a few fields. What is closed is no evidence of anything."""
    for case in honest_cases(bundled, asked):
        steps = {
            index: {name: fields[name] for name in data.draw(st.sets(st.sampled_from(StepField)))}
            for index, fields in case.steps.items()
            if data.draw(st.booleans())
        }
        assert check(replace(case, steps=steps)) == ()
