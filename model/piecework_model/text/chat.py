"""From a conversation to prompt ids, through the checkpoint's own chat template.

Nothing that a stranger wrote can become a control token. The template is rendered around holders
(text/holders.py): one stands for each text of a message, and for each string in a tool, its schema
and its arguments. What lies between holders is encoded with control tokens on. The text that a
holder stands for is encoded with control tokens off (text/tokens.py).

Templates get what transformers gives them: `messages`, `tools` as function objects of chat APIs,
`enable_thinking`, and the named tokens. A message has `role` and `content`, and of them that apply
`tool_calls` with parsed arguments, `tool_call_id`, `name` and `reasoning_content`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from piecework.base.jsons import loads
from piecework_model import limits
from piecework_model.bounds import ModelLimits
from piecework_model.errors import PromptError
from piecework_model.requests import PromptImage
from piecework_model.text.holders import Holders, hold_arguments, hold_schema, strings_of
from piecework_model.text.images import ImageProcessor
from piecework_model.text.tokens import TextCodec
from piecework_protocol.conversation import PREAMBLE_TOKENS, Conversation, Message, Text, Tool
from piecework_protocol.limits import MAX_TOOL_JSON_DEPTH

_UNSHOWN: Final = "this model's chat template does not show every image exactly once"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""What is encoded together with the template's text around it, as published prompts are."""


class HasTokenizer(Protocol):
    """What `encode_prompt` needs of a LoadedModel."""

    @property
    def tokenizer(self) -> TextCodec: ...

    @property
    def limits(self) -> ModelLimits: ...

    @property
    def images(self) -> ImageProcessor | None: ...


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's ids, and the images that stand among them."""

    ids: tuple[int, ...]
    images: tuple[PromptImage, ...] = ()


def too_long(most: int) -> EncodedPrompt:
    """Return a prompt of `most` + 1 ids, which mean nothing but that it has more than `most`."""
    return EncodedPrompt((0,) * (most + 1))


def codec_of(source: HasTokenizer | TextCodec) -> TextCodec:
    """Return the tokenizer of a loaded model, or the tokenizer itself."""
    return source if isinstance(source, TextCodec) else source.tokenizer


def encode_prompt(
    source: HasTokenizer | TextCodec,
    conversation: Conversation,
    *,
    most: int | None = None,
) -> tuple[int, ...]:
    """Encode a conversation to prompt ids alone: what `encode_conversation` does, without the
    pixels of its images.
    """
    return encode_conversation(source, conversation, most=most).ids


def encode_conversation(
    source: HasTokenizer | TextCodec,
    conversation: Conversation,
    *,
    most: int | None = None,
    context: int | None = None,
) -> EncodedPrompt:
    """Encode a conversation to a prompt, ready for the model to answer.

    White space around the content of a message is dropped, as the published templates do. An image
    becomes as many tokens as its size asks for (text/images.py), between the two that frame it.

    source: a loaded model, or its tokenizer. A tokenizer alone takes no images.
    most: a prompt of more ids is not needed. Encoding stops early then, and the result is `most`
        + 1 ids that mean nothing but that.
    context: of a tokenizer alone, how many tokens fit. None: `most`. A loaded model says it itself.

    Raises:
        PromptError: The texts are too long or not valid Unicode, an image cannot be shown, or the
            template cannot carry the conversation. Of a loaded model, a text that no context could
            hold is too long. That is found before anything is tokenized.
    """
    codec = codec_of(source)
    processor = None if isinstance(source, TextCodec) else source.images
    if conversation.has_images and processor is None:
        raise PromptError("this model takes no images")
    if not isinstance(source, TextCodec):
        context = source.limits.max_context
        _check_bytes(conversation, context)
    elif context is None:
        context = most
    images = _Images(processor, conversation)
    if most is not None and images.tokens > most:
        return too_long(most)
    ids: list[int] = []
    for piece in _Prompt(conversation).render(codec, context):
        room = None if most is None else most - len(ids)
        if room is not None and room < 0:
            break
        if piece.held:
            ids += _encode_held(codec, piece.text, room)
        else:
            images.append(codec.encode_template(piece.text), ids)
    if most is not None and len(ids) > most:
        return EncodedPrompt(tuple(ids[: most + 1]))
    return EncodedPrompt(tuple(ids), images.placed())


class _Images:
    """The images of a conversation, put one by one where the template shows them.

    The n-th mark of the template stands for the n-th image, as in transformers. They are decoded
    when all of the prompt has its place.
    """

    def __init__(self, processor: ImageProcessor | None, conversation: Conversation) -> None:
        self._processor = processor
        shown = [image for message in conversation.messages for image in message.images]
        self._shown = processor.measure(shown) if processor else []
        self._starts: list[int] = []

    @property
    def tokens(self) -> int:
        """Tokens of all images, without those that frame them."""
        return sum(image.tokens for image in self._shown)

    def append(self, written: tuple[int, ...], ids: list[int]) -> None:
        """Add what the template wrote to the prompt's ids, with tokens for each image."""
        if self._processor is None or not self._shown:
            ids += written
            return
        mark = self._processor.limits.token_id
        for token in written:
            if token != mark:
                ids.append(token)
                continue
            if len(self._starts) == len(self._shown):
                raise PromptError(_UNSHOWN)
            image = self._shown[len(self._starts)]
            self._starts.append(len(ids) + 1)
            ids += [self._processor.begin_id, *[mark] * image.tokens, self._processor.end_id]

    def placed(self) -> tuple[PromptImage, ...]:
        """Decode the images, and return them where they stand.

        Raises:
            PromptError: The template did not show all of them, or one cannot be decoded.
        """
        if len(self._starts) != len(self._shown):
            raise PromptError(_UNSHOWN)
        if self._processor is None:
            return ()
        # An image that is done is let go: its pixels take 50 MB.
        decode, waiting = self._processor.decode, self._shown
        return tuple(replace(decode(waiting.pop(0)), start=start) for start in self._starts)


def _encode_held(codec: TextCodec, text: str, most: int | None) -> tuple[int, ...]:
    ids = codec.encode_content(text, most=most)
    if not codec.control_ids.isdisjoint(ids):
        raise PromptError("the text contains a control token that cannot be escaped")
    return ids


def _check_bytes(conversation: Conversation, context: int) -> None:
    """Check that the texts could fit into `context` tokens, by their bytes alone."""
    size = conversation.text_bytes
    if size > context * limits.MAX_TOKEN_BYTES:
        raise PromptError(
            f"the text has {size} bytes. The context has {context} tokens, and a token is at most "
            f"{limits.MAX_TOKEN_BYTES} bytes"
        )


class _Prompt:
    """A conversation with a holder for everything that a stranger wrote.

    Raises:
        PromptError: It is out of bounds, or has what no template of ours shows.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._schemas = [loads(t.parameters, max_depth=MAX_TOOL_JSON_DEPTH) for t in self._tools]
        self._arguments = [
            [loads(call.arguments, max_depth=MAX_TOOL_JSON_DEPTH) for call in message.tool_calls]
            for message in conversation.messages
        ]
        # A template may change the order: answers of tools before the text that asked for them.
        self._contents: list[str] = []
        self._shown = [self._content(message) for message in conversation.messages]
        self._holders = Holders(self._contents, self._strings())

    @property
    def _tools(self) -> tuple[Tool, ...]:
        return self._conversation.tools

    def _content(self, message: Message) -> list[int | None]:
        """Number the texts of a message, and put None where an image stands."""
        shown: list[int | None] = []
        for part in message.parts:
            if not isinstance(part, Text):
                shown.append(None)
            # What a tool answers stays as it is.
            elif text := part.text if message.role == "tool" else part.text.strip():
                shown.append(len(self._contents))
                self._contents.append(text)
        return shown

    def _strings(self) -> Iterator[str]:
        """Yield every string beside the contents, any number of times."""
        for tool, schema in zip(self._tools, self._schemas, strict=True):
            yield from (tool.name, tool.description)
            yield from strings_of(schema)
        for message, arguments in zip(self._conversation.messages, self._arguments, strict=True):
            yield from (message.thought.strip(), message.name, message.tool_call_id)
            for call, values in zip(message.tool_calls, arguments, strict=True):
                yield from (call.id, call.name)
                yield from strings_of(values)

    def render(self, codec: TextCodec, context: int | None) -> Iterator[_Piece]:
        """Return the prompt in parts, each joined when it is asked for.

        Names that become no control token where they stand are a part of the template's text.

        context: how many tokens fit. None: nobody said.

        Raises:
            PromptError: The template fails, does not show what it has to, or writes more than the
                context can hold.
        """
        if self._conversation.thinking and "enable_thinking" not in codec.template:
            raise PromptError("this model does not think before it answers")
        rendered = _render(
            codec,
            [self._message(index) for index in range(len(self._conversation.messages))],
            [self._tool(*pair) for pair in zip(self._tools, self._schemas, strict=True)],
            thinking=self._conversation.thinking,
        )
        # Numbers and white space of a stranger's JSON are a part of what the template writes.
        most = None if context is None else (context + PREAMBLE_TOKENS) * limits.MAX_TOKEN_BYTES
        if most is not None and len(rendered) > most:
            raise PromptError(f"the chat template writes more than {context} tokens can hold")
        parts = self._holders.split(rendered)
        self._check_shown(Counter(number for _, number in parts if number is not None))
        return _joined(codec, [self._piece(text, number) for text, number in parts])

    def _piece(self, text: str, number: int | None) -> _Piece:
        is_name = number is not None and number >= len(self._contents) and _NAME.fullmatch(text)
        return _Piece(text, held=number is not None, joins=number is None or bool(is_name))

    def _check_shown(self, shown: Counter[int]) -> None:
        if any(shown[index] != 1 for index, content in enumerate(self._contents) if content):
            raise PromptError("the chat template does not show every message exactly once")
        if not all(shown[self._holders.number(tool.name)] for tool in self._tools):
            raise PromptError("this model takes no tools: its chat template does not show them")
        calls = (call.name for m in self._conversation.messages for call in m.tool_calls)
        if not all(shown[self._holders.number(name)] for name in calls):
            raise PromptError("this model's chat template does not show calls of tools")

    def _message(self, index: int) -> dict[str, Any]:
        message, hold = self._conversation.messages[index], self._holders.hold
        shown: dict[str, Any] = {
            "role": message.role,
            "content": self._content_of(index),
        }
        if message.thought.strip():
            shown["reasoning_content"] = hold(message.thought.strip())
        if message.role == "tool":
            shown |= {"name": hold(message.name), "tool_call_id": hold(message.tool_call_id)}
        calls = zip(message.tool_calls, self._arguments[index], strict=True)
        functions = [
            {
                "id": hold(call.id),
                "type": "function",
                "function": {
                    "name": hold(call.name),
                    "arguments": hold_arguments(arguments, hold),
                },
            }
            for call, arguments in calls
        ]
        return {**shown, "tool_calls": functions} if functions else shown

    def _content_of(self, index: int) -> str | list[dict[str, str]]:
        """Return the content of a message as a template gets it: parts if it has images."""
        shown, content = self._shown[index], self._holders.content
        if None not in shown:
            return "".join(content(number) for number in shown if number is not None)
        return [
            {"type": "image"} if number is None else {"type": "text", "text": content(number)}
            for number in shown
        ]

    def _tool(self, tool: Tool, schema: Any) -> dict[str, Any]:
        hold = self._holders.hold
        return {
            "type": "function",
            "function": {
                "name": hold(tool.name),
                "description": hold(tool.description),
                "parameters": hold_schema(schema, hold),
            },
        }


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a prompt.

    held: whether a stranger wrote it. joins: whether it may be encoded with what is beside it.
    """

    text: str
    held: bool
    joins: bool


def _joined(codec: TextCodec, pieces: list[_Piece]) -> Iterator[_Piece]:
    """Join names with the template's text around them, where that makes no control token.

    A tokenizer may write `call:` and a name in other pieces together than apart.
    """
    own = functools.cache(lambda text: _controls(codec, text))  # a template repeats itself
    for joins, group in itertools.groupby(pieces, lambda piece: piece.joins):
        run = list(group)
        if not joins or not any(piece.held for piece in run):
            yield from run
            continue
        whole = "".join(piece.text for piece in run)
        kept = [token for piece in run if not piece.held for token in own(piece.text)]
        if _controls(codec, whole) == kept:
            yield _Piece(whole, held=False, joins=True)
        else:
            yield from run


def _controls(codec: TextCodec, text: str) -> list[int]:
    """Return the control tokens that a template's text has."""
    return [token for token in codec.encode_template(text) if token in codec.control_ids]


def _render(
    codec: TextCodec,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    *,
    thinking: bool,
) -> str:
    """Render the template, in the sandbox that transformers uses.

    Raises:
        PromptError: It fails. A stranger's schema can make a template fail in any way.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=codec.template,
            add_generation_prompt=True,
            enable_thinking=thinking,
            **codec.named_tokens,
        )
    except Exception as error:
        raise PromptError(
            f"the chat template refuses these messages: {type(error).__name__}"
        ) from error
    return str(rendered[0])
