"""What a job is about: messages, images, tools, questions, templates, and the pieces of an answer.

Example:
    ```python
    from piecework.client.content import Label, Question

    rude = Question("Is it rude?", (Label("yes"), Label("no")))
    result = await client.read("You are late again!", [rude], draws=4)
    ```
"""

from __future__ import annotations

from piecework_protocol.conversation import Conversation, Image, Message, Text, Tool, ToolCall
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.open import OpenContent, WantedStep
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.kinds.text import Fixed, Hole, OutputSegment, SegmentKind, TemplatePart

__all__ = [
    "AuditContent",
    "Conversation",
    "Fixed",
    "Hole",
    "Image",
    "Label",
    "Message",
    "OpenContent",
    "OutputSegment",
    "Question",
    "SegmentKind",
    "TemplatePart",
    "Text",
    "Tool",
    "ToolCall",
    "WantedStep",
]
