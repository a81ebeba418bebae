"""Conversations as short as tests want them."""

from __future__ import annotations

from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.text import TextContent


def said(text: str) -> Conversation:
    """One message of a user."""
    return Conversation((Message("user", text),))


def encode_messages(messages: tuple[Message, ...]) -> bytes:
    """Encode a content that is messages alone: no tools, no thinking, no template."""
    return TextContent(Conversation(messages)).encode()
