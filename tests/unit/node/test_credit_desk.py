"""How much work the accounts of many payers are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from piecework_node.journal.records import StoredChannel
from piecework_node.runtime.credit import CreditDesk
from piecework_node.runtime.live import LiveChannel
from piecework_protocol.credit import CreditTerms
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Channel
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Seconds

TERMS = CreditTerms(Amount(100), Amount(400), Amount(1500), Amount(350))


class CountedChannels:
    """Channels that count how often one of them is looked at."""

    def __init__(self, channels: list[LiveChannel]) -> None:
        self._channels, self.looked_at = channels, 0

    def __iter__(self) -> Iterator[LiveChannel]:
        for live in self._channels:
            self.looked_at += 1
            yield live

    def of_payer(self, payer: Address) -> Iterator[LiveChannel]:
        return (live for live in self._channels if live.stored.channel.payer == payer)


def channel(payer: int, number: int, mined: int = 0) -> LiveChannel:
    owner = Address(payer.to_bytes(20, "big"))
    salt = Bytes32(number.to_bytes(32, "big"))
    terms = Channel(owner, owner, owner, owner, owner, Seconds(900), salt)
    name = ChannelId(bytes(salt))
    state = ChannelState.OPEN if mined else ChannelState.NONE
    stored = StoredChannel(name, terms, WorkerLedger(name), state=state, deposit=Amount(mined))
    return LiveChannel(stored, mined=Amount(mined))


def test_the_accounts_of_all_payers_take_one_pass_over_the_channels() -> None:
    channels = CountedChannels([channel(n // 2, n) for n in range(200)])
    desk = CreditDesk(channels, TERMS)
    assert len(desk.everybody()) == 100
    assert channels.looked_at == 200


@pytest.mark.parametrize(("payer", "passes"), [(0, 0), (1, 1)])
def test_only_a_stranger_is_held_to_what_all_strangers_owe(payer: int, passes: int) -> None:
    mined = [channel(0, 0, mined=1_000)]
    channels = CountedChannels(mined + [channel(n, n) for n in range(1, 100)])
    desk = CreditDesk(channels, TERMS)
    assert desk.fault(Address(payer.to_bytes(20, "big")), 1) is None
    assert channels.looked_at == passes * 100
