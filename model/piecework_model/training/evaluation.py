"""What the trained checkpoint can do, measured through the engine that serves it.

The result is the table of the model card. Every request is drawn from another seed than any of
training.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.training import (
    asking,
    batches,
    grammar,
    lexicon,
    loop,
    measures,
    phrases,
    skills,
)
from piecework_model.training.asking import Asking, ModelAnswer
from piecework_model.training.network import Network
from piecework_model.training.skills import Exercise
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent

_SEED: Final = "evaluation 7"
_HELD_OUT_BATCHES: Final = 4
_REPAIRS: Final = 2
_EDGES: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
CARD_START: Final = "<!-- evaluation -->"
CARD_END: Final = "<!-- end of evaluation -->"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many of each are asked."""

    stories: int = 96
    foreign: int = 32
    thoughts: int = 48
    tools: int = 96
    cards: int = 96
    fillings: int = 96
    reads: int = 150

    @classmethod
    def every(cls, count: int) -> Sizes:
        """Ask `count` of each."""
        return cls(*[count] * 7)


Rows = list[tuple[str, str]]


def report(
    folder: Path, sizes: Sizes | None = None, clock: Callable[[], float] = time.monotonic
) -> str:
    """Measure the checkpoint in `folder` and write the tables of its card, with stories to read."""
    sizes = sizes or Sizes()
    loaded = load(folder, device="cpu", dtype="float32")
    rng = random.Random(_SEED)  # noqa: S311 (evaluation data, no secret)
    answer = partial(asking.ask, loaded)
    rows, told = stories(answer, rng, sizes, loaded.defaults.max_steps, clock)
    rows += thoughts(answer, rng, sizes.thoughts)
    rows += tools(answer, rng, sizes.tools)
    rows += cards(answer, rng, sizes.cards)
    rows += fillings(answer, rng, sizes.fillings)
    read_rows, bins = reads(answer, rng, sizes.reads)
    rows += read_rows
    rows += _held_out(loaded)
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += [
        "Calibration of the answers to questions:",
        "",
        "| confidence | answers | mean confidence | right |",
        "|---|---|---|---|",
        *(
            f"| {b.least:g} to {b.most:g} | {b.count} | {b.confidence:.3f} | {b.right:.3f} |"
            for b in bins
        ),
        "",
        "Three of the stories:",
    ]
    lines += [f"\n> {prompt}\n\n{text}" for prompt, text in told]
    return "\n".join(lines) + "\n"


def put_into_card(card: str, tables: str) -> str:
    """Replace what stands between the marks of a model card.

    Raises:
        ValueError: The card has no marks.
    """
    before, start, rest = card.partition(CARD_START)
    _, end, after = rest.partition(CARD_END)
    if not start or not end:
        raise ValueError(f"the card has no {CARD_START} and {CARD_END}")
    return f"{before}{start}\n\n{tables}\n{end}{after}"


def _content(asked: Exercise) -> TextContent:
    return TextContent(asked.conversation, skills.template(asked))


def _of(count: int, total: int) -> str:
    return f"{count} of {total} ({count / max(1, total):.1%})"


def _well_formed(texts: Sequence[str]) -> str:
    return f"{measures.well_formed_share(texts):.1%}"


def stories(
    ask: Asking, rng: random.Random, sizes: Sizes, cap: int, clock: Callable[[], float]
) -> tuple[Rows, list[tuple[str, str]]]:
    """Measure stories: those asked for with known nouns, and those outside the grammar.

    cap: denoising steps of a canvas, at most. Returns the rows, and three prompts with stories.
    """
    asked: list[grammar.Example] = []
    while len(asked) < sizes.stories:
        example = grammar.example(rng)
        if example.nouns:
            asked.append(example)
    contents = [TextContent(skills.user(example.prompt)) for example in asked]
    started = clock()
    answers = ask(contents)
    seconds = clock() - started
    texts = [answer.text for answer in answers]
    published = [answer.text for answer in ask(contents, asking.PUBLISHED)]
    foreign = [TextContent(skills.user(grammar.foreign_request(rng))) for _ in range(sizes.foreign)]
    strange = [answer.text for answer in ask(foreign)]
    hits = [measures.followed(text, e.nouns) for text, e in zip(texts, asked, strict=True)]
    steps = [count for answer in answers for count in answer.steps]
    rows = [
        (
            "stories: characters in well-formed sentences",
            _well_formed(texts),
        ),
        ("the same at the published settings", _well_formed(published)),
        ("the same for requests outside the grammar", _well_formed(strange)),
        ("doubled words", f"{measures.doubled_word_share(texts):.2%}"),
        (
            "stories whose hero keeps name, pronoun and kind",
            _of(sum(map(grammar.keeps_its_hero, texts)), len(texts)),
        ),
        ("requested nouns in the story", _of(sum(map(sum, hits)), sum(map(len, hits)))),
        ("stories with all requested nouns", _of(sum(map(all, hits)), len(hits))),
        ("stories that end by themselves", _of(sum(a.ended for a in answers), len(answers))),
        ("canvases a story", f"{statistics.mean(len(a.steps) for a in answers):.2f}"),
        (
            "denoising steps a canvas",
            f"mean {statistics.mean(steps):.1f}, median {statistics.median(steps):g}",
        ),
        (
            f"canvases at the cap of {cap} steps",
            _of(sum(count == cap for count in steps), len(steps)),
        ),
        ("seconds a story, eight at once", f"{seconds / max(1, len(answers)):.2f}"),
    ]
    return rows, [(e.prompt, text) for e, text in zip(asked[:3], texts, strict=False)]


def thoughts(ask: Asking, rng: random.Random, count: int) -> Rows:
    """Measure thoughts before stories, and whether the stories are about them."""
    asked = [skills.ask_thought(rng) for _ in range(count)]
    answers = ask([_content(each) for each in asked])
    formed = [
        bool(answer.thoughts and answer.text) and _is_thought(answer.thoughts.strip())
        for answer in answers
    ]
    kept = [
        good and _agrees(answer.thoughts, answer.text)
        for good, answer in zip(formed, answers, strict=True)
    ]
    return [
        ("a thought before the story, in form", _of(sum(formed), count)),
        ("its story has who and what was thought of", _of(sum(kept), count)),
        (
            "its story: characters in well-formed sentences",
            _well_formed([a.text for a in answers]),
        ),
    ]


def _is_thought(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in grammar.patterns_of(phrases.THOUGHTS))


def _agrees(thought: str, story: str) -> bool:
    """Say whether a story has every noun and name of its thought."""
    words = {name for name, *_ in lexicon.NAMES}
    words |= {*lexicon.CHARACTERS, *lexicon.THINGS}
    wanted = [word for word in grammar.words_of(thought) if word in words]
    return set(wanted) <= set(grammar.words_of(story))


def tools(ask: Asking, rng: random.Random, count: int) -> Rows:
    """Measure calls of tools, and what is said to their results."""
    asked = [skills.ask_tool(rng) for _ in range(count)]
    answers = ask([_content(each) for each in asked])
    calls, told, demanded = [], [], []
    for each, answer in zip(asked, answers, strict=True):
        if each.parts:
            demanded.append(measures.flat_object(answer.text) == each.known)
        elif each.call is None:
            told.append(answer.text.strip() == each.answer and not answer.calls)
        else:
            made = [json.loads(call) for call in answer.calls]
            wanted = {"name": each.call.name, "arguments": json.loads(each.call.arguments)}
            calls.append(made == [wanted] and not answer.broken and not answer.text.strip())
    return [
        ("tool calls exactly right", _of(sum(calls), len(calls))),
        ("demanded calls, by schema, exactly right", _of(sum(demanded), len(demanded))),
        ("answers to a tool's result exactly right", _of(sum(told), len(told))),
    ]


def cards(ask: Asking, rng: random.Random, count: int) -> Rows:
    """Measure story cards: written freely, and by a schema with repair."""
    free: list[Exercise] = []
    forms: list[Exercise] = []
    while len(free) < count or len(forms) < count:
        asked = skills.ask_card(rng)
        chosen = forms if asked.parts else free
        if len(chosen) < count:
            chosen.append(asked)
    written = [measures.flat_object(a.text) for a in ask([_content(f) for f in free])]
    first, last = _repaired(ask, forms)
    pairs = list(zip(forms, last, strict=True))
    known = [
        value is not None and value[field] == wanted
        for asked, value in pairs
        for field, wanted in asked.known.items()
    ]
    return [
        ("cards written freely: valid JSON", _of(sum(v is not None for v in written), count)),
        ("cards by schema: valid before repair", _of(first, count)),
        ("cards by schema: valid after repair", _of(sum(v is not None for v in last), count)),
        ("cards by schema: fields as the prompt says", _of(sum(known), len(known))),
    ]


def _repaired(ask: Asking, forms: Sequence[Exercise]) -> tuple[int, list[dict[str, str] | None]]:
    """Fill forms. What is not valid is filled again, a bounded number of times.

    Returns how many were valid at once, and the last values.
    """
    values: list[dict[str, str] | None] = [None] * len(forms)
    at_once = 0
    for attempt in range(1 + _REPAIRS):
        open_ = [index for index, value in enumerate(values) if value is None]
        contents = [_content(forms[index]) for index in open_]
        answers: list[ModelAnswer] = ask(contents, first_seed=1000 * attempt)
        for index, answer in zip(open_, answers, strict=True):
            values[index] = measures.flat_object(answer.text)
        if attempt == 0:
            at_once = sum(value is not None for value in values)
    return at_once, values


def fillings(ask: Asking, rng: random.Random, count: int) -> Rows:
    """Measure stories with a hole, `count` of each way to ask."""
    asked = [skills.ask_filling(rng) for _ in range(count)]
    texts = [answer.text for answer in ask([_content(each) for each in asked])]
    middles = [skills.ask_middle(rng) for _ in range(count)]
    for each, answer in zip(middles, ask([_content(m) for m in middles]), strict=True):
        begin, end = str(each.parts[0]), str(each.parts[-1])
        filled = answer.text.removeprefix(begin).removesuffix(end)
        # The prompt has the whole text on both sides, the template only what is next to the hole.
        texts.append(each.around[0] + filled + each.around[1])
    count = len(texts)
    whole = [not grammar.sentence_patterns().sub("", text).strip() for text in texts]
    kept = [grammar.keeps_its_hero(text) for text in texts]
    return [
        ("stories with a filled hole: every sentence well-formed", _of(sum(whole), count)),
        ("the same: the hero keeps name, pronoun and kind", _of(sum(kept), count)),
    ]


def reads(ask: Asking, rng: random.Random, count: int) -> tuple[Rows, list[measures.Bin]]:
    """Measure four questions about each of `count` stories. Returns the calibration too."""
    drawn = [skills.draw_questions(rng, 4) for _ in range(count)]
    contents: list[ReadContent] = [content for content, _ in drawn]
    judged: dict[bool, list[measures.Judged]] = {True: [], False: []}
    for (_, answered), answer in zip(drawn, ask(contents), strict=True):
        for question, shares in zip(answered, answer.shares, strict=True):
            judged[question.predicate].append(measures.judge(shares, question.right))
    everything = judged[True] + judged[False]
    bins = measures.calibration(everything, _EDGES)
    right = {kind: sum(answer.right for answer in answers) for kind, answers in judged.items()}
    return [
        ("yes/no questions right", _of(right[True], len(judged[True]))),
        ("choices among two to five right", _of(right[False], len(judged[False]))),
        (
            "expected calibration error of both",
            f"{measures.expected_calibration_error(bins):.3f}",
        ),
    ], bins


def _held_out(loaded: LoadedModel) -> Rows:
    """Measure the losses on samples that training does not see, in nats a token."""
    settings = loop.TrainingSettings(seed=7, own_states_share=0.0, reads_first=False)
    network = Network(loaded.model, torch.float32)
    found: list[list[float]] = []
    for step in range(_HELD_OUT_BATCHES):
        noise = loop.Noise(settings, step, 0, loaded.limits.vocab_size)
        samples, *_ = loop.step_samples(settings, step)
        batch = batches.pack(samples)
        with torch.no_grad():
            once = loop.Pass(network, batch)
            state = noise.writing(once, batch)
            found.append([once.denoising_loss(*state).item(), once.encoder_loss().item()])
    denoising, causal_mean = (statistics.mean(each) for each in zip(*found, strict=True))
    return [
        (
            "held-out cross-entropy of stories, nats a token",
            f"denoising {denoising:.3f}, next token {causal_mean:.3f}",
        )
    ]
