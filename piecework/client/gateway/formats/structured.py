"""A structured answer as it grows valid: fill, judge, pin what is valid, fill the rest again. Pure.

A `Filling` is the state between two jobs. Each job denoises its template. What is valid then is
pinned in the template of the next one. A list keeps its items before the first broken one, and an
item too many is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from piecework.base.jsons import loads
from piecework.client.gateway.formats.schema import MAX_SCHEMA_DEPTH, JsonSchema, SchemaFault
from piecework.client.gateway.formats.skeleton import (
    MAX_SLOT_TOKENS,
    MAX_VALUE_DEPTH,
    Content,
    Piece,
    Skeleton,
    Slot,
    SlotKind,
    contents,
    expanded,
    merged,
    read_slot,
    scaled,
    skeleton,
)
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart

MAX_DOCUMENT_DEPTH: Final = MAX_SCHEMA_DEPTH + MAX_VALUE_DEPTH + 2
MAX_REPAIRS: Final = 4
"""Jobs after the first one. Each pins what is valid so far."""
INSTRUCTION: Final = (
    "Answer with one JSON document and with nothing else. It must hold this JSON schema: {schema}"
)
CALL_INSTRUCTION: Final = (
    "Call the function {name}. Answer with its arguments as one JSON document and with nothing "
    "else. It must hold this JSON schema: {schema}"
)
CHOICE_INSTRUCTION: Final = (
    "Choose the function to call next. Answer with its name as a JSON document and with nothing "
    "else. It must hold this JSON schema: {schema}"
)


@dataclass(frozen=True, slots=True)
class Filling:
    """A skeleton of which some slots may be filled.

    most: the caller's limit of tokens, or None. why: why the last document was not valid.
    """

    schema: JsonSchema
    pieces: Skeleton
    most: int | None = None
    why: str = ""

    @classmethod
    def of(cls, schema: JsonSchema, most: int | None) -> Filling | None:
        """Return the empty skeleton. None if it does not fit `most` tokens."""
        return cls(schema, skeleton(schema), most).fitted()

    def fitted(self) -> Filling | None:
        """Shrink the slots to the limit of tokens. None if they cannot be so short."""
        if self.most is None:
            return self
        pieces = scaled(self.pieces, self.most - self._fixed)
        return None if pieces is None else replace(self, pieces=pieces)

    @property
    def done(self) -> bool:
        """Whether no slot is left."""
        return not any(isinstance(piece, Slot) for piece in self.pieces)

    @property
    def tokens(self) -> int:
        """Positions of the template, at most."""
        return self._fixed + sum(p.tokens for p in self.pieces if isinstance(p, Slot))

    @property
    def _fixed(self) -> int:
        """Tokens of the fixed texts, at most: no token is shorter than a byte."""
        texts = (piece for piece in expanded(self.pieces) if isinstance(piece, str))
        return sum(len(text.encode()) for text in texts)

    @property
    def template(self) -> tuple[TemplatePart, ...]:
        """The template of the next job."""
        return tuple(
            Fixed(piece) if isinstance(piece, str) else Hole(piece.tokens)
            for piece in expanded(self.pieces)
        )

    @property
    def document(self) -> str:
        """The document, once it is done."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    def take(self, text: str) -> Filling:
        """Take a job's text in: pin what is valid.

        Raises:
            DocumentTooDear: A pattern of the schema takes too long on it.
        """
        parts = iter(contents(expanded(self.pieces), text))
        read = {
            piece.path: _behind_given(piece, read_slot(piece, next(parts)))
            for piece in self.pieces
            if isinstance(piece, Slot)
        }
        broken = [path for path, content in read.items() if content.text is None]
        faults = self.schema.faults(loads(self._written(read), max_depth=MAX_DOCUMENT_DEPTH))
        judged = {
            piece.path: _judged(piece, read[piece.path], faults, any_broken=bool(broken))
            for piece in self.pieces
            if isinstance(piece, Slot)
        }
        why = "" if not broken else f"{_shown(broken[0])} is not JSON of its kind"
        if faults and not broken:
            why = f"{_shown(faults[0].path)}: {faults[0].reason}"
        return replace(self, pieces=self._next(judged), why=why)

    def _written(self, read: dict[Any, Content]) -> str:
        """The document, with null or nothing where a slot is broken."""
        return "".join(
            piece if isinstance(piece, str) else _or_empty(piece, read[piece.path])
            for piece in self.pieces
        )

    def _next(self, judged: dict[Any, Content]) -> Skeleton:
        """The pieces of the next template. An open slot gets twice the room."""
        pieces: list[Piece] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                pieces.append(piece)
            elif (text := judged[piece.path].text) is not None:
                pieces.append(text)
            else:
                tokens = min(2 * piece.tokens, MAX_SLOT_TOKENS)
                pieces.append(replace(piece, tokens=tokens, given=judged[piece.path].done))
        return merged(pieces)


def _or_empty(slot: Slot, content: Content) -> str:
    if content.text is not None:
        return content.text
    return "null" if slot.kind is SlotKind.VALUE else ", ".join(slot.given)


def _behind_given(slot: Slot, content: Content) -> Content:
    """Put what was pinned in front of a slot before what a job added."""
    done = (*slot.given, *content.done)
    if content.text is None or not slot.given:
        return replace(content, done=done)
    return Content(", ".join(done), done)


def _judged(
    slot: Slot, content: Content, faults: list[SchemaFault], *, any_broken: bool
) -> Content:
    """Return what of a slot can stay: all of it, the first items of a list, or nothing."""
    keep, valid, cut = len(content.done), content.text is not None, False
    for fault in faults:
        inside = fault.path[: len(slot.path)] == slot.path
        if not inside:
            # A rule of something around the slot. With a hole in it nobody can say who broke it.
            if slot.path[: len(fault.path)] == fault.path and not any_broken:
                keep, valid = 0, False
            continue
        inner = fault.path[len(slot.path) :]
        valid = False
        if slot.kind is SlotKind.ITEMS and inner and isinstance(inner[0], int):
            keep = min(keep, inner[0])
        elif slot.kind is SlotKind.ITEMS and not inner and fault.rule == "maxItems":
            keep, cut = min(keep, int(fault.value)), True
        elif slot.kind is not SlotKind.ITEMS or fault.rule not in ("minItems", "contains"):
            keep = 0
    if valid:
        return content
    done = content.done[:keep]
    whole = cut and all(fault.rule == "maxItems" for fault in faults if fault.path == slot.path)
    return Content(", ".join(done) if whole and keep == len(done) and done else None, done)


def _shown(path: tuple[str | int, ...]) -> str:
    return "/" + "/".join(str(step) for step in path)
