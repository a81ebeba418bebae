"""A new operator key for a worker: registered first, then everything of the old one is settled.

The registry knows a worker by its operator. So a new key is a new registration, with a stake of its
own, while the old stake waits for its delay. Every step is seen in the home or on the chain. The
old key moves with its journal to a home of its own, from which its stake leaves.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from piecework.base.files import SYSTEM_DISK, read, write_private
from piecework.base.settings import MAX_FILE_BYTES
from piecework.base.settings_file import rewritten
from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import Permit, signed_permit
from piecework.chain.errors import SignerRefuses
from piecework.chain.limits import DEFAULT_POLL_S
from piecework.chain.reading.reader import ChainReader, RegisteredWorker
from piecework.chain.sending.transactions import TransactionSender
from piecework.signer.place import socket_path
from piecework.signer.remote import signer_at
from piecework_node import config as settings
from piecework_node.config import WorkerConfig
from piecework_node.errors import ConfigError
from piecework_node.home import Home
from piecework_node.keys.operator import (
    close_operator,
    create_keystore,
    is_record,
    keystore_address,
    open_operator,
    write_record,
)
from piecework_node.keys.tls import create_tls
from piecework_node.operations import registration
from piecework_node.operations.leaving import Leaver, LeaveStep, StepReport, Watcher, unwatched
from piecework_node.operations.owning import OwnerCall, OwnerHands
from piecework_protocol.objects import Registration
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import (
    Address,
    Amount,
    Timestamp,
    Uint256,
    address_hex,
    parse_address,
)

TRANSFER_ROOM: Final = 4
"""How many plain transfers stay at the old address: the price may rise before the last one."""
TRANSFER_GAS: Final = 21_000
TRANSFER_BYTES: Final = 120


@dataclass(frozen=True, slots=True)
class RotationReport:
    """What was done, and what is left for the owner of the old stake.

    Attributes:
        steps: In order.
        operator: The new one.
        old_home: From where the old stake leaves.
        call: What the owner has to send, so that the old stake begins to leave. None: it does.
    """

    steps: tuple[StepReport, ...]
    operator: Address
    old_home: Path
    call: OwnerCall | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [asdict(step) for step in self.steps],
            "operator": address_hex(self.operator),
            "old_home": str(self.old_home),
            "transaction": None if self.call is None else self.call.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Passwords:
    """Of the key that is replaced, and of the new one."""

    old: str
    new: str


def old_key_home(home: Home, old: Address) -> Home:
    """Return the home that holds the key of an operator: the worker's own, or a retired one.

    Raises:
        ConfigError: neither has it.
    """
    for place in (home, home.retired(old)):
        if place.operator.is_file() and _address_in(place) == old:
            return place
    raise ConfigError(f"the key of {address_hex(old)} is not in {home.root}")


def _address_in(home: Home) -> Address:
    return parse_address("0x" + keystore_address(home.operator))


def is_rotated(home: Home, old: Address) -> bool:
    """Whether a home has left this key behind, with nothing half done."""
    there = home.operator.is_file() and _address_in(home) != old
    return there and home.retired(old).operator.is_file() and not home.next.root.exists()


class Rotation:
    """Replaces the operator key of a home."""

    def __init__(
        self,
        home: Home,
        config: WorkerConfig,
        passwords: Passwords,
        hands: OwnerHands,
        *,
        watch: Watcher = unwatched,
        poll_s: float = DEFAULT_POLL_S,
        key_cost: int | None = None,
        signer: str = "",
    ) -> None:
        """`key_cost`: scrypt's N of the new key. None: the usual one.

        `signer` has the new key, as the setting of this name. Empty: it is made in the home.
        """
        self._key_cost, self._signer = key_cost, signer
        self._home, self._config, self._passwords = home, config, passwords
        self._hands, self._watch, self._poll_s = hands, watch, poll_s
        self._reader: ChainReader = hands.reader
        self._steps: list[StepReport] = []

    async def run(self, old: Address, now: Timestamp) -> RotationReport:
        """Replace the key of operator `old`, from where an earlier run was cut off.

        Raises:
            NotFunded: the new operator lacks stake or gas. The old worker runs on.
            PieceworkError: the chain, the daemon or a file is in the way. Run it again.
        """
        where = old_key_home(self._home, old)
        # A retired home has the settings of its own time, and so the signer of its key.
        kept = self._config if where.root == self._home.root else settings.load(where.root)
        retiring = await open_operator(
            where.operator, kept.signer, self._passwords.old, self._reader.deployment
        )
        try:
            if is_rotated(self._home, old):
                fresh = _address_in(self._home)
            else:
                fresh = await self._replace(where, retiring, now)
        finally:
            await close_operator(retiring)
        return RotationReport(
            tuple(self._steps), fresh, self._home.retired(old).root, await self._unbond(old)
        )

    async def _replace(self, where: Home, retiring: AsyncSigner, now: Timestamp) -> Address:
        if where.root == self._home.root:
            self._watch("before new key")
            new = await self._new_key(now)
            self._watch("after new key")
            try:
                await self._register(new, retiring.address, now)
            finally:
                await close_operator(new)
            self._watch("after registration")
            report = await Leaver(
                self._home,
                self._config,
                retiring,
                self._hands,
                watch=self._watch,
                poll_s=self._poll_s,
            ).run(LeaveStep.EARNINGS)
            if report.next is not None:
                raise ConfigError(report.why)
            self._steps += report.steps
            await self._move_gas(retiring, new.address)
            self._watch("after gas")
            # From here on nothing can be settled with the old key: it may be in other hands.
            await self._unbond(retiring.address)
        await asyncio.to_thread(self._swap, retiring.address)
        kept = self._home.retired(retiring.address).root
        self._note("key", f"replaced. The old one is in {kept}")
        return _address_in(self._home)

    def _note(self, step: str, detail: str, *, new: bool = True) -> None:
        self._steps.append(StepReport(step, detail, new))

    # --- the new key

    async def _new_key(self, now: Timestamp) -> AsyncSigner:
        """Make the key and its certificate beside the old ones, or take those that are there."""
        market = self._reader.deployment
        remote = await signer_at(socket_path(self._signer), market) if self._signer else None
        await asyncio.to_thread(self._write_key, now, remote)
        place = self._home.next
        return await open_operator(place.operator, self._signer, self._passwords.new, market)

    def _write_key(self, now: Timestamp, remote: Address | None) -> None:
        place = self._home.next
        place.create()
        self._require_same_signer()
        there = place.operator.is_file()
        if not there and remote is not None:
            if remote == _address_in(self._home):
                raise ConfigError("the new signer has the key of the operator to replace")
            write_record(place.operator, remote)
        elif not there:
            create_keystore(
                place.operator,
                self._passwords.new,
                secrets.token_bytes(32),
                iterations=self._key_cost,
            )
        if not place.certificate.is_file():
            certificate, key = create_tls(_address_in(place), now)
            write_private(place.certificate_key, key, replace=True)
            write_private(place.certificate, certificate)

    async def _register(self, new: AsyncSigner, old: Address, now: Timestamp) -> None:
        known = await self._reader.worker(old)
        owner = self._config.receiver if known is None else known.owner
        stake = 0 if known is None else known.stake
        needs = await self._reader.stake_requirements()
        amount = Amount(max(stake, needs.min_stake))
        payer = self._hands.key_of(owner)
        there = await self._reader.worker(new.address)
        held = 0 if payer is None else await self._reader.token_balance(needs.token, payer.address)
        if there is None and payer is not None and held >= amount:
            await self._register_for(new, payer, needs.token, amount, now)
            self._note("register", f"{address_hex(new.address)}, stake paid by its owner")
            return
        step = await registration.register(
            self._reader,
            new,
            payout=self._config.receiver,
            owner=owner,
            endpoint=self._config.first_address,
            stake=amount,
            now=now,
            poll_s=self._poll_s,
        )
        self._note("register", f"{address_hex(new.address)} {step.detail}", new=step.new)

    async def _register_for(
        self,
        new: AsyncSigner,
        payer: AsyncSigner,
        token: Address,
        stake: Amount,
        now: Timestamp,
    ) -> None:
        """Register the new operator by its consent, with the stake of the owner."""
        reader = self._reader
        latest = max(now, await reader.timestamp())
        deadline = Timestamp(latest + registration.PERMIT_LIFETIME_S)
        terms = Registration(
            operator=new.address,
            owner=payer.address,
            payout=self._config.receiver,
            stake=stake,
            endpoint=self._config.first_address,
            nonce=await reader.registration_nonce(new.address),
            deadline=deadline,
        )
        consent = await new.typed(reader.registry_domain(), terms)
        permit = Permit(
            payer.address,
            reader.deployment.registry,
            Uint256(terms.stake),
            await reader.permit_nonce(token, payer.address),
            Uint256(deadline),
        )
        signed = await signed_permit(await reader.token_domain(token), permit, payer)
        call = calls.register_with_permit(reader.deployment, terms, signed, consent)
        self._watch("before registerWithPermit")
        await TransactionSender.of(reader, payer).execute(call, poll_s=self._poll_s)

    # --- the old key

    async def _move_gas(self, retiring: AsyncSigner, new: Address) -> None:
        """Send the old operator's coins to the new one, but for a few transfers."""
        sender = TransactionSender.of(self._reader, retiring)
        price = await sender.gas_price()
        one = TRANSFER_GAS * price.wei_per_gas + TRANSFER_BYTES * price.data.wei_per_byte
        kept = 2 * TRANSFER_ROOM * one
        coins = await self._reader.native_balance(retiring.address)
        if coins <= 2 * kept:
            return
        self._watch("before send")
        try:
            await sender.execute(calls.send_native(new, coins - kept), poll_s=self._poll_s)
        except SignerRefuses as error:
            self._note("gas", f"the coins stay with the old operator: {error}", new=False)
            return
        self._note("gas", "the old operator's coins went to the new one")

    async def _unbond(self, old: Address) -> OwnerCall | None:
        """Let the old stake begin to leave. Its owner's key is elsewhere: return the call."""
        known: RegisteredWorker | None = await self._reader.worker(old)
        if known is None or known.unbond_requested_at:
            return None
        call = calls.request_unbond(self._reader.deployment, old)
        self._watch("before requestUnbond")
        waiting = await self._hands.act(known.owner, call)
        if waiting is None:
            self._note("unbond", "the old stake is leaving")
        return waiting

    # --- the home

    def _swap(self, old: Address) -> None:
        """Move the old key out with its journal, and the new key in.

        The key goes out first and comes in last. In between no worker starts here.
        """
        home, place, retired = self._home, self._home.next, self._home.retired(old)
        self._require_same_signer()
        retired.root.parent.mkdir(mode=0o700, exist_ok=True)
        retired.root.mkdir(mode=0o700, exist_ok=True)
        retired.create()
        for copied in (home.config, home.deployment, home.market):
            # Once the old key is out, the settings of the home may be those of the new one.
            if copied.is_file() and not retired.operator.is_file():
                target = retired.root / copied.name
                write_private(target, read(copied, MAX_FILE_BYTES), replace=True)
        if home.operator.is_file() and _address_in(home) == old:
            self._move(home.operator, retired.root)
        if settings.load(home.root, environment={}).signer != self._signer:
            text = read(home.config, MAX_FILE_BYTES).decode("utf-8-sig")
            given = {"signer": self._signer} if self._signer else {}
            changed = rewritten(WorkerConfig, text, given, () if given else ("signer",))
            write_private(home.config, changed.encode(), replace=True)
        if home.sealing.is_file() and home.journal.exists():
            self._move(home.sealing, retired.root)  # it opens what the journal has
        for end in ("-wal", "-shm", ""):
            journal = home.journal.with_name(home.journal.name + end)
            if journal.exists():
                self._move(journal, retired.root)
        for out in (home.certificate, home.certificate_key):
            # One that is not waiting any more is in place.
            if out.exists() and (place.root / out.name).exists():
                self._move(out, retired.root)
        for entering in (place.certificate_key, place.certificate, place.operator):
            if entering.exists():
                self._move(entering, home.root)
        if place.root.exists() and not place.operator.exists():
            shutil.rmtree(place.root)
        self._watch("after swap")

    def _require_same_signer(self) -> None:
        """Refuse to go on without the signer that the new key is in."""
        new = self._home.next.operator
        if new.is_file() and is_record(new) != bool(self._signer):
            raise ConfigError(
                "the new key is elsewhere than before. Give --new-signer as in the first run"
            )

    def _move(self, file: Path, folder: Path) -> None:
        self._watch(f"before move {file.name}")
        file.rename(folder / file.name)
        SYSTEM_DISK.sync_folder(folder)
        SYSTEM_DISK.sync_folder(file.parent)
