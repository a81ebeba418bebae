"""A signer signs nothing that contradicts what it has signed, and says that the journal is old."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from piecework.chain.errors import SignerRefuses
from piecework.signer.limits import DAY_S, FIRST_EVIDENCE_DAYS, JOB_DAYS
from piecework.signer.policy import CONTRADICTS, MALFORMED, OFFER_OLD, NotSigned
from piecework.signer.statements import SignedStatements
from piecework_node.jobs.rollback import LastOffer, later, signers_word
from piecework_node.runtime.faults import Code
from piecework_node.runtime.signing import JOURNAL
from piecework_protocol.eip712 import TypedData
from piecework_protocol.objects import Finish, Receipt
from piecework_protocol.types import Amount, Digest, JobId, Timestamp, Uint32, Uint64
from tests.support.chain.signers import ACCEPTANCE, KEY, MARKET, PAYOUT, serving
from tests.support.market.offers import offer
from tests.support.waiting import until
from tests.unit.node.test_patient_signer import Parts

NOW = 1_800_000_000
ZERO = Digest(bytes(32))
RECEIPT = Receipt(
    job=JobId(bytes(32)),
    canvas=Uint32(0),
    output_digest=ZERO,
    trace_root=ZERO,
    steps=Uint32(3),
    units=Uint32(20),
    amount=Amount(30),
    finish=Finish.TOKEN_LIMIT,
    total_prompt_tokens=Uint32(1),
    total_units=Uint32(20),
    total_steps=Uint32(3),
    total_amount=Amount(30),
    previous=ZERO,
)
OFFER = offer("worker", NOW).offer.replace(
    operator=KEY.address, receiver=PAYOUT, sequence=Uint64(7)
)


def sign(book: SignedStatements, message: TypedData, now: int = NOW) -> None:
    """Do what the signer does around a signature."""
    digest = MARKET.domain.digest(message)
    book.require_consistent(message, digest)
    book.remember(message, digest, now)


def refusal(book: SignedStatements, message: TypedData) -> str:
    with pytest.raises(NotSigned) as caught:
        sign(book, message)
    return caught.value.refusal


@pytest.mark.parametrize("restart", [False, True])
def test_two_receipts_of_a_canvas_are_signed_only_if_they_are_the_same(
    tmp_path: Path, *, restart: bool
) -> None:
    book = SignedStatements.open(tmp_path / "statements.db")
    sign(book, RECEIPT)
    sign(book, RECEIPT.replace(canvas=Uint32(1), output_digest=Digest(b"\x01" * 32)))
    if restart:
        book.close()
        book = SignedStatements.open(tmp_path / "statements.db")
    sign(book, RECEIPT)
    assert refusal(book, RECEIPT.replace(output_digest=Digest(b"\x01" * 32))) == CONTRADICTS
    assert refusal(book, RECEIPT.replace(amount=Amount(31))) == CONTRADICTS
    sign(book, RECEIPT.replace(job=JobId(b"\x01" * 32), amount=Amount(31)))
    book.close()


def test_two_acceptances_of_a_job_count_the_same_prompt(tmp_path: Path) -> None:
    book = SignedStatements.open(tmp_path / "statements.db")
    sign(book, ACCEPTANCE)
    sign(book, ACCEPTANCE.replace(accepted_at=Timestamp(ACCEPTANCE.accepted_at + 60)))
    assert refusal(book, ACCEPTANCE.replace(prompt_tokens=Uint32(2))) == CONTRADICTS
    sign(book, RECEIPT)
    book.close()


def test_the_numbers_of_offers_do_not_go_back(tmp_path: Path) -> None:
    book = SignedStatements.open(tmp_path / "statements.db")
    assert book.last_offer == 0
    sign(book, OFFER)
    sign(book, OFFER.replace(slots_free=Uint32(0)))  # killed before it was written down
    sign(book, OFFER.replace(sequence=Uint64(9)))
    assert refusal(book, OFFER) == OFFER_OLD
    book.close()
    book = SignedStatements.open(tmp_path / "statements.db")
    assert book.last_offer == 9 and refusal(book, OFFER) == OFFER_OLD
    book.close()


async def test_no_offer_takes_the_numbers_of_those_after_it(tmp_path: Path) -> None:
    """A thief who was at the socket once could end all offers of this key with the highest one."""
    remote = Parts(tmp_path).remote
    async with serving(tmp_path):
        for number in (2**63 - 1, 2**40):
            with pytest.raises(SignerRefuses, match=f"offer {number}, far above 0") as caught:
                await remote.typed(MARKET.domain, OFFER.replace(sequence=Uint64(number)))
            assert caught.value.refusal == MALFORMED
        await remote.typed(MARKET.domain, OFFER.replace(sequence=Uint64(2**31)))
        assert (await remote.state()).last_offer == 2**31
        await remote.close()


@pytest.mark.parametrize(
    ("evidence_s", "days"),
    [(None, FIRST_EVIDENCE_DAYS), (0, 0), (3 * DAY_S, 3), (3 * DAY_S + 1, 4), (2**31, 400)],
)
def test_a_statement_is_kept_while_a_worker_may_sign_it_again_and_then_forgotten(
    tmp_path: Path, evidence_s: int | None, days: int
) -> None:
    """A job of which one receipt was refused stays in the journal. Its client may come late."""
    book = SignedStatements.open(tmp_path / "statements.db")
    if evidence_s is not None:
        sign(book, OFFER.replace(evidence_seconds=Uint64(evidence_s)))
        book.close()
        book = SignedStatements.open(tmp_path / "statements.db")
    for number in range(20):
        sign(book, RECEIPT.replace(canvas=Uint32(number)))
    last = NOW + (JOB_DAYS + days) * DAY_S
    for number in range(3):
        sign(book, RECEIPT.replace(job=JobId(b"\x02" * 32), canvas=Uint32(number)), last)
    for number in range(20):
        assert refusal(book, RECEIPT.replace(canvas=Uint32(number), steps=Uint32(4))) == CONTRADICTS
    for number in range(3):
        over = RECEIPT.replace(job=JobId(b"\x03" * 32), canvas=Uint32(number))
        sign(book, over, last + DAY_S)
    for number in range(20):
        sign(book, RECEIPT.replace(canvas=Uint32(number), steps=Uint32(4)), last + DAY_S)
    book.close()


async def test_nobody_waits_for_a_signature_that_would_be_a_contradiction(
    tmp_path: Path,
) -> None:
    parts = Parts(tmp_path)
    async with serving(tmp_path):
        assert await signers_word(parts.remote) == LastOffer(-1, "the signer")
        await parts.signer.typed(MARKET.domain, RECEIPT)
        with pytest.raises(SignerRefuses, match="canvas 0 of job 0x00") as caught:
            await parts.signer.typed(MARKET.domain, RECEIPT.replace(steps=Uint32(4)))
        assert caught.value.refusal == CONTRADICTS
        await parts.remote.close()


async def test_a_second_home_with_the_same_signer_offers_nothing(tmp_path: Path) -> None:
    one, other = Parts(tmp_path), Parts(tmp_path)
    async with serving(tmp_path):
        await one.signer.typed(MARKET.domain, OFFER)
        first = OFFER.replace(sequence=Uint64(1))
        waiting = asyncio.create_task(other.signer.typed(MARKET.domain, first))
        await until(lambda: other.codes(JOURNAL) == [Code.JOURNAL_OLD])
        assert not waiting.done() and other.board.stopping is not None
        await other.signer.look()
        assert other.codes(JOURNAL) == [Code.JOURNAL_OLD], "only `worker recover` ends it"
        assert await signers_word(other.remote) == LastOffer(6, "the signer")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await one.remote.close()
        await other.remote.close()
    assert await signers_word(one.remote) is None and await signers_word(KEY) is None


def test_of_two_words_about_the_last_offer_the_higher_counts() -> None:
    low, high = LastOffer(3, "the signer"), LastOffer(4, "the index at i.example")
    assert later(low, high) is high and later(None, low) is low and later(None, None) is None
    assert later(replace(low, sequence=9), high) != high
