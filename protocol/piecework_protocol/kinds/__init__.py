"""What a worker can be paid for, one module a kind: its content, its output, what is charged.

The engine has a module of the same name for each, `piecework_model.kinds`. A test holds the two
lists together. A job of a kind that an offer does not list is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from piecework_protocol.kinds.open import OpenContent, OpenOutput
from piecework_protocol.kinds.read import ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import Kind

Content = TextContent | ReadContent | OpenContent
"""What the client seals, and whose digest it signs."""
Output = TextOutput | ReadOutput | OpenOutput
"""What the client gets for one canvas."""


@dataclass(frozen=True, slots=True)
class KindRules:
    """How the bytes of a kind are read, and what its canvases take.

    decode_content, decode_output: both raise `MalformedInput`.
    nothing: the output of a canvas of which nothing was shown.
    charges_units: whether output tokens are charged. Steps and prompt tokens always are.
    keeps_canvases: whether a canvas stays in the context of those behind it.
    """

    decode_content: Callable[[bytes], Content]
    decode_output: Callable[[bytes], Output]
    nothing: Output
    charges_units: bool
    keeps_canvases: bool


KINDS: Final[Mapping[Kind, KindRules]] = {
    Kind.TEXT: KindRules(
        TextContent.decode,
        TextOutput.decode,
        TextOutput((), ()),
        charges_units=True,
        keeps_canvases=True,
    ),
    Kind.READ: KindRules(
        ReadContent.decode,
        ReadOutput.decode,
        ReadOutput(()),
        charges_units=False,
        keeps_canvases=False,
    ),
    Kind.OPEN: KindRules(
        OpenContent.decode,
        OpenOutput.decode,
        OpenOutput(),
        charges_units=False,
        keeps_canvases=False,
    ),
}
"""The kinds that exist. The numbers of the others are reserved."""
