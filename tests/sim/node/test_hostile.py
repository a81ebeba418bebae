"""Found by looking for ways to lose money or to keep a worker down."""

from __future__ import annotations

import pytest

from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.ledger import closing_of
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import Amount
from tests.support.node.fake_escrow import FakeChannel
from tests.support.node.harness import DOMAIN, TOKEN, Client, WorkerHarness

DAY_S = 24 * 3600


async def test_a_worker_that_was_away_for_days_starts_again_though_old_sealing_keys_are_gone() -> (
    None
):
    """A job was left behind whose canvases are sealed to a key that a later start has dropped."""
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 64, lifetime_s=DAY_S)
    await client.submit(line)
    await harness.run_engine()
    stored = harness.journal.jobs[line.id]
    assert stored.canvases and stored.canvases[0].resume_secret
    harness.clock.advance(2 * 3600)
    await harness.boot()  # a newer key comes into use; the job is kept for its client
    assert harness.journal.jobs[line.id].state is JobState.SUSPENDED
    harness.clock.advance(3 * DAY_S)
    await harness.boot()
    assert harness.journal.jobs[line.id].state is JobState.CANCELLED
    owed = sum(s.receipt.amount for s in stored.canvases)
    assert harness.channels.exposure == owed > 0


async def test_a_channel_is_not_closed_for_less_than_its_voucher() -> None:
    """The escrow pays what it holds: a top-up that is not mined yet would be lost with the
    closing."""
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness, deposit=1_000_000)
    harness.chain.channels[client.id] = FakeChannel(ChannelState.OPEN, Amount(1))
    harness.chain.pooled[TOKEN, client.channel.payer] = 10_000_000
    line = client.job(1, 8)
    await client.submit(line, funding=client.funding())
    await client.finish(line)
    voucher = client.book.voucher()
    assert voucher.cumulative > 1
    final = closing_of(voucher)
    signature = sign(DOMAIN, final, client.signer)
    with pytest.raises(Refusal) as caught:
        await harness.channels.agree_to_close(client.channel, final, signature)
    assert (caught.value.reason, caught.value.retry_after_s) == (Reason.UNDERFUNDED, 5.0)
    assert harness.journal.books[client.id].close_signature is None
    client.open_on_chain()
    await harness.channels.agree_to_close(client.channel, final, signature)
    assert harness.journal.books[client.id].close_signature == signature
