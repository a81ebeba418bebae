"""What a person sees of the demo on 80 columns: nothing is wider, and no amount or hash is cut."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from piecework.base.amounts import Token
from piecework.chain.contracts.events import Log, Settled
from piecework.client.jobs.events import (
    CanvasText,
    DraftText,
    FinishReason,
    JobFinished,
    JobStarted,
)
from piecework.client.journal.proofs import ProvenReceipt
from piecework.client.journal.records import ReceiptRow
from piecework.commands.demo import NEXT
from piecework.demo.jobs import JobResult
from piecework.demo.market import Balances
from piecework.demo.report import Evidence, to_json
from piecework.demo.run import ROLES
from piecework.demo.screen import RECEIPTS_SHOWN, DemoScreen, short, show_report
from piecework_protocol.eip712 import Domain
from piecework_protocol.kinds.text import final_segments
from piecework_protocol.objects import Finish, Receipt, Service, Voucher
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Signature,
    Uint32,
    Uint64,
    to_hex,
)

WIDTH = 80
USUAL = Token(Address(b"\x01" * 20), "tUSDC", 6)
ELLIPSIS = "…"
SHORT = re.compile(r"0x[0-9a-f]{8}…[0-9a-f]{4}(?![0-9a-f])")
PARTIES = ("payer", "receiver", "escrow")
CHANNEL, OPERATOR = ChannelId(b"\x02" * 32), Address(b"\x03" * 20)
SIGNATURE = Signature(bytes(64) + b"\x1b")
STORY = (
    "Once upon a time there was a little owl who had a map of the whole night sky and a very long "
    "name: " + "Strix" * 30 + ".\n\nThe end."
)


def digest(*parts: object) -> Digest:
    return Digest(hashlib.sha256(repr(parts).encode()).digest())


def evidence(token: Token, amount: int, receipts: int, jobs: int = 1) -> Evidence:
    """A demo that went well. amount: of each receipt, in base units."""
    total = amount * receipts
    rows = [
        ReceiptRow(
            CHANNEL,
            Receipt(
                job=JobId(digest("job")),
                canvas=Uint32(n),
                output_digest=digest("output", n),
                trace_root=digest("trace", n),
                steps=Uint32(48),
                units=Uint32(64),
                amount=Amount(amount),
                finish=Finish.MORE,
                total_prompt_tokens=Uint32(12),
                total_units=Uint32(64 * (n + 1)),
                total_steps=Uint32(48 * (n + 1)),
                total_amount=Amount(amount * (n + 1)),
                previous=digest("last", n),
            ),
            SIGNATURE,
            digest("receipt", n),
            n,
            None,
        )
        for n in range(receipts)
    ]
    started = JobStarted(
        *(JobId(digest("job")), CHANNEL, OPERATOR, "tiny-stories", digest("model")),
        *(12, Amount(total), Service.REPLAYABLE),
    )
    finished = JobFinished(
        *(FinishReason.END_OF_TEXT, started.job, CHANNEL, OPERATOR, 12),
        *(receipts * 64, receipts * 48, receipts, Amount(total), True),
    )
    voucher = Voucher(CHANNEL, Amount(total), Uint64(receipts), digest("root"))
    log = Log(Address(b"\x04" * 20), (), b"", 7, 0, Bytes32(digest("transaction")))
    fee, pool = 30_001, 10 ** (token.decimals + 6)
    before = Balances(Amount(pool - total - fee), Amount(0), Amount(total + fee))
    return Evidence(
        results=[JobResult(n, "a story", started, finished, [STORY]) for n in range(jobs)],
        receipts=[ProvenReceipt(row, None, "", voucher.receipts_root) for row in rows],
        voucher=voucher,
        voucher_signature=SIGNATURE,
        settlements=[
            Settled(log, CHANNEL, OPERATOR, *(Amount(total),) * 2, voucher.count, digest("root"))
        ],
        fees=fee,
        gas={"deposit": 123_456, "open": 1_234_567, "settle": 12_345_678},
        before=before,
        after=Balances(before.payer, Amount(total + fee), Amount(0)),
        worker={
            "operator": to_hex(OPERATOR),
            "receiver": to_hex(OPERATOR),
            "endpoint": "127.0.0.1:50051",
            "exposure_bound": 10**9,
        },
        timings_ms={"chain": 12345.6, "market": 123456.7, "jobs": 98765.4, "settlement": 4321.0},
        domain=Domain(31337, Address(b"\x05" * 20)),
        payer=Address(b"\x06" * 20),
        token=token,
    )


def terminal(*, is_terminal: bool = True) -> Console:
    """A console of 80 columns, with whatever is written to it."""
    out = io.StringIO()
    return Console(file=out, width=WIDTH, height=24, force_terminal=is_terminal, highlight=False)


def lines_of(console: Console) -> list[str]:
    """What a person sees, without colours and cursor movements."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue()).splitlines()


def is_whole(amount: str, lines: list[str]) -> bool:
    """Whether a number stands on one line, with no digit more and none less."""
    return any(re.search(rf"(?<![\d.,]){re.escape(amount)}0*(?![\d.,…])", line) for line in lines)


@pytest.mark.parametrize(
    ("token", "amount", "receipts"),
    [
        (USUAL, 130, 3),
        (USUAL, 1_234_567_891, 12),
        (USUAL, 98_765_432_109_876, 10_000),
        (replace(USUAL, symbol="WRAPPED", decimals=18), 10**18 + 1, 3),
        (replace(USUAL, symbol="WRAPPED", decimals=18), 123_456 * 10**18 + 7, 12),
        (replace(USUAL, symbol="YEN", decimals=0), 7, 3),
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_account_fits_and_cuts_no_amount_and_no_hash(
    token: Token, amount: int, receipts: int, *, is_terminal: bool
) -> None:
    console, made = terminal(is_terminal=is_terminal), evidence(token, amount, receipts)
    report = to_json(made)
    show_report(console, report)
    lines = lines_of(console)
    too_wide = [line for line in lines if cell_len(line.rstrip()) > WIDTH]
    assert not too_wide
    shown = report["receipts"][:RECEIPTS_SHOWN]
    for units in (amount, made.voucher.cumulative, made.fees, *vars_of(made)):
        assert is_whole(token.number(units), lines), token.number(units)
    for text in (
        *(report["model_digest"], report["receipts_root"], report["settlement_tx"]),
        *(row[name] for row in shown for name in ("output_digest", "trace_root")),
    ):
        assert any(short(text) in line for line in lines), text
    # Nothing else is shortened.
    assert ELLIPSIS not in SHORT.sub("", "\n".join(lines))


def vars_of(made: Evidence) -> list[int]:
    """Each balance, before and after."""
    return [getattr(b, who) for b in (made.before, made.after) for who in PARTIES]


def test_what_does_not_hold_is_said_in_full() -> None:
    made = evidence(USUAL, 130, 3)
    made = replace(made, after=replace(made.before, payer=Amount(made.before.payer + 1)))
    console, report = terminal(), to_json(made)
    show_report(console, report)
    said = " ".join(" ".join(lines_of(console)).split())
    assert report["problems"]
    assert all(f"does not hold: {problem}" in said for problem in report["problems"])
    assert not any(cell_len(line.rstrip()) > WIDTH for line in lines_of(console))


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("jobs", [1, 10_000])
def test_what_is_shown_on_the_way_fits_too(jobs: int, *, is_terminal: bool) -> None:
    console = terminal(is_terminal=is_terminal)
    screen = DemoScreen(console, token=USUAL)
    screen.phase("starting four processes:")
    screen.expect(ROLES)
    for number, role in enumerate(ROLES):
        screen.ready(role, 123.4 * number)
    cost = Amount(98_765_432_109_876)
    started = evidence(USUAL, cost, 1).results[0].accepted
    assert started is not None
    with screen:
        for number in range(0, jobs, 1000):
            screen.saw(number, started)
            text = final_segments(STORY)
            screen.saw(
                number,
                CanvasText(0, text, 64, 48, cost, cost, digest(number), 0, last=False, again=False),
            )
            screen.saw(number, DraftText(1, 47, text))
    lines = lines_of(console)
    assert not any(cell_len(line.rstrip()) > WIDTH for line in lines)
    if is_terminal:
        assert is_whole(USUAL.number(cost), lines)
    assert all(any(role in line for line in lines) for role in ROLES)


def test_what_comes_next_fits() -> None:
    assert max(map(cell_len, NEXT.splitlines())) <= WIDTH
