"""OpenAI's older completions: a prompt, and a text in the middle with `suffix`. Pure.

The models here answer conversations, so a prompt becomes what the user says. With a suffix the
model sees both sides in its prompt and fills a hole between them: the end of the prompt and the
begin of the suffix stand fixed around the hole, so that it joins them. Only the hole is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from piecework.client.gateway.formats import content
from piecework.client.gateway.formats.asks import Ask, Filled, Free, Plan
from piecework.client.gateway.formats.common import (
    MAX_CHOICES,
    ApiError,
    Fields,
    FormatOptions,
    Head,
    Totals,
    bad,
    plain_text,
    take_stop,
    take_stream,
    take_wanted,
)
from piecework.client.gateway.formats.pieces import (
    DRAFT_EVENT,
    DraftShown,
    Ended,
    Frame,
    Piece,
    TextAdded,
)
from piecework_protocol.conversation import Message
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart
from piecework_protocol.limits import MAX_HOLE_TOKENS
from piecework_protocol.views import members

MIDDLE_TOKENS: Final = 128
"""Of a hole, if the request does not say."""
FIXED_CHARACTERS: Final = 160
"""Of the text on each side that stands fixed beside the hole. The prompt has all of it."""
_MIDDLE: Final = (
    "Write the text that is missing between the begin and the end. Answer with the missing text "
    "alone.\n\nBegin:\n{before}\n\nEnd:\n{after}"
)


def parse_completion(body: Any, options: FormatOptions = FormatOptions()) -> Ask:  # noqa: B008
    """Parse the JSON body of a completion.

    Raises:
        ApiError: A field cannot be used (400). It names the field.
    """
    fields = Fields(body, options)
    wanted = take_wanted(fields, options, "max_tokens")
    stream, include_usage = take_stream(fields)
    prompts = _prompts(fields.take("prompt"))
    choices = fields.integer("n", 1, MAX_CHOICES) or 1
    if len(prompts) * choices > MAX_CHOICES:
        bad(f"prompts and n make at most {MAX_CHOICES} choices together", "n")
    suffix = fields.text("suffix")
    plan: Plan = Free(parallel_calls=False)
    said = prompts
    if suffix:
        if len(prompts) > 1:
            bad("a suffix is for one prompt", "suffix")
        plan = _middle(prompts[0], suffix, wanted.generation.max_tokens)
        said = [_MIDDLE.format(before=prompts[0], after=suffix)]
    return Ask(
        wanted=wanted,
        conversations=tuple(
            content.conversation([Message("user", text)], (), thinking=False, where="prompt")
            for text in said
        ),
        plan=plan,
        choices=choices,
        stop=take_stop(fields),
        stream=stream,
        include_usage=include_usage,
        echo={"prompts": tuple(prompts) if fields.flag("echo", False) else ()},
        ignored=fields.rest(),
    )


def _prompts(raw: Any) -> list[str]:
    found = raw if isinstance(raw, list) else [raw]
    if not 1 <= len(found) <= MAX_CHOICES or not all(isinstance(p, str) and p for p in found):
        bad(f"prompt is a text that is not empty, or a list of 1 to {MAX_CHOICES} texts", "prompt")
    return [plain_text(text, "prompt") for text in found]


def _middle(prompt: str, suffix: str, most: int | None) -> Filled:
    before, after = prompt[-FIXED_CHARACTERS:], suffix[:FIXED_CHARACTERS]
    hole = Hole(min(MIDDLE_TOKENS if most is None else most, MAX_HOLE_TOKENS))
    template: tuple[TemplatePart, ...] = (Fixed(before), hole, Fixed(after))
    return Filled(template, before, after)


class CompletionReply:
    """Renders a completion. Implements `Reply`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        prompts: tuple[str, ...] = ask.echo["prompts"]
        self._texts = [
            [prompts[index // ask.choices]] if prompts else [] for index in range(ask.answers)
        ]
        self._reasons = ["stop"] * ask.answers
        self._head = Head("", 0, "")
        self._last: Frame | None = None

    def opening(self, head: Head) -> Iterator[Frame]:
        """Render the prompts that are to be echoed."""
        self._head = head
        for index, texts in enumerate(self._texts):
            for text in texts:
                yield Frame(self._object([_choice(index, text, None)]))

    def take(self, piece: Piece) -> Iterator[Frame]:
        """Take a piece in. Thoughts and calls are not for this format."""
        if isinstance(piece, TextAdded):
            self._texts[piece.index].append(piece.text)
            yield Frame(self._object([_choice(piece.index, piece.text, None)]))
        elif isinstance(piece, DraftShown):
            shown = {"draft": members(piece, "index", "canvas", "step", "text")}
            yield Frame({**self._object([]), "piecework": shown}, DRAFT_EVENT)
        elif isinstance(piece, Ended):
            self._reasons[piece.index] = "length" if piece.reason == "length" else "stop"
            if self._last is not None:
                yield self._last
            self._last = Frame(self._object([_choice(piece.index, "", self._reasons[piece.index])]))

    def closing(self, totals: Totals, ours: Mapping[str, Any]) -> Iterator[Frame]:
        """Render the last chunk with what it cost, and usage if it was asked for."""
        if self._last is not None:
            yield Frame({**self._last.data, "piecework": ours})
        if self._ask.include_usage:
            yield Frame({**self._object([]), "usage": totals.chat_usage()})

    def failing(self, error: ApiError) -> Iterator[Frame]:
        """Render a failure as OpenAI does."""
        yield Frame(error.body())

    def whole(self, head: Head, totals: Totals, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Render the whole answer."""
        self._head = head
        choices = [
            _choice(index, "".join(texts), self._reasons[index])
            for index, texts in enumerate(self._texts)
        ]
        return {**self._object(choices), "usage": totals.chat_usage(), "piecework": ours}

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head.of("text_completion"), "choices": choices}


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
