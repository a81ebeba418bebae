"""Become a worker: write the files of a home and register. Both are safe to repeat."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from piecework.base.amounts import Token, native_coin
from piecework.base.files import shown, write_private
from piecework.base.written_amounts import base_units
from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import Permit, signed_permit
from piecework.chain.deployment import Deployment
from piecework.chain.limits import DEVELOPMENT_CHAIN_IDS
from piecework.chain.reading.reader import ChainReader, RegisteredWorker
from piecework.chain.sending.transactions import TransactionSender
from piecework_node import config as settings
from piecework_node.card_settings import tables_with
from piecework_node.config import AMOUNTS, WorkerConfig
from piecework_node.errors import HomeDiffers, NotFunded
from piecework_node.home import Home
from piecework_node.keys.operator import create_keystore, keystore_address, write_record
from piecework_node.keys.sealing import open_wrapping_secret
from piecework_node.keys.tls import create_tls
from piecework_node.settlement.policy import settle_wei
from piecework_node.settlement.watch import RESERVE_SETTLEMENTS
from piecework_protocol.objects import Registration
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import (
    Address,
    Amount,
    Timestamp,
    Uint256,
    address_hex,
    parse_address,
    to_hex,
)

PERMIT_LIFETIME_S: Final = 3600
REGISTER_GAS: Final = 400_000
"""What a registration uses at most. Less could not pay for it."""


@dataclass(frozen=True, slots=True)
class RegistrationStep:
    """One thing that `init` did or found done."""

    what: str
    detail: str
    new: bool


def prepare_home(
    home: Home,
    deployment: Deployment,
    values: Mapping[str, Any],
    password: str,
    now: Timestamp,
    *,
    remote: Address | None = None,
) -> list[RegistrationStep]:
    """Write what is missing of deployment, settings, operator key and certificate.

    What is there stays as it is. `remote` is the operator whose key is in a signer.

    Raises:
        FileError: the folder or a file cannot be made.
        SettingsError: a value cannot be used.
    """
    home.create()
    steps = [_once(home.deployment.is_file(), "deployment", str(home.deployment))]
    if steps[-1].new:
        text = json.dumps(deployment.to_json(), indent=2) + "\n"
        write_private(home.deployment, text.encode())
    if not home.operator.is_file() and home.next.operator.is_file():
        # It would make a third key, and the new one of the replacement would be lost.
        keystore_address(home.operator)
    steps.append(_once(home.operator.is_file(), "operator key", str(home.operator)))
    if steps[-1].new and remote is not None:
        open_wrapping_secret(home.sealing, password)
        write_record(home.operator, remote)
    elif steps[-1].new:
        create_keystore(home.operator, password, secrets.token_bytes(32))
    steps.append(_once(home.certificate.is_file(), "certificate", str(home.certificate)))
    if steps[-1].new:
        certificate, key = create_tls(parse_address("0x" + keystore_address(home.operator)), now)
        write_private(home.certificate_key, key, replace=True)
        write_private(home.certificate, certificate)
    steps.append(_once(home.config.is_file(), "settings", str(home.config)))
    if steps[-1].new:
        chosen = dict(values)
        # Gas costs nothing there: a claim of one base unit is worth its transaction.
        if deployment.chain_id in DEVELOPMENT_CHAIN_IDS:
            chosen.setdefault("native_coin_price", "0")
        settings.check(chosen).amounts(deployment.payment_token)
        write_private(home.config, settings.to_toml(chosen).encode())
    return steps


def check_asked(
    home: Home,
    deployment: Deployment,
    asked: Mapping[str, Any],
    *,
    flags: Mapping[str, str] = MappingProxyType({}),
    file: bool = False,
) -> None:
    """Refuse to drop in silence what was asked for.

    Args:
        home: One that may be there.
        deployment: The market that it must belong to.
        asked: Settings that it must have.
        flags: How a person writes a setting, where a flag has another name.
        file: Whether a person gave the deployment as a file. Nothing in it may differ then.

    Raises:
        HomeDiffers: the home belongs to another market, or has other settings than these.
        BadDeployment: the deployment file in the home cannot be used.
        SettingsError: the settings in the home cannot be used.
    """
    if home.deployment.is_file():
        found = Deployment.load(home.deployment)
        if not found.same_market(deployment):
            raise HomeDiffers(
                f"{shown(home.root)} belongs to another market: registry {to_hex(found.registry)} "
                f"on chain {found.chain_id}. Use another --home"
            )
        names = [field.name for field in fields(found)]
        other = [name for name in names if getattr(found, name) != getattr(deployment, name)]
        if file and other:
            raise HomeDiffers(
                f"--deployment: {shown(home.deployment)} differs from the given file in "
                f"{', '.join(other)}. If the given file is right, copy it there"
            )
    if home.config.is_file():
        there = settings.load(home.root, environment={})
        token = deployment.payment_token
        differing = {n: v for n, v in asked.items() if not _is_so(there, n, v, token)}
        if differing:
            named = ", ".join(flags.get(name, name) for name in differing)
            raise HomeDiffers(
                f"{named}: {shown(home.config)} says something else. "
                f"To change it: {_remedy(there, differing)}"
            )


def check_registered(
    known: RegisteredWorker, *, stake: int | None, owner: Address | None, token: Token
) -> None:
    """Refuse a stake or an owner that a registration does not have. None: nobody asked.

    Raises:
        HomeDiffers: it has another one. The text names the flag.
    """
    if stake is not None and stake != known.stake:
        raise HomeDiffers(
            f"--stake: {token.format(known.stake)} are staked already. "
            "Anybody can add to it with addStake on the registry"
        )
    if owner is not None and owner != known.owner:
        raise HomeDiffers(
            f"--owner: the stake belongs to {address_hex(known.owner)}. It alone can hand it over, "
            "with offerOwner on the registry"
        )


def _remedy(there: WorkerConfig, differing: Mapping[str, Any]) -> str:
    """The commands that change settings to these, and what a person has to edit."""
    lines = []
    of_cards = {n: tables for n in differing if (tables := tables_with(there.cards, n))}
    pairs = {n: v for n, v in differing.items() if n != "payout" and n not in of_cards}
    if "payout" in differing:
        lines.append(f"piecework worker payout {differing['payout']}")
    if pairs:
        words = " ".join(f"{name} {shlex.quote(_as_text(v))}" for name, v in pairs.items())
        lines.append(f"piecework worker set {words}")
    for name, tables in of_cards.items():
        lines.append(f"edit {name} in {' and '.join(tables)}")
    return "; ".join(lines)


def _as_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple | list) else str(value)


def _is_so(settings: WorkerConfig, name: str, asked: Any, token: Token) -> bool:
    """Whether a setting says what is asked, in the tables of cards too."""
    if not tables_with(settings.cards, name):
        return _is_same(settings, name, asked, token)
    return all(_is_same(own, name, asked, token) for _, own in settings.of_cards)


def _is_same(settings: WorkerConfig, name: str, asked: Any, token: Token) -> bool:
    """Whether a setting says what is asked. An address may be written in any case, and an amount in
    any way."""
    there = getattr(settings, name)
    if name in AMOUNTS and there is not None:
        return base_units(settings, name, token) == token.parse_with_unit(asked)
    if isinstance(there, str) and isinstance(asked, str) and there.startswith("0x"):
        return there.lower() == asked.lower()
    return bool(there == asked)


def _once(there: bool, what: str, detail: str) -> RegistrationStep:
    return RegistrationStep(what, detail, not there)


async def owner_warning(reader: ChainReader, owner: Address) -> str | None:
    """Say if nobody may be able to act for the owner of a stake.

    An address that has sent transactions has a key in use, and one with code is a smart account.
    Any other may be a fresh cold wallet, or the deposit address of an exchange, which cannot call
    the registry.

    Raises:
        ChainError: the chain does not answer.
    """
    if await reader.code(owner) or await reader.sent_transactions(owner):
        return None
    return (
        f"the stake will belong to {address_hex(owner)}, which has never sent a transaction. Only "
        "its key can take the stake back. An exchange's address cannot: choose another with --owner"
    )


async def register(
    reader: ChainReader,
    operator: AsyncSigner,
    *,
    payout: Address,
    owner: Address,
    endpoint: str,
    stake: int | None,
    now: Timestamp,
    poll_s: float = 0.25,
) -> RegistrationStep:
    """Register with one transaction (permit, stake, registration), or say what is registered.

    `owner` controls the stake and gets it back.

    Raises:
        NotFunded: the operator key lacks stake or gas. The text says how much.
        ChainError: the chain does not answer, or refuses.
    """
    known = await reader.worker(operator.address)
    if known is not None:
        return await _refresh(reader, operator, known, endpoint, poll_s)
    needs = await reader.stake_requirements()
    amount = Amount(max(stake or 0, needs.min_stake))
    sender = TransactionSender.of(reader, operator)
    await _require_funds(reader, sender, needs.token, amount)
    deadline = Timestamp(max(now, await reader.timestamp()) + PERMIT_LIFETIME_S)
    permit = Permit(
        operator.address,
        reader.deployment.registry,
        Uint256(amount),
        await reader.permit_nonce(needs.token, operator.address),
        Uint256(deadline),
    )
    signed = await signed_permit(await reader.token_domain(needs.token), permit, operator)
    registration = Registration(
        operator=operator.address,
        owner=owner,
        payout=payout,
        stake=amount,
        endpoint=endpoint,
        nonce=await reader.registration_nonce(operator.address),
        deadline=deadline,
    )
    call = calls.register_with_permit(reader.deployment, registration, signed)
    mined = await sender.execute(call, poll_s=poll_s)
    shown = reader.deployment.payment_token.format(amount)
    return RegistrationStep("registration", f"in block {mined.block}, stake {shown}", True)


async def _refresh(
    reader: ChainReader,
    operator: AsyncSigner,
    known: RegisteredWorker,
    endpoint: str,
    poll_s: float,
) -> RegistrationStep:
    if endpoint and known.endpoint != endpoint:
        call = calls.set_endpoint(reader.deployment, operator.address, endpoint)
        mined = await TransactionSender.of(reader, operator).execute(call, poll_s=poll_s)
        return RegistrationStep(
            "registration", f"endpoint {endpoint} set in block {mined.block}", True
        )
    state = "active" if known.active else "not active"
    stake = reader.deployment.payment_token.format(known.stake)
    return RegistrationStep("registration", f"{state}, stake {stake}, {known.endpoint}", False)


async def _require_funds(
    reader: ChainReader, sender: TransactionSender, token: Address, stake: int
) -> None:
    operator, price = sender.signer.address, await sender.gas_price()
    held, coins = await reader.token_balance(token, operator), await sender.balance()
    lacking = []
    if held < stake:
        missing = reader.deployment.payment_token.format(stake - held)
        lacking.append(f"{missing} for the stake (token {address_hex(token)})")
    # With less there is nothing left to settle with, and the worker would take no job.
    wanted = REGISTER_GAS * price.wei_per_gas + RESERVE_SETTLEMENTS * settle_wei(price)
    if coins < REGISTER_GAS * price.wei_per_gas:
        missing = native_coin().format(wanted - coins)
        lacking.append(f"{missing} for gas, the coin of chain {reader.deployment.chain_id}")
    if lacking:
        free = reader.deployment.chain_id in DEVELOPMENT_CHAIN_IDS
        raise NotFunded(
            f"the operator {address_hex(operator)} lacks {' and '.join(lacking)}. "
            f"Send it there, then run this again{'. Or add --faucet' if free else ''}"
        )
