"""Bounds on prompts before they are tokenized.

Tokenizing is work that nobody pays for until the job is admitted, and all jobs share one
tokenizer. So a prompt that cannot fit is refused by its length, a long one is tokenized only as far
as the job could pay for it, and each channel has few prompts in the tokenizer at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from piecework_node.engine.link import EngineFacts
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds import KINDS, Content
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.objects import Job
from piecework_protocol.types import ChannelId

BYTES_PER_TOKEN: Final = 64
"""No tokenizer gives more bytes of text a token (`piecework_protocol.limits.MAX_OUTPUT_BYTES`)."""
FRAME_BYTES: Final = 1024 * 1024
"""Of a submission beside its texts. The lengths of 400 questions with 255 labels take 800 KB."""
LONG_BYTES: Final = 64 * 1024
"""A content of more bytes is decoded in a thread. A shorter one takes some milliseconds."""
AT_ONCE: Final = 2
"""Prompts of one channel in the tokenizer."""
RETRY_S: Final = 1.0
SHORT_BYTES: Final = 16 * 1024
"""Texts of so many bytes are tokenized in some milliseconds, whoever pays for them."""
SMALL_CONTEXT: Final = 4096
"""Tokens. A longer prompt is of no use there to anybody, whatever its payer has."""
SMALL_BYTES: Final = 64 * 1024
"""Texts of so many bytes are tokenized in some fifty milliseconds where the context is small. What
has more of them is most likely ten times too long, and is not worth more time for nothing."""
SHORT_TOKENS: Final = 1024
"""As many labels are looked up in the same time."""
PriceCheck: TypeAlias = Callable[[int], None]
"""Raises `Refusal` if a prompt of so many tokens cannot be paid for."""
LimitOf: TypeAlias = "Callable[[Content, EngineFacts], TokenLimit]"
"""Gives the limit of a content at an engine, or raises `Refusal` before anything is counted."""


def check_sealed_length(sealed: int, max_context: int) -> None:
    """Refuse a sealed prompt that is too long whatever it says. Nothing is parsed for that.

    sealed: bytes of the prompt, or of the submission that it is in.

    Raises:
        Refusal: it cannot fit.
    """
    # Prompt and template share the context. A read's questions are a part of the prompt.
    if sealed > FRAME_BYTES + max_context * BYTES_PER_TOKEN:
        raise _too_long(sealed, max_context)


async def open_content(data: bytes, job: Job, facts: EngineFacts) -> Content:
    """Decode a job's content and check it. A long one is decoded in a thread: other jobs go on.

    Raises:
        MalformedInput: The bytes are not such a content.
        Refusal: `check_content` refuses it.
    """

    def opened() -> Content:
        content = KINDS[job.kind].decode_content(data)
        check_content(content, job, facts)
        return content

    return await asyncio.to_thread(opened) if len(data) > LONG_BYTES else opened()


def check_content(content: Content, job: Job, facts: EngineFacts) -> None:
    """Refuse a content that cannot run, before it is tokenized.

    All texts of the conversation, the template and the questions count. White space around a
    message does not, because chat templates drop it.

    Raises:
        Refusal: The texts have more bytes than a context of tokens can hold, or there are more of
            them than it has tokens. Or the content contradicts the job's parameters, or it has
            what the engine does not take.
    """
    if content.text_bytes > facts.max_context * BYTES_PER_TOKEN:
        raise _too_long(content.text_bytes, facts.max_context)
    if content.least_tokens > facts.max_context:
        raise Refusal(
            Reason.PROMPT_TOO_LONG,
            f"the questions, labels or template take {content.least_tokens} tokens or more. The "
            f"context has {facts.max_context}",
        )
    if content.has_images and not facts.images:
        raise Refusal(Reason.NO_IMAGES, "this model takes no images here")
    fault = content.parameters_fault(job.parameters, facts.canvas_size)
    if fault is not None:
        raise Refusal(Reason.BAD_PARAMETERS, fault)


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """How many tokens of a prompt are worth counting.

    check: raises the refusal of a longer one. What is cut off there is no prompt.
    """

    most: int
    check: PriceCheck

    def hold(self, tokens: int) -> None:
        """Refuse a prompt that was cut off at this limit.

        Raises:
            Refusal: It was.
        """
        if tokens > self.most:
            self.check(tokens)


def least_prompt(content: Content) -> int:
    """Count the tokens that a prompt takes at least, without a look into its texts."""
    if isinstance(content, AuditContent):
        return content.context + least_prompt(content.content)
    if isinstance(content, ReadContent):
        return max(content.least_tokens, content.text_bytes // BYTES_PER_TOKEN)
    if isinstance(content, TextContent):
        return content.conversation.text_bytes // BYTES_PER_TOKEN
    return 0


def is_short(content: Content, max_context: int) -> bool:
    """Whether the tokens of a content may be counted before anybody knows who pays for them.

    In a small context that is more, because a refusal for the price would hide that the prompt is
    too long. Images are decoded with the tokens, and that takes far longer.
    """
    most = SMALL_BYTES if max_context <= SMALL_CONTEXT else SHORT_BYTES
    texts = content.text_bytes <= most and content.least_tokens <= SHORT_TOKENS
    return texts and not content.has_images


def check_prompt(tokens: int, content: Content, facts: EngineFacts) -> None:
    """Refuse a prompt that has more tokens than clause 3.4 lets a worker charge.

    A chat template that writes that much around the texts would make every client stop paying. A
    prompt that is longer than the context is refused later, by its length.

    Raises:
        Refusal: it has.
    """
    most = content.outline.prompt_tokens
    if most < tokens <= facts.max_context:
        raise Refusal(
            Reason.PROMPT_REFUSED,
            f"the chat template makes {tokens} tokens of the prompt, and {most} can be charged",
        )


def _too_long(size: int, max_context: int) -> Refusal:
    return Refusal(
        Reason.PROMPT_TOO_LONG,
        f"the prompt has {size} bytes. The context has {max_context} tokens, and a token is at "
        f"most {BYTES_PER_TOKEN} bytes of text",
    )


@dataclass(slots=True)
class _Turns:
    """The prompts of one channel."""

    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    present: int = 0


class PromptQueue:
    """Who may tokenize. `most`: prompts of one channel that run or wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._channels: dict[ChannelId, _Turns] = {}

    @asynccontextmanager
    async def turn(self, channel: ChannelId) -> AsyncIterator[None]:
        """Wait until a prompt of this channel may be tokenized.

        Raises:
            Refusal: too many of its prompts wait already.
        """
        turns = self._channels.setdefault(channel, _Turns())
        if turns.present >= self._most:
            raise Refusal(
                Reason.BUSY, "the channel has too many prompts at once", retry_after_s=RETRY_S
            )
        turns.present += 1
        try:
            async with turns.free:
                yield
        finally:
            turns.present -= 1
            if not turns.present:
                del self._channels[channel]
