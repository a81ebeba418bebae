"""A conversation as prompt ids."""

from __future__ import annotations

from piecework_model.errors import PromptError
from piecework_model.text.chat import ChatMessage, HasTokenizer, encode_prompt
from piecework_model.text.tokens import TextCodec
from piecework_protocol.conversation import Conversation, Message


def codec_of(source: HasTokenizer | TextCodec) -> TextCodec:
    """Return the tokenizer of a loaded model, or the tokenizer itself."""
    return source if isinstance(source, TextCodec) else source.tokenizer


def encode_conversation(
    source: HasTokenizer | TextCodec, conversation: Conversation, most: int
) -> tuple[int, ...]:
    """Encode a conversation to prompt ids.

    Raises:
        PromptError: It has what the chat template does not show, or is too long.
    """
    if conversation.tools or conversation.thinking:
        raise PromptError("this model takes no tools and does not think")
    turns = [_turn(message) for message in conversation.messages]
    return encode_prompt(source, turns, most=most)


def _turn(message: Message) -> ChatMessage:
    match message.role:
        case "system" | "user" | "assistant" as role if not message.images:
            return ChatMessage(role, message.text)
    raise PromptError(f"this model takes no {'images' if message.images else 'tool messages'}")
