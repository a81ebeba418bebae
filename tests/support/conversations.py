"""Conversations as short as tests want them."""

from __future__ import annotations

from piecework_protocol.conversation import Conversation, Message


def said(text: str) -> Conversation:
    """One message of a user."""
    return Conversation((Message("user", text),))
