"""Found by looking for ways to lose money or to keep a worker down."""

from __future__ import annotations

import pytest

from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.objects import CloseChannel
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import Amount, Timestamp
from tests.support.node.fake_chain import FakeChannel
from tests.support.node.stage import DOMAIN, TOKEN, Client, Stage

DAY_S = 24 * 3600


async def test_a_worker_that_was_away_for_days_starts_again_though_old_sealing_keys_are_gone() -> None:
    """A job was left behind whose canvases are sealed to a key that a later start has dropped."""
    stage = Stage()
    await stage.boot()
    client = Client(stage)
    client.open_on_chain()
    line = client.job(3, 64, deadline=Timestamp(stage.clock.now() + DAY_S))
    await client.submit(line)
    await stage.run_engine()
    stored = stage.journal.jobs[line.id]
    assert stored.canvases and stored.resume_secrets
    stage.clock.advance(2 * 3600)
    await stage.boot()  # a newer key comes into use; the job is kept for its client
    assert stage.journal.jobs[line.id].state is JobState.SUSPENDED
    stage.clock.advance(3 * DAY_S)
    await stage.boot()
    assert stage.journal.jobs[line.id].state is JobState.FAILED
    owed = sum(s.receipt.amount for s in stored.canvases)
    assert stage.worker.exposure == owed > 0


async def test_a_channel_is_not_closed_for_less_than_its_voucher() -> None:
    """The escrow pays what it holds: a top-up that is not mined yet would be lost with the closing."""
    stage = Stage()
    await stage.boot()
    client = Client(stage, deposit=1_000_000)
    stage.chain.channels[client.id] = FakeChannel(ChannelState.OPEN, Amount(1))
    stage.chain.pooled[TOKEN, client.channel.payer] = 10_000_000
    line = client.job(1, 8)
    await client.submit(line, funding=client.funding())
    await client.finish(line)
    voucher = client.book.voucher()
    assert voucher.cumulative > 1
    final = CloseChannel(voucher.channel, voucher.cumulative, voucher.count, voucher.receipts_root)
    signature = sign(DOMAIN, final, client.signer)
    with pytest.raises(Refusal) as caught:
        await stage.worker.close_channel(client.channel, final, signature)
    assert (caught.value.reason, caught.value.retry_after_s) == (Reason.UNDERFUNDED, 5.0)
    assert not stage.idle.closed
    client.open_on_chain()
    await stage.worker.close_channel(client.channel, final, signature)
    assert stage.idle.closed == [client.id]
