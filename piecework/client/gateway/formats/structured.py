"""A structured answer as it grows valid: fill, judge, pin what is valid, fill the rest again. Pure.

A `Filling` is the state between two jobs. Each job denoises its template. What is valid then is
pinned in the template of the next one. A list keeps its items before the first broken one. What is
longer than the schema allows, a list or a string, is cut. A value that must be one of a few can be
decided by a read job, which gives one of them in any case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from piecework.base.jsons import loads
from piecework.client.gateway.formats.schema import MAX_SCHEMA_DEPTH, JsonSchema, Path, SchemaFault
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
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart
from piecework_protocol.limits import MAX_LABELS, MAX_QUESTIONS

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
        slots = [piece for piece in self.pieces if isinstance(piece, Slot)]
        read = {slot.path: _behind_given(slot, read_slot(slot, next(parts))) for slot in slots}
        broken = [path for path, content in read.items() if content.text is None]
        faults = self._faults(read)
        why = "" if not broken else f"{_shown(broken[0])} is not JSON of its kind"
        if faults and not broken:
            why = f"{_shown(faults[0].path)}: {faults[0].reason}"
        judged = {
            slot.path: _judged(slot, read[slot.path], faults, any_broken=bool(broken))
            for slot in slots
        }
        cut = {path for path, one in judged.items() if one.text not in (None, read[path].text)}
        if cut and self._faults(judged):
            # What was cut breaks another rule now.
            judged |= {path: Content(None) for path in cut}
        short = {path for path, content in read.items() if content.text is None}
        after = replace(self, pieces=self._next(judged, short), why=why)
        if after.done and faults and self.schema.faults(loads(after.document)):
            # What was pinned earlier breaks a rule together with what came now: begin again.
            return replace(self, pieces=skeleton(self.schema))
        return after

    @property
    def questions(self) -> tuple[tuple[Path, Question], ...]:
        """Open slots that hold one of a few values, as questions of a read job."""
        return tuple(
            (piece.path, _question(piece))
            for piece in self.pieces
            if isinstance(piece, Slot) and 2 <= len(piece.options) <= MAX_LABELS
        )[:MAX_QUESTIONS]

    def decided(self, choices: Mapping[Path, int]) -> Filling:
        """Fill slots with one of their options each. Nothing changes if they break a rule."""
        pieces = merged(
            piece.options[choices[piece.path]]
            if isinstance(piece, Slot) and piece.path in choices
            else piece
            for piece in self.pieces
        )
        after = replace(self, pieces=pieces)
        if after.done and self.schema.faults(loads(after.document)):
            return self
        return after

    def _faults(self, read: dict[Path, Content]) -> list[SchemaFault]:
        """Judge the document, with null or nothing where a slot is broken."""
        written = "".join(
            piece if isinstance(piece, str) else _or_empty(piece, read[piece.path])
            for piece in self.pieces
        )
        return self.schema.faults(loads(written, max_depth=MAX_DOCUMENT_DEPTH))

    def _next(self, judged: dict[Path, Content], short: set[Path]) -> Skeleton:
        """The pieces of the next template. A slot that broke off gets twice the room."""
        pieces: list[Piece] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                pieces.append(piece)
            elif (text := judged[piece.path].text) is not None:
                pieces.append(text)
            else:
                grows = piece.path in short and piece.kind is not SlotKind.TEXT
                tokens = min((1 + grows) * piece.tokens, MAX_SLOT_TOKENS)
                pieces.append(replace(piece, tokens=tokens, given=judged[piece.path].done))
        return merged(pieces)


def _question(slot: Slot) -> Question:
    """Ask which value a slot has."""
    asked = f"Which value does {_shown(slot.path)} have in the JSON document that answers?"
    return Question(asked, tuple(Label(option or '""') for option in slot.options))


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
    """Return what of a slot can stay: all of it, what fits, the first items, or nothing."""
    keep, valid = len(content.done), content.text is not None
    cuts: list[int] = []
    for fault in faults:
        inner = fault.path[len(slot.path) :]
        if fault.path[: len(slot.path)] != slot.path:
            # A rule of something around the slot. With a hole in it nobody can say who broke it.
            if slot.path[: len(fault.path)] == fault.path and not any_broken:
                keep, valid = 0, False
        elif not inner and (slot.kind, fault.rule) in _CUTS:
            cuts.append(int(fault.value))
        elif slot.kind is SlotKind.ITEMS and inner and isinstance(inner[0], int):
            keep, valid = min(keep, inner[0]), False
        else:
            more = slot.kind is SlotKind.ITEMS and fault.rule in ("minItems", "contains")
            keep, valid = keep if more else 0, False
    if valid and content.text is not None:
        return content if not cuts else _cut(slot, content, min(cuts))
    return Content(None, content.done[:keep])


_CUTS: Final = {(SlotKind.ITEMS, "maxItems"), (SlotKind.TEXT, "maxLength")}
"""Rules that a value keeps once it is cut."""


def _cut(slot: Slot, content: Content, most: int) -> Content:
    """Cut a list or a string to a length. A string ends behind a word if it can."""
    if slot.kind is SlotKind.ITEMS:
        return Content(", ".join(content.done[:most]), content.done[:most])
    text = str(loads(f'"{content.text}"'))[:most]
    words, space, _ = text.rpartition(" ")
    kept = words if space and words.strip() else text
    return Content(json.dumps(kept, ensure_ascii=False)[1:-1])


def _shown(path: Path) -> str:
    return "/" + "/".join(str(step) for step in path)
