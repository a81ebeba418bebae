"""What the contents and outputs of all kinds share: their frame, and their digests (clauses 3.3
and 4.2). `kinds` says what stands inside the frame.

Digests are salted with what only the two parties know until a dispute: the job's salt, or the job
id that covers it. So nobody can find a short text by hashing guesses.
"""

from __future__ import annotations

from typing import Final

from piecework_protocol.conversation import Conversation, read_conversation, write_conversation
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CONTENT_BYTES, MAX_OUTPUT_BYTES
from piecework_protocol.types import Bytes32, Digest, JobId, keccak256

CONTENT_VERSION: Final = 2
"""The first byte of a content. Other encodings have other numbers."""


def content_writer(conversation: Conversation) -> Writer:
    """Begin a content: the version byte, then the conversation.

    Raises:
        MalformedInput: A text has lone surrogates.
    """
    writer = Writer()
    writer.number(CONTENT_VERSION, 1)
    write_conversation(writer, conversation)
    return writer


def content_bytes(writer: Writer) -> bytes:
    """Return a content that is written.

    Raises:
        MalformedInput: It is too long.
    """
    return _bounded(bytes(writer), MAX_CONTENT_BYTES, "a prompt")


def content_reader(data: bytes) -> tuple[Reader, Conversation]:
    """Return a content's conversation, and a reader behind it.

    Raises:
        MalformedInput: The content is too long, has another version, or no such conversation.
    """
    reader = Reader(_bounded(data, MAX_CONTENT_BYTES, "a prompt"), "a prompt")
    version = reader.number(1)
    if version != CONTENT_VERSION:
        raise MalformedInput(f"a content's version is {CONTENT_VERSION}, not {version}")
    return reader, read_conversation(reader)


def output_bytes(writer: Writer) -> bytes:
    """Return an output that is written.

    Raises:
        MalformedInput: It is too long.
    """
    return _bounded(bytes(writer), MAX_OUTPUT_BYTES, "a canvas output")


def versioned_reader(data: bytes, what: str) -> Reader:
    """Return a reader behind the version byte of a content that is not a conversation.

    Raises:
        MalformedInput: `what` is too long, or has another version.
    """
    reader = Reader(_bounded(data, MAX_CONTENT_BYTES, what), what)
    if reader.number(1) != CONTENT_VERSION:
        raise reader.fail(f"has another version than {CONTENT_VERSION}")
    return reader


def output_reader(data: bytes) -> Reader:
    """Return a reader of an output.

    Raises:
        MalformedInput: It is too long.
    """
    return Reader(_bounded(data, MAX_OUTPUT_BYTES, "a canvas output"), "a canvas output")


def _bounded(data: bytes, most: int, what: str) -> bytes:
    if len(data) > most:
        raise MalformedInput(f"{what} is at most {most} bytes")
    return data


def content_digest(salt: Bytes32, content: bytes) -> Digest:
    """Give keccak256(salt || content bytes)."""
    return Digest(keccak256(salt + content))


def output_digest(job: JobId, canvas: int, output: bytes) -> Digest:
    """Give keccak256(job id || uint32 canvas || output bytes)."""
    return Digest(keccak256(job + canvas.to_bytes(4, "big") + output))
