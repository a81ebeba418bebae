"""The dispute contract of a market: what to send to it, what it says, and its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.calls import Call
from piecework.chain.contracts.events import Log
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadAnswer, BadDeployment
from piecework.chain.nodes.logs import LogSearch
from piecework.chain.nodes.rpc import JsonRpc, data_bytes, member, quantity
from piecework_protocol.disputes import ChallengeStatus, OpenedLeaf
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    Signature,
    Timestamp,
    keccak256,
    to_hex,
)

_CONTRACT: Final = "Disputes"
BOND_GAS: Final = 2 * 210_000
"""Gas whose price a bond is: twice what an answer costs. It is the contract's number."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a challenge asks for, as the contract hashes it to its id.

    leaf: 0 for the canvas leaf, k + 1 for that of step k. fields: bit i asks for field i. amount:
    what the receipt charged, in base units of `token`.
    """

    channel: ChannelId
    payer: Address
    operator: Address
    challenger: Address
    receipt: Digest
    trace_root: Digest
    steps: int
    leaf: int
    fields: int
    token: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class ChallengeState:
    """Where a challenge stands. `bond` is in wei."""

    status: ChallengeStatus
    answer_by: Timestamp
    bond: int


@dataclass(frozen=True, slots=True)
class Credits:
    """What waits for an address: base units of the stake token, and wei."""

    tokens: Amount
    coins: int


@dataclass(frozen=True, slots=True)
class ChallengeOpened:
    """A worker has to open a leaf until `answer_by`."""

    log: Log
    id: Bytes32
    challenge: Challenge
    starts_at: Timestamp
    answer_by: Timestamp
    bond: int


@dataclass(frozen=True, slots=True)
class LeafOpened:
    """The answer to a challenge."""

    log: Log
    id: Bytes32
    in_time: bool
    leaf: OpenedLeaf


@dataclass(frozen=True, slots=True)
class FaultProved:
    """A proof took the whole stake of an operator."""

    log: Log
    operator: Address
    payer: Address
    fault: int
    slashed: Amount


@dataclass(frozen=True, slots=True)
class RewardWaits:
    """A reward waits until no challenge against the operator is open."""

    log: Log
    number: int
    operator: Address
    payer: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class RewardEnded:
    """A waiting reward was paid, or lost because another challenge was upheld."""

    log: Log
    number: int
    paid: bool


DisputeEvent: TypeAlias = ChallengeOpened | LeafOpened | FaultProved | RewardWaits | RewardEnded


# --- what to send


def prove(deployment: Deployment, proof: bytes) -> Call:
    """Take the stake that a proof of `evidence_calls` convicts. By anybody."""
    return _call(deployment, "prove", 400_000 + 40 * len(proof), proof)


def challenge(deployment: Deployment, question: bytes, bond_wei: int) -> Call:
    """Ask the operator to open fields of a leaf (`evidence_calls.ask`). By payer or authorizer."""
    return _call(deployment, "challenge", 450_000, question, value=bond_wei)


def answer(deployment: Deployment, asked: Challenge, leaf: OpenedLeaf) -> Call:
    """Open the leaf. By anybody: the bond is the operator's."""
    size = sum(map(len, leaf.fields))
    return _call(deployment, "answer", 200_000 + 60 * size, asked, leaf)


def is_answer_to(asked: Challenge, data: bytes) -> bool:
    """Whether the data of a call answers a challenge, whatever it opens."""
    named = interface(_CONTRACT)
    # A challenge has no member of variable length. So it stands whole where the arguments begin.
    start = named.functions["answer"].selector + named.encode("conclude", [asked])[4:]
    return data.startswith(start)


def conclude(deployment: Deployment, asked: Challenge) -> Call:
    """End a challenge whose time is over. By anybody."""
    return _call(deployment, "conclude", 300_000, asked)


def escalate(deployment: Deployment, asked: Challenge) -> Call:
    """Bring an answered challenge to the committee. By its challenger, after `approve`."""
    return _call(deployment, "escalate", 200_000, asked)


def judge(
    deployment: Deployment,
    asked: Challenge,
    *,
    guilty: bool,
    leaf_root: Digest,
    deadline: Timestamp,
    votes: Mapping[Address, Signature],
) -> Call:
    """Carry out a verdict: the votes of exactly as many members as the threshold. By anybody."""
    signatures = [votes[member] for member in sorted(votes)]
    members = (asked, guilty, leaf_root, deadline, signatures)
    return _call(deployment, "judge", 300_000 + 80_000 * len(votes), *members)


def end_reward(deployment: Deployment, number: int) -> Call:
    """End a reward that waits, once no challenge against its operator is open. By anybody."""
    return _call(deployment, "endReward", 120_000, number)


def push_credits(deployment: Deployment, who: Address) -> Call:
    """Send all that waits for an address to it, and to nobody else. By anybody."""
    return _call(deployment, "pushCredits", 250_000, who)


def contract_of(deployment: Deployment) -> Address:
    """Where the dispute contract of a market is.

    Raises:
        BadDeployment: The market has none.
    """
    address = deployment.disputes_contract
    if address is None:
        raise BadDeployment(
            "this market has no dispute contract: its deployment file has no terms for one. "
            "Nobody can take a stake there"
        )
    return address


def _call(deployment: Deployment, what: str, gas: int, *members: Any, value: int = 0) -> Call:
    data = interface(_CONTRACT).encode(what, members)
    return Call(what, contract_of(deployment), data, gas, value)


def id_of(asked: Challenge) -> Bytes32:
    """Hash a challenge to its id, as the contract does."""
    return Bytes32(keccak256(interface(_CONTRACT).encode("challengeId", (asked,))[4:]))


# --- what it says


class DisputeReader:
    """Reads the dispute contract of a market through one node.

    Raises:
        BadDeployment: The market has none.
    """

    def __init__(self, rpc: JsonRpc, deployment: Deployment) -> None:
        self._rpc, self._deployment = rpc, deployment
        self._address, self._logs = contract_of(deployment), LogSearch(rpc)

    async def state(self, challenge_id: Bytes32) -> ChallengeState:
        """Where a challenge stands; status NONE for one that nobody asked."""
        ((status, answer_by, bond),) = await self._view("getChallenge", challenge_id)
        return ChallengeState(_status(status), Timestamp(answer_by), bond)

    async def challenge_id(self, asked: Challenge) -> Bytes32:
        """The id of a challenge."""
        (found,) = await self._view("challengeId", asked)
        return Bytes32(found)

    async def open_of(self, channel: ChannelId) -> Bytes32 | None:
        """The channel's open challenge, or None."""
        (found,) = await self._view("openOf", channel)
        return Bytes32(found) if any(found) else None

    async def required_bond(self) -> int:
        """The bond of a challenge in the latest block, in wei.

        The contract's own view is not asked. Nodes run a call that names no gas price at a base fee
        of zero, so it gives no more than the least bond there.
        """
        (least,) = await self._view("minBond")
        block = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        base_fee = quantity(member(block, "baseFeePerGas", "the latest block"), "the base fee")
        return max(int(least), BOND_GAS * base_fee)

    async def credits_of(self, who: Address) -> Credits:
        """What waits for an address."""
        tokens, coins = await self._view("creditsOf", who)
        return Credits(Amount(tokens), coins)

    async def escalation_bond(self) -> Amount:
        """What `escalate` takes, in base units of the stake token."""
        (threshold,) = await self._view("threshold")
        (fee,) = await self._view("verdictFee")
        return Amount((threshold + 1) * fee)

    async def open_count(self, operator: Address) -> int:
        """How many challenges against an operator are open or before the committee."""
        (count,) = await self._view("openCount", operator)
        return int(count)

    async def constant(self, name: str) -> int:
        """A number that is part of the contract's code, such as ANSWER_SECONDS."""
        (value,) = await self._view(name)
        return int(value)

    async def challenges_to(
        self, operator: Address, from_block: int, to_block: int
    ) -> tuple[ChallengeOpened, ...]:
        """The challenges to an operator that were opened in these blocks."""
        topics = [_topic("ChallengeOpened"), None, _indexed(operator)]
        return tuple(
            event
            for event in await self._events(topics, from_block, to_block)
            if isinstance(event, ChallengeOpened)
        )

    async def answer_to(self, challenge_id: Bytes32, from_block: int) -> LeafOpened | None:
        """The answer to a challenge, or None before it."""
        topics = [_topic("LeafOpened"), to_hex(challenge_id)]
        found = await self._events(topics, from_block, await self.latest_block())
        return next((event for event in found if isinstance(event, LeafOpened)), None)

    async def waiting_rewards(
        self, operator: Address, payer: Address, from_block: int
    ) -> tuple[RewardWaits, ...]:
        """The rewards of a payer that wait for other challenges against an operator."""
        latest = await self.latest_block()
        topics = [_topic("RewardWaits"), None, _indexed(operator), _indexed(payer)]
        found = await self._events(topics, from_block, latest)
        waiting = [event for event in found if isinstance(event, RewardWaits)]
        if not waiting:
            return ()
        ended = await self._events([_topic("RewardEnded")], waiting[0].log.block, latest)
        over = {event.number for event in ended if isinstance(event, RewardEnded)}
        return tuple(event for event in waiting if event.number not in over)

    async def latest_block(self) -> int:
        """The height of the chain."""
        return int(str(await self._rpc.call("eth_blockNumber")), 16)

    async def _events(
        self, topics: Sequence[Any], from_block: int, to_block: int
    ) -> tuple[DisputeEvent, ...]:
        logs = [
            log
            async for part in self._logs.scan(self._address, topics, from_block, to_block)
            for log in part.logs
        ]
        return decode_dispute_events(self._address, logs)

    async def _view(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        abi = interface(_CONTRACT)
        call = {"to": to_hex(self._address), "data": "0x" + abi.encode(name, arguments).hex()}
        answered = data_bytes(await self._rpc.call("eth_call", call, "latest"), name)
        return abi.decode(name, answered)


def decode_dispute_events(disputes: Address, logs: Iterable[Log]) -> tuple[DisputeEvent, ...]:
    """The events of a dispute contract among `logs` that this program reads, in order."""
    known = {bytes.fromhex(_topic(name)[2:]): name for name in _EVENTS}
    return tuple(
        _EVENTS[known[log.topics[0]]](log, _values(known[log.topics[0]], log))
        for log in logs
        if log.address == disputes and log.topics and log.topics[0] in known
    )


def _values(name: str, log: Log) -> dict[str, Any]:
    return interface(_CONTRACT).decode_event(name, log.topics, log.data)


def _topic(name: str) -> str:
    return to_hex(interface(_CONTRACT).events[name].topic)


def _indexed(address: Address) -> str:
    return to_hex(Bytes32(address.rjust(32, b"\0")))


def _status(number: int) -> ChallengeStatus:
    try:
        return ChallengeStatus(number)
    except ValueError:
        raise BadAnswer(f"the dispute contract has no status {number}") from None


def _opened(log: Log, v: dict[str, Any]) -> ChallengeOpened:
    channel, payer, operator, challenger, receipt, root, *numbers, token, amount = v["challenge"]
    steps, leaf, fields = numbers
    asked = Challenge(
        ChannelId(channel),
        payer,
        operator,
        challenger,
        Digest(receipt),
        Digest(root),
        steps,
        leaf,
        fields,
        token,
        Amount(amount),
    )
    if id_of(asked) != v["id"]:
        # Who answers or judges one challenge must not have signed for another.
        raise BadAnswer("the node shows a challenge under the id of another")
    times = Timestamp(v["startsAt"]), Timestamp(v["answerBy"])
    return ChallengeOpened(log, Bytes32(v["id"]), asked, *times, v["bond"])


def _leaf_opened(log: Log, v: dict[str, Any]) -> LeafOpened:
    index, digests, fields, siblings = v["leaf"]
    leaf = OpenedLeaf(
        index, tuple(map(Bytes32, digests)), tuple(fields), tuple(map(Bytes32, siblings))
    )
    return LeafOpened(log, Bytes32(v["id"]), v["inTime"], leaf)


def _fault(log: Log, v: dict[str, Any]) -> FaultProved:
    return FaultProved(log, v["operator"], v["payer"], v["fault"], Amount(v["slashed"]))


def _waits(log: Log, v: dict[str, Any]) -> RewardWaits:
    return RewardWaits(log, v["reward"], v["operator"], v["payer"], Amount(v["amount"]))


def _ended(log: Log, v: dict[str, Any]) -> RewardEnded:
    return RewardEnded(log, v["reward"], v["paid"])


_EVENTS: Final[Mapping[str, Callable[[Log, dict[str, Any]], DisputeEvent]]] = {
    "ChallengeOpened": _opened,
    "LeafOpened": _leaf_opened,
    "FaultProved": _fault,
    "RewardWaits": _waits,
    "RewardEnded": _ended,
}
