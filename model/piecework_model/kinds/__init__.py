"""From a job's content to what the engine takes, one module a kind.

The protocol has a module of the same name for each, `piecework_protocol.kinds`. A test holds the
two lists together.
"""

from __future__ import annotations

from piecework_model.kinds import audit, open, read, text  # noqa: A004  each has its kind's name
from piecework_model.requests import EncodedContent
from piecework_model.text.chat import HasTokenizer
from piecework_model.text.tokens import TextCodec
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.kinds.read import ReadContent


def encode(
    source: HasTokenizer | TextCodec,
    content: Content,
    canvas_size: int,
    context: int,
    most: int | None = None,
) -> EncodedContent:
    """Encode a content of any kind that the engine runs.

    source: a loaded model, or its tokenizer.
    context: its positions. A template of more is refused.
    most: a prompt of more ids is not needed: what comes then has more of them and means nothing but
        that. None: as many as the context has.

    Raises:
        PromptError: The chat template or the vocabulary cannot carry the content.
    """
    if isinstance(content, OpenContent):
        return open.encode(content)
    if isinstance(content, AuditContent):
        return audit.encode(content, encode(source, content.content, canvas_size, context, most))
    if isinstance(content, ReadContent):
        return read.encode(source, content, canvas_size, context, most)
    return text.encode(source, content, canvas_size, context, most)
