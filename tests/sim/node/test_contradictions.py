"""Two vouchers of one authorizer that contradict each other are refused, and kept as evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from piecework_node.jobs.healing import Healer, Shown
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import PayVoucher
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Voucher
from piecework_protocol.signing import sign, signed_by
from piecework_protocol.types import Amount, Bytes32, Signature, Uint64
from piecework_protocol.wire import decode_value
from tests.support.node.harness import DOMAIN, Client, JobStream, WorkerHarness

SIGNATURE_BYTES = 65


async def paid() -> tuple[WorkerHarness, Client, JobStream]:
    """A worker, a client that has paid for a job, and another job of it that runs."""
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    done, line = client.job(3, 80), client.job(4, 20)
    await client.submit(done)
    await client.finish(done)
    await client.submit(line)
    assert client.book.accumulator.count >= 2
    return harness, client, line


def payment(client: Client, **changes: Any) -> PayVoucher:
    """The latest voucher of the client, signed again with something else in it."""
    voucher = client.book.voucher().replace(**changes)
    return PayVoucher(voucher, sign(DOMAIN, voucher, client.signer), int(voucher.count), ())


CHANGES: dict[str, dict[str, Any]] = {
    "another root": {"receipts_root": Bytes32(bytes(32))},
    "another amount": {"cumulative": Amount(1)},
    "more for fewer": {"count": Uint64(1), "cumulative": Amount(10**6)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=list(CHANGES))
async def test_a_voucher_that_contradicts_the_latest_is_kept_with_it(
    changes: dict[str, Any],
) -> None:
    harness, client, line = await paid()
    assert line.live is not None and line.sink is not None
    other = payment(client, **changes)
    await harness.worker.receive(line.live, line.sink, other)
    assert line.sink.refusal is not None and line.sink.refusal.reason is Reason.BROKEN_CLAUSE
    (seen,) = harness.journal.seen.values()
    assert (seen.channel, seen.kind) == (client.id, "voucher")
    for blob in (seen.first, seen.second):
        voucher = decode_value(Voucher, blob[:-SIGNATURE_BYTES])
        signature = Signature(blob[-SIGNATURE_BYTES:])
        assert signed_by(DOMAIN, voucher, signature, client.channel.authorizer)
        assert voucher in (client.book.voucher(), other.voucher)
    assert seen.first != seen.second


async def test_the_first_pair_is_kept_and_the_next_ones_cost_no_commit() -> None:
    harness, client, _ = await paid()
    live = harness.channels.get(client.id)
    assert live is not None
    first = payment(client, cumulative=Amount(1))
    await harness.channels.note_contradiction(live, first.voucher, first.signature)
    commits = harness.journal.commits
    second = payment(client, cumulative=Amount(2))
    await harness.channels.note_contradiction(live, second.voucher, second.signature)
    assert harness.journal.commits == commits
    assert len(harness.journal.seen) == 1


async def test_a_shown_voucher_that_contradicts_the_latest_is_refused_and_kept() -> None:
    harness, client, _ = await paid()
    other = payment(client, receipts_root=Bytes32(bytes(32)))
    shown = Shown(client.channel, other.voucher, other.signature, Accumulator(), ())
    with pytest.raises(Refusal) as caught:
        await Healer(harness.worker).show(shown)
    assert caught.value.reason is Reason.BROKEN_CLAUSE
    assert len(harness.journal.seen) == 1


async def test_an_old_voucher_that_comes_late_contradicts_nothing() -> None:
    harness, client, line = await paid()
    live = harness.channels.get(client.id)
    assert live is not None and line.live is not None and line.sink is not None
    latest = live.ledger.accepted
    assert latest is not None
    old = replace(latest, voucher=latest.voucher.replace(count=Uint64(1), cumulative=Amount(1)))
    old = replace(old, signature=sign(DOMAIN, old.voucher, client.signer))
    assert not live.ledger.contradicts(old.voucher)
    assert not live.ledger.contradicts(latest.voucher)
    await harness.worker.receive(line.live, line.sink, latest)
    assert harness.journal.seen == {}
