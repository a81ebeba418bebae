"""The answers of a read: means over draws, their standard errors, and what a request costs."""

from __future__ import annotations

import pytest

from piecework.client.jobs.reads import decide
from piecework.client.jobs.requests import ReadRequest, TextRequest, conversation_of, job_parameters
from piecework_protocol.conversation import Conversation, Message, Tool
from piecework_protocol.kinds.read import ONE, Label, Question
from piecework_protocol.kinds.text import Fixed, Hole
from piecework_protocol.objects import Kind
from piecework_protocol.pricing import Usage, price
from piecework_protocol.types import Uint32
from tests.support.market.offers import model, offer
from tests.unit.client.test_selection import choose

QUESTION = Question("Is it sad?", (Label("yes"), Label("no")))
BOTH = Uint32(Kind.TEXT.bit | Kind.READ.bit)


def request(draws: int = 2, questions: int = 3) -> ReadRequest:
    return ReadRequest(conversation_of("a story"), (QUESTION,) * questions, draws)


def test_a_decision_is_the_mean_of_its_draws_with_its_standard_error() -> None:
    decision = decide(QUESTION, [(ONE, 0), (ONE // 2, ONE // 2)])
    assert decision.probabilities == (0.75, 0.25) and decision.label == "yes"
    assert decision.errors == pytest.approx((0.25, 0.25))
    assert decision.probability("no") == 0.25
    with pytest.raises(KeyError):
        decision.probability("maybe")


def test_one_draw_has_no_standard_error() -> None:
    assert decide(QUESTION, [(ONE // 4, ONE - ONE // 4)]).errors is None


def test_a_read_goes_to_those_who_take_reads_and_costs_its_steps_and_prompt() -> None:
    reader = model(kinds=BOTH, canvas_size=Uint32(32))
    ranking = choose(offer("text"), offer("reads", models=(reader,)), request=request())
    (choice,) = ranking.choices
    assert choice.model == reader
    asked = job_parameters(reader, choice.generation, 7)
    # Two of three questions stand on a canvas of 32, so a draw takes two canvases.
    assert (asked.max_tokens, asked.max_steps, asked.stability_steps) == (4 * 32, 1, 0)
    assert choice.usage.output_tokens == 0 and choice.usage.denoising_steps == 4
    most = request().content.outline.prompt_tokens
    assert choice.ceiling == price(reader, Usage(most, 0, 4))


def test_nobody_takes_a_read_where_nobody_offers_it() -> None:
    ranking = choose(offer(), request=request())
    assert ranking.mistake is not None
    assert (ranking.mistake.code, ranking.mistake.param) == ("kind_not_offered", "model")


def test_a_template_gets_as_many_tokens_as_it_can_need() -> None:
    asked = TextRequest.of("a card", template=(Fixed('{"hero": "'), Hole(8), Fixed('"}')))
    generation = asked.resolved(model())
    assert generation.max_tokens == 8 + 10 + 2
    assert asked.output_tokens(generation) == 8 + 3 + 1
    assert not asked.may_be_shortened
    (choice,) = choose(offer(), request=asked).choices
    assert choice.expected <= choice.ceiling


def test_a_prompt_may_be_a_text_messages_or_a_conversation() -> None:
    said = Message("user", "hi")
    tool = Tool("clock", "", "{}")
    whole = Conversation((said,), (tool,), thinking=True)
    assert conversation_of("hi") == conversation_of([said]) == Conversation((said,))
    assert conversation_of(whole) == whole
    assert conversation_of("hi", tools=[tool], thinking=True) == whole
    assert conversation_of("hi", system="Be brief.").messages[0].role == "system"
