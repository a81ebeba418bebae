"""Events of the dispute contract, as an honest node shows them and as another one does."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from eth_abi.abi import encode

from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.events import Log
from piecework.chain.errors import BadAnswer
from piecework.chain.reading.disputes import (
    Challenge,
    ChallengeOpened,
    decode_dispute_events,
    id_of,
)
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Digest, keccak256

CONTRACT, OPERATOR, PAYER = (Address(bytes([n]) * 20) for n in (1, 2, 3))
ASKED = Challenge(
    ChannelId(keccak256(b"channel")),
    PAYER,
    OPERATOR,
    PAYER,
    Digest(keccak256(b"receipt")),
    Digest(keccak256(b"root")),
    5,
    3,
    127,
    CONTRACT,
    Amount(9),
)


def opened(asked: Challenge, id_: Bytes32) -> Log:
    event = interface("Disputes").events["ChallengeOpened"]
    assert [name for name, _ in event.indexed] == ["id", "operator"]
    values = {"challenge": astuple(asked), "startsAt": 7, "answerBy": 8, "bond": 9}
    data = encode([kind for _, kind in event.data], [values[name] for name, _ in event.data])
    topics = (event.topic, id_, Bytes32(asked.operator.rjust(32, b"\0")))
    return Log(CONTRACT, topics, data, 1, 0, Bytes32(bytes(32)))


def test_a_challenge_is_read_as_the_contract_tells_it() -> None:
    (event,) = decode_dispute_events(CONTRACT, [opened(ASKED, id_of(ASKED))])
    assert isinstance(event, ChallengeOpened)
    assert (event.challenge, event.id) == (ASKED, id_of(ASKED))


def test_a_node_cannot_show_a_challenge_under_the_id_of_another() -> None:
    other = id_of(replace(ASKED, leaf=1))
    with pytest.raises(BadAnswer, match="under the id of another"):
        decode_dispute_events(CONTRACT, [opened(ASKED, other)])
