"""One training sample of every skill, made through the functions that serve: the same prompts, the
same templates, the same canvases of questions.

A sample is a prompt and what the model should write, position by position. Positions that the
product pins are pinned here too, and are not learnt.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

from piecework_model import kinds
from piecework_model.requests import HOLE
from piecework_model.text.chat import encode_prompt
from piecework_model.training import grammar, lexicon, phrases, vocabulary
from piecework_protocol.conversation import Conversation, Message, Tool, ToolCall
from piecework_protocol.kinds.read import Label, Question, ReadContent
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart, TextContent

CANVAS: Final = 32  # tokens
MOST_PROMPT: Final = 1024  # tokens
FILL_WEIGHT: Final = 0.2  # of the end marks that fill a hole or the last canvas up
ANSWER_WEIGHT: Final = 1.0
_CHOICES_SHARE: Final = 0.25  # of questions: choices are learnt long before yes and no

Ids = tuple[int, ...]
Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A prompt and whole canvases of what is to be written behind it.

    target: K * C ids. pinned: which of them are given from the first step on.
    weights: of the loss, one a position.
    reads: whether every canvas stands right behind the prompt and answers in one step.
    """

    prompt: Ids
    target: Ids
    pinned: tuple[bool, ...]
    weights: tuple[float, ...]
    reads: bool = False

    @property
    def canvases(self) -> int:
        """The number of canvases, K."""
        return len(self.target) // CANVAS


@dataclass(frozen=True, slots=True)
class Exercise:
    """What is asked of the model, and what it should answer, as text.

    parts: of the answer: a text is pinned, (text, size) is to be written into a hole of `size`
        tokens. Empty: the answer is written freely.
    end: the token that ends a free answer.
    known: of a card, the fields that the prompt decides. call: the tool call that is right.
    around: of a hole, all text before and behind it.
    """

    conversation: Conversation
    answer: str
    parts: tuple[str | tuple[str, int], ...] = ()
    end: int = vocabulary.TURN_END
    known: Mapping[str, str] = field(default_factory=dict)
    call: ToolCall | None = None
    around: tuple[str, str] = ("", "")


def prompt_ids(conversation: Conversation) -> Ids:
    """Encode a conversation as the engine does."""
    return encode_prompt(vocabulary.build_codec(), conversation)


def text_ids(text: str) -> Ids:
    """Encode text that the model writes, control tokens included."""
    return vocabulary.build_codec().encode_template(text)


def user(text: str) -> Conversation:
    """Return a conversation of one message."""
    return Conversation((Message("user", text),))


# Free writing and templates


def sample(asked: Exercise) -> TrainingSample:
    """Lay out what is asked and its answer."""
    if asked.parts:
        return _templated(asked)
    ids = (*text_ids(asked.answer), asked.end)
    fill = -len(ids) % CANVAS
    return TrainingSample(
        prompt_ids(asked.conversation),
        (*ids, *[vocabulary.TURN_END] * fill),
        (False,) * (len(ids) + fill),
        (*[1.0] * len(ids), *[FILL_WEIGHT] * fill),
    )


def template(asked: Exercise) -> tuple[TemplatePart, ...]:
    """Return the parts as the protocol's template."""
    return tuple(Fixed(part) if isinstance(part, str) else Hole(part[1]) for part in asked.parts)


def _templated(asked: Exercise) -> TrainingSample:
    content = TextContent(asked.conversation, template(asked))
    encoded = kinds.encode(vocabulary.build_codec(), content, CANVAS, MOST_PROMPT)
    written: list[int] = []
    weights: list[float] = []
    for part in asked.parts:
        if not isinstance(part, str):
            ids, fill = text_ids(part[0]), part[1] - len(text_ids(part[0]))
            written += [*ids, *[vocabulary.TURN_END] * fill]
            # The first end mark is as much a decision as a word is.
            weights += [*[1.0] * len(ids), *[1.0] * min(1, fill), *[FILL_WEIGHT] * (fill - 1)]
    rest, costs = iter(written), iter(weights)
    entries = encoded.template
    return TrainingSample(
        encoded.prompt_ids,
        tuple(next(rest) if entry == HOLE else entry for entry in entries),
        tuple(entry != HOLE for entry in entries),
        tuple(next(costs) if entry == HOLE else 0.0 for entry in entries),
    )


def ask_story(rng: random.Random) -> Exercise:
    """A request for a story, and the story."""
    example = grammar.example(rng)
    return Exercise(user(example.prompt), example.tale.text)


def ask_thought(rng: random.Random) -> Exercise:
    """A request for a story, with a short thought before the story."""
    cast = grammar.draw_cast(rng)
    tale = grammar.tell(cast, rng, brief=True)
    thought = grammar.fill(rng.choice(phrases.THOUGHTS), with_articles(tale.facts))
    messages = (Message("user", grammar.request(cast.nouns, rng)),)
    return Exercise(
        Conversation(messages, thinking=True),
        f"<|channel>thought\n{thought}\n<channel|>{tale.text}",
    )


def _with_hole(rng: random.Random) -> tuple[str, str, str]:
    """Draw a story and cut a sentence or a few words out of it: what is before, the hole, what is
    behind. Together they are the story.
    """
    tale = grammar.tell(grammar.draw_cast(rng), rng, brief=rng.random() < 0.5)
    if rng.random() < 0.6:
        at = rng.randrange(len(tale.sentences))
        pieces = [list(tale.sentences[:at]), [tale.sentences[at]], list(tale.sentences[at + 1 :])]
    else:
        words = tale.text.split(" ")
        count = rng.randint(1, 5)
        at = rng.randrange(len(words) - count)
        pieces = [words[:at], words[at : at + count], words[at + count :]]
    before, hole, after = (" ".join(piece) for piece in pieces)
    if before:
        # A caller may end what goes before with the space or leave it to the hole.
        before, hole = (f"{before} ", hole) if rng.random() < 0.3 else (before, f" {hole}")
    return before, hole, f" {after}" if after else ""


def ask_filling(rng: random.Random) -> Exercise:
    """A story with one to three holes, all of it in the template. The prompt asks to fill it in, or
    for the story.
    """
    cast = grammar.draw_cast(rng)
    tale = grammar.tell(cast, rng, brief=rng.random() < 0.5)
    words = tale.text.split(" ")
    ends = list(itertools.accumulate(sentence.count(" ") + 1 for sentence in tale.sentences))
    cuts = [0, *ends] if rng.random() < 0.5 else list(range(len(words) + 1))
    bounds = sorted(rng.sample(cuts, 2 * rng.choice((1, 1, 2, 3))))
    parts: list[str | tuple[str, int]] = []
    for at, (start, end) in enumerate(itertools.pairwise((0, *bounds, len(words)))):
        text = (" " if start else "") + " ".join(words[start:end])
        if at % 2 == 0 and start < end:
            parts.append(text)
        elif at % 2 == 1:
            if start and parts and rng.random() < 0.3:
                # A caller may end what goes before with the space or leave it to the hole.
                parts[-1], text = f"{parts[-1]} ", text.lstrip()
            parts.append((text, len(text_ids(text)) + rng.choice((0, 0, 1, 2, 3, 5, 8))))
    question = rng.choice(phrases.FILLINGS)
    if rng.random() < 0.5:
        question = grammar.request(cast.nouns, rng)
    return Exercise(user(question), tale.text, tuple(parts))


def ask_middle(rng: random.Random) -> Exercise:
    """A story with a hole, as the gateway asks for what is missing: all of it in the prompt, and
    what is next to the hole in the template.
    """
    before, hole, after = _with_hole(rng)
    while not (before and after):
        before, hole, after = _with_hole(rng)
    least = len(text_ids(hole))
    size = max(least, rng.choice((least, least + 4, 16, 32, 64, 128)))
    most = phrases.MIDDLE_FIXED_CHARACTERS
    text = phrases.MIDDLE_REQUEST.format(before=before, after=after)
    begin, end = before[-most:], after[:most]
    return Exercise(
        user(text), begin + hole + end, (begin, (hole, size), end), around=(before, after)
    )


def ask_card(rng: random.Random) -> Exercise:
    """A story card as JSON, of a request or of a story in the prompt, free or by a schema."""
    cast = grammar.draw_cast(rng, phrases.CARD_REQUESTED)
    tale = grammar.tell(cast, rng, brief=True)
    known = set(phrases.CARD_FIELDS)
    if rng.random() < 0.5:
        known = set(cast.asked)
        nouns = tuple(rng.sample(cast.nouns, len(cast.nouns)))
        text = rng.choice(phrases.CARD_REQUESTS).format(grammar.listing(nouns, rng))
    else:
        text = rng.choice(phrases.CARD_READINGS).format(tale.text)
    values = {key: tale.facts[key] for key in phrases.CARD_FIELDS}
    if rng.random() < 0.3:
        return Exercise(user(text), json.dumps(values))
    keys = rng.sample(phrases.CARD_FIELDS, rng.randint(1, 5))
    if rng.random() < 0.5:
        keys.sort(key=phrases.CARD_FIELDS.index)
    return _card_by_schema(text, {key: values[key] for key in keys}, known, rng)


def _card_by_schema(
    text: str, values: Mapping[str, str], known: Set[str], rng: random.Random
) -> Exercise:
    """Ask for a card whose skeleton is pinned and whose values are holes."""
    messages: tuple[Message, ...] = (Message("user", text),)
    if rng.random() < 0.75:
        schema = schema_text(list(values), rng)
        messages = (_system(phrases.SCHEMA_INSTRUCTION.format(schema=schema)), *messages)
    return Exercise(
        Conversation(messages),
        json.dumps(dict(values)),
        form(values, rng),
        known={key: value for key, value in values.items() if key in known},
    )


def form(
    values: Mapping[str, str], rng: random.Random, size: int = 0
) -> tuple[str | tuple[str, int], ...]:
    """Return a flat JSON object as a template: the values are holes of one size, or of any."""
    least = max(len(text_ids(value)) for value in values.values())
    size = max(least, size or rng.choice((least, least + 1, least + 2, 4, 8, 16, 32, 48, 48)))
    parts: list[str | tuple[str, int]] = []
    lead = "{"
    for key, value in values.items():
        parts.append(f'{lead}"{key}": "')
        parts.append((value, size))
        lead = '", '
    return (*parts, '"}')


def schema_text(keys: Sequence[str], rng: random.Random) -> str:
    """Write a JSON schema of an object with these text properties, as people or libraries do."""
    if rng.random() < 0.5:
        properties = {key: {"type": "string"} for key in keys}
        schema = {"type": "object", "properties": properties, "required": list(keys)}
        return json.dumps(schema | ({"additionalProperties": False} if rng.random() < 0.5 else {}))
    titled = {key: {"title": key.capitalize(), "type": "string"} for key in keys}
    schema = {"properties": titled, "required": list(keys), "title": "Card", "type": "object"}
    return json.dumps(schema)


# Tools


def tools() -> tuple[Tool, ...]:
    """All tools that the model knows."""
    return tuple(
        Tool(
            name,
            description,
            json.dumps(
                {
                    "type": "object",
                    "properties": {
                        key: {"type": "string", "description": meaning}
                        for key, meaning in parameters
                    },
                    "required": [key for key, _ in parameters],
                }
            ),
        )
        for name, description, parameters, *_ in phrases.TOOLS
    )


def ask_tool(rng: random.Random) -> Exercise:
    """A request that one of the given tools answers: the call, or what is said to its result."""
    number = rng.randrange(len(phrases.TOOLS))
    name, _, parameters, requests, result, answer = phrases.TOOLS[number]
    known = tools()
    others = [tool for tool in known if tool.name != name]
    given = [known[number], *rng.sample(others, rng.choice((0, 1, 1, 2)))]
    rng.shuffle(given)
    facts = grammar.tell(grammar.draw_cast(rng), rng, brief=True).facts
    values = {key: facts["hero" if key == "to" else key] for key, _ in parameters}
    question = Message("user", grammar.fill(rng.choice(requests), facts))
    called = ToolCall("call-0", name, json.dumps(values))
    style = rng.random()
    if style < 0.2:
        return _demanded(question, called, tuple(given), rng)
    if style < 0.72:
        written = ",".join(f'{key}:<|"|>{value}<|"|>' for key, value in sorted(values.items()))
        call = f"<|tool_call>call:{name}{{{written}}}<tool_call|>"
        return Exercise(
            Conversation((question,), tuple(given)),
            call,
            end=vocabulary.TOOL_RESPONSE,
            call=called,
        )
    told = Message("tool", grammar.fill(result, facts), tool_call_id="call-0", name=name)
    messages = (question, Message("assistant", tool_calls=(called,)), told)
    return Exercise(Conversation(messages, tuple(given)), grammar.fill(answer, facts))


def _demanded(
    question: Message, called: ToolCall, given: tuple[Tool, ...], rng: random.Random
) -> Exercise:
    """A call that the caller demands, as the gateway asks for it: which tool, or its arguments."""
    if len(given) > 1 and rng.random() < 0.4:
        names = [tool.name for tool in given]
        schema = {"type": "object", "properties": {"name": {"enum": names}}, "required": ["name"]}
        instruction = phrases.CHOICE_INSTRUCTION.format(schema=json.dumps(schema))
        values = {"name": called.name}
        size = max(map(len, names))
    else:
        (tool,) = (tool for tool in given if tool.name == called.name)
        instruction = phrases.CALL_INSTRUCTION.format(name=tool.name, schema=tool.parameters)
        values, size = json.loads(called.arguments), 0
    conversation = Conversation((_system(instruction), question), given)
    return Exercise(conversation, json.dumps(values), form(values, rng, size), known=values)


def _system(text: str) -> Message:
    return Message("system", text)


def ask_story_beside_tools(rng: random.Random) -> Exercise:
    """A request for a brief story, with tools that it does not need."""
    cast = grammar.draw_cast(rng)
    given = rng.sample(tools(), rng.randint(1, 2))
    messages = (Message("user", grammar.request(cast.nouns, rng)),)
    return Exercise(Conversation(messages, tuple(given)), grammar.tell(cast, rng, brief=True).text)


# Questions


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the index of its right label. `predicate`: whether it is a yes/no one."""

    question: Question
    right: int
    predicate: bool


def with_articles(facts: Facts) -> dict[str, str]:
    """Add the nouns with their articles, and the place with its preposition."""
    hero, helper, thing = (grammar.article(facts[key]) for key in ("hero", "helper", "thing"))
    return {
        **facts,
        "one_hero": hero,
        "One_hero": hero.capitalize(),
        "one_helper": helper,
        "One_helper": helper.capitalize(),
        "one_thing": thing,
        "at_place": f"{lexicon.PLACES[facts['place']]} the {facts['place']}",
    }


_VALUES: Final[Mapping[str, Sequence[str]]] = {
    "hero": lexicon.CHARACTERS,
    "helper": lexicon.CHARACTERS,
    "thing": tuple(lexicon.THINGS),
    "place": tuple(lexicon.PLACES),
    "name": tuple(name for name, *_ in lexicon.NAMES),
    "fate": tuple(fate for fate, *_ in lexicon.PROBLEMS),
}
# What stands in the story too and is easily taken for the fact.
_RIVALS: Final[Mapping[str, str]] = {"hero": "helper", "helper": "hero", "place": "far"}


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How hard a read is: how many first sentences of a story are shown, and how many nouns and
    names of each kind there are. None is all.
    """

    sentences: int | None = None
    few: int | None = None


def wrong_values(
    fact: str, facts: Facts, count: int, rng: random.Random, few: int | None = None
) -> list[str]:
    """Draw values that a fact does not have, fewer if there are only `few`. One of them often
    stands in the story.
    """
    rival = facts[_RIVALS[fact]] if fact in _RIVALS and rng.random() < 0.6 else None
    free = [value for value in _VALUES[fact][:few] if value not in (facts[fact], rival)]
    drawn = rng.sample(free, min(len(free), count - (rival is not None)))
    return drawn if rival is None else [rival, *drawn]


def _choice(facts: Facts, rng: random.Random, told: Set[str], few: int | None) -> Answered:
    """Ask which of two to five values one of the `told` facts has."""
    fact, instructions = rng.choice([asked for asked in phrases.CHOICES if asked[0] in told])
    names = [facts[fact], *wrong_values(fact, facts, rng.randint(1, 4), rng, few)]
    rng.shuffle(names)
    question = Question(
        grammar.fill(rng.choice(instructions), facts), tuple(Label(name) for name in names)
    )
    return Answered(question, names.index(facts[fact]), predicate=False)


def _predicate(facts: Facts, rng: random.Random, told: Set[str], few: int | None) -> Answered:
    """Ask whether a statement about one of the `told` facts is true."""
    fact, instructions = rng.choice([asked for asked in phrases.PREDICATES if asked[0] in told])
    true = rng.random() < 0.5
    said = facts if true else {**facts, fact: wrong_values(fact, facts, 1, rng, few)[0]}
    labels = list(rng.choice(phrases.TRUTHS))
    right = labels[0 if true else 1]
    if rng.random() < 0.2:
        labels.reverse()
    question = Question(
        grammar.fill(rng.choice(instructions), with_articles(said)),
        tuple(Label(label) for label in labels),
    )
    return Answered(question, labels.index(right), predicate=True)


def draw_questions(
    rng: random.Random,
    count: int,
    lesson: Difficulty = Difficulty(),
    choices: float = _CHOICES_SHARE,
) -> tuple[ReadContent, tuple[Answered, ...]]:
    """Draw a story and `count` questions about it, of which a share are choices."""
    few = lesson.few
    tale = grammar.tell(grammar.draw_cast(rng, few=few), rng, brief=rng.random() < 0.7, few=few)
    text, told = tale.text, frozenset(_VALUES)
    if lesson.sentences is not None:
        text = " ".join(tale.sentences[: lesson.sentences])
        words = {*grammar.words_of(text)}
        told = frozenset(fact for fact in _VALUES if fact != "fate" and tale.facts[fact] in words)
    answered = tuple(
        (_choice if rng.random() < choices else _predicate)(tale.facts, rng, told, few)
        for _ in range(count)
    )
    content = ReadContent(user(text), tuple(each.question for each in answered))
    return content, answered


def read_sample(rng: random.Random) -> TrainingSample:
    """Lay out the canvases of one to four questions, most of them about a whole story."""
    sentences = rng.choice((1, 2, None, None, None, None))
    few = rng.choice((2, 4, 8, *(None,) * 7))
    return _asked(rng, rng.choice((1, 2, 4, 4, 4)), Difficulty(sentences, few))


def _asked(
    rng: random.Random, count: int, lesson: Difficulty, choices: float = _CHOICES_SHARE
) -> TrainingSample:
    content, answered = draw_questions(rng, count, lesson, choices)
    encoded = kinds.encode(vocabulary.build_codec(), content, CANVAS, MOST_PROMPT)
    target = list(encoded.template)
    weights = [0.0] * len(target)
    rights = iter(answered)
    for index, slots in enumerate(encoded.reads):
        for slot in slots:
            at = index * CANVAS + slot.position
            target[at] = slot.label_ids[next(rights).right]
            weights[at] = ANSWER_WEIGHT
    pinned = tuple(entry != HOLE for entry in encoded.template)
    return TrainingSample(encoded.prompt_ids, tuple(target), pinned, tuple(weights), reads=True)


# Mixtures

Maker = Callable[[random.Random], TrainingSample]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which samples share a batch.

    shares: how often each skill is drawn. rows: samples a batch.
    most_canvases: a sample of more is drawn again, or only so many of its canvases are learnt if
        there are `windows`.
    """

    shares: tuple[tuple[float, Maker], ...]
    rows: int
    most_canvases: int
    windows: bool = False

    def draw(self, rng: random.Random) -> list[TrainingSample]:
        """Draw the samples of one batch."""
        makers = [make for _, make in self.shares]
        totals = list(itertools.accumulate(share for share, _ in self.shares))
        samples: list[TrainingSample] = []
        while len(samples) < self.rows:
            (make,) = rng.choices(makers, cum_weights=totals)
            drawn = make(rng)
            while drawn.canvases > self.most_canvases and not self.windows:
                drawn = make(rng)
            samples.append(_window(drawn, self.most_canvases, rng))
        return samples


def _window(drawn: TrainingSample, most: int, rng: random.Random) -> TrainingSample:
    """Learn at most so many canvases of a sample, where something is to be learnt. Those before
    become part of its prompt.
    """
    starts = range(max(0, drawn.canvases - most) + 1)
    worth = [sum(drawn.weights[at * CANVAS : (at + most) * CANVAS]) for at in starts]
    start = rng.choices(starts, worth)[0] * CANVAS
    end = start + most * CANVAS
    return TrainingSample(
        (*drawn.prompt, *drawn.target[:start]),
        drawn.target[start:end],
        drawn.pinned[start:end],
        drawn.weights[start:end],
        drawn.reads,
    )


def _laid_out(
    ask: Callable[[random.Random], Exercise],
) -> Callable[[random.Random], TrainingSample]:
    return lambda rng: sample(ask(rng))


TELLING: Final = Mixture(
    (
        (0.72, _laid_out(ask_story)),
        (0.16, _laid_out(ask_thought)),
        (0.12, _laid_out(ask_filling)),
    ),
    rows=10,
    most_canvases=4,
)
SERVING: Final = Mixture(
    (
        (0.4, _laid_out(ask_card)),
        (0.33, _laid_out(ask_tool)),
        (0.2, _laid_out(ask_middle)),
        (0.07, _laid_out(ask_story_beside_tools)),
    ),
    rows=6,
    most_canvases=2,
    windows=True,
)
READING: Final = Mixture(((1.0, read_sample),), rows=16, most_canvases=2)
MIXTURES: Final = ((TELLING, SERVING, READING), (TELLING, SERVING, TELLING))
"""What steps learn in turns, after the first ones. One batch of each mixture makes a step."""


def _reading(rows: int, choices: float, *levels: Difficulty) -> Mixture:
    """Ask two questions about a text of one of these difficulties."""

    def draw(rng: random.Random) -> TrainingSample:
        return _asked(rng, 2, rng.choice(levels), choices)

    return Mixture(((1.0, draw),), rows, most_canvases=1)


_FEW = tuple(Difficulty(1, few) for few in (2, 2, 2, 4, 8, None, None))
_FEW_IN_STORIES = tuple(replace(level, sentences=None) for level in _FEW)
FIRST_MIXTURES: Final = (
    (300, (_reading(28, 1.0, *_FEW, Difficulty(2)),) * 2),
    (480, (_reading(36, 0.1, Difficulty(1, 2)),) * 2),
    (900, (_reading(48, 0.25, *_FEW, Difficulty(2)), _reading(12, 0.25, *_FEW_IN_STORIES))),
)
"""What the first steps learn, up to which step. Choices come first. To say whether two words are
the same is learnt last: as long as it is not, an answer depends on neither word alone. It comes
with two words of each kind and nothing beside it, and then carries over (docs/LOG.md)."""
