"""Making a worker's home and registering it: what `piecework worker init` and the demo do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from piecework.chain.deployment import Deployment
from piecework.chain.dev.faucet import take_from_faucet
from piecework.signer.place import socket_path
from piecework.signer.remote import signer_at
from piecework_node import config as settings
from piecework_node.config import WorkerConfig
from piecework_node.daemon.assembly import connect
from piecework_node.home import Home
from piecework_node.keys.operator import close_operator, open_operator
from piecework_node.operations import registration
from piecework_node.operations.registration import RegistrationStep
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address, Amount, Timestamp, address_hex


@dataclass(frozen=True, slots=True)
class NewStake:
    """The stake that a worker registers with.

    Attributes:
        amount: In base units. None: the least that the registry takes.
        owner: Whose it is. None: the payout address.
        faucet: Whether stake and gas come from the faucet of a development chain.
        doubt: Told before the transaction if the stake may be out of reach for its owner. It may
            raise. None: that is among the warnings.
    """

    amount: int | None = None
    owner: Address | None = None
    faucet: bool = False
    doubt: Callable[[str], None] | None = None


async def set_up_worker(
    home: Home,
    deployment_file: Path,
    values: Mapping[str, Any],
    password: str,
    stake: NewStake | None,
    *,
    asked: Collection[str] = (),
    flags: Mapping[str, str] = MappingProxyType({}),
    file_is_asked: bool = False,
) -> dict[str, Any]:
    """Write the files and keys of a home, then register the worker with one transaction.

    `values` are settings for a new home. `asked` names those that a home which is there must have
    as well. `stake`: None registers nobody. `flags` are how a person writes settings.
    `file_is_asked`: the deployment file is a person's. It is safe to run again.

    Raises:
        PieceworkError: a file, a setting or the chain is in the way. The message says which.
    """
    now = Timestamp(int(time.time()))
    deployment = Deployment.load(deployment_file)
    await asyncio.to_thread(
        registration.check_asked,
        home,
        deployment,
        {n: values[n] for n in asked if n in values},
        flags=flags,
        file=file_is_asked,
    )
    remote = await _remote_operator(home, deployment, values)
    steps = await asyncio.to_thread(
        registration.prepare_home, home, deployment, values, password, now, remote=remote
    )
    config = settings.load(home.root)
    operator = await open_operator(home.operator, config.signer, password, deployment)
    warnings: list[str] = []
    try:
        if stake is not None:
            step, warnings = await _register(home, config, operator, stake, now)
            steps.append(step)
    finally:
        await close_operator(operator)
    return {
        "operator": address_hex(operator.address),
        "payout": address_hex(config.receiver),
        "home": str(home.root),
        "steps": [asdict(step) for step in steps],
        "warnings": warnings,
    }


async def _remote_operator(
    home: Home, deployment: Deployment, values: Mapping[str, Any]
) -> Address | None:
    """Ask the signer of a home for its operator, unless the home names one already."""
    if home.operator.is_file():
        return None
    known = settings.load(home.root).signer if home.config.is_file() else values.get("signer", "")
    return await signer_at(socket_path(known), deployment) if known else None


async def _register(
    home: Home,
    config: WorkerConfig,
    operator: AsyncSigner,
    stake: NewStake,
    now: Timestamp,
) -> tuple[RegistrationStep, list[str]]:
    """Register, or see what is registered. Returns the step and what the owner should know."""
    deployment, owner = Deployment.load(home.deployment), stake.owner or config.receiver
    async with await connect(config, deployment) as reader:
        warnings = list(reader.warnings)
        known = await reader.worker(operator.address)
        if known is not None:
            token = deployment.payment_token
            registration.check_registered(known, stake=stake.amount, owner=stake.owner, token=token)
        else:
            if owner != operator.address:  # a new key of ours has sent nothing either
                found = await registration.owner_warning(reader, owner)
                if found is not None and stake.doubt is not None:
                    stake.doubt(found)  # here: a thread would not see Ctrl-C
                elif found is not None:
                    warnings.append(found)
            if stake.faucet:
                needs = await reader.stake_requirements()
                wanted = Amount(max(stake.amount or 0, needs.min_stake))
                await take_from_faucet(reader.rpc, needs.token, operator.address, wanted)
        step = await registration.register(
            reader,
            operator,
            payout=config.receiver,
            owner=owner,
            endpoint=config.first_address,
            stake=stake.amount,
            now=now,
        )
        return step, warnings
