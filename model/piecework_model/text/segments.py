"""What a model wrote, as segments of an answer: final text, thoughts and tool calls.

The grammar is that of Gemma 4, read at the tokens, where no text can forge it:

    <|channel>thought⏎ … <channel|>                     a thought
    <|tool_call>call:name{key:value}<tool_call|>        a tool call (text/calls.py)

A call is handed out whole, when it ends. One that ends too early or is not in the grammar is handed
out as it was written. Control tokens that mean nothing where they stand are dropped. A checkpoint
without these tokens writes final text alone.

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
class _State:
    """Where the answer is.

    kind: of what is being written. A tool call is BROKEN_CALL until it has ended well.
    run: its ids since it began, without control tokens, but with the quotes of a call.
    given: how many characters of its text were handed out.
    last: the kind of the last segment that was handed out.
    """

    kind: SegmentKind = SegmentKind.FINAL
    run: tuple[int, ...] = ()
    given: int = 0
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
        elif self.state.kind in _TEXTS:
            self._hand_out(self._settled())
        elif len((text := _written(self._parts(self._settled_run()))).encode()) > MAX_CALL_BYTES:
            self._hand_out(text)

    def _write(self, ids: Iterable[int]) -> None:
        self.state = replace(self.state, run=(*self.state.run, *ids))

    def _begin(self, kind: SegmentKind) -> None:
        """End what is being written, and begin something else."""
        self._end()
        self.state = replace(self.state, kind=kind, run=(), given=0)

    def _end(self) -> None:
        run = self.state.run
        if self.state.kind in _TEXTS:
            self._hand_out(self._text(run, ended=True))
        else:
            self._hand_out(_written(self._parts(run)))

    def _end_call(self) -> None:
        """Hand out a call that has ended: as JSON if it is in the grammar, and was not too long."""
        call = parse_call(self._parts(self.state.run)) if not self.state.given else None
        if call is None or len(call.encode()) > MAX_CALL_BYTES:
            self._begin(SegmentKind.FINAL)
            return
        self._add(SegmentKind.TOOL_CALL, call)
        self.state = replace(self.state, kind=SegmentKind.FINAL, run=(), given=0)

    # --- texts

    def _settled(self) -> str:
        """Return the run's text as far as later ids cannot change it."""
        # Byte-level vocabularies have no byte pieces to see: half a character decodes to U+FFFD.
        return self._text(self._settled_run(), ended=False).rstrip("\ufffd")

    def _settled_run(self) -> tuple[int, ...]:
        run = self.state.run
        return run[: self._codec.settled_length(run)]

    def _text(self, run: tuple[int, ...], *, ended: bool) -> str:
        text = self._codec.decode(run)
        if self.state.kind is SegmentKind.FINAL:
            return text
        if text.strip() == _THOUGHT.strip() or (_THOUGHT.startswith(text) and not ended):
            return ""
        # The line breaks around a thought belong to the grammar.
        return text.removeprefix(_THOUGHT).rstrip("\n")

    def _parts(self, run: tuple[int, ...]) -> list[str]:
        """Return what stands outside and inside of the quotes of a call, by turns."""
        parts: list[list[int]] = [[]]
        for token in run:
            if token == self._grammar.quote:
                parts.append([])
            else:
                parts[-1].append(token)
        return [self._codec.decode(tuple(part)) for part in parts]

    def _hand_out(self, text: str) -> None:
        """Hand out what is new of the run's text."""
        fresh = text[self.state.given :]
        if fresh:
            again = self.state.kind is self.state.last is SegmentKind.THOUGHT
            begins = again and not self.state.given
            self.state = replace(self.state, given=len(text))
            self._add(self.state.kind, "\n" * begins + fresh)

    def _add(self, kind: SegmentKind, text: str) -> None:
        self.state = replace(self.state, last=kind)
        if kind in _TEXTS and self._found and self._found[-1].kind is kind:
            self._found[-1] = OutputSegment(kind, self._found[-1].text + text)
        else:
            self._found.append(OutputSegment(kind, text))


def _written(parts: list[str]) -> str:
    """Return a call as it was written."""
    return _QUOTE.join(parts)
