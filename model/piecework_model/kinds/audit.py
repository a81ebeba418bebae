"""Kind `audit` for the engine: a canvas of another job that is computed again, and no prompt.

What is charged as the prompt are the tokens before the canvas: a replay prefills them.
"""

from __future__ import annotations

from piecework_model.requests import AuditAsked, EncodedContent
from piecework_protocol.kinds.audit import AuditContent


def encode(content: AuditContent, asked: EncodedContent) -> EncodedContent:
    """Return what is to be audited.

    asked: the content of the audited job as the engine takes it.
    """
    context = len(asked.prompt_ids) + content.context
    return EncodedContent((), auditing=AuditAsked(content, context))
