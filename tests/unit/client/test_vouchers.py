from __future__ import annotations

from piecework.client.jobs.vouchers import VouchersUnderWay
from piecework.client.network.transport import JobStream
from piecework_protocol.types import ChannelId

ONE, OTHER = ChannelId(b"1" * 32), ChannelId(b"2" * 32)


def test_a_voucher_is_under_way_while_the_stream_that_sent_it_is_open() -> None:
    vouchers, first, second = VouchersUnderWay(), JobStream(None), JobStream(None)
    assert not vouchers.covers(ONE, 1)
    vouchers.sent(ONE, first, 3)
    vouchers.sent(ONE, second, 5)
    assert vouchers.covers(ONE, 5) and not vouchers.covers(ONE, 6)
    assert not vouchers.covers(OTHER, 1)
    vouchers.ended(ONE, second)
    assert vouchers.covers(ONE, 3) and not vouchers.covers(ONE, 4)
    vouchers.ended(ONE, first)
    assert not vouchers.covers(ONE, 1)


def test_a_stream_that_sent_nothing_may_end() -> None:
    vouchers, stream = VouchersUnderWay(), JobStream(None)
    vouchers.ended(ONE, stream)
    vouchers.sent(ONE, stream, 1)
    assert vouchers.covers(ONE, 1)
