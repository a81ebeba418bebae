"""From a conversation to prompt ids, through the checkpoint's own chat template.

User text can never become a control token. The template is rendered around placeholders. The text
between them is encoded with control tokens on. The text that they stand for is encoded with control
tokens off (text/tokens.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from piecework_model import limits
from piecework_model.bounds import ModelLimits
from piecework_model.errors import PromptError
from piecework_model.text.tokens import TextCodec

Role = Literal["system", "user", "assistant"]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    content: str


class HasTokenizer(Protocol):
    """What `encode_prompt` needs of a LoadedModel."""

    @property
    def tokenizer(self) -> TextCodec: ...

    @property
    def limits(self) -> ModelLimits: ...


def encode_prompt(
    loaded_or_tokenizer: HasTokenizer | TextCodec,
    messages: Sequence[ChatMessage],
    *,
    most: int | None = None,
) -> tuple[int, ...]:
    """Encode a conversation to prompt ids, ready for the model to answer.

    White space around each content is dropped, as the published templates do.

    most: a prompt of more ids is not needed. Encoding stops early then, and the result is `most`
        + 1 ids that mean nothing but that.

    Raises:
        PromptError: There are no messages or too many, a role is unknown, the text is too long or
            is not valid Unicode, or the template rejects it. Of a loaded model, a text that no
            context could hold is too long. That is found before anything is tokenized.
    """
    _check(messages)
    if isinstance(loaded_or_tokenizer, TextCodec):
        codec = loaded_or_tokenizer
    else:
        codec = loaded_or_tokenizer.tokenizer
        _check_bytes(messages, loaded_or_tokenizer.limits.max_context)
    holders = [f"piecework-content-{index}-holder" for index in range(len(messages))]
    rest = _render(
        codec, [(message.role, holder) for message, holder in zip(messages, holders, strict=True)]
    )
    ids: list[int] = []
    for message, holder in zip(messages, holders, strict=True):
        before, found, rest = rest.partition(holder)
        if not found or holder in rest:
            raise PromptError(
                "the chat template does not show every message exactly once and in order"
            )
        ids += codec.encode_template(before)
        room = None if most is None else most - len(ids)
        if room is not None and room < 0:
            break
        content = codec.encode_content(message.content.strip(), most=room)
        if not codec.control_ids.isdisjoint(content):
            raise PromptError("the text contains a control token that cannot be escaped")
        ids += content
    ids += codec.encode_template(rest)
    return tuple(ids if most is None else ids[: most + 1])


def _check(messages: Sequence[ChatMessage]) -> None:
    if not 0 < len(messages) <= limits.MAX_MESSAGES:
        raise PromptError(f"{len(messages)} messages, 1 to {limits.MAX_MESSAGES} are accepted")
    length = sum(len(message.content) for message in messages)
    if length > limits.MAX_CONTENT_CHARS:
        raise PromptError(f"{length} characters, at most {limits.MAX_CONTENT_CHARS} are accepted")
    for message in messages:
        if message.role not in _ROLES:
            raise PromptError(f"unknown role, expected one of {', '.join(_ROLES)}")
        if any("\ud800" <= character <= "\udfff" for character in message.content):
            raise PromptError("the text contains a lone surrogate")


def _check_bytes(messages: Sequence[ChatMessage], context: int) -> None:
    """Check that the text could fit into `context` tokens, by its bytes alone."""
    size = sum(len(message.content.strip().encode()) for message in messages)
    if size > context * limits.MAX_TOKEN_BYTES:
        raise PromptError(
            f"the text has {size} bytes. The context has {context} tokens, and a token is at most "
            f"{limits.MAX_TOKEN_BYTES} bytes"
        )


def _render(codec: TextCodec, turns: list[tuple[str, str]]) -> str:
    """Render the template for (role, content) pairs, in the sandbox that transformers uses."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [{"role": role, "content": content} for role, content in turns]
    try:
        rendered, _ = render_jinja_template(
            conversations=[conversation],
            chat_template=codec.template,
            add_generation_prompt=True,
            **codec.named_tokens,
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise PromptError(f"the chat template refuses these messages: {error}") from error
    return str(rendered[0])
