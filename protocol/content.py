"""The bytes behind the digests: prompts and canvas outputs (clauses 3.3 and 4.2).

Digests are salted by something that only the two parties know until a dispute (the job's salt, or the job id
that covers it), so that a digest does not give a short text away to whoever guesses it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from protocol.errors import MalformedInput
from protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_MESSAGES_PER_PROMPT,
    MAX_OUTPUT_BYTES,
    MAX_PROMPT_BYTES,
)
from protocol.types import Bytes32, Digest, JobId, keccak256

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; `role` is one of `ROLES`."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MalformedInput(f"a message's role is one of {', '.join(ROLES)}")


def encode_prompt(messages: tuple[Message, ...]) -> bytes:
    """The exact prompt bytes that the client seals and whose digest it signs: UTF-8 JSON."""
    if not messages:
        raise MalformedInput("a prompt has at least one message")
    body = {"messages": [{"role": m.role, "content": m.content} for m in messages]}
    try:
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise MalformedInput("a prompt is text that UTF-8 can encode") from None
    if len(data) > MAX_PROMPT_BYTES:
        raise MalformedInput(f"a prompt is at most {MAX_PROMPT_BYTES} bytes")
    return data


def decode_prompt(data: bytes) -> tuple[Message, ...]:
    """Parse prompt bytes strictly. `MalformedInput` names the defect, never the content."""
    if len(data) > MAX_PROMPT_BYTES:
        raise MalformedInput(f"a prompt is at most {MAX_PROMPT_BYTES} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedInput("a prompt is UTF-8 JSON") from None
    if not isinstance(body, dict) or set(body) != {"messages"} or not isinstance(body["messages"], list):
        raise MalformedInput("a prompt is an object with one member, messages")
    if not 1 <= len(body["messages"]) <= MAX_MESSAGES_PER_PROMPT:
        raise MalformedInput(f"a prompt has 1 to {MAX_MESSAGES_PER_PROMPT} messages")
    return tuple(_message(item) for item in body["messages"])


def _message(item: Any) -> Message:
    if not isinstance(item, dict) or set(item) != {"role", "content"}:
        raise MalformedInput("a message has a role and a content")
    role, content = item["role"], item["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise MalformedInput("a message's role and content are strings")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise MalformedInput("a message's content has lone surrogates") from None
    return Message(role, content)


def prompt_digest(salt: Bytes32, prompt: bytes) -> Digest:
    """keccak256(salt || prompt bytes)."""
    return Digest(keccak256(salt + prompt))


@dataclass(frozen=True, slots=True)
class CanvasOutput:
    """What a client gets for one canvas: the charged token ids and the text that they add."""

    token_ids: tuple[int, ...]
    text: str

    def encode(self) -> bytes:
        """Big-endian uint32 count, that many uint32 ids, then the text as UTF-8."""
        if len(self.token_ids) > MAX_CANVAS_TOKENS:
            raise MalformedInput(f"a canvas has at most {MAX_CANVAS_TOKENS} tokens")
        try:
            head = struct.pack(f">I{len(self.token_ids)}I", len(self.token_ids), *self.token_ids)
            data = head + self.text.encode()
        except (struct.error, UnicodeEncodeError):
            raise MalformedInput("token ids are uint32 and the text is UTF-8") from None
        if len(data) > MAX_OUTPUT_BYTES:
            raise MalformedInput(f"a canvas output is at most {MAX_OUTPUT_BYTES} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> CanvasOutput:
        """Parse what `encode` makes; `MalformedInput` for anything else."""
        if not 4 <= len(data) <= MAX_OUTPUT_BYTES:
            raise MalformedInput("a canvas output has an impossible length")
        (count,) = struct.unpack_from(">I", data)
        if count > MAX_CANVAS_TOKENS or len(data) < 4 + 4 * count:
            raise MalformedInput("a canvas output is shorter than the ids that it announces")
        try:
            text = data[4 + 4 * count :].decode()
        except UnicodeDecodeError:
            raise MalformedInput("a canvas output's text is UTF-8") from None
        return cls(struct.unpack_from(f">{count}I", data, 4), text)


def output_digest(job: JobId, canvas: int, output: bytes) -> Digest:
    """keccak256(job id || uint32 canvas || output bytes)."""
    return Digest(keccak256(job + canvas.to_bytes(4, "big") + output))
