"""What the chain says now: channels, balances, workers, events. Read only.

Money is judged at finality: up to `finalized_block` a caller may forget that chains reorganize.
Everything else is read at "latest" unless a block is given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from piecework.base.text import one_line
from piecework.chain.addresses import require_create2
from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.authorizations import require_separator
from piecework.chain.contracts.calls import Claim
from piecework.chain.contracts.events import (
    ChannelOpened,
    EscrowEvent,
    Settled,
    WithdrawalRequested,
    decode_events,
    event_topics,
    skip_reason,
)
from piecework.chain.contracts.records import (
    UNKNOWN_CHANNEL,
    Block,
    ChannelOnChain,
    ClaimPreview,
    RegisteredWorker,
    StakeRequirements,
    channel_from,
    worker_from,
)
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadAnswer, BadDeployment, TransactionReverted, WrongChain
from piecework.chain.limits import (
    DEFAULT_RPC_TIMEOUT_S,
    MAX_CHANNELS_PER_LOG_QUERY,
    MAX_WORKERS_PER_PAGE,
)
from piecework.chain.nodes.finality import FINALIZED, Finality, finalized_height
from piecework.chain.nodes.logs import LogSearch
from piecework.chain.nodes.quorum import nodes
from piecework.chain.nodes.rpc import (
    HttpRpc,
    JsonRpc,
    hash_of,
    member,
    quantity,
    web3_over,
)
from piecework.chain.reading.presence import Presence, contracts_of, presence_of
from piecework.chain.reading.signatures import signed_by_account
from piecework.chain.reading.token import read_token
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.objects import registry_domain
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

__all__ = [
    "UNKNOWN_CHANNEL",
    "Block",
    "ChainReader",
    "ChannelOnChain",
    "ClaimPreview",
    "RegisteredWorker",
    "StakeRequirements",
]


class ChainReader:
    """One market on one chain, through one node. Make it with `connect`, which checks both."""

    def __init__(
        self, rpc: JsonRpc, deployment: Deployment, finality: Finality = FINALIZED
    ) -> None:
        self.rpc = rpc
        self.deployment = deployment
        self.finality = finality
        self.logs = LogSearch(rpc)
        self.warnings: tuple[str, ...] = ()
        """What `connect` found to differ and is not a reason to stop."""

    @classmethod
    async def connect(
        cls,
        deployment: Deployment,
        *,
        rpc: JsonRpc | None = None,
        rpc_url: str | None = None,
        rpc_urls: Sequence[str] = (),
        rpc_quorum: int = 0,
        timeout_s: float = DEFAULT_RPC_TIMEOUT_S,
        finality: Finality = FINALIZED,
    ) -> Self:
        """Connect, `verify`, and compare the token. Close with `close`.

        `rpc_url` is the caller's own node. `rpc_urls` replaces it by several, of which `rpc_quorum`
        must agree (0: more than half), and `rpc` by one that is open.
        A deployment names a node only if its chain is on this machine. What differs without harm is
        in `warnings`.

        Raises:
            BadDeployment: neither names a node, or the token has no decimals.
            WrongChain: chain, contracts or decimals are not the deployment's.
            ChainError: as the node answers.
        """
        rpc = rpc or nodes(rpc_urls, rpc_quorum, timeout_s=timeout_s)
        if rpc is not None:
            reader = cls(rpc, deployment, finality)
        else:
            reader = cls.over_node(
                deployment, rpc_url=rpc_url, timeout_s=timeout_s, finality=finality
            )
        try:
            await reader.verify()
            renamed = await reader.verify_token()
        except BaseException:
            await reader.close()
            raise
        reader.warnings = () if renamed is None else (renamed,)
        return reader

    @classmethod
    def over_node(
        cls,
        deployment: Deployment,
        *,
        rpc_url: str | None = None,
        timeout_s: float = DEFAULT_RPC_TIMEOUT_S,
        finality: Finality = FINALIZED,
    ) -> Self:
        """A reader that has checked nothing yet. Close with `close`.

        Raises:
            BadDeployment: neither caller nor deployment names a node.
        """
        url = rpc_url or deployment.rpc_url
        if url is None:
            raise BadDeployment(
                f"no node of chain {deployment.chain_id} is known. "
                "Give its address: rpc_url in the settings, or --rpc"
            )
        return cls(HttpRpc(url, timeout_s=timeout_s), deployment, finality)

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
        """Compare the chain with this program: chain id, contracts and domain.

        The addresses follow from the frozen init code, so that code at one of them is ours. It is
        compared all the same: a node or a chain may not do what Ethereum does.

        Raises:
            WrongChain: something differs.
        """
        await self.verify_chain()
        for contract, address in contracts_of(self.deployment).items():
            await self._verify_code(contract, address)
        (separator,) = await self._escrow("DOMAIN_SEPARATOR")
        if separator != self.domain.separator():
            raise WrongChain("the escrow signs under another domain than this program")

    async def verify_chain(self) -> None:
        """Compare the chain id, and refuse a chain whose CREATE2 is not Ethereum's.

        Raises:
            WrongChain: it is another chain, or such a one.
        """
        expected = self.deployment.chain_id
        require_create2(expected)
        chain_id = await self._w3.eth.chain_id
        if chain_id != expected:
            raise WrongChain(
                f"the node serves chain {chain_id} and the deployment is on chain {expected}. "
                "Use a node of that chain, or the deployment file of this one."
            )

    async def _verify_code(self, contract: str, address: Address) -> None:
        found = await presence_of(self.rpc, contract, address)
        if found is Presence.NOTHING:
            raise WrongChain(
                f"there is no {contract} at {to_hex(address)} on chain "
                f"{self.deployment.chain_id}, where this program and the deployment's terms put "
                "it. Was the chain started again, or is the file of another version?"
            )
        if found is Presence.OTHER:
            raise WrongChain(f"the code at {to_hex(address)} is not this program's {contract}")

    async def verify_token(self) -> str | None:
        """Compare the token with the deployment. Returns a warning if its symbol differs.

        An issuer may rename its token, and money does not depend on the name. Amounts depend on
        the decimals.

        Raises:
            WrongChain: the decimals differ.
            BadDeployment: the token does not say how many decimals it has.
        """
        expected = self.deployment.payment_token
        token = await read_token(self.rpc, self.deployment.token)
        if token.decimals != expected.decimals:
            raise WrongChain(
                f"the deployment file says that the token has {expected.decimals} decimals. The "
                f"chain says {token.decimals}. Ask for the right deployment file."
            )
        if token.symbol == expected.symbol:
            return None
        return (
            f"the token {to_hex(self.deployment.token)} calls itself "
            f"{one_line(token.symbol, 40) or 'nothing'}, the deployment file says "
            f"{one_line(expected.symbol, 40) or 'nothing'}"
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
        """A channel; `UNKNOWN_CHANNEL` when the escrow has never seen it, or was not there yet at
        `block`."""
        abi, escrow = interface("Escrow"), self.deployment.escrow
        data = await self._eth_call(escrow, abi.encode("getChannel", (channel_id,)), block)
        if block is not None and not data:
            return UNKNOWN_CHANNEL
        (row,) = abi.decode("getChannel", data)
        return channel_from(row)

    async def pooled_balance(
        self, token: Address, owner: Address, *, block: int | None = None
    ) -> Amount:
        """What the escrow holds for `owner` outside of channels."""
        (balance,) = await self._escrow("balanceOf", token, owner, block=block)
        return Amount(balance)

    async def waiting_payout(self, token: Address, receiver: Address) -> Amount:
        """What waits until somebody pushes it to `receiver`: fees, and what the token refused."""
        (amount,) = await self._escrow("payoutOf", token, receiver)
        return Amount(amount)

    async def withdrawal_nonce(self, owner: Address) -> Uint64:
        """The nonce that the owner's next order over its pooled balance must carry."""
        (nonce,) = await self._escrow("withdrawalNonce", owner)
        return Uint64(nonce)

    async def payer_signed(
        self, payer: Address, message: TypedData, signature: bytes, *, domain: Domain | None = None
    ) -> bool:
        """Whether `payer` signed, by its key or as a smart account (`chain.signatures`).

        `domain` is the escrow's unless it is given.

        Raises:
            RpcUnavailable, RpcRefused: as the node answers.
        """
        digest = (domain or self.domain).digest(message)
        escrow = self.deployment.escrow
        return await signed_by_account(self.rpc, payer, digest, signature, asker=escrow)

    async def sent_transactions(self, address: Address) -> int:
        """How many transactions an address has sent."""
        checksummed = self._w3.to_checksum_address(address)
        return await self._w3.eth.get_transaction_count(checksummed)

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

    async def opening_domain(self, token: Address) -> Domain | None:
        """The domain of EIP-3009 authorizations. None: the token does not know them."""
        try:
            await self.authorization_state(token, Address(bytes(20)), Bytes32(bytes(32)))
            return await self.token_domain(token)
        except (TransactionReverted, BadAnswer):
            return None

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
        return worker_from(row)

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
        return tuple(worker_from(row) for row in rows)

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

    async def registration_nonce(self, operator: Address) -> Uint64:
        """The nonce that the operator's next registration must carry."""
        (nonce,) = await self._registry("registrationNonce", operator)
        return Uint64(nonce)

    async def is_signer(self, operator: Address, key: Address) -> bool:
        """Whether `key` signs for the registered `operator` now: its own key or a live session
        key."""
        (signs,) = await self._registry("isSigner", operator, key)
        return bool(signs)

    def registry_domain(self) -> Domain:
        """The domain of a worker's registration."""
        return registry_domain(self.deployment.chain_id, self.deployment.registry)

    # --- events

    async def scan(
        self,
        names: Sequence[str],
        from_block: int | None = None,
        to_block: int | None = None,
        **indexed: bytes,
    ) -> AsyncIterator[tuple[int, tuple[EscrowEvent, ...]]]:
        """Walk the escrow's events of these names, in chain order, part by part.

        Each part is its last block and its events: go on from the block after it. By default the
        walk covers the life of the deployment. `indexed` gives indexed arguments by the names of
        the ABI, such as `channelId` or `payer`.

        Raises:
            LogRangeRefused: the node does not give the logs of one block, or takes too long.
            ChainError: as the node answers.
        """
        first = (self.deployment.from_block or 0) if from_block is None else from_block
        last = await self.latest_block() if to_block is None else to_block
        escrow, topics = self.deployment.escrow, event_topics(names, indexed)
        async for part in self.logs.scan(escrow, topics, first, last):
            yield part.last, decode_events(escrow, part.logs)

    async def escrow_events(
        self,
        names: Sequence[str],
        from_block: int | None = None,
        to_block: int | None = None,
        **indexed: bytes,
    ) -> tuple[EscrowEvent, ...]:
        """All events of a `scan` at once."""
        parts = self.scan(names, from_block, to_block, **indexed)
        return tuple([event async for _, events in parts for event in events])

    async def opening_blocks(self, operator: Address, to_block: int) -> dict[ChannelId, int]:
        """The block in which each channel of an operator was opened, up to a block.

        It walks the life of the deployment once.

        Raises:
            LogRangeRefused: the node does not give the logs of one block, or takes too long.
            ChainError: as the node answers.
        """
        parts = self.scan(("ChannelOpened",), None, to_block, operator=operator)
        opened = [e async for _, events in parts for e in events if isinstance(e, ChannelOpened)]
        return {event.channel: event.log.block for event in opened}

    async def events_of(
        self, names: Sequence[str], opened: Mapping[ChannelId, int], to_block: int
    ) -> tuple[EscrowEvent, ...]:
        """All events of these names about channels up to a block, in chain order.

        `opened` says in which block each was opened. Nothing is asked of the blocks before.

        Raises:
            LogRangeRefused: the node does not give the logs of one block, or takes too long.
            ChainError: as the node answers.
        """
        escrow, found = self.deployment.escrow, list[EscrowEvent]()
        # Those that opened about the same time are asked for together.
        known = sorted(opened, key=lambda channel: (opened[channel], channel))
        for start in range(0, len(known), MAX_CHANNELS_PER_LOG_QUERY):
            some = known[start : start + MAX_CHANNELS_PER_LOG_QUERY]
            topics = [*event_topics(names, {}), [to_hex(key) for key in some]]
            async for part in self.logs.scan(escrow, topics, opened[some[0]], to_block):
                found += decode_events(escrow, part.logs)
        return tuple(sorted(found, key=lambda event: (event.log.block, event.log.index)))

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
        *,
        receiver: Address | None = None,
    ) -> tuple[Settled, ...]:
        """The payments of a channel, of a receiver, or all, by default over the life of the
        deployment."""
        chosen: dict[str, bytes | None] = {"channelId": channel, "receiver": receiver}
        indexed = {name: value for name, value in chosen.items() if value is not None}
        events = await self.escrow_events(("Settled",), from_block, to_block, **indexed)
        return tuple(e for e in events if isinstance(e, Settled))

    async def channels_of(
        self, payer: Address, from_block: int | None = None, to_block: int | None = None
    ) -> tuple[ChannelOpened, ...]:
        """Every channel that a payer ever opened, for a client that lost its records."""
        events = await self.escrow_events(("ChannelOpened",), from_block, to_block, payer=payer)
        return tuple(e for e in events if isinstance(e, ChannelOpened))

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
