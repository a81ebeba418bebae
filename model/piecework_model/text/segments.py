"""What a model wrote, as segments of an answer: final text, thoughts and tool calls.

The grammar is that of Gemma 4, read at the tokens, where no text can forge it:

    <|channel>thought⏎ … <channel|>                     a thought
    <|tool_call>call:name{key:value}<tool_call|>        a tool call (text/calls.py)

A call is handed out whole, when it ends. One that ends too early or is not in the grammar is handed
out as it was written. Control tokens that mean nothing where they stand are dropped. A checkpoint
without these tokens writes final text alone.

Text is decoded once: ids are forgotten when no later ones can change their text. So the cost of a
part does not grow with the answer before it.

Nothing here raises: a model may write any tokens in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from piecework_model.text.calls import parse_call
from piecework_model.text.tokens import TextCodec
from piecework_protocol.kinds.text import OutputSegment, SegmentKind
from piecework_protocol.limits import MAX_CALL_BYTES

Segments = tuple[OutputSegment, ...]
_THOUGHT: Final = "thought\n"
"""How the channel of thoughts begins. Another channel's name stays with its text."""
_QUOTE: Final = '<|"|>'
_TEXTS: Final = (SegmentKind.FINAL, SegmentKind.THOUGHT)


@dataclass(frozen=True, slots=True)
class _Grammar:
    """The control tokens of a checkpoint that structure its answers. None: it has no such."""

    channel: int | None
    channel_end: int | None
    call: int | None
    call_end: int | None
    quote: int | None

    @classmethod
    def of(cls, codec: TextCodec) -> _Grammar:
        names = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", _QUOTE)
        return cls(*map(codec.control_id, names))


@dataclass(frozen=True, slots=True)
class _Run:
    """Ids without control tokens between them, whose text is taken as far as it is settled.

    ids: those that are not settled, behind the last one that is. A decoder may treat the first id
        of a text in its own way, so that one stays in front.
    taken: how many characters of their text were taken.
    """

    ids: tuple[int, ...] = ()
    taken: int = 0

    def add(self, ids: Iterable[int]) -> _Run:
        """Return the run with more ids at its end."""
        return _Run((*self.ids, *ids), self.taken)

    def settle(self, codec: TextCodec) -> tuple[str, _Run]:
        """Take the text that later ids cannot change."""
        length = codec.settled_length(self.ids)
        text = codec.decode(self.ids[:length])
        # Byte-level vocabularies have no byte pieces to see: half a character decodes to U+FFFD.
        settled = text.rstrip("\ufffd")
        fresh, taken = settled[self.taken :], max(self.taken, len(settled))
        if length < 2 or settled != text:
            return fresh, _Run(self.ids, taken)
        last = self.ids[length - 1]
        return fresh, _Run(self.ids[length - 1 :], len(codec.decode((last,))))

    def end(self, codec: TextCodec) -> str:
        """Take the rest of the text."""
        return codec.decode(self.ids)[self.taken :]


_NOTHING: Final = _Run()


@dataclass(frozen=True, slots=True)
class _State:
    """Where the answer is.

    kind: of what is being written. A tool call is BROKEN_CALL until it has ended well.
    run: its ids since it began, or since its last quote, that are not settled.
    parts: of a call, what stands before each of its quotes and was not handed out.
    held: settled text of the run that was not handed out.
    named: of a thought, whether the channel's name is behind us.
    given: whether some of its text was handed out.
    last: the kind of the last segment that was handed out.
    """

    kind: SegmentKind = SegmentKind.FINAL
    run: _Run = _NOTHING
    parts: tuple[str, ...] = ()
    held: str = ""
    named: bool = False
    given: bool = False
    last: SegmentKind | None = None


class SegmentStream:
    """The answer of growing ids, handed out in parts. The parts add up to the whole."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec, self._grammar = codec, _Grammar.of(codec)
        self._state = _State()

    def append(self, ids: tuple[int, ...], *, final: bool) -> Segments:
        """Add ids and return what they add to the answer.

        Unless `final`, hold back what later ids could change.
        """
        reading = _Reading(self._codec, self._grammar, self._state)
        reading.read(ids, final=final)
        self._state = reading.state
        return reading.segments

    def preview(self, ids: tuple[int, ...]) -> Segments:
        """Return what `append` would return, and change nothing."""
        reading = _Reading(self._codec, self._grammar, self._state)
        reading.read(ids, final=False)
        return reading.segments


class _Reading:
    """One reading of ids, from a state to the next one."""

    def __init__(self, codec: TextCodec, grammar: _Grammar, state: _State) -> None:
        self._codec, self._grammar = codec, grammar
        self.state = state
        self._found: list[OutputSegment] = []

    @property
    def segments(self) -> Segments:
        """What was found. Texts of one kind that follow each other are one."""
        return tuple(self._found)

    def read(self, ids: Iterable[int], *, final: bool) -> None:
        """Read ids, and hand out what no later ones can change."""
        marks, fresh = self._grammar, list[int]()
        for token in ids:
            in_call = self.state.kind is SegmentKind.BROKEN_CALL
            if token not in self._codec.control_ids or (in_call and token == marks.quote):
                fresh.append(token)
                continue
            if token not in (marks.channel, marks.channel_end, marks.call, marks.call_end):
                continue
            self._write(fresh)
            fresh = []
            if token == marks.channel:
                self._begin(SegmentKind.THOUGHT)
            elif token == marks.call:
                self._begin(SegmentKind.BROKEN_CALL)
            elif token == marks.call_end and in_call:
                self._end_call()
            elif token == marks.channel_end and self.state.kind is SegmentKind.THOUGHT:
                self._begin(SegmentKind.FINAL)
        self._write(fresh)
        if final:
            self._end()
        else:
            self._settle()

    def _write(self, ids: Iterable[int]) -> None:
        """Add ids to what is being written. A quote ends a part of a call."""
        state, parts = self.state, list[str]()
        run, held, piece = state.run, state.held, list[int]()
        for token in ids:
            if token != self._grammar.quote:
                piece.append(token)
                continue
            parts.append(held + run.add(piece).end(self._codec))
            run, held, piece = _NOTHING, "", []
        self.state = replace(state, run=run.add(piece), held=held, parts=(*state.parts, *parts))

    def _settle(self) -> None:
        """Take what is settled, and hand it out unless later ids decide what it is."""
        fresh, run = self.state.run.settle(self._codec)
        self.state = replace(self.state, run=run, held=self.state.held + fresh)
        if self.state.kind in _TEXTS:
            self._hand_out_text(ended=False)
        elif self.state.given or _is_too_long(self._written()):
            self._hand_out(self._written())
            self.state = replace(self.state, parts=(), held="")

    def _begin(self, kind: SegmentKind) -> None:
        """End what is being written, and begin something else."""
        self._end()
        self.state = _State(kind, last=self.state.last)

    def _end(self) -> None:
        self._take_rest()
        if self.state.kind in _TEXTS:
            self._hand_out_text(ended=True)
        else:
            self._hand_out(self._written())

    def _take_rest(self) -> None:
        rest = self.state.run.end(self._codec)
        self.state = replace(self.state, run=_NOTHING, held=self.state.held + rest)

    # --- calls

    def _end_call(self) -> None:
        """Hand out a call that has ended: as JSON if it is in the grammar, and not too long."""
        self._take_rest()
        # What was written counts too: a part of a longer one may have been handed out.
        whole = not self.state.given and not _is_too_long(self._written())
        call = parse_call((*self.state.parts, self.state.held)) if whole else None
        if call is None or _is_too_long(call):
            self._begin(SegmentKind.FINAL)
            return
        self._add(SegmentKind.TOOL_CALL, call)
        self.state = _State(last=self.state.last)

    def _written(self) -> str:
        """Return what is held of a call as it was written."""
        return _QUOTE.join((*self.state.parts, self.state.held))

    # --- texts

    def _hand_out_text(self, *, ended: bool) -> None:
        """Hand out what is held of a text, without what belongs to the grammar."""
        text = self.state.held
        if self.state.kind is SegmentKind.THOUGHT and not self.state.named:
            if _THOUGHT.startswith(text) and not ended:
                return
            # A thought without any text may lack the line break.
            text = "" if f"{text}\n" == _THOUGHT else text.removeprefix(_THOUGHT)
        # The line breaks behind a thought belong to the grammar.
        body = text.rstrip("\n") if self.state.kind is SegmentKind.THOUGHT else text
        self.state = replace(self.state, held=text[len(body) :], named=True)
        self._hand_out(body)

    def _hand_out(self, text: str) -> None:
        """Hand out text of what is being written."""
        if text:
            again = self.state.kind is self.state.last is SegmentKind.THOUGHT
            begins = again and not self.state.given
            self.state = replace(self.state, given=True)
            self._add(self.state.kind, "\n" * begins + text)

    def _add(self, kind: SegmentKind, text: str) -> None:
        self.state = replace(self.state, last=kind)
        if kind in _TEXTS and self._found and self._found[-1].kind is kind:
            self._found[-1] = OutputSegment(kind, self._found[-1].text + text)
        else:
            self._found.append(OutputSegment(kind, text))


def _is_too_long(call: str) -> bool:
    return len(call.encode()) > MAX_CALL_BYTES
