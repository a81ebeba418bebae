"""A structured answer as it grows valid: fill, judge, pin what is valid, fill the rest again. Pure.

A `Filling` is the state between two jobs. Each job denoises its template. What is valid then is
pinned in the template of the next one. A list keeps its items before the first broken one. A string
or a list that fills its hole goes on in the next one. What is longer than the schema allows, a list
or a string, is cut. A value that must be one of a few can be decided by a read job, which gives one
of them in any case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from piecework.base.jsons import loads
from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.formats.narrowing import narrowed
from piecework.client.gateway.formats.schema import (
    MAX_SCHEMA_DEPTH,
    JsonSchema,
    Path,
    SchemaFault,
    identity,
)
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
    goes_on,
    merged,
    read_slot,
    scaled,
    skeleton,
    token_estimate,
    token_floor,
    written_in,
)
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart
from piecework_protocol.limits import MAX_LABELS, MAX_QUESTIONS

MAX_DOCUMENT_DEPTH: Final = MAX_SCHEMA_DEPTH + MAX_VALUE_DEPTH + 2
MAX_REPAIRS: Final = 4
"""Jobs after the first one. Each pins what is valid so far."""
LABELS_PER_READ: Final = 48
"""Of all questions of one read, if that makes few reads. Each label is a line of the prompt."""
MAX_READS: Final = 4
"""That decide the values of one document at once, about."""
MAX_GROWN_TOKENS: Final = 4096
"""Of a document whose strings grow, if the caller has no limit."""
_WHOLE_GROWTH: Final = 4
"""Of a hole for a string, or for a value that begins again with each job."""
_BROKEN_OFF_BYTES: Final = 16
"""Of an escape that broke off, at most."""
_SPARE_TOKENS: Final = 8
"""The fixed texts of two templates may be cut into tokens in two ways."""
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
    charged: tokens of what the last job wrote, which are about those of the fixed texts now. least:
    tokens of the fixed texts, at least. decided_places: where values stand that were decided.
    """

    schema: JsonSchema
    pieces: Skeleton
    most: int | None = None
    why: str = ""
    charged: int | None = None
    least: int = 0
    decided_places: tuple[Path, ...] = ()

    @classmethod
    def of(cls, schema: JsonSchema, most: int | None) -> Filling | None:
        """Return the empty skeleton. None if it does not fit `most` tokens."""
        return cls(schema, skeleton(schema), most).fitted()

    def fitted(self) -> Filling | None:
        """Shrink the slots to the limit of tokens. None if they cannot be so short."""
        most = self.most
        if most is None and any(self._continues(piece) for piece in self.pieces):
            most = max(MAX_GROWN_TOKENS, Filling(self.schema, skeleton(self.schema)).tokens)
        if most is None:
            return self
        pieces = scaled(self.pieces, most - self._fixed)
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
        """Tokens of the fixed texts, rather too many."""
        texts = (piece for piece in expanded(self.pieces) if isinstance(piece, str))
        estimate = sum(token_estimate(text) for text in texts)
        return estimate if self.charged is None else min(estimate, self.charged)

    @staticmethod
    def _continues(piece: Piece) -> bool:
        """Whether a string, a list or an object has a beginning, and goes on."""
        if not isinstance(piece, Slot) or not piece.given:
            return False
        return piece.full or piece.kind is SlotKind.TEXT

    @property
    def is_cut(self) -> bool:
        """Whether nothing is missing but the rest of strings, lists and objects."""
        slots = [piece for piece in self.pieces if isinstance(piece, Slot)]
        return bool(slots) and all(self._continues(slot) for slot in slots)

    @property
    def beginning(self) -> str:
        """The document up to the first slot, with what breaks off there."""
        first = expanded(self.pieces)[0]
        return first if isinstance(first, str) else ""

    @property
    def limit(self) -> int:
        """Tokens that a job over the template may have, whatever its vocabulary.

        No token is shorter than a byte.
        """
        texts = (piece for piece in expanded(self.pieces) if isinstance(piece, str))
        fixed = sum(len(text.encode()) for text in texts)
        if self.charged is not None:
            fixed = min(fixed, self.charged)
        limit = max(self.tokens, fixed + self.tokens - self._fixed)
        return limit if self.most is None else min(limit, self.most)

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

    def take(self, text: str, charged: int | None = None) -> Filling:
        """Take a job's text in: pin what is valid. `charged`: its tokens.

        Raises:
            DocumentTooDear: A pattern of the schema takes too long on it.
        """
        slots = [piece for piece in self.pieces if isinstance(piece, Slot)]
        held = dict(zip(slots, contents(expanded(self.pieces), text), strict=True))
        read = {slot.path: _behind_given(slot, read_slot(slot, held[slot])) for slot in slots}
        faults = self._faults(read)
        unfinished = self._unfinished(held, faults, charged)
        broken = [path for path, one in read.items() if one.text is None or path in unfinished]
        why = "" if not broken else f"{shown_path(broken[0])} is not JSON of its kind"
        if broken and broken[0] in unfinished:
            why = f"{shown_path(broken[0])} has no end"
        if faults and not broken:
            why = f"{shown_path(faults[0].path)}: {faults[0].reason}"
        judged = self._judged_all(read, faults, any_broken=bool(broken)) | unfinished
        after = replace(self, pieces=self._next(judged, set(broken)), why=why)
        after = after if charged is None else after._counted(len(text.encode()), charged)
        return after._or_again(faults)

    def holding(self, value: Any) -> Filling:
        """Pin what is valid of a value that breaks the schema. What has no place is dropped.

        The skeleton has to be empty.

        Raises:
            DocumentTooDear: A pattern of the schema takes too long on it.
        """
        slots = [piece for piece in self.pieces if isinstance(piece, Slot)]
        read = {slot.path: written_in(slot, value) for slot in slots}
        faults = self._faults(read)
        missing = any(one.text is None for one in read.values())
        judged = self._judged_all(read, faults, any_broken=missing)
        why = f"{shown_path(faults[0].path)}: {faults[0].reason}" if faults else ""
        return replace(self, pieces=self._next(judged, set()), why=why)._or_again(faults)

    def _judged_all(
        self, read: Mapping[Path, Content], faults: list[SchemaFault], *, any_broken: bool
    ) -> dict[Path, Content]:
        """Say what of each slot can stay."""
        slots = [piece for piece in self.pieces if isinstance(piece, Slot)]
        judged = {
            slot.path: _judged(slot, read[slot.path], faults, any_broken=any_broken)
            for slot in slots
        }
        cut = {path for path, one in judged.items() if one.text not in (None, read[path].text)}
        after = self._faults(judged) if cut else []
        open_ = any(one.text is None for one in judged.values())
        for path in cut:
            # What was cut may break another rule now. A list that is too short goes on.
            own = [fault for fault in after if _concerns(fault, path, around=not open_)]
            if own:
                short = all(fault.path == path and fault.rule == "minItems" for fault in own)
                judged[path] = Content(None, judged[path].done if short else ())
        return judged

    def _or_again(self, faults: list[SchemaFault]) -> Filling:
        """Begin again if what was pinned earlier breaks a rule together with what came now."""
        if self.done and faults and self.schema.faults(loads(self.document)):
            return Filling(self.schema, skeleton(self.schema), self.most, self.why)
        return self

    def _unfinished(
        self, held: Mapping[Slot, str], faults: list[SchemaFault], charged: int | None
    ) -> dict[Path, Content]:
        """The strings that go on, with what they have so far. One that is too long does not."""
        too_long = {fault.path for fault in faults if fault.rule == "maxLength"}
        fixed = "".join(piece for piece in expanded(self.pieces) if isinstance(piece, str))
        written = len(fixed.encode()) + sum(len(text.encode()) for text in held.values())
        least = max(self.least, token_floor(fixed)) + sum(map(token_floor, held.values()))
        found: dict[Path, Content] = {}
        for slot, text in held.items():
            own = None if charged is None else charged - least + token_floor(text)
            size = len(text.encode())
            likely = 0 if charged is None else charged * size * 3 // (2 * max(1, written))
            content = goes_on(slot, text, own, likely)
            if content is not None and slot.path not in too_long:
                found[slot.path] = replace(content, done=(*slot.given, *content.done))
        return found

    def _counted(self, written: int, charged: int) -> Filling:
        """Bound the tokens of the fixed texts, from a job's text in bytes and in tokens."""
        fixed = sum(len(p.encode()) for p in expanded(self.pieces) if isinstance(p, str))
        most = charged + _SPARE_TOKENS + max(0, fixed - written)  # escapes are longer
        kept = fixed + _BROKEN_OFF_BYTES >= written
        return replace(self, charged=most, least=charged * 3 // 4 if kept else 0)

    @property
    def questions(self) -> tuple[tuple[Path, Question], ...]:
        """Open slots that hold one of a few values, as questions of a read job."""
        return tuple(
            (piece.path, _question(piece))
            for piece in self.pieces
            if isinstance(piece, Slot) and 2 <= len(piece.options) <= MAX_LABELS
        )[:MAX_QUESTIONS]

    @property
    def reads(self) -> tuple[tuple[tuple[Path, Question], ...], ...]:
        """The questions, shared out over a few reads that fit a small context if they can."""
        found: list[list[tuple[Path, Question]]] = []
        sizes = [len(question.labels) for _, question in self.questions]
        most, labels = max(LABELS_PER_READ, -(-sum(sizes) // MAX_READS)), 0
        for one, size in zip(self.questions, sizes, strict=True):
            labels += size
            if not found or labels > most:
                found.append([])
                labels = size
            found[-1].append(one)
        return tuple(map(tuple, found))

    def narrowed(self, *, few_numbers: bool, grows: bool = True) -> Filling:
        """Leave the model less to choose in every slot (`narrowing`), if that fits the limits.

        few_numbers: whether numbers become one of a few, for a read job to decide. grows: whether a
        list or an object that filled its hole goes on.

        Raises:
            DocumentTooDear: A pattern of the schema takes too long on what is done then.
        """
        try:
            pieces = narrowed(self.schema, self.pieces, few_numbers=few_numbers, grows=grows)
        except ApiError:  # what is paid for is not given up for a form that is too large
            return self
        if pieces == self.pieces:
            return self
        after = replace(self, pieces=pieces, charged=None, least=0)
        if after.done and self.schema.faults(loads(after.document, max_depth=MAX_DOCUMENT_DEPTH)):
            return self
        return after.fitted() or self

    def ended(self) -> Filling:
        """End lists and objects that have no end, if they are all that is open.

        Where the caller or the model has a limit, the document is cut there instead.

        Raises:
            DocumentTooDear: A pattern of the schema takes too long on what is done then.
        """
        if self.most is not None:
            return self
        after = self.narrowed(few_numbers=False, grows=False)
        return after if after.done else self

    def decided(self, choices: Mapping[Path, int]) -> Filling:
        """Fill slots with one of their options each. Nothing changes if they break a rule."""
        pieces = merged(
            piece.options[choices[piece.path]]
            if isinstance(piece, Slot) and piece.path in choices
            else piece
            for piece in self.pieces
        )
        after = replace(self, pieces=pieces, decided_places=(*self.decided_places, *choices))
        if after.done and self.schema.faults(loads(after.document)):
            return self
        return after

    def _faults(self, read: Mapping[Path, Content]) -> list[SchemaFault]:
        """Judge the document, with null or nothing where a slot is broken."""
        written = "".join(
            piece if isinstance(piece, str) else _or_empty(piece, read[piece.path])
            for piece in self.pieces
        )
        return self.schema.faults(loads(written, max_depth=MAX_DOCUMENT_DEPTH))

    def _next(self, judged: dict[Path, Content], short: set[Path]) -> Skeleton:
        """The pieces of the next template. A slot that broke off gets more room."""
        pieces: list[Piece] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                pieces.append(piece)
            elif (text := judged[piece.path].text) is not None:
                pieces.append(text)
            else:
                full = judged[piece.path].full
                growth = 1 if piece.path not in short else 2
                if growth > 1 and (piece.kind is SlotKind.TEXT or (full and not piece.is_sequence)):
                    growth = _WHOLE_GROWTH
                tokens = min(growth * piece.tokens, MAX_SLOT_TOKENS)
                given = judged[piece.path].done
                pieces.append(replace(piece, tokens=tokens, given=given, full=full))
        return merged(pieces)


def _concerns(fault: SchemaFault, path: Path, *, around: bool) -> bool:
    """Say whether a fault is in the value at a path or, if asked, in what stands around it."""
    if fault.path[: len(path)] == path:
        return True
    return around and path[: len(fault.path)] == fault.path


def _question(slot: Slot) -> Question:
    """Ask which value a slot has."""
    asked = f"Which value does {shown_path(slot.path)} have in the JSON document that answers?"
    return Question(asked, tuple(Label(option or '""') for option in slot.options))


def _or_empty(slot: Slot, content: Content) -> str:
    if content.text is not None:
        return content.text
    return "null" if slot.kind is SlotKind.VALUE else ", ".join(slot.given)


def _behind_given(slot: Slot, content: Content) -> Content:
    """Put what was pinned in front of a slot before what a job added."""
    if slot.kind is SlotKind.TEXT:
        return replace(content, text="".join((*slot.given, content.text or "")))
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
    repeats = False
    for fault in faults:
        inner = fault.path[len(slot.path) :]
        if fault.path[: len(slot.path)] != slot.path:
            # A rule of something around the slot. With a hole in it nobody can say who broke it.
            if slot.path[: len(fault.path)] == fault.path and not any_broken:
                keep, valid = 0, False
        elif not inner and (slot.kind, fault.rule) in _CUTS:
            cuts.append(int(fault.value))
        elif not inner and (slot.kind, fault.rule) == (SlotKind.ITEMS, "uniqueItems"):
            repeats = True
        elif slot.kind is SlotKind.ITEMS and inner and isinstance(inner[0], int):
            keep, valid = min(keep, inner[0]), False
        else:
            more = slot.kind is SlotKind.ITEMS and fault.rule in ("minItems", "contains")
            keep, valid = keep if more else 0, False
    if repeats:
        kept = _unlike(content.done[:keep])
        content, keep = replace(content, done=kept), len(kept)
        content = replace(content, text=", ".join(kept) if valid else None)
    if valid and content.text is not None:
        return content if not cuts else _cut(slot, content, min(cuts))
    new = keep > len(slot.given) or not slot.is_sequence
    full = content.full and keep == len(content.done) and new
    return Content(None, content.done[:keep], full=full)


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


def _unlike(items: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out each item that is equal to an earlier one, by JSON Schema: 1 and 1.0 are."""
    found: dict[Any, str] = {}
    for item in items:
        found.setdefault(identity(loads(item, max_depth=MAX_DOCUMENT_DEPTH)), item)
    return tuple(found.values())


def shown_path(path: Path) -> str:
    """A place in a document, as messages name it."""
    return "/" + "/".join(str(step) for step in path)
