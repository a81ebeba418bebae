"""What the bundled checkpoint can do, a few of each. The card has the figures of many."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.training import asking, evaluation, grammar, measures, skills
from piecework_model.training.asking import ModelAnswer
from piecework_model.training.skills import Exercise
from piecework_protocol.kinds.text import TextContent

pytestmark = pytest.mark.model
MOST_BYTES = 8_000_000


def answered(
    bundled: LoadedModel, draw: Callable[[random.Random], Exercise], count: int
) -> list[tuple[Exercise, ModelAnswer]]:
    """Ask what training does not see, and pair it with what came back."""
    rng = random.Random("bundled")
    asked = [draw(rng) for _ in range(count)]
    contents = [TextContent(each.conversation, skills.template(each)) for each in asked]
    return list(zip(asked, asking.ask(bundled, contents), strict=True))


def told(rng: random.Random) -> Exercise:
    """A request for a story with known nouns."""
    example = grammar.example(rng)
    while not example.nouns:
        example = grammar.example(rng)
    return Exercise(skills.user(example.prompt), example.tale.text)


def test_the_checkpoint_is_small() -> None:
    folder = bundled_checkpoint_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES


def test_stories_end_and_are_well_formed(bundled: LoadedModel) -> None:
    answers = [answer for _, answer in answered(bundled, told, 16)]
    assert all(answer.ended for answer in answers)
    texts = [answer.text for answer in answers]
    assert measures.well_formed_share(texts) > 0.95
    assert measures.doubled_word_share(texts) < 0.005


def test_a_thought_comes_before_its_story(bundled: LoadedModel) -> None:
    for _, answer in answered(bundled, skills.ask_thought, 4):
        assert answer.thoughts.strip()
        assert answer.text.strip()


def test_tools_are_called_and_their_results_told(bundled: LoadedModel) -> None:
    rows = evaluation.tools(partial(asking.ask, bundled), random.Random("bundled"), 12)
    assert sum(map(right_of, rows)) >= 11


def right_of(row: tuple[str, str]) -> int:
    """How many were right, of a row of the card such as ("tool calls", "3 of 4 (75.0%)")."""
    return int(row[1].partition(" of ")[0])


def test_cards_by_schema_say_what_the_prompt_decides(bundled: LoadedModel) -> None:
    fields, right = 0, 0
    for asked, answer in answered(bundled, by_schema, 8):
        value = measures.flat_object(answer.text)
        fields += len(asked.known)
        right += sum(value is not None and value[k] == v for k, v in asked.known.items())
    assert fields >= 8
    assert right >= 0.8 * fields


def by_schema(rng: random.Random) -> Exercise:
    """A card whose skeleton is pinned."""
    asked = skills.ask_card(rng)
    while not asked.parts:
        asked = skills.ask_card(rng)
    return asked


def test_questions_about_a_story_are_answered_rightly(bundled: LoadedModel) -> None:
    rows, _ = evaluation.reads(partial(asking.ask, bundled), random.Random("bundled"), 20)
    for name, value in rows[:2]:
        total = value.partition(" of ")[2].partition(" (")[0]
        assert right_of((name, value)) >= 0.95 * int(total), name
