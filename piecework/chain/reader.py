"""What the chain says now: channels, balances, workers, events. Read only.

Money is judged at finality: up to `finalized_block` a caller may forget that chains reorganize.
Everything else is read at "latest" unless a block is given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from piecework.base.amounts import Token
from piecework.chain.abi import interface
from piecework.chain.authorizations import registry_domain, require_separator
from piecework.chain.calls import Claim
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadAnswer, TransactionReverted, WrongChain
from piecework.chain.events import (
    EscrowEvent,
    Log,
    Settled,
    SkipReason,
    WithdrawalRequested,
    decode_events,
    skip_reason,
    topic,
)
from piecework.chain.finality import FINALIZED, Finality, finalized_height
from piecework.chain.limits import DEFAULT_RPC_TIMEOUT_S, MAX_WORKERS_PER_PAGE
from piecework.chain.logs import LogSearch
from piecework.chain.rpc import (
    HttpRpc,
    JsonRpc,
    address_from,
    data_bytes,
    hash_of,
    member,
    quantity,
    web3_over,
)
from piecework.chain.token import read_token
from piecework_protocol.eip712 import Domain
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Seconds,
    Timestamp,
    Uint64,
    Uint256,
    keccak256,
    to_hex,
)

if TYPE_CHECKING:
    from web3 import AsyncWeb3
    from web3.types import TxParams


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, hash and time."""

    number: int
    hash: Bytes32
    timestamp: Timestamp


@dataclass(frozen=True, slots=True)
class ChannelOnChain:
    """A channel as the escrow knows it. `withdrawal_requested_at` is 0 for none; amounts in base
    units."""

    state: ChannelState
    deposit: Amount
    settled: Amount
    count: Uint64
    withdrawal_requested_at: Timestamp


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """A worker as the registry knows it. `active`: bonded with at least the minimum stake."""

    owner: Address
    operator: Address
    payout: Address
    stake: Amount
    endpoint: str
    active: bool
    registered_at: Timestamp
    unbond_requested_at: Timestamp


@dataclass(frozen=True, slots=True)
class StakeRequirements:
    """What a registration costs and how long leaving takes."""

    token: Address
    min_stake: Amount
    unbonding_delay: Seconds


@dataclass(frozen=True, slots=True)
class ClaimPreview:
    """What a claim would pay now, in base units, or why nothing."""

    payable: Amount
    reason: SkipReason


class ChainReader:
    """One market on one chain, through one node. Make it with `connect`, which checks both."""

    def __init__(
        self, rpc: JsonRpc, deployment: Deployment, finality: Finality = FINALIZED
    ) -> None:
        self.rpc = rpc
        self.deployment = deployment
        self.finality = finality
        self.logs = LogSearch(rpc)

    @classmethod
    async def connect(
        cls,
        deployment: Deployment,
        *,
        rpc_url: str | None = None,
        timeout_s: float = DEFAULT_RPC_TIMEOUT_S,
        finality: Finality = FINALIZED,
    ) -> Self:
        """Connect, `verify`, and compare the token; `rpc_url` replaces the deployment's.

        Close with `close`.
        """
        reader = cls(
            HttpRpc(rpc_url or deployment.rpc_url, timeout_s=timeout_s), deployment, finality
        )
        try:
            await reader.verify()
            await reader.verify_token()
        except BaseException:
            await reader.close()
            raise
        return reader

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.rpc.close()

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain that every object is signed under."""
        return self.deployment.domain

    @cached_property
    def _w3(self) -> AsyncWeb3[Any]:
        return web3_over(self.rpc)

    # --- is this the right chain?

    async def verify(self) -> None:
        """Compare the chain with the deployment: chain id, code and domain.

        Raises:
            WrongChain: something differs.
        """
        expected = self.deployment
        chain_id = await self._w3.eth.chain_id
        if chain_id != expected.chain_id:
            raise WrongChain(
                f"the node serves chain {chain_id} and the deployment is on chain "
                f"{expected.chain_id}. "
                "Use a node of that chain, or the deployment file of this one."
            )
        contracts = (
            ("escrow", expected.escrow, expected.escrow_code_hash),
            ("registry", expected.registry, expected.registry_code_hash),
        )
        for name, address, code_hash in contracts:
            code = await self.code(address)
            if not code:
                raise WrongChain(
                    f"there is no {name} at {to_hex(address)} on this chain. Was it started anew?"
                )
            if keccak256(code) != code_hash:
                raise WrongChain(
                    f"the code of the {name} at {to_hex(address)} is not the deployment's"
                )
        (separator,) = await self._escrow("DOMAIN_SEPARATOR")
        if separator != self.domain.separator():
            raise WrongChain("the escrow signs under another domain than this program")

    async def verify_token(self) -> None:
        """Compare the token's decimals and symbol with the deployment.

        Not a part of `verify`, which a worker repeats: an issuer may rename its token, and claims
        of a channel do not depend on its name.

        Raises:
            WrongChain: something differs.
            BadDeployment: the token does not say how many decimals it has.
        """
        expected = self.deployment
        token = await read_token(self.rpc, expected.token)
        if token != expected.payment_token:
            raise WrongChain(
                f"the deployment file says that the token is {_described(expected.payment_token)}. "
                f"The chain says {_described(token)}. Ask for the right deployment file."
            )

    # --- blocks

    async def block(self, number: int | str) -> Block:
        """A block by number or tag ("latest", "finalized")."""
        # Raw, here and for logs, receipts and transactions: web3 rewrites some thirty members,
        # fails on some chains' own (a long extraData) and passes on those that we read unchecked.
        tag = hex(number) if isinstance(number, int) else number
        raw = await self.rpc.call("eth_getBlockByNumber", tag, False)
        if raw is None:
            raise BadAnswer(f"the node has no block {number}")
        return Block(
            quantity(member(raw, "number", "a block"), "a block number"),
            hash_of(member(raw, "hash", "a block"), "a block hash"),
            Timestamp(quantity(member(raw, "timestamp", "a block"), "a block time")),
        )

    async def latest_block(self) -> int:
        """The height of the chain's head."""
        return await self._w3.eth.block_number

    async def finalized_block(self) -> int:
        """The height up to which blocks are final, by the configured `finality`; 0 on a young
        chain."""
        return await finalized_height(self.rpc, self.finality)

    async def timestamp(self) -> Timestamp:
        """The time of the latest block: what the contracts compare deadlines with."""
        return (await self.block("latest")).timestamp

    # --- channels and money

    async def channel(self, channel_id: ChannelId, *, block: int | None = None) -> ChannelOnChain:
        """A channel; state NONE when the escrow has never seen it."""
        ((deposit, settled, count, requested, closed),) = await self._escrow(
            "getChannel", channel_id, block=block
        )
        if closed:
            state = ChannelState.CLOSED
        elif deposit == 0:
            state = ChannelState.NONE
        else:
            state = ChannelState.WITHDRAWING if requested else ChannelState.OPEN
        return ChannelOnChain(
            state, Amount(deposit), Amount(settled), Uint64(count), Timestamp(requested)
        )

    async def pooled_balance(self, token: Address, owner: Address) -> Amount:
        """What the escrow holds for `owner` outside of channels."""
        (balance,) = await self._escrow("balanceOf", token, owner)
        return Amount(balance)

    async def token_balance(self, token: Address, owner: Address) -> Amount:
        """The owner's own tokens."""
        (balance,) = await self._token(token, "balanceOf", owner)
        return Amount(balance)

    async def native_balance(self, address: Address) -> int:
        """Wei: what pays for gas."""
        return await self._w3.eth.get_balance(self._w3.to_checksum_address(address))

    async def allowance(self, token: Address, owner: Address, spender: Address) -> Amount:
        """What `spender` may take of the owner's tokens."""
        (allowed,) = await self._token(token, "allowance", owner, spender)
        return Amount(allowed)

    async def authorization_state(self, token: Address, owner: Address, nonce: Bytes32) -> bool:
        """Whether an EIP-3009 authorization was used or cancelled."""
        (used,) = await self._token(token, "authorizationState", owner, nonce)
        return bool(used)

    async def permit_nonce(self, token: Address, owner: Address) -> Uint256:
        """The nonce that the owner's next EIP-2612 permit must carry."""
        (nonce,) = await self._token(token, "nonces", owner)
        return Uint256(nonce)

    async def token_domain(self, token: Address) -> Domain:
        """The token's EIP-712 domain, checked against its separator on the chain; `BadAnswer` if it
        differs.

        The separator is rebuilt from the parts, so that a node cannot make us sign for another
        token.
        """
        (name,) = await self._token(token, "name")
        version = await self._token_version(token)
        domain = Domain(self.deployment.chain_id, token, name, version)
        (separator,) = await self._token(token, "DOMAIN_SEPARATOR")
        require_separator(domain, separator)
        return domain

    async def preview_settle(self, claims: Sequence[Claim]) -> tuple[ClaimPreview, ...]:
        """What settling these claims in this order would pay now, row by row."""
        rows = [claim.as_tuple() for claim in claims]
        amounts, reasons = await self._escrow("previewSettle", rows)
        return tuple(
            ClaimPreview(Amount(amount), skip_reason(reason))
            for amount, reason in zip(amounts, reasons, strict=True)
        )

    # --- workers

    async def worker(self, operator: Address) -> RegisteredWorker | None:
        """A registered worker, or None."""
        try:
            (row,) = await self._registry("getWorker", operator)
        except TransactionReverted as error:
            if error.name == "UnknownWorker":
                return None
            raise
        return _worker(row)

    async def worker_count(self, *, block: int | None = None) -> int:
        (count,) = await self._registry("workerCount", block=block)
        return int(count)

    async def workers(
        self, offset: int, limit: int, *, block: int | None = None
    ) -> tuple[RegisteredWorker, ...]:
        """At most MAX_WORKERS_PER_PAGE. Walk pages at one `block`: the order changes when one
        leaves."""
        page = min(limit, MAX_WORKERS_PER_PAGE)
        (rows,) = await self._registry("workers", offset, page, block=block)
        return tuple(_worker(row) for row in rows)

    async def every_worker(self, maximum: int = 10_000) -> AsyncIterator[RegisteredWorker]:
        """Walk all pages as of now, up to `maximum` workers."""
        block = await self.latest_block()
        for offset in range(0, maximum, MAX_WORKERS_PER_PAGE):
            page = await self.workers(
                offset, min(MAX_WORKERS_PER_PAGE, maximum - offset), block=block
            )
            for worker in page:
                yield worker
            if len(page) < MAX_WORKERS_PER_PAGE:
                return

    async def stake_requirements(self) -> StakeRequirements:
        (token,) = await self._registry("stakeToken")
        (stake,) = await self._registry("minStake")
        (delay,) = await self._registry("unbondingDelay")
        return StakeRequirements(Address(token), Amount(stake), Seconds(delay))

    async def is_signer(self, operator: Address, key: Address) -> bool:
        """Whether `key` signs for the registered `operator` now: its own key or a live session
        key."""
        (signs,) = await self._registry("isSigner", operator, key)
        return bool(signs)

    def registry_domain(self) -> Domain:
        """The domain of a worker's registration."""
        return registry_domain(self.deployment.chain_id, self.deployment.registry)

    # --- events

    async def withdrawal_requests(
        self, from_block: int, to_block: int
    ) -> tuple[WithdrawalRequested, ...]:
        """Every withdrawal request between two blocks, both included."""
        events = await self.escrow_events(("WithdrawalRequested",), from_block, to_block)
        return tuple(e for e in events if isinstance(e, WithdrawalRequested))

    async def settlements(
        self,
        channel: ChannelId | None = None,
        from_block: int | None = None,
        to_block: int | None = None,
    ) -> tuple[Settled, ...]:
        """The payments of a channel (or of all), by default over the life of the deployment."""
        start = self.deployment.block if from_block is None else from_block
        end = await self.latest_block() if to_block is None else to_block
        events = await self.escrow_events(("Settled",), start, end, channel)
        return tuple(e for e in events if isinstance(e, Settled))

    async def escrow_events(
        self, names: Sequence[str], from_block: int, to_block: int, channel: ChannelId | None = None
    ) -> tuple[EscrowEvent, ...]:
        """The escrow's events of these names, in chain order; wide ranges are asked in parts."""
        topics: list[Any] = [[to_hex(topic(name)) for name in names]]
        if channel is not None:
            topics.append(to_hex(channel))
        query = {"address": to_hex(self.deployment.escrow), "topics": topics}
        found = parse_logs(await self.logs.find(query, from_block, to_block))
        return decode_events(self.deployment.escrow, found)

    # --- raw calls

    async def code(self, address: Address) -> bytes:
        """The code at an address, empty when there is none."""
        return bytes(await self._w3.eth.get_code(self._w3.to_checksum_address(address)))

    async def _escrow(
        self, name: str, *arguments: Any, block: int | None = None
    ) -> tuple[Any, ...]:
        return await self._view("Escrow", self.deployment.escrow, name, arguments, block)

    async def _registry(
        self, name: str, *arguments: Any, block: int | None = None
    ) -> tuple[Any, ...]:
        return await self._view("WorkerRegistry", self.deployment.registry, name, arguments, block)

    async def _token(self, token: Address, name: str, *arguments: Any) -> tuple[Any, ...]:
        return await self._view("TestToken", token, name, arguments, None)

    async def _view(
        self,
        contract: str,
        address: Address,
        name: str,
        arguments: Sequence[Any],
        block: int | None,
    ) -> tuple[Any, ...]:
        abi = interface(contract)
        return abi.decode(name, await self._eth_call(address, abi.encode(name, arguments), block))

    async def _eth_call(self, to: Address, data: bytes, block: int | None = None) -> bytes:
        """Not web3's contract functions: they encode ten times slower (0.2 s of a running worker's
        loop for a full batch of claims) and lose a page of workers over one endpoint that is not
        UTF-8.
        """
        request: TxParams = {"to": self._w3.to_checksum_address(to), "data": data}
        return bytes(await self._w3.eth.call(request, "latest" if block is None else block))

    async def _token_version(self, token: Address) -> str:
        """The version in the token's domain: EIP-5267 if it has it, else version() (USDC), else
        "1"."""
        try:
            return str((await self._token(token, "eip712Domain"))[2])
        except (TransactionReverted, BadAnswer):
            pass
        try:
            answer = await self._eth_call(token, keccak256(b"version()")[:4])
            return str(interface("TestToken").decode("name", answer)[0])
        except (TransactionReverted, BadAnswer):
            return "1"


def _described(token: Token) -> str:
    return f"{token.symbol} with {token.decimals} decimals"


def parse_logs(raw: Any) -> list[Log]:
    """The logs of eth_getLogs or of a receipt."""
    if not isinstance(raw, list):
        raise BadAnswer("the node returned no list of logs")
    return [
        Log(
            address_from(member(entry, "address", "a log"), "a log's address"),
            tuple(hash_of(t, "a topic") for t in member(entry, "topics", "a log")),
            data_bytes(member(entry, "data", "a log"), "a log's data"),
            quantity(member(entry, "blockNumber", "a log"), "a log's block"),
            quantity(member(entry, "logIndex", "a log"), "a log's index"),
            hash_of(member(entry, "transactionHash", "a log"), "a log's transaction"),
        )
        for entry in raw
    ]


def _worker(row: tuple[Any, ...]) -> RegisteredWorker:
    operator, owner, payout, stake, registered_at, unbond_requested_at, active, endpoint = row
    return RegisteredWorker(
        owner=owner,
        operator=operator,
        payout=payout,
        stake=Amount(stake),
        endpoint=endpoint,
        active=active,
        registered_at=Timestamp(registered_at),
        unbond_requested_at=Timestamp(unbond_requested_at),
    )
