"""The bundled model is trained on what the gateway asks, word for word and hole for hole."""

from __future__ import annotations

import json
import random
import re

import pytest

from piecework.client.gateway.documents import first_step
from piecework.client.gateway.formats.asks import Called, Filled, Structured
from piecework.client.gateway.formats.completions import parse_completion
from piecework.client.gateway.formats.schema import parse_schema
from piecework.client.gateway.formats.structured import Filling
from piecework_model.training import skills
from piecework_model.training.skills import Exercise
from piecework_protocol.conversation import Conversation, Message, Tool
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart


def shape(template: tuple[TemplatePart, ...]) -> list[str]:
    """The fixed texts of a template, with nothing where a hole is."""
    return [part.text if isinstance(part, Fixed) else "" for part in template]


def demanded(asked: Exercise) -> tuple[Message, dict[str, object]]:
    """What the system message of a sample says, and the schema in it."""
    said = asked.conversation.messages[0]
    return said, json.loads(said.text.partition("JSON schema: ")[2])


def samples(instruction: str, count: int) -> list[Exercise]:
    """Draw samples whose system message begins so."""
    rng, found = random.Random(2), list[Exercise]()
    while len(found) < count:
        for asked in (skills.ask_card(rng), skills.ask_tool(rng)):
            if asked.parts and asked.conversation.messages[0].text.startswith(instruction):
                found.append(asked)
    return found[:count]


@pytest.mark.parametrize("asked", samples("Answer with one JSON", 8))
def test_a_card_by_schema_is_asked_for_as_the_gateway_asks_for_a_document(asked: Exercise) -> None:
    said, raw = demanded(asked)
    schema = parse_schema(raw, "schema")
    talk = Conversation(asked.conversation.messages[1:])
    step = first_step(Structured(schema), talk)
    assert step.talk.messages[0] == said
    filling = Filling.of(schema, None)
    assert filling is not None
    assert shape(filling.template) == shape(skills.template(asked))


@pytest.mark.parametrize("asked", samples("Call the function", 8))
def test_arguments_of_a_demanded_call_are_asked_for_as_the_gateway_does(
    asked: Exercise,
) -> None:
    said, _ = demanded(asked)
    name = re.findall(r"Call the function (\w+)\.", said.text)[0]
    tool = next(tool for tool in asked.conversation.tools if tool.name == name)
    talk = Conversation(asked.conversation.messages[1:], asked.conversation.tools)
    step = first_step(_called((tool,)), talk)
    assert step.talk == asked.conversation
    assert step.schema is not None
    filling = Filling.of(step.schema, None)
    assert filling is not None
    assert shape(filling.template) == shape(skills.template(asked))


@pytest.mark.parametrize("asked", samples("Choose the function", 4))
def test_the_choice_of_a_demanded_call_is_asked_for_as_the_gateway_does(asked: Exercise) -> None:
    talk = Conversation(asked.conversation.messages[1:], asked.conversation.tools)
    step = first_step(_called(asked.conversation.tools), talk)
    assert step.talk == asked.conversation
    assert step.schema is not None
    filling = Filling.of(step.schema, None)
    assert filling is not None
    assert filling.template == skills.template(asked)


def _called(tools: tuple[Tool, ...]) -> Called:
    return Called(tools, {t.name: parse_schema(json.loads(t.parameters), t.name) for t in tools})


def test_what_is_missing_is_asked_for_as_the_gateway_asks_for_a_middle() -> None:
    rng = random.Random(3)
    for _ in range(8):
        asked = skills.ask_middle(rng)
        before, after = asked.around
        size = next(part.tokens for part in skills.template(asked) if isinstance(part, Hole))
        body = {"model": "m", "prompt": before, "suffix": after, "max_tokens": size}
        ask = parse_completion(body)
        assert ask.conversations == (asked.conversation,)
        assert isinstance(ask.plan, Filled)
        assert ask.plan.template == skills.template(asked)
