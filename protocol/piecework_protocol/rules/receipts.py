"""Rules about receipts alone: chain, steps, totals, price, ceiling, finish and prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from piecework_protocol.charges import usage_after
from piecework_protocol.objects import Finish, Receipt
from piecework_protocol.pricing import canvases_for, price, usage_of
from piecework_protocol.rules.case import Case
from piecework_protocol.rules.findings import Finding, RuleNumber
from piecework_protocol.service import leaves_fault, receipt_fault
from piecework_protocol.types import Digest

Rule = Callable[[Case], Iterator[Finding]]


def check_receipts(case: Case) -> Iterator[Finding]:
    """Apply the rules that need the job, its offer and its receipts."""
    for rule in _RULES:
        yield from rule(case)


def _last(case: Case) -> Receipt | None:
    return case.receipts[-2] if len(case.receipts) > 1 else None


def _broken(rule: RuleNumber, text: str) -> Finding:
    return Finding(rule, None, text)


def _chain(case: Case) -> Iterator[Finding]:
    job = case.job.id(case.domain)
    previous = Digest(job)
    for canvas, receipt in enumerate(case.receipts):
        if receipt.job != job or receipt.canvas != canvas:
            yield _broken(RuleNumber.CHAIN, f"receipt {canvas} is of another job or canvas")
        elif receipt.previous != previous:
            yield _broken(RuleNumber.CHAIN, f"receipt {canvas} does not follow the one before it")
        elif receipt.finish is not Finish.MORE and canvas + 1 < len(case.receipts):
            yield _broken(RuleNumber.CHAIN, f"a receipt follows receipt {canvas}, the last")
        previous = Digest(case.domain.digest(receipt))


def _steps(case: Case) -> Iterator[Finding]:
    fault = receipt_fault(case.job.parameters, case.receipt)
    if fault is not None:
        yield _broken(RuleNumber.STEPS, fault[1])


def _totals(case: Case) -> Iterator[Finding]:
    receipt, last = case.receipt, _last(case)
    after, totals = usage_after(last, receipt, receipt.total_prompt_tokens), usage_of(receipt)
    amount = receipt.amount + (last.total_amount if last is not None else 0)
    if totals != after or receipt.total_amount != amount:
        yield _broken(RuleNumber.TOTALS, "the totals are not those before and the receipt's own")


def _price(case: Case) -> Iterator[Finding]:
    owed = price(case.model, usage_of(case.receipt))
    if case.receipt.total_amount != owed:
        yield _broken(RuleNumber.PRICE, f"{case.receipt.total_amount} charged, {owed} owed")


def _ceiling(case: Case) -> Iterator[Finding]:
    receipt, job = case.receipt, case.job
    if receipt.total_amount > job.max_amount:
        yield _broken(RuleNumber.CEILING, f"the job's ceiling of {job.max_amount} is exceeded")
    if receipt.total_units > job.parameters.max_tokens:
        yield _broken(
            RuleNumber.CEILING, f"more than the {job.parameters.max_tokens} tokens asked for"
        )


def _finish(case: Case) -> Iterator[Finding]:
    receipt = case.receipt
    if receipt.finish is Finish.CANCELLED:
        return
    final = receipt.canvas + 1 >= canvases_for(case.model, case.job.parameters.max_tokens)
    if final and receipt.finish is Finish.MORE:
        yield _broken(RuleNumber.FINISH, "the token limit is reached and the receipt says more")
    elif case.output is not None and case.outline is not None:
        size = case.model.canvas_size
        fault = case.output.fault(case.outline, receipt.canvas, size, receipt.finish)
        if fault is not None:
            yield _broken(RuleNumber.FINISH, fault)


def _prompt(case: Case) -> Iterator[Finding]:
    if case.prompt_tokens is None:
        return
    expected = usage_after(_last(case), case.receipt, case.prompt_tokens).prompt_tokens
    if case.receipt.total_prompt_tokens != expected:
        yield _broken(
            RuleNumber.PROMPT,
            f"{case.receipt.total_prompt_tokens} prompt tokens charged, {expected} accepted",
        )


def _leaves(case: Case) -> Iterator[Finding]:
    leaves = case.leaves
    if leaves is None:
        return
    fault = leaves_fault(case.receipt, leaves)
    if fault is not None:
        yield _broken(RuleNumber.LEAVES, fault[1])
        return
    if case.record is not None and leaves and case.record.leaf() != leaves[0]:
        yield _broken(RuleNumber.LEAVES, "the canvas record is not that of its leaf")


def _canvas(case: Case) -> Iterator[Finding]:
    record, job, receipt = case.record, case.job, case.receipt
    if record is None:
        return
    for name, shown, expected in (
        ("canvas", record.canvas, receipt.canvas),
        ("canvas size", record.size, case.model.canvas_size),
        ("kind", record.kind, job.kind),
        ("seed", record.seed, job.parameters.seed),
        ("parameters", record.parameters, bytes(job.parameters.struct_hash())),
        ("content", record.content, bytes(job.content)),
        ("prompt tokens", record.prompt_tokens, receipt.total_prompt_tokens),
    ):
        if shown != expected:
            yield _broken(RuleNumber.CANVAS, f"the canvas leaf binds another {name}")


_RULES: Final[tuple[Rule, ...]] = (
    _chain,
    _steps,
    _totals,
    _price,
    _ceiling,
    _finish,
    _prompt,
    _leaves,
    _canvas,
)
