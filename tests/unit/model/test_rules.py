"""Each rule of a canvas is broken alone, in a trace that the engine made honestly."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.requests import HOLE, EncodedContent
from piecework_model.sampling import philox as fast
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Finish, Kind, Receipt
from piecework_protocol.outlines import Outline
from piecework_protocol.pricing import price, usage_of
from piecework_protocol.rules import Case, RuleNumber, check
from piecework_protocol.rules.numbers import accepted, confident, plausible
from piecework_protocol.rules.philox import IdPurpose, RandomIds
from piecework_protocol.trace import (
    StepField,
    StepRecord,
    pinned_root,
    read_bits,
    read_fingerprint,
    read_ids,
    trace_root,
    write_bits,
    write_ids,
)
from piecework_protocol.types import Amount, Digest, Uint32
from tests.support.model.model_strategies import CANVAS, TURN_END
from tests.support.model.traced_jobs import TracedJob, honest_cases
from tests.support.protocol.pair import DOMAIN, job

Break = Callable[[Case], Case]


def asked(prompt: tuple[int, ...], template: tuple[int, ...] = ()) -> TracedJob:
    changed = {"max_tokens": Uint32(3 * CANVAS), "max_steps": Uint32(12)}
    parameters = job(3, 1).parameters.replace(**changed)
    outline = Outline(1000, templated=bool(template))
    return TracedJob(parameters, EncodedContent(prompt, template), Kind.TEXT, outline)


@pytest.fixture(scope="module")
def honest(bundled: LoadedModel, prompt: tuple[int, ...]) -> Case:
    """The second canvas of a text, which goes on."""
    case = honest_cases(bundled, asked(prompt))[1]
    assert case.receipt.finish is Finish.MORE and case.receipt.steps > 3
    assert check(case) == ()
    return case


@pytest.fixture(scope="module")
def form(bundled: LoadedModel, prompt: tuple[int, ...]) -> Case:
    """The only canvas of a template."""
    template = (*[90, 91, 92] * 5, *[HOLE] * 10, 93, *[TURN_END] * 6)
    (case,) = honest_cases(bundled, asked(prompt, template))
    assert case.receipt.steps > 1 and check(case) == ()
    return case


def test_what_is_left_of_an_ended_hole_is_pinned_and_breaks_no_rule(
    bundled: LoadedModel, prompt: tuple[int, ...]
) -> None:
    template = (*[HOLE] * (7 * CANVAS + 20), *range(90, 102))
    job = asked(prompt, template)
    parameters = job.parameters.replace(max_tokens=Uint32(len(template)))
    cases = honest_cases(bundled, replace(job, parameters=parameters))
    given = [case for case in cases if case.pins is not None and len(case.pins) == CANVAS]
    assert len(given) >= 2 and given == cases[-len(given) :]
    for case in given:
        assert case.receipt.steps == 1 and check(case) == ()
        assert check(replace(case, pins=None, vocabulary=None)) == ()
    assert given[0].receipt.units == 0
    assert isinstance(given[-1].output, TextOutput)
    assert given[-1].output.token_ids == tuple(range(90, 102))
    longer = replace(given[0], pins={})
    assert RuleNumber.PINNED in broken(longer)


def broken(case: Case) -> set[RuleNumber]:
    """The rules that are broken."""
    return {finding.rule for finding in check(case)}


def signed(case: Case, **changes: Any) -> Case:
    """The case with members of its last receipt changed."""
    receipt = case.receipt.replace(**changes)
    return replace(case, receipts=(*case.receipts[:-1], receipt))


def repriced(case: Case, **changes: Any) -> Case:
    """As `signed`, with the price that the new totals make."""
    receipt = case.receipt.replace(**changes)
    total = price(case.model, usage_of(receipt))
    before = case.receipts[-2].total_amount if len(case.receipts) > 1 else 0
    return signed(case, **changes, total_amount=total, amount=Amount(total - before))


def step_of(case: Case, index: int) -> StepRecord:
    return StepRecord.parse([case.steps[index][name] for name in StepField])


def shown(case: Case, index: int, **changes: Any) -> Case:
    """The case whose worker committed to other fields of a step, with the root that they make."""
    record = replace(step_of(case, index), **changes)
    steps = {**case.steps, index: dict(zip(StepField, record.fields(), strict=True))}
    assert case.leaves is not None
    leaves = [*case.leaves]
    leaves[index + 1] = record.leaf()
    changed = replace(case, steps=steps, leaves=tuple(leaves))
    return signed(changed, trace_root=trace_root(leaves))


def recorded(case: Case, **changes: Any) -> Case:
    """The case whose worker committed to another canvas leaf."""
    assert case.record is not None and case.leaves is not None
    record = replace(case.record, **changes)
    leaves = (record.leaf(), *case.leaves[1:])
    changed = replace(case, record=record, leaves=leaves)
    return signed(changed, trace_root=trace_root(leaves))


def other_id(data: bytes, position: int) -> bytes:
    ids = list(read_ids(data))
    ids[position] = (ids[position] + 1) % 700
    return write_ids(ids)


def first(case: Case, index: int, *, accepted_: bool) -> int:
    """The first position of a step that was, or was not, accepted."""
    return read_bits(step_of(case, index).accepted, CANVAS).index(accepted_)


def surest(case: Case, index: int) -> int:
    """The position of least entropy."""
    entropies = [entropy for entropy, _, _ in read_fingerprint(step_of(case, index).fingerprint)]
    return entropies.index(min(entropies))


def flipped(case: Case, index: int, position: int) -> bytes:
    bits = list(read_bits(step_of(case, index).accepted, CANVAS))
    bits[position] = not bits[position]
    return write_bits(bits)


def numbers(case: Case, index: int, position: int, *values: float) -> bytes:
    """A step's fingerprint with other numbers at a position."""
    data = bytearray(step_of(case, index).fingerprint)
    struct.pack_into("<3e", data, 6 * position, *values)
    return bytes(data)


def renoised_elsewhere(case: Case) -> Case:
    """Another id where nothing was accepted, on both sides of the step's end."""
    position = first(case, 1, accepted_=False)
    after = other_id(step_of(case, 1).after, position)
    return shown(shown(case, 1, after=after), 2, before=after)


def accepted_too_few(case: Case) -> Case:
    """The surest position is not accepted. It is renoised as it should be then."""
    position = surest(case, 1)
    assert case.record is not None
    record = case.record
    drawn = RandomIds(record.seed, record.canvas, 1, IdPurpose.RENOISE, record.vocab_size)
    ids = list(read_ids(step_of(case, 1).after))
    ids[position] = drawn.at(position)
    after = write_ids(ids)
    return shown(shown(case, 1, after=after, accepted=flipped(case, 1, position)), 2, before=after)


def cut_short(case: Case) -> Case:
    """The canvas ends two steps early, and is charged so."""
    steps = case.receipt.steps - 2
    last = dict(case.steps)
    for index in (steps, steps + 1):
        del last[index]
    assert case.leaves is not None and isinstance(case.output, TextOutput)
    leaves = case.leaves[: steps + 1]
    output = TextOutput(read_ids(step_of(case, steps - 1).argmax), case.output.segments)
    changed = replace(case, steps=last, leaves=leaves, output=output)
    return repriced(
        changed,
        steps=Uint32(steps),
        total_steps=Uint32(case.receipt.total_steps - 2),
        trace_root=trace_root(leaves),
    )


def goes_on(case: Case) -> Case:
    """The step before the last has the argmax of the last, and nothing is unsure."""
    last = case.receipt.steps - 1
    argmax = step_of(case, last).argmax
    calm = struct.pack("<3e", 0.0, -0.0, 30.0) * CANVAS
    bits = write_bits([True] * CANVAS)
    for index in (last - 2, last - 1):
        before = step_of(case, index - 1).after
        case = shown(
            case, index, before=before, after=argmax, argmax=argmax, accepted=bits, fingerprint=calm
        )
    return shown(case, last, before=argmax)


def other_totals(case: Case) -> Case:
    units = Uint32(case.receipt.total_units - 1)
    return repriced(case, total_units=units)


def dearer(case: Case) -> Case:
    receipt = case.receipt
    return signed(
        case,
        amount=Amount(receipt.amount + 1),
        total_amount=Amount(receipt.total_amount + 1),
    )


def with_job(case: Case, changed: Any) -> Case:
    """The same receipts for another job: chain and leaf follow it."""
    assert case.record is not None
    receipts: list[Receipt] = []
    for receipt in case.receipts:
        previous = DOMAIN.digest(receipts[-1]) if receipts else changed.id(DOMAIN)
        receipts.append(receipt.replace(job=changed.id(DOMAIN), previous=Digest(previous)))
    moved = replace(case, job=changed, receipts=tuple(receipts))
    return recorded(moved, parameters=bytes(changed.parameters.struct_hash()))


def fewer_allowed(case: Case) -> Case:
    """The job allows fewer steps than are charged. The canvas of that job has no open step."""
    parameters = case.job.parameters.replace(max_steps=Uint32(case.receipt.steps - 1))
    return replace(with_job(case, case.job.replace(parameters=parameters)), steps={})


def shorter_job(case: Case) -> Case:
    """The job ends with this canvas, and the receipt says that more comes."""
    parameters = case.job.parameters.replace(max_tokens=Uint32(2 * CANVAS))
    changed = with_job(case, case.job.replace(parameters=parameters))
    return replace(changed, vocabulary=None)


def wrong_header(case: Case) -> Case:
    fields = {StepField.HEADER: case.steps[1][StepField.HEADER]}
    return replace(case, steps={0: fields})


def other_text(case: Case) -> TextOutput:
    assert isinstance(case.output, TextOutput)
    ids = case.output.token_ids
    return replace(case.output, token_ids=(ids[0] + 1, *ids[1:]))


BREAKS: dict[RuleNumber, Break] = {
    RuleNumber.CHAIN: lambda c: signed(c, previous=Digest(bytes(32))),
    RuleNumber.STEPS: fewer_allowed,
    RuleNumber.TOTALS: other_totals,
    RuleNumber.PRICE: dearer,
    RuleNumber.CEILING: lambda c: with_job(
        c, c.job.replace(max_amount=Amount(c.receipt.total_amount - 1))
    ),
    RuleNumber.FINISH: shorter_job,
    RuleNumber.PROMPT: lambda c: replace(c, prompt_tokens=c.receipt.total_prompt_tokens + 1),
    RuleNumber.LEAVES: lambda c: replace(c, leaves=(c.leaves or ())[:-1]),
    RuleNumber.CANVAS: lambda c: recorded(c, content=bytes(range(32))),
    RuleNumber.PINNED: lambda c: replace(
        recorded(c, pinned=pinned_root([(0, 1)])), pins={0: 2, 1: 3}, steps={}
    ),
    RuleNumber.FIELDS: wrong_header,
    RuleNumber.INITIAL: lambda c: shown(c, 0, before=other_id(step_of(c, 0).before, 5)),
    RuleNumber.RENOISED: renoised_elsewhere,
    RuleNumber.CONTINUITY: lambda c: shown(c, 2, before=other_id(step_of(c, 2).before, 5)),
    RuleNumber.ENTROPY: accepted_too_few,
    RuleNumber.STOP: cut_short,
    RuleNumber.OUTPUT: lambda c: replace(c, output=other_text(c)),
    RuleNumber.FINGERPRINT: lambda c: shown(
        c, 1, fingerprint=numbers(c, 1, first(c, 1, accepted_=False), 9.0, -1.0, 30.0)
    ),
}
"""What breaks each rule alone. HELD needs a template and has a test of its own."""


@pytest.mark.parametrize("rule", BREAKS)
def test_a_rule_is_broken_alone(rule: RuleNumber, honest: Case) -> None:
    assert broken(BREAKS[rule](honest)) == {rule}


def test_every_rule_has_a_case_that_breaks_it() -> None:
    assert {*BREAKS, RuleNumber.HELD} == set(RuleNumber)


@pytest.mark.parametrize("name", ["before", "after", "argmax"])
def test_a_pinned_position_that_moves_is_found(name: str, form: Case) -> None:
    last = form.receipt.steps - 1
    changed = other_id(getattr(step_of(form, last), name), 0)
    case = shown(form, last, **{name: changed})
    case = replace(case, steps={last: case.steps[last]}, output=None)
    assert broken(case) == {RuleNumber.HELD}


def test_a_pinned_position_that_is_not_accepted_is_found(form: Case) -> None:
    case = shown(form, 0, accepted=flipped(form, 0, 0))
    assert broken(case) == {RuleNumber.HELD}


def test_pins_that_the_leaf_does_not_bind_are_found(form: Case) -> None:
    assert form.pins is not None
    for pins in ({**form.pins, 0: 1}, {**form.pins, 400: 1}, {}):
        assert RuleNumber.PINNED in broken(replace(form, pins=pins))


def test_a_text_without_a_template_pins_nothing(honest: Case) -> None:
    invented = replace(recorded(honest, pinned=pinned_root([(0, 1)])), pins=None)
    assert broken(invented) == {RuleNumber.PINNED}
    assert broken(replace(invented, outline=None)) == set()
    assert broken(replace(invented, outline=Outline(1000, templated=True))) == set()
    read = replace(invented, job=invented.job.replace(kind=Kind.READ))
    assert (invented.known_pins, read.known_pins) == ({}, None)


def test_a_canvas_that_goes_on_after_it_is_done_is_found(honest: Case) -> None:
    findings = check(goes_on(honest))
    last = honest.receipt.steps - 1
    assert (RuleNumber.STOP, last - 1) in {(f.rule, f.step) for f in findings}


def test_an_answer_that_leaves_tokens_of_a_template_out_is_found(form: Case) -> None:
    assert isinstance(form.output, TextOutput)
    for ids in (form.output.token_ids[1:], form.output.token_ids[:-1]):
        output = replace(form.output, token_ids=ids)
        case = repriced(
            replace(form, output=output),
            units=Uint32(len(ids)),
            total_units=Uint32(form.receipt.total_units - 1),
        )
        assert broken(case) == {RuleNumber.OUTPUT}
    assert broken(replace(form, vocabulary=None, output=other_text(form))) == {RuleNumber.OUTPUT}


def test_an_end_that_no_end_of_text_made_is_found(honest: Case) -> None:
    ended = signed(honest, finish=Finish.END_OF_TEXT)
    assert broken(ended) == {RuleNumber.OUTPUT}
    assert broken(replace(ended, vocabulary=None)) == set()


def test_a_cancelled_canvas_is_not_held_to_its_end_and_output(honest: Case) -> None:
    short = signed(cut_short(honest), finish=Finish.CANCELLED)
    assert broken(short) == set()
    assert broken(replace(short, output=other_text(short))) == set()


@pytest.mark.parametrize(
    "fields",
    [
        {StepField.BEFORE: b"123"},
        {StepField.BEFORE: write_ids((1,) * (CANVAS - 1))},
        {StepField.ARGMAX: write_ids((2**32 - 1,) * CANVAS)},
        {StepField.ACCEPTED: bytes(5)},
        {StepField.FINGERPRINT: bytes(6)},
        {StepField.FINGERPRINT: bytes(7)},
        {StepField.HEADER: b""},
    ],
)
def test_a_field_of_another_shape_is_a_finding_and_no_error(
    fields: dict[StepField, bytes], honest: Case
) -> None:
    assert broken(replace(honest, steps={1: fields})) == {RuleNumber.FIELDS}
    whole = {**honest.steps[1], **fields}
    found = broken(replace(honest, steps={1: whole}))
    assert RuleNumber.FIELDS in found <= {RuleNumber.FIELDS, RuleNumber.LEAVES}


def test_a_step_that_is_not_charged_is_a_finding(honest: Case) -> None:
    for index in (-1, honest.receipt.steps, 10**9):
        case = replace(honest, steps={index: honest.steps[1]})
        assert broken(case) == {RuleNumber.FIELDS}


def test_a_case_without_a_receipt_is_malformed(honest: Case) -> None:
    with pytest.raises(MalformedInput):
        replace(honest, receipts=())


def test_pins_that_are_not_known_leave_the_other_rules(form: Case) -> None:
    assert check(replace(form, pins=None)) == ()
    case = shown(form, 1, before=other_id(step_of(form, 1).before, 20))
    assert broken(replace(case, pins=None)) == {RuleNumber.CONTINUITY}


def test_the_rules_philox_is_the_engines() -> None:
    seed, canvas, step, vocabulary = 2**64 - 12345, 7, 11, 262_144
    moment = fast.Moment(seed, canvas, step)
    renoised = fast.step_draws([moment], 64, vocabulary).renoise[0]
    initial = fast.initial_ids([fast.Moment(seed, canvas, 0)], 64, vocabulary)[0]
    drawn = RandomIds(seed, canvas, step, IdPurpose.RENOISE, vocabulary)
    begun = RandomIds(seed, canvas, 0, IdPurpose.INITIAL, vocabulary)
    assert [drawn.at(place) for place in range(64)] == renoised.tolist()
    assert [begun.at(place) for place in range(64)] == initial.tolist()


def test_only_what_rounding_cannot_change_is_decided() -> None:
    half = struct.unpack("<e", struct.pack("<e", 0.05))[0]
    assert accepted((0.01, 0.02, 3.0), {}, 0.1) == (True, True, True)
    assert accepted((0.01, 0.2, 3.0), {}, 0.1) == (True, True, False)
    assert accepted((half, half, 3.0), {}, 2 * half) == (True, True, None)
    assert accepted((1.0, 1.0), {}, 0.5) == (None, None)
    assert accepted((0.3, 0.1, 0.2), {1: 9}, 0.1) == (False, True, True)
    assert accepted((5.0,), {}, 0.0) == (True,)
    assert accepted((5.0, 1.0), {}, 0.0) == (False, True)


def test_confidence_is_decided_where_rounding_cannot_change_it() -> None:
    assert confident((0.1, 0.1), {}, 0.2) is True
    assert confident((0.3, 0.3), {}, 0.2) is False
    assert confident((0.25, 0.25), {}, 0.25) is None
    assert confident((0.3, 9.0), {1: 4}, 0.31) is True
    assert confident((0.0,), {}, 0.0) is False


@pytest.mark.parametrize(
    ("values", "likeliest", "fits"),
    [
        ((0.0, 0.0, 30.0), True, True),
        ((math.log(700), -math.log(700), 0.0), None, True),
        ((8.0, -1.0, 1.0), None, False),
        ((1.0, 0.5, 1.0), None, False),
        ((1.0, -1.0, -1.0), None, False),
        ((-1.0, -1.0, 1.0), None, False),
        ((math.nan, -1.0, 1.0), None, False),
        ((1.0, -math.inf, 1.0), None, False),
        ((1.0, -0.1, 0.0), None, False),
        ((1.0, -0.5, 3.0), False, False),
        ((1.0, -4.0, 3.0), False, True),
        ((1.0, -3.0, 30.0), True, False),
        ((0.1, -0.6, 0.5), True, False),
    ],
)
def test_numbers_that_no_distribution_has_are_found(
    values: tuple[float, float, float], likeliest: bool | None, fits: bool
) -> None:
    assert plausible(*values, likeliest=likeliest, vocab_size=700) is fits
