"""What is measured of a trained checkpoint, and the tables of its card."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from piecework_model.requests import CanvasEvent, CanvasFinish
from piecework_model.text.segments import SegmentStream
from piecework_model.training import evaluation, grammar, measures, skills, vocabulary, writer
from piecework_model.training.asking import DEMO, Asking, ModelAnswer, Schedule
from piecework_model.training.evaluation import Rows
from piecework_model.training.measures import Judged
from piecework_model.training.skills import Exercise
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent
from tests.unit.model.test_training import small_model


def test_text_counts_as_well_formed_by_whole_sentences() -> None:
    sentence = "Milo sat down and began to cry."
    assert measures.well_formed_share([f"{sentence} {sentence}"]) == 1
    assert measures.well_formed_share([sentence + "x" * len(sentence)]) == 0.5
    assert measures.well_formed_share(["Milo sat down and began began to cry."]) == 0
    assert measures.well_formed_share(["", ""]) == 0


def test_doubled_words_are_counted_whatever_their_case() -> None:
    assert measures.doubled_word_share(["The the fox ran ran."]) == 2 / 5
    assert measures.doubled_word_share(["the fox, the owl"]) == 0


def test_a_requested_noun_counts_as_a_whole_word() -> None:
    assert measures.followed("A Fox and a keyhole.", ["fox", "key"]) == [True, False]


@pytest.mark.parametrize("text", ["", "{", '{"a": ""}', '{"a": 1}', "[]", '{"a": "b"} c'])
def test_a_card_is_an_object_of_texts(text: str) -> None:
    assert measures.flat_object(text) is None
    assert measures.flat_object('{"a": "b"}') == {"a": "b"}


def test_an_answer_is_judged_by_its_likeliest_label() -> None:
    assert measures.judge((16384, 49152), 1) == Judged(0.75, right=True)
    assert measures.judge((16384, 49152), 0) == Judged(0.75, right=False)


def test_calibration_compares_confidence_with_the_share_that_is_right() -> None:
    answers = [Judged(0.6, right=True), Judged(0.6, right=False), Judged(1.0, right=True)]
    bins = measures.calibration(answers, (0.0, 0.5, 0.9, 1.0))
    assert [(b.least, b.count, b.right) for b in bins] == [(0.5, 2, 0.5), (0.9, 1, 1.0)]
    assert measures.expected_calibration_error(bins) == pytest.approx((2 * 0.1 + 0) / 3)
    assert measures.accuracy(answers) == pytest.approx(2 / 3)


def test_the_card_takes_the_tables_between_its_marks() -> None:
    card = f"a\n{evaluation.CARD_START}\nold\n{evaluation.CARD_END}\nb\n"
    filled = evaluation.put_into_card(card, "new")
    assert evaluation.put_into_card(filled, "new") == filled
    assert "old" not in filled
    assert filled.startswith("a\n")
    assert filled.endswith("\nb\n")
    with pytest.raises(ValueError, match="no <!--"):
        evaluation.put_into_card("no marks", "new")


class Oracle:
    """Answers with what training holds to be right. Implements `Asking`."""

    def __init__(self, asked: Sequence[Exercise]) -> None:
        self._asked = {_content(each).encode(): each for each in asked}

    def __call__(
        self,
        contents: Sequence[TextContent | ReadContent],
        schedule: Schedule = DEMO,
        first_seed: int = 0,
    ) -> list[ModelAnswer]:
        return [self._answer(content) for content in contents]

    def _answer(self, content: TextContent | ReadContent) -> ModelAnswer:
        asked = self._asked.get(content.encode())
        if asked is None:
            return ModelAnswer(
                grammar.tell(grammar.draw_cast(random.Random(3)), random.Random(3)).text
            )
        codec, ids = vocabulary.build_codec(), skills.sample(asked).target
        if asked.parts:
            ends = vocabulary.TURN_END
            return ModelAnswer(codec.decode(tuple(token for token in ids if token != ends)))
        end = next(index for index, token in enumerate(ids) if token in codec.eos_ids)
        answer = ModelAnswer()
        segments = SegmentStream(codec).append(ids[:end], final=True)
        answer.add(CanvasEvent("", 0, ids, ids[:end], segments, 9, (), CanvasFinish.END_OF_TEXT))
        return answer


def _content(asked: Exercise) -> TextContent:
    return TextContent(asked.conversation, skills.template(asked))


def perfect(rows: Rows) -> None:
    """Everything that is counted is counted in full."""
    shares = [value for _, value in rows if "%" in value]
    assert shares
    assert all("100.0%" in value for value in shares)


@pytest.mark.parametrize(
    ("section", "makers"),
    [
        (evaluation.thoughts, (skills.ask_thought,)),
        (evaluation.tools, (skills.ask_tool,)),
        (evaluation.fillings, (skills.ask_filling, skills.ask_middle)),
    ],
)
def test_right_answers_count_in_full(
    section: Callable[[Asking, random.Random, int], Rows],
    makers: Sequence[Callable[[random.Random], Exercise]],
) -> None:
    count, drawn = 40, random.Random("right")
    asked = [make(drawn) for make in makers for _ in range(count)]
    perfect(section(Oracle(asked), random.Random("right"), count))


def test_right_cards_count_in_full() -> None:
    drawn = random.Random("cards")
    asked = [skills.ask_card(drawn) for _ in range(400)]
    perfect(evaluation.cards(Oracle(asked), random.Random("cards"), 40))


def test_right_stories_count_in_full() -> None:
    drawn, asked = random.Random("stories"), list[Exercise]()
    while len(asked) < 20:
        example = grammar.example(drawn)
        if example.nouns:
            asked.append(Exercise(skills.user(example.prompt), example.tale.text))
    sizes = evaluation.Sizes(stories=20, foreign=4)
    rows, shown = evaluation.stories(
        Oracle(asked), random.Random("stories"), sizes, 48, itertools.count().__next__
    )
    found = dict(rows)
    assert found.pop("doubled words") == "0.00%"
    assert found.pop("canvases at the cap of 48 steps") == "0 of 20 (0.0%)"
    perfect(list(found.items()))
    assert [text for _, text in shown] == [each.answer for each in asked[:3]]


def test_right_answers_to_questions_count_in_full_and_in_the_highest_bin() -> None:
    drawn = random.Random("reads")
    known = {}
    for _ in range(10):
        content, answered = skills.draw_questions(drawn, 4)
        known[content.encode()] = [
            tuple(65536 * (index == each.right) for index in range(len(each.question.labels)))
            for each in answered
        ]

    def ask(
        contents: Sequence[TextContent | ReadContent],
        schedule: Schedule = DEMO,
        first_seed: int = 0,
    ) -> list[ModelAnswer]:
        return [ModelAnswer(shares=known[content.encode()]) for content in contents]

    rows, bins = evaluation.reads(ask, random.Random("reads"), 10)
    perfect(rows)
    assert [(b.least, b.count, b.right) for b in bins] == [(0.99, 40, 1.0)]


def test_a_checkpoint_without_training_fails_every_skill_and_says_so(tmp_path: Path) -> None:
    writer.write_checkpoint(small_model(), tmp_path)
    tables = evaluation.report(tmp_path, evaluation.Sizes.every(1))
    rows = dict(
        line.strip("| ").split(" | ", 1)
        for line in tables.splitlines()
        if line.count(" | ") == 1 and line != "| | |"
    )
    assert rows["tool calls exactly right"].startswith("0 of")
    assert rows["a thought before the story, in form"] == "0 of 1 (0.0%)"
    assert rows["stories with a filled hole: every sentence well-formed"] == "0 of 2 (0.0%)"
    assert float(rows["stories: characters in well-formed sentences"].rstrip("%")) < 5
    assert "| confidence | answers | mean confidence | right |" in tables
