"""Rules about what is open of the steps: ids, pins, acceptance, numbers, and the end."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_DENOISING_STEPS
from piecework_protocol.objects import Finish, Kind, Parameters, Receipt
from piecework_protocol.rules.case import Case
from piecework_protocol.rules.findings import Finding, RuleNumber
from piecework_protocol.rules.numbers import accepted, confident, plausible
from piecework_protocol.rules.philox import IdPurpose, RandomIds
from piecework_protocol.trace import (
    CanvasRecord,
    StepField,
    StepHeader,
    StepRecord,
    pinned_root,
    read_bits,
    read_fingerprint,
    read_ids,
)

_MICROS: Final = 1_000_000
_CANVASES: Final = (StepField.BEFORE, StepField.AFTER, StepField.ARGMAX)
_DENOISED: Final = frozenset({Kind.TEXT, Kind.READ})
"""The leaf of an opening is that of another job's step. The rules apply to that job."""
Ids = tuple[int, ...]
Pins = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Step:
    """What is open of a step, parsed. None is not open."""

    before: Ids | None = None
    after: Ids | None = None
    argmax: Ids | None = None
    accepted: tuple[bool, ...] | None = None
    numbers: tuple[tuple[float, float, float], ...] | None = None

    @property
    def entropies(self) -> tuple[float, ...] | None:
        return None if self.numbers is None else tuple(entropy for entropy, _, _ in self.numbers)

    def likeliest(self, place: int) -> bool | None:
        """Say whether the sampled id is the argmax. None: it is not known."""
        if self.accepted is None or self.after is None or self.argmax is None:
            return None
        return self.after[place] == self.argmax[place] if self.accepted[place] else None


_NOTHING: Final = _Step()


def check_steps(case: Case) -> Iterator[Finding]:
    """Apply the rules that need the canvas record and the open fields of its steps."""
    record = case.record
    if record is None or case.job.kind not in _DENOISED:
        return
    yield from _check_pins(case, record)
    yield from _check_leaves(case)
    steps: dict[int, _Step] = {}
    for index, fields in sorted(case.steps.items()):
        try:
            steps[index] = _parse(case.receipt, record, index, fields)
        except MalformedInput as error:
            yield Finding(RuleNumber.FIELDS, index, str(error))
    pins = case.known_pins
    for index, step in steps.items():
        yield from _check_continuity(index, step, steps.get(index + 1, _NOTHING))
        if pins is not None and _fit(pins, record):
            yield from _check_held(index, step, pins)
            yield from _check_random(record, index, step, pins)
            yield from _check_numbers(record, index, step, pins)
            yield from _check_accepted(case.job.parameters, index, step, pins)
    if pins is not None and _fit(pins, record):
        yield from _Ending(case.receipt, case.job.parameters, record, steps, pins).check()


def _check_pins(case: Case, record: CanvasRecord) -> Iterator[Finding]:
    pins = case.known_pins
    if pins is None:
        return
    try:
        root = pinned_root(sorted(pins.items()))
    except MalformedInput as error:
        yield Finding(RuleNumber.PINNED, None, str(error))
        return
    if root != record.pinned or not _fit(pins, record):
        yield Finding(RuleNumber.PINNED, None, "the pinned positions are others than committed")


def _fit(pins: Pins, record: CanvasRecord) -> bool:
    return all(0 <= place < record.size for place in pins)


def _check_leaves(case: Case) -> Iterator[Finding]:
    """Hold each step that is open whole to its leaf."""
    for index, fields in case.steps.items():
        known = case.leaves is not None and 0 <= index < len(case.leaves) - 1
        if case.leaves is None or not known or len(fields) < len(StepField):
            continue
        try:
            leaf = StepRecord.parse([fields[name] for name in StepField]).leaf()
        except MalformedInput as error:
            yield Finding(RuleNumber.FIELDS, index, str(error))
            continue
        if leaf != case.leaves[index + 1]:
            yield Finding(RuleNumber.LEAVES, index, "the fields are not those of the leaf")


def _parse(
    receipt: Receipt, record: CanvasRecord, index: int, fields: Mapping[StepField, bytes]
) -> _Step:
    """Parse the open fields of a step.

    Raises:
        MalformedInput: One of them is not what the layout says.
    """
    if not 0 <= index < min(receipt.steps, MAX_DENOISING_STEPS):
        raise MalformedInput("the receipt charges no such step")
    header = fields.get(StepField.HEADER)
    expected = StepHeader(record.canvas, index, record.size)
    if header is not None and StepHeader.parse(header) != expected:
        raise MalformedInput("the header is that of another step")
    before, after, argmax = (_ids(fields.get(name), record) for name in _CANVASES)
    bits, numbers = fields.get(StepField.ACCEPTED), fields.get(StepField.FINGERPRINT)
    parsed = None if numbers is None else read_fingerprint(numbers)
    if parsed is not None and len(parsed) != record.size:
        raise MalformedInput("a fingerprint has three numbers for each position of the canvas")
    flags = None if bits is None else read_bits(bits, record.size)
    return _Step(before, after, argmax, flags, parsed)


def _ids(data: bytes | None, record: CanvasRecord) -> Ids | None:
    if data is None:
        return None
    ids = read_ids(data)
    if len(ids) != record.size or max(ids) >= record.vocab_size:
        raise MalformedInput("a canvas has one id of the vocabulary for each position")
    return ids


def _check_continuity(index: int, step: _Step, following: _Step) -> Iterator[Finding]:
    if None not in (step.after, following.before) and step.after != following.before:
        text = "it does not begin where the step before it ended"
        yield Finding(RuleNumber.CONTINUITY, index + 1, text)


def _check_held(index: int, step: _Step, pins: Pins) -> Iterator[Finding]:
    """Hold pinned positions to their ids."""
    for name, ids in (("before", step.before), ("after", step.after), ("argmax", step.argmax)):
        if ids is not None and any(ids[place] != token for place, token in pins.items()):
            yield Finding(RuleNumber.HELD, index, f"a pinned position has another id {name}")
    if step.accepted is not None and not all(step.accepted[place] for place in pins):
        yield Finding(RuleNumber.HELD, index, "a pinned position is not accepted")


def _check_random(record: CanvasRecord, index: int, step: _Step, pins: Pins) -> Iterator[Finding]:
    """Hold the positions that nothing chose to Philox."""
    drawn = RandomIds(record.seed, record.canvas, index, IdPurpose.RENOISE, record.vocab_size)
    if index == 0 and step.before is not None:
        wrong = _first_other(step.before, pins, replace(drawn, purpose=IdPurpose.INITIAL))
        if wrong is not None:
            yield Finding(RuleNumber.INITIAL, 0, f"position {wrong} does not hold its Philox id")
    if step.after is not None and step.accepted is not None:
        kept = {place for place, flag in enumerate(step.accepted) if flag} | pins.keys()
        wrong = _first_other(step.after, kept, drawn)
        if wrong is not None:
            text = f"position {wrong} does not hold its Philox id"
            yield Finding(RuleNumber.RENOISED, index, text)


def _first_other(ids: Ids, kept: Container[int], drawn: RandomIds) -> int | None:
    """Find the first position that does not hold its random id, and is not among the `kept`."""
    places = (place for place in range(len(ids)) if place not in kept)
    return next((place for place in places if ids[place] != drawn.at(place)), None)


def _check_numbers(record: CanvasRecord, index: int, step: _Step, pins: Pins) -> Iterator[Finding]:
    for place, (entropy, log_probability, gap) in enumerate(step.numbers or ()):
        if place not in pins and not plausible(
            entropy,
            log_probability,
            gap,
            likeliest=step.likeliest(place),
            vocab_size=record.vocab_size,
        ):
            text = f"the numbers of position {place} fit no distribution"
            yield Finding(RuleNumber.FINGERPRINT, index, text)
            return


def _check_accepted(
    parameters: Parameters, index: int, step: _Step, pins: Pins
) -> Iterator[Finding]:
    if step.entropies is None or step.accepted is None:
        return
    certain = accepted(step.entropies, pins, _float32(parameters.entropy_bound / _MICROS))
    for place, (expected, flag) in enumerate(zip(certain, step.accepted, strict=True)):
        if place not in pins and expected is not None and expected is not flag:
            text = f"position {place} is {'not ' if expected else ''}accepted"
            yield Finding(RuleNumber.ENTROPY, index, text)
            return


@dataclass(frozen=True, slots=True)
class _Ending:
    """The rule about the end of a canvas: with its first step that is stable and confident."""

    receipt: Receipt
    parameters: Parameters
    record: CanvasRecord
    steps: Mapping[int, _Step]
    pins: Pins

    def check(self) -> Iterator[Finding]:
        """Hold each open step to going on or ending there."""
        for index in self.steps:
            last = index + 1 == self.receipt.steps
            done = self._is_done(index)
            if done is True and not last:
                yield Finding(RuleNumber.STOP, index, "the canvas goes on and is done")
            elif done is False and last and self.receipt.finish is not Finish.CANCELLED:
                yield Finding(RuleNumber.STOP, index, "the canvas ends and is not done")

    def _is_done(self, index: int) -> bool | None:
        """Say whether a canvas ends with a step. None: it is not known, or rounding decides."""
        if index + 1 == self.parameters.max_steps or len(self.pins) == self.record.size:
            return True
        entropies = self.steps[index].entropies
        threshold = _float32(self.parameters.confidence_threshold / _MICROS)
        sure = None if entropies is None else confident(entropies, self.pins, threshold)
        stable = self._is_stable(index)
        if sure is False or stable is False:
            return False
        return True if sure and stable else None

    def _is_stable(self, index: int) -> bool | None:
        """Say whether the argmax canvas is that of so many earlier steps."""
        needed = self.parameters.stability_steps
        if index < needed:
            return False
        shown = [self.steps.get(i, _NOTHING).argmax for i in range(index - needed, index + 1)]
        if len({argmax for argmax in shown if argmax is not None}) > 1:
            return False
        return True if not needed or None not in shown else None


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
