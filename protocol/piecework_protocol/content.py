"""The bytes behind the digests: content of jobs, canvas outputs (clauses 3.3 and 4.2).

Digests are salted with what only the two parties know until a dispute: the job's salt, or the job
id that covers it. So nobody can find a short text by hashing guesses.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_CONTENT_BYTES,
    MAX_MESSAGES_PER_PROMPT,
    MAX_OUTPUT_BYTES,
)
from piecework_protocol.types import Bytes32, Digest, JobId, keccak256

ROLES = ("system", "user", "assistant")
CONTENT_VERSION = 1
"""The first byte of every content. Later encodings have other numbers."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `role` is one of `ROLES`.

    Raises:
        MalformedInput: The role is another.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MalformedInput(f"a message's role is one of {', '.join(ROLES)}")


def encode_prompt(messages: tuple[Message, ...]) -> bytes:
    """Encode the exact content of a text job, which the client seals, and whose digest it signs.

    It is the version byte, a big-endian uint32 count, then for each message its role and its
    content. Each of those is a uint32 byte length and UTF-8. There is one encoding per prompt, and
    nothing nests: a JSON parser at its recursion limit is a crash that a stranger can send.

    Raises:
        MalformedInput: There are too few or too many messages, or their text is too long or cannot
            be encoded.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES_PER_PROMPT:
        raise MalformedInput(f"a prompt has 1 to {MAX_MESSAGES_PER_PROMPT} messages")
    try:
        fields = [text.encode() for m in messages for text in (m.role, m.content)]
    except UnicodeEncodeError:
        raise MalformedInput("a prompt is text that UTF-8 can encode") from None
    data = struct.pack(">BI", CONTENT_VERSION, len(messages)) + b"".join(
        struct.pack(">I", len(f)) + f for f in fields
    )
    if len(data) > MAX_CONTENT_BYTES:
        raise MalformedInput(f"a prompt is at most {MAX_CONTENT_BYTES} bytes")
    return data


def decode_prompt(data: bytes) -> tuple[Message, ...]:
    """Parse prompt bytes strictly.

    Raises:
        MalformedInput: The bytes are not a prompt. The text names the defect, never the content.
    """
    if not 5 <= len(data) <= MAX_CONTENT_BYTES:
        raise MalformedInput(f"a prompt is 5 to {MAX_CONTENT_BYTES} bytes")
    version, count = struct.unpack_from(">BI", data)
    if version != CONTENT_VERSION:
        raise MalformedInput(f"a content's version is {CONTENT_VERSION}, not {version}")
    if not 1 <= count <= MAX_MESSAGES_PER_PROMPT:
        raise MalformedInput(f"a prompt has 1 to {MAX_MESSAGES_PER_PROMPT} messages")
    messages, offset = [], 5
    for _ in range(count):
        role, offset = _text(data, offset)
        content, offset = _text(data, offset)
        messages.append(Message(role, content))
    if offset != len(data):
        raise MalformedInput("a prompt has bytes after its last message")
    return tuple(messages)


def _text(data: bytes, offset: int) -> tuple[str, int]:
    """Read the length-prefixed text at `offset`. Give it and the offset behind it."""
    start = offset + 4
    if len(data) < start:
        raise MalformedInput("a prompt ends inside a length")
    (length,) = struct.unpack_from(">I", data, offset)
    if len(data) < start + length:
        raise MalformedInput("a prompt ends inside a text")
    try:
        return data[start : start + length].decode(), start + length
    except UnicodeDecodeError:
        raise MalformedInput("a prompt's text is UTF-8") from None


def content_digest(salt: Bytes32, content: bytes) -> Digest:
    """Give keccak256(salt || content bytes)."""
    return Digest(keccak256(salt + content))


@dataclass(frozen=True, slots=True)
class CanvasOutput:
    """What a client gets for one canvas: the charged token ids and the text that they add."""

    token_ids: tuple[int, ...]
    text: str

    def encode(self) -> bytes:
        """Encode a big-endian uint32 count, that many uint32 ids, then the text as UTF-8.

        Raises:
            MalformedInput: There are too many tokens, or an id or the text cannot be encoded.
        """
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
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not a canvas output.
        """
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
    """Give keccak256(job id || uint32 canvas || output bytes)."""
    return Digest(keccak256(job + canvas.to_bytes(4, "big") + output))
