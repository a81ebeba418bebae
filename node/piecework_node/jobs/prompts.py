"""Bounds on prompts before they are tokenized.

Tokenizing is work that nobody pays for until the job is admitted, and all jobs share one
tokenizer. So a prompt that cannot fit is refused by its length, and each channel has few prompts in
the tokenizer at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from piecework_protocol.conversation import Message
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.types import ChannelId

BYTES_PER_TOKEN: Final = 64
"""No tokenizer gives more bytes of text a token (`piecework_protocol.limits.MAX_OUTPUT_BYTES`)."""
JSON_BYTES_PER_BYTE: Final = 6
"""What JSON makes of a control character."""
MESSAGE_BYTES: Final = 256 * 1024
"""Of a submission beside its text: roles and punctuation of all messages, and what is signed."""
AT_ONCE: Final = 2
"""Prompts of one channel in the tokenizer."""
RETRY_S: Final = 1.0


def check_sealed_length(sealed: int, max_context: int) -> None:
    """Refuse a sealed prompt that is too long whatever it says. Nothing is parsed for that.

    sealed: bytes of the prompt, or of the submission that it is in.

    Raises:
        Refusal: it cannot fit.
    """
    if sealed > MESSAGE_BYTES + max_context * BYTES_PER_TOKEN * JSON_BYTES_PER_BYTE:
        raise _too_long(sealed, max_context)


def check_text_length(messages: tuple[Message, ...], max_context: int) -> None:
    """Refuse a prompt whose text has more bytes than a context of tokens can hold.

    White space around a message does not count, because chat templates drop it.

    Raises:
        Refusal: it cannot fit.
    """
    size = sum(len(message.text.strip().encode()) for message in messages)
    if size > max_context * BYTES_PER_TOKEN:
        raise _too_long(size, max_context)


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
